"""The tools loaded as modules, and what those that run others would run."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def command_behind(path: Path) -> str | None:
    """The module of the package that a script in tools/ runs; None if it has code of its own."""
    found = re.search(
        r'^from (freeatm_mm\.cli\.\w+) import main$', path.read_text(encoding='utf-8'), re.M
    )
    return found and found[1]


def load_tool(name: str) -> ModuleType:
    """`tools/<name>.py` as a module, or that behind it; `name` may have a folder in front."""
    if behind := command_behind(ROOT / 'tools' / f'{name}.py'):
        return importlib.import_module(behind)
    spec = importlib.util.spec_from_file_location(
        f'{name.replace("/", "_")}_tool', ROOT / 'tools' / f'{name}.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tool(name: str, *words: object) -> int:
    """Run a tool in this process with these arguments and return its exit code."""
    return exit_code(load_tool(name), words)


def exit_code(tool: ModuleType, words: Iterable[object]) -> int:
    """What a tool would end with, had it been started with these arguments."""
    try:
        return tool.main([str(word) for word in words])
    except SystemExit as ended:
        return ended.code


def planned(tool: ModuleType, capsys, *options: str) -> list[list[str]]:
    """The words of each command that a dry run prints, without the leading python."""
    capsys.readouterr()  # what importing a framework may have printed
    tool.main(['--dry-run', *options])
    *lines, last = capsys.readouterr().out.strip().splitlines()
    assert last == f'{len(lines)} commands'
    return [shlex.split(line.split(': ', 1)[1])[1:] for line in lines]

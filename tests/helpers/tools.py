"""The tools loaded as modules, and what those that run others would run."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load_tool(name: str) -> ModuleType:
    """`tools/<name>.py` as a module; `name` may have a folder in front."""
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

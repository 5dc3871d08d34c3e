"""Processes for the commands of a long job: each of its own, its imports its own or shared.

Importing PyTorch and OpenMMLab takes seconds of a processor, for every command anew. A process that
has imported them once can be forked for each command instead: what a command does, its exit code
and its crashes stay its own.
"""

from __future__ import annotations

import atexit
import io
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection

__all__ = ['PRETRAINING', 'can_share_imports', 'run_command', 'run_with_imports']

PRETRAINING = (
    'freeatm_mm.openmmlab',
    'freeatm_mm.engine.runner',
    'freeatm_mm.miniature.garments',
    'freeatm_mm.probing.features',
)
"""What pretraining and evaluating a backbone import."""


def can_share_imports() -> bool:
    """Whether processes can be forked from one that has imported things: on Linux.

    macOS has the call, but its own libraries don't survive it.
    """
    return sys.platform == 'linux' and 'forkserver' in multiprocessing.get_all_start_methods()


def run_command(tool: str, arguments: Sequence[str], label: str = '') -> int:
    """Run a Python file with the Python that runs this, and return its exit code.

    Args:
        tool: The file.
        arguments: Its command line.
        label: Put in brackets before each line that it prints; without one, it prints as ever.
    """
    command = [sys.executable, tool, *arguments]
    if not label:
        return subprocess.run(command, check=False).returncode
    environment = {**os.environ, 'PYTHONUNBUFFERED': '1'}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        env=environment,
    ) as process:
        assert process.stdout is not None
        _print_labelled(process.stdout, label)
    return process.returncode


def run_with_imports(
    tool: str, arguments: Sequence[str], label: str, imports: Sequence[str] = PRETRAINING
) -> int:
    """Do what `run_command` does, in a process forked from one that has imported modules.

    The first call of a program imports them, with the environment of that moment; later calls
    share what the first one imported.

    Args:
        tool: The file.
        arguments: Its command line.
        label: Put in brackets before each line that it prints.
        imports: The modules.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(list(imports))
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(
        target=_as_program, args=([tool, *arguments], sys.path, os.getcwd(), writer), daemon=False
    )
    process.start()
    writer.close()
    with os.fdopen(os.dup(reader.fileno()), errors='replace') as lines:
        reader.close()
        _print_labelled(lines, label)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _as_program(command: list[str], path: list[str], folder: str, output: Connection) -> None:
    """Run a Python file as if it had been started."""
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    output.close()
    # New ones, as those of the forked process may have been files, which pipes are not.
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(open(number, 'wb', 0, closefd=False), errors=errors, write_through=True)
        for number, errors in ((1, 'strict'), (2, 'backslashreplace'))
    )
    os.chdir(folder)
    sys.argv, sys.path[:] = command, [os.path.dirname(os.path.abspath(command[0])), *path[1:]]
    try:
        runpy.run_path(command[0], run_name='__main__')
    finally:
        atexit._run_exitfuncs()  # which a forked process leaves out


def _print_labelled(lines: Iterable[str], label: str) -> None:
    for line in lines:
        print(f'[{label}] {line}', end='', flush=True)

"""How far a long piece of work is: a bar in a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

__all__ = ['progress_bar']

#: Seconds between two lines in a file or pipe.
LINE_INTERVAL = 60.0


class _Lines:
    """A file to which tqdm's states are written as lines, not each over the one before."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> None:
        if text := text.strip():
            self._file.write(f'{text}\n')


def progress_bar(*args: Any, **settings: Any) -> tqdm:
    """Return `tqdm(*args, **settings)` on stderr, which keeps logs short and readable.

    Where stderr is no terminal, the state is a line of its own at the start, once a minute and at
    the end.

    Args:
        args: tqdm's own.
        settings: tqdm's own.
    """
    if sys.stderr is None or sys.stderr.isatty():
        return tqdm(*args, **settings)
    lines = {'mininterval': LINE_INTERVAL, 'maxinterval': LINE_INTERVAL, 'ascii': True}
    return tqdm(*args, **{**settings, **lines, 'file': _Lines(sys.stderr)})

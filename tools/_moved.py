"""Old paths of tools, kept for one release: each runs the tool at its new place."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

__all__ = ['run_moved']

_TOOLS = Path(__file__).resolve().parent


def run_moved(place: str) -> None:
    """Run the tool at `place` below tools/ with the arguments of this process, and say where it is.

    Args:
        place: Such as `store/verify.py`.
    """
    old, new = Path(sys.argv[0]).name, _TOOLS / place
    print(f'{old}: this tool is now tools/{place}', file=sys.stderr)
    sys.path[0] = os.fspath(new.parent)  # as if it had been started there
    sys.argv[0] = os.fspath(new)
    runpy.run_path(sys.argv[0], run_name='__main__')

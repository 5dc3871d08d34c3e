"""Paths on a command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from freeatm_mm.addresses import is_address

__all__ = ['path_here']


def path_here(text: str) -> Path:
    """Read the path of a file or folder of this machine.

    Raises:
        argparse.ArgumentTypeError: If it is an address, or empty.
    """
    if not text:
        raise argparse.ArgumentTypeError('it is empty, and a file or folder is needed')
    if is_address(text):
        raise argparse.ArgumentTypeError(
            f'{text} is an address, and a file or folder of this machine is needed: copy it here '
            'first'
        )
    return Path(text)

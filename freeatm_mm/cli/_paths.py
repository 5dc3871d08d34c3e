"""Paths on a command line."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from freeatm_mm.addresses import file_here, is_address
from freeatm_mm.errors import InputError

__all__ = ['path_here', 'path_option', 'path_to_read']


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


def path_to_read(text: str) -> Path:
    """Read the path of a file to read; one at an address is copied into the cache.

    Raises:
        argparse.ArgumentTypeError: If it can't be copied.
    """
    try:
        return file_here(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path_option(key: str, path: str | Path) -> str:
    """Return `KEY=VALUE` of ``--options`` for a path, whose value is read as yaml.

    Args:
        key: Of the yaml.
        path: The path; quoted if yaml would read anything else.
    """
    text = str(path)
    if not re.fullmatch(r'[\w./-]*/[\w./-]*', text):
        text = json.dumps(text.replace('${', r'\${'), ensure_ascii=False)  # no reference
    return f'{key}={text}'

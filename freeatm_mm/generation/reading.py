"""Reading files that come from others, with limits: JSON, and JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ['MAX_CONFIG', 'MAX_LINE', 'parse_json', 'read_json', 'read_lines']

#: Bytes of the largest configuration that is read.
MAX_CONFIG = 1 << 22
#: Bytes of the longest line that is read.
MAX_LINE = 1 << 20


def read_json(path: Path, limit: int = MAX_CONFIG) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: If it is no plain file, has more than ``limit`` bytes or isn't JSON; names the
            file.
    """
    if not path.is_file():
        raise ValueError(f'{path} is not a plain file')
    with path.open('rb') as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f'{path} has more than the {limit:,} bytes that such a file may have')
    try:
        return parse_json(data)
    except ValueError as error:
        raise ValueError(f'{path} is corrupt: {error}') from None


def parse_json(data: bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: If it isn't JSON, isn't UTF-8 or is nested too deeply.
    """
    try:
        return json.loads(data.decode('utf-8-sig'))  # by itself, json guesses at UTF-16 and 32
    except RecursionError:
        raise ValueError('it is nested too deeply') from None
    except UnicodeDecodeError as error:
        raise ValueError(f'it is not UTF-8 ({error.reason} at byte {error.start})') from None
    except ValueError as error:
        raise ValueError(f'it is not JSON ({error})') from None


def read_lines(file: BinaryIO, limit: int = MAX_LINE) -> Iterator[bytes]:
    """Yield the lines of an open file.

    Raises:
        ValueError: If a line has more than ``limit`` bytes.
    """
    while line := file.readline(limit + 1):
        if len(line) > limit:
            raise ValueError(f'the line has more than {limit:,} bytes')
        yield line

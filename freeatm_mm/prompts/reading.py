"""Reading what may be anything: only regular files, and no line, text or depth without a limit."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from freeatm_mm import files

__all__ = ['check_text_encoding', 'excerpt', 'load_json', 'open_regular', 'read_lines', 'read_text']

#: A longer line may be passed over, but only up to so many bytes are looked through for its end.
LONGEST_SKIPPED = 1 << 26


def open_regular(path: str | Path, what: str) -> BinaryIO:
    """Open a file for reading that must be a regular one; never waits for a pipe.

    Args:
        path: The file; a link to one is followed.
        what: What the file should be, for messages (``'prompt file'``).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, a pipe, a device or a socket, or can't be opened.
    """
    return os.fdopen(files.open_regular(path, what), 'rb')


def read_lines(file: BinaryIO, name: str | Path, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield the lines of a file with their numbers from 1, without their ends.

    A byte-order mark before the first is left out. A line of more than ``limit`` bytes is ``None``.

    Raises:
        ValueError: If a line doesn't end within 64 MiB, so that this is no file of lines.
    """
    number = 0
    while line := file.readline(limit + 2):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line.rstrip(b'\r\n')) <= limit and (line.endswith(b'\n') or len(line) <= limit):
            yield number, line.rstrip(b'\r\n')
            continue
        length = len(line)
        while not line.endswith(b'\n') and (line := file.readline(1 << 20)):
            length += len(line)
            if length > LONGEST_SKIPPED:
                raise ValueError(
                    f'{name}, line {number}: has no end within '
                    f'{LONGEST_SKIPPED >> 20} MiB; this is no file of lines'
                )
        yield number, None


def check_text_encoding(start: bytes) -> None:
    """Refuse a text file whose first bytes say that it isn't UTF-8.

    Raises:
        ValueError: If they are a byte-order mark of UTF-16 or UTF-32.
    """
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise ValueError('is UTF-16 or UTF-32; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)')


def read_text(path: str | Path, what: str, limit: int = 1 << 20) -> str:
    """Read a small text file whole.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no regular file, has more than ``limit`` bytes or isn't UTF-8.
    """
    with open_regular(path, what) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f'{path} has more than {limit:,} bytes; is it the {what}?')
    try:
        check_text_encoding(data[:4])
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not UTF-8 ({error.reason} at byte {error.start})') from None
    except ValueError as error:
        raise ValueError(f'{path} {error}') from None


def load_json(text: str | bytes) -> Any:
    """Read JSON that may be nested for ever.

    Raises:
        ValueError: If it is not JSON, or nested too deep; the message is one line.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode('utf-8-sig')
        except UnicodeDecodeError as error:
            raise ValueError(f'not UTF-8 ({error.reason} at byte {error.start})') from None
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError('JSON that is nested too deep') from None
    except json.JSONDecodeError as error:
        raise ValueError(f'not valid JSON ({error.msg} at character {error.pos + 1})') from None
    except ValueError:  # an integer of thousands of digits
        raise ValueError('not valid JSON (a number of too many digits)') from None


def excerpt(value: object, length: int = 80) -> str:
    """Return a short form of anything for a message, on one line, in quotes."""
    if isinstance(value, bytes):
        value = value[: 8 * length].decode('utf-8', 'replace')
    if isinstance(value, str):
        text = ' '.join(value[: 8 * length].split())
        cut = len(value) > 8 * length
    else:
        try:
            text, cut = json.dumps(value, default=lambda _: '...')[: 8 * length], False
        except (ValueError, RecursionError, TypeError):
            text, cut = type(value).__name__, False
    if len(text) > length:
        text, cut = text[:length].rstrip(), True
    return repr(text + ('...' if cut else ''))

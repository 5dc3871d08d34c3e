"""Reading files that may be anything, and writing them whole or not at all.

Reading: plain files only (never a pipe or device, which could be waited for), up to a limit, and
JSON that means one thing. Whatever is wrong is one sentence that names the file. Writing: a killed
process leaves the old file or the new one, never half of one, and no link is written through.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from freeatm_mm.errors import InputError, MissingFileError, is_distant

__all__ = [
    'IMAGE_ENDINGS',
    'MAX_BYTES',
    'MAX_DEPTH',
    'MAX_LINE',
    'atomic_write',
    'check_json',
    'check_replaceable',
    'file_sha256',
    'handle_sha256',
    'lines_of',
    'open_in_place',
    'open_regular',
    'parse_json',
    'path_inside',
    'read_bytes',
    'read_json',
    'read_lines',
    'read_text',
    'sync_folder',
]

#: Endings of images' names, in lower case.
IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.jfif')
#: A text or JSON file of more bytes than this is refused, unless the caller sets another limit.
MAX_BYTES = 1 << 28
#: A line of more bytes than this is refused, unless the caller sets another limit.
MAX_LINE = 1 << 24
#: JSON nested more deeply than this is refused.
MAX_DEPTH = 128

_BOM = b'\xef\xbb\xbf'


# --- reading ----------------------------------------------------------------------------------


def open_regular(path: str | Path, what: str = '') -> int:
    """Open a file for reading and return its handle; a pipe or device is refused, not waited for.

    Args:
        path: The file; a link to one is followed.
        what: What it should be, for messages, such as 'prompt file'.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it can't be opened or is no plain file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise MissingFileError.of(what or 'file', path) from None
    except OSError as error:
        named = f'the {what} {path}' if what else path
        raise InputError(f"{named} can't be opened ({error.strerror})") from None
    except ValueError as error:  # a zero byte, or a character that no file name can have
        raise InputError(f"{str(path)!r} can't be the name of a file ({error})") from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if what:
            raise InputError(f'{path} is {_kind(mode)}, not a {what}')
        raise InputError(f'{path} is no plain file but {_kind(mode)}')
    return handle


def read_bytes(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """Read a plain file whole.

    Args:
        path: The file.
        limit: Most bytes that it may have.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is no plain file, can't be read, or is larger than ``limit``.
    """
    with os.fdopen(open_regular(path), 'rb') as file:
        try:
            too_large = os.fstat(file.fileno()).st_size > limit
            # Files that grow, and those of /proc, have more bytes than their size says.
            data = b'' if too_large else file.read(limit + 1)
        except OSError as error:
            raise InputError(f"{path} can't be read ({error.strerror})") from None
    if too_large or len(data) > limit:
        raise InputError(f'{path} has more than the {limit} bytes that such a file may have')
    return data


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a plain file, read in pieces.

    Raises:
        InputError: If it can't be opened or is no plain file.
        OSError: If it can't be read.
    """
    handle = open_regular(path)
    try:
        return handle_sha256(handle)
    finally:
        os.close(handle)


def handle_sha256(handle: int) -> str:
    """Hex sha256 of an open file, from its start."""
    digest = hashlib.sha256()
    position = 0
    while piece := os.pread(handle, 1 << 20, position):
        digest.update(piece)
        position += len(piece)
    return digest.hexdigest()


def read_text(path: str | Path, limit: int = MAX_BYTES) -> str:
    """Read a text file, as UTF-8; a byte-order mark at the start is passed over.

    Args:
        path: The file.
        limit: Most bytes that it may have.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is no plain file, too large, or not UTF-8.
    """
    try:
        return _decode(read_bytes(path, limit))
    except _NotJSON as error:
        raise InputError(f'{path} is not UTF-8 text: {error}') from None


def read_lines(path: str | Path, limit: int = MAX_LINE) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of each line of a UTF-8 file, one in memory at a time.

    Args:
        path: The file, of any size.
        limit: Most bytes that a line may have.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is no plain file, or a line is too long or not UTF-8; names file and line.
    """
    with os.fdopen(open_regular(path), 'rb') as file:
        yield from lines_of(file, path, limit)


def lines_of(file: BinaryIO, path: str | Path, limit: int = MAX_LINE) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of each line, as `read_lines`, of a file that is open.

    Before each line, `file.tell()` is where it begins.

    Args:
        file: The file at its start.
        path: Its name, for messages.
        limit: Most bytes that a line may have.

    Raises:
        InputError: If a line is too long or not UTF-8; names file and line.
    """
    number = 0
    while True:
        try:
            line = file.readline(limit + 2)
        except OSError as error:
            raise InputError(f"{path} can't be read ({error.strerror})") from None
        if not line:
            return
        number += 1
        if len(line.rstrip(b'\r\n')) > limit:
            raise InputError(f'{path}, line {number}: it has more than {limit} bytes')
        try:
            text = _decode(line) if number == 1 else line.decode()
        except _NotJSON as error:
            raise InputError(f'{path}, line {number}: it is not UTF-8 text: {error}') from None
        except ValueError:
            raise InputError(f'{path}, line {number}: it is not UTF-8 text') from None
        yield number, text.rstrip('\r\n')


def read_json(
    path: str | Path, limit: int = MAX_BYTES, shape: Any = None, *, finite: bool = True
) -> Any:
    """Read a JSON file that may come from anywhere.

    Args:
        path: The file.
        limit: Most bytes that it may have.
        shape: What it must look like (see `check_json`); anything by default.
        finite: As for `parse_json`.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is no plain file, too large, no JSON as `parse_json` reads it, or
            of another shape; names the file and the entry.
    """
    data = read_bytes(path, limit)
    try:
        value = parse_json(data, finite=finite)
    except ValueError as error:
        raise InputError(f'{path} is not JSON: {error}') from None
    if shape is not None:
        check_json(value, shape, str(path))
    return value


def parse_json(data: bytes | str, *, finite: bool = True) -> Any:
    """Parse JSON that may come from anywhere, and that everybody reads alike.

    Args:
        data: The text.
        finite: Whether to refuse numbers that are none or infinite, which some programs write.

    Raises:
        InputError: If it is no JSON, isn't UTF-8, is nested more than `MAX_DEPTH` deep, has a
            key twice, a number that is none (NaN) or larger than any float (1e999), or half of a
            surrogate pair, which no file can hold.
    """
    if isinstance(data, bytes):
        text = _decode(data)
    else:
        text = data.removeprefix('\ufeff')
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=_number if finite else float,
            parse_constant=_number if finite else float,
        )
    except RecursionError:
        raise _NotJSON('it is nested too deeply') from None
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise _NotJSON(str(error) if text.strip() else 'it is empty') from None
    except ValueError as error:  # an integer of thousands of digits
        raise _NotJSON(str(error).partition(';')[0]) from None
    # Looked at in detail only where there can be something to find.
    if (
        text.count('[') + text.count('{') > MAX_DEPTH
        or '\\u' in text
        or isinstance(data, str)
        and not data.isascii()
    ):
        _check_depth_and_text(value)
    return value


def check_json(value: Any, shape: Any, where: str) -> None:
    """Check the types of a value read from JSON.

    Args:
        value: The value.
        shape: A type (``str``, ``bool``, ``int``, ``float``, which integers fit as well, ``dict``,
            ``list``, ``None``, ``object`` for anything), a tuple of shapes of which one must fit,
            ``[shape]`` for a list of such, or ``{'name': shape}`` for an object with at least these
            fields; ``'name?'`` may be absent.
        where: Name of the file, for the message; may be empty.

    Raises:
        InputError: If it doesn't fit; names the entry.
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            _misfit(value, 'an object', where)
        for name, inner in shape.items():
            field = name.removesuffix('?')
            if field in value:
                check_json(value[field], inner, f'{where}: {field}' if where else field)
            elif field == name:
                raise InputError(f'{where}{": " if where else ""}the field {field!r} is missing')
    elif isinstance(shape, list):
        if not isinstance(value, list):
            _misfit(value, 'a list', where)
        for number, element in enumerate(value):
            check_json(element, shape[0], f'{where}[{number}]')
    elif isinstance(shape, tuple):
        if not any(_fits(value, inner) for inner in shape):
            _misfit(
                value,
                ' or '.join(
                    _NAMES.get(inner, 'something else')
                    for inner in shape
                    if not isinstance(inner, (list, dict))
                ),
                where,
            )
    elif not _fits(value, shape):
        _misfit(value, _NAMES[shape], where)


_NAMES = {
    str: 'text',
    int: 'an integer',
    float: 'a number',
    bool: 'true or false',
    dict: 'an object',
    list: 'a list',
    None: 'null',
    object: 'anything',
}


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, (dict, list, tuple)):
        try:
            check_json(value, shape, '')
        except InputError:
            return False
        return True
    if shape is None:
        return value is None
    if isinstance(value, bool):
        return shape in (bool, object)
    return isinstance(value, (int, float) if shape is float else shape)


def _misfit(value: Any, expected: str, where: str) -> NoReturn:
    found = repr(value)
    raise InputError(
        f'{where or "it"} must be {expected}, got '
        f'{found if len(found) <= 60 else found[:57] + "..."}'
    )


class _NotJSON(InputError):
    """What is wrong with a text, without the name of the file."""


def _decode(data: bytes) -> str:
    """Bytes as text, without a byte-order mark."""
    try:
        return data.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        what = 'it is UTF-16' if data[:2] in (b'\xff\xfe', b'\xfe\xff') else error.reason
        raise _NotJSON(f'{what} (byte {error.start}); save it as UTF-8') from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _NotJSON(f'the key {key[:60]!r} is there twice')
            seen.add(key)
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _NotJSON(f'{text[:20]} is no number that can be used')
    return value


def _check_depth_and_text(value: Any) -> None:
    """Refuse what is nested too deeply, and halves of surrogate pairs, keys included."""
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if not item.isascii():
                    _check_text(item)
            elif isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
        depth += any(isinstance(item, (dict, list)) for item in level)
        if depth > MAX_DEPTH:
            raise _NotJSON(f'it is nested too deeply (more than {MAX_DEPTH} levels)')
        level = below


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _NotJSON('it holds half of a surrogate pair (\\ud800 to \\udfff)') from None


def _kind(mode: int) -> str:
    """What a file is that is no plain one."""
    for test, name in (
        (stat.S_ISDIR, 'a folder'),
        (stat.S_ISLNK, 'a symbolic link'),
        (stat.S_ISFIFO, 'a pipe'),
        (stat.S_ISSOCK, 'a socket'),
    ):
        if test(mode):
            return name
    return 'a device'


def path_inside(folder: Path, name: str) -> Path:
    """The path of a file that data names, within a folder.

    Args:
        folder: The folder.
        name: As the data has it, with folders or without.

    Raises:
        InputError: If it leads out of it, or can't be a name.
    """
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # a zero byte, links in a circle
        raise InputError(f"{name[:80]!r} can't be the name of a file ({error})") from None
    if not inside:
        raise InputError(f'the name {name!r} leads out of {folder}')
    return path


# --- writing ----------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that appears under ``path`` only when the block ends without an error.

    The bytes go to a new temporary file in the same folder, are flushed to disk, and the file is
    renamed. After an error or a kill, what stood under ``path`` before is untouched. A link under
    ``path``, symbolic or hard, is replaced and not written through.

    Args:
        path: The file to write; its folder is made if missing.

    Yields:
        The open temporary file.

    Raises:
        InputError: If ``path`` is a folder, or an address.
    """
    check_target(path)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own length would make a long one too long.
    handle, name = tempfile.mkstemp(prefix=f'.{path.name[:50]}.', suffix='.tmp', dir=path.parent)
    try:
        with os.fdopen(handle, 'wb') as file:
            yield file
            file.flush()
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(file.fileno(), 0o666 & ~umask)  # mkstemp lets only the owner read
            os.fsync(file.fileno())
            os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def check_target(path: str | Path) -> None:
    """Refuse what `atomic_write` can't write; to be told before there is something to write.

    Raises:
        InputError: If ``path`` is a folder, or an address.
    """
    if is_distant(path):
        raise InputError(f"{path} is an address, and can't be written to: name a file here")
    if os.path.isdir(path) and not os.path.islink(path):
        raise InputError(f'{path} is a folder, where a file is to be written')


def check_replaceable(path: str | Path, what: str, mark: str = '', empty: str = '') -> None:
    """Refuse a file to write that is there already, unless it is an earlier one of its kind.

    Args:
        path: The file to write.
        what: What files of its kind are, for messages, such as 'a page of freeatm view'.
        mark: What the first 64 KiB of such files hold; without it, no file is replaced.
        empty: The whole content, but for space around it, of one that has nothing to hold.

    Raises:
        InputError: If it would take the place of another file, or of what is no plain file.
    """
    if not os.path.exists(path):
        return
    with os.fdopen(open_regular(path), 'rb') as file:
        start = file.read(1 << 16)
    if not mark or start.strip() not in (b'', empty.encode()) and mark.encode() not in start:
        other = f' and is not {what}' if mark else f', and {what} replaces nothing'
        raise InputError(f'{path} is there already{other}: name another file, or remove that one')


def open_in_place(path: str | Path, append: bool = False) -> BinaryIO:
    """Open a file to read it and to write into it where it is, made if missing.

    For journals and counters. What is only another name of a file elsewhere is not written to.

    Args:
        path: The file; its folder must be there.
        append: Write at the end always, as mode ``'a+b'`` does; without it, as ``'r+b'`` does.

    Raises:
        InputError: If it is a link, symbolic or hard, no plain file, or can't be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    flags |= os.O_APPEND if append else 0
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if os.path.islink(path):
            raise InputError(
                f'{path} is a symbolic link, and links are not written through: remove it'
            ) from None
        raise InputError(f"{path} can't be opened to write ({error.strerror})") from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise InputError(f'{path} is no plain file but {_kind(status.st_mode)}: remove it')
    if status.st_nlink > 1:
        os.close(handle)
        raise InputError(
            f'{path} is a hard link: the same file has another name, under which it '
            'would be changed as well; copy it'
        )
    return os.fdopen(handle, 'a+b' if append else 'r+b')


def sync_folder(folder: str | Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

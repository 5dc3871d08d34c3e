"""Rows of caption files in the formats in which they are handed round, one at a time.

JSON (a list, COCO's, Visual Genome's, Karpathy's, SBU's), JSON lines, CSV, TSV, plain lines,
Parquet, tar shards and folders of any of them, packed with gzip, bzip2, xz, zstd or zip. What a
file is, its content decides where it can, and its name where not.

One row that can't be read is a row with a problem; the file goes on after it.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from freeatm_mm.errors import counted, first_line, pip_install
from freeatm_mm.files import IMAGE_ENDINGS
from freeatm_mm.prompts.reading import (
    check_text_encoding,
    excerpt,
    load_json,
    open_regular,
    read_lines,
)

__all__ = ['TEXT_FIELDS', 'Row', 'read_rows', 'source_state']

#: Bytes of a file's beginning and end that tell whether it is the same one.
_COMPARED = 1 << 16

#: The fields that hold a caption, in any case; the first of them counts.
TEXT_FIELDS = (
    'caption',
    'text',
    'title',
    'phrase',
    'sentence',
    'raw',
    'raw_caption',
    'captions',
    'texts',
    'sentences',
    'sentences_raw',
    'raw_text',
    'alt_text',
    'alt',
    'alttext',
    'description',
    'prompt',
    'comment',
)
#: The longest line or row, in bytes.
LONGEST_ROW = 400_000
#: The longest item of a JSON file, in bytes: an image of Visual Genome with all its regions.
LONGEST_ITEM = 1 << 24
#: The most lines of one row of a CSV file.
MOST_LINES = 50
#: Fields that stand beside them in a table.
_OTHER_FIELDS = frozenset(
    (
        'image',
        'image_name',
        'image_id',
        'image_path',
        'filename',
        'file_name',
        'filepath',
        'file',
        'path',
        'url',
        'image_url',
        'id',
        'key',
        'comment_number',
        'split',
    )
)
_ADDRESS = ('http://', 'https://')
_IMAGE = re.compile(r'\S+\.(?:jpe?g|png|webp|gif|bmp)(?:#\d+)?', re.IGNORECASE)
_TEXTS = ('.json', '.jsonl', '.ndjson', '.csv', '.tsv', '.txt')
_PACKED = {
    '.gz': b'\x1f\x8b',
    '.bz2': b'BZh',
    '.xz': b'\xfd7zXZ',
    '.zst': b'\x28\xb5\x2f\xfd',
    '.zip': b'PK',
}
_WRONG_FILE = (
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    EOFError,
)


@dataclass(frozen=True)
class Row:
    """A row of a caption file.

    Args:
        number: Its number from 1: of the line, or of the item.
        place: Where it stands, for messages.
        value: An object's fields, a caption alone, or ``None``.
        problem: Why there is no value.
        order: Of two columns without names, 0 if the caption is the first, 1 if the address is.
        part: Its number from 1 among the rows that one item of that number holds, if there are
            several.
    """

    number: int
    place: str
    value: dict[str, Any] | str | None
    problem: str = ''
    order: int | None = None
    part: int | None = None


def read_rows(path: str | Path, fields: Collection[str] = ()) -> Iterator[Row]:
    """Yield the rows of a caption file or of a folder of them.

    In a folder, images' captions may be ``.txt`` or ``.json`` files beside them; of several files
    of one name the first of ``.parquet``, ``.tar``, ``.json`` and ``.txt`` is read. Links in a
    folder, and what in it can't be read, are rows with a problem.

    Args:
        path: The file or folder.
        fields: Names, in lower case, of further fields that are wanted of every row. Of a Parquet
            file only captions, ids and these are loaded (but no bytes and no arrays of numbers,
            which are images); regions and sentences have those of the item that they stand in.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is none of these formats, damaged, or no regular file.
    """
    path = Path(path)
    if path.is_dir():
        return _folder_rows(path, fields)
    return _file_rows(path, path, fields)


def source_state(path: str | Path) -> str:
    """Say in a few words what a file or folder of captions is, to tell whether it has changed.

    By names and sizes, and of a single file by its beginning and end: no whole file is read.

    Args:
        path: As for `read_rows`.
    """
    path, state, count = Path(path), hashlib.sha256(), 0
    if not path.is_dir():
        with open_regular(path, 'caption file') as file:
            size = os.fstat(file.fileno()).st_size
            state.update(file.read(_COMPARED))
            file.seek(max(0, size - _COMPARED))
            state.update(file.read(_COMPARED))
        return f'{size:,} bytes, {state.hexdigest()[:16]}'
    for where, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(filter(_may_hold_captions, names)):
            found = Path(where, name)
            size = 0 if found.is_symlink() else found.stat().st_size
            state.update(json.dumps([str(found.relative_to(path)), size]).encode())
            count += 1
    return f'{counted(count, "file")}, {state.hexdigest()[:16]}'


def _file_rows(
    path: Path, name: Path, fields: Collection[str], small: bool = False, of_image: bool = False
) -> Iterator[Row]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_regular(path, 'caption file'))
            file, inner = _unpacked(file, name, stack)
            yield from _rows_of(file, name, inner, fields, small, of_image)
        except _WRONG_FILE as error:
            raise ValueError(f'{name} is damaged: {error}') from None
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"{name} is damaged or can't be read: {error}") from None


def _unpacked(file: BinaryIO, name: Path, stack: ExitStack) -> tuple[BinaryIO, str]:
    """Look through what a file is packed with; gives the name of what is inside."""
    inner = name.name.lower()
    stream: Any = file  # the packers' readers have no type in common
    for _ in range(3):
        buffered = io.BufferedReader(stream, 1 << 16) if not hasattr(stream, 'peek') else stream
        start = buffered.peek(8)[:8]
        ending = os.path.splitext(inner)[1]
        packed = next((key for key, magic in _PACKED.items() if start.startswith(magic)), None)
        if packed is None and ending in _PACKED:
            raise ValueError(f"{name} is damaged: it doesn't begin as a {ending} file does")
        if packed is None:
            return buffered, inner
        if packed == '.zip':
            stream, inner = _zip_member(buffered, name, stack)
            continue
        if packed == '.gz':
            stream = gzip.GzipFile(fileobj=buffered, mode='rb')
        elif packed == '.bz2':
            stream = bz2.BZ2File(buffered)
        elif packed == '.xz':
            stream = lzma.LZMAFile(buffered)
        else:
            stream = io.BufferedReader(_zstd(buffered, name), 1 << 16)
        inner = inner.removesuffix(packed).removesuffix('.tgz')
        if packed == '.gz' and name.suffix == '.tgz':
            inner += '.tar'
    raise ValueError(f'{name} is packed more than twice; unpack it')


def _zip_member(file: BinaryIO, name: Path, stack: ExitStack) -> tuple[IO[bytes], str]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(file))
    except RuntimeError as error:  # of a later version of the format
        raise _sealed(name, error) from None
    names = [
        member
        for member in archive.namelist()
        if member.lower().endswith((*_TEXTS, '.parquet')) and '__MACOSX' not in member
    ]
    if len(names) != 1:
        raise ValueError(
            f'{name} holds {len(names)} files of captions, not one'
            + (f' ({", ".join(names[:6])})' if names else '')
            + '; unpack it and name the file'
        )
    try:
        return stack.enter_context(archive.open(names[0])), names[0].lower()
    except RuntimeError as error:  # a password, or a method that Python doesn't know
        raise _sealed(name, error) from None


def _sealed(name: Path, error: RuntimeError) -> ValueError:
    return ValueError(f"{name} can't be unpacked: {error}")


def _zstd(file: BinaryIO, name: Path) -> Any:
    pyarrow = _pyarrow(f'{name}, which is packed with zstd,')
    return _ArrowReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file), 'zstd'))


class _ArrowReader(io.RawIOBase):
    """Arrow's stream as one of Python's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _pyarrow(what: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise ImportError(f'reading {what} needs pyarrow: {pip_install("export")}') from None
    return pyarrow


def _rows_of(
    file: BinaryIO,
    name: Path,
    inner: str,
    fields: Collection[str],
    small: bool,
    of_image: bool = False,
) -> Iterator[Row]:
    start = file.peek(512)  # type: ignore[attr-defined]
    try:
        check_text_encoding(start)
    except ValueError as error:
        raise ValueError(f'{name} {error}') from None
    ending = os.path.splitext(inner)[1]
    if start.startswith(b'PAR1'):
        return _parquet_rows(file, name, fields)
    if start[257:262] == b'ustar':
        return _tar_rows(file, name, fields)
    if ending in ('.parquet', '.tar'):
        raise ValueError(f"{name} is damaged: it doesn't begin as a {ending} file does")
    if ending not in ('.csv', '.tsv', '.txt'):
        first = start.removeprefix(b'\xef\xbb\xbf').lstrip()[:1]
        if ending in ('.jsonl', '.ndjson') or (first == b'{' and _is_lines(file)):
            return _json_lines(file, name, fields)
        if ending == '.json' or first in (b'[', b'{'):
            row = _one_object(file, name) if first == b'{' and file.seekable() else None
            return _json_items(file, name, fields) if row is None else iter((row,))
    if small and ending == '.txt' and (of_image or _is_one_line(file)):
        return _whole_text(file, name)
    return _table_rows(file, name, ending)


def _is_one_line(file: BinaryIO) -> bool:
    """Whether a small text, which no image lies beside, is one caption and no list of them."""
    if not file.seekable():
        return False
    lines = file.read(LONGEST_ROW + 1).split(b'\n')
    file.seek(0)
    return sum(map(bool, map(bytes.strip, lines))) < 2


def _whole_text(file: BinaryIO, name: Path) -> Iterator[Row]:
    """The caption of one image, in a text file of its own."""
    data = file.read(LONGEST_ROW + 1)
    text, problem = _decoded(data if len(data) <= LONGEST_ROW else None)
    yield Row(1, str(name), text, problem)


def _decoded(line: bytes | None) -> tuple[str | None, str]:
    if line is None:
        return None, f'longer than {LONGEST_ROW:,} bytes'
    try:
        return line.decode('utf-8-sig'), ''
    except UnicodeDecodeError:
        return None, 'not UTF-8'


# JSON


def _is_lines(file: BinaryIO) -> bool:
    """Whether the first line is an object by itself, with more after it."""
    start = file.peek(1)  # type: ignore[attr-defined]
    line, end, rest = start.partition(b'\n')
    if not end or not rest.strip():
        return False
    try:
        return isinstance(load_json(line), dict)
    except ValueError:
        return False


def _one_object(file: BinaryIO, name: Path) -> Row | None:
    """The row of a small file that holds one image's object, as img2dataset writes them."""
    data = file.read(LONGEST_ROW + 1)
    file.seek(0)
    if len(data) > LONGEST_ROW:
        return None
    try:
        value = load_json(data)
    except ValueError:
        return None
    if not isinstance(value, dict) or any(
        isinstance(value.get(key), list) for key in (*_NESTED, *_LISTS)
    ):
        return None
    return Row(1, str(name), value)


def _json_lines(file: BinaryIO, name: Path, fields: Collection[str]) -> Iterator[Row]:
    for number, line in read_lines(file, name, LONGEST_ROW):
        place = f'{name}, line {number}'
        if line is None:
            yield Row(number, place, None, _decoded(None)[1])
        elif line.strip():
            try:
                value = load_json(line)
            except ValueError as error:
                yield Row(number, place, None, str(error).partition(' (')[0])
                continue
            yield from _items(number, place, value, fields)


class _Metered:
    """A file that says how much was read since it was last asked."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.since = 0
        self._first = True

    def read(self, size: int = -1) -> bytes:
        if size == 0:
            return b''
        data = self.file.read(size)
        if self._first:
            self._first = False
            data = data.removeprefix(b'\xef\xbb\xbf')
        self.since += len(data)
        if self.since > LONGEST_ITEM:
            raise ValueError(f'one item has more than {LONGEST_ITEM >> 20} MiB')
        return data


#: Where the items of a JSON file stand, and which of an item's fields hold rows of their own.
_LISTS = ('annotations', 'captions', 'data', 'rows', 'images')
_ITEM_PLACES = ((), *((key,) for key in _LISTS))
_NESTED = ('regions', 'sentences')
_DEEPEST = 50


def _json_items(file: BinaryIO, name: Path, fields: Collection[str]) -> Iterator[Row]:
    """The items of a JSON file's list, read piece by piece."""
    try:
        import ijson
        from ijson.common import ObjectBuilder
    except ImportError:
        raise ImportError(
            f'reading captions from JSON needs ijson: {pip_install("prompts")}'
        ) from None
    metered = _Metered(file)
    number = items = depth = 0
    keys: list[str | None] = []  # of the objects that the parser is in; None for a list
    builder, inside = None, 0
    try:
        for event, value in ijson.basic_parse(metered, use_float=True):
            opens = event in ('start_map', 'start_array')
            closes = event in ('end_map', 'end_array')
            depth += opens - closes
            if depth > _DEEPEST:
                raise ValueError(f'nested more than {_DEEPEST} deep')
            if builder is None:
                metered.since = 0
                if event == 'map_key':
                    keys[-1] = value
                    continue
                place = tuple(keys[:-1])
                if closes:
                    keys.pop()
                elif keys and keys[-1] is None and place in _ITEM_PLACES:
                    builder, inside = ObjectBuilder(), 0
                elif opens:
                    keys.append(None if event == 'start_array' else '')
            if builder is not None:
                builder.event(event, value)
                inside += opens - closes
                if inside == 0:
                    item, builder, metered.since = builder.value, None, 0
                    if place == ('images',):  # Karpathy's splits; COCO's images aren't captions
                        if not (isinstance(item, dict) and 'sentences' in item):
                            continue
                        item = {'sentences': item['sentences'], **_chosen(item, fields)}
                    items += 1
                    for row in _items(number + 1, '', item, fields, counted=True):
                        number = row.number
                        yield Row(number, f'{name}, caption {number}', row.value, row.problem)
    except (ijson.JSONError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ['cut off'])[0]
        raise ValueError(f'{name}, after caption {number}: not valid JSON ({reason})') from None
    if items == 0:
        raise ValueError(f'{name} holds no captions; is it the file that the data set distributes?')


def _items(
    number: int, place: str, value: Any, fields: Collection[str], counted: bool = False
) -> Iterator[Row]:
    """An item as a row, or the rows in its regions or sentences.

    Each of several has a number of its own if they are ``counted``, else a part of the item's.
    """
    if isinstance(value, dict) and isinstance(value.get('row'), dict):
        value = value['row']  # the Hugging Face viewer's
    nested = (
        next((value[key] for key in _NESTED if isinstance(value.get(key), list)), None)
        if isinstance(value, dict)
        else None
    )
    if nested and all(isinstance(item, dict) for item in nested):
        shared = _chosen(value, fields)
        several = len(nested) > 1 and not counted
        for index, item in enumerate(nested):
            yield Row(
                number + index if counted else number,
                place,
                shared | item,
                part=index + 1 if several else None,
            )
        return
    if nested == [] and not any(_chosen(value, (*TEXT_FIELDS, *fields)).values()):
        return  # an image of Visual Genome in which no region is described
    if isinstance(value, (dict, str)):
        yield Row(number, place, value)
    else:
        yield Row(number, place, None, 'no object')


def _chosen(value: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Those of an object's fields."""
    return {key: item for key, item in value.items() if key.lower() in fields}


# Tables


def _table_rows(file: BinaryIO, name: Path, ending: str) -> Iterator[Row]:
    """Lines of one caption, or of columns with or without their names above them."""
    mark, header = _columns(file, ending)
    skip = header is not None
    for number, cells, problem in (
        _line_cells(file, name)
        if mark == '\t'
        else _csv_cells(file, name, mark, None if header is None else len(header))
    ):
        if skip:
            skip = False
            continue
        place = f'{name}, line {number}'
        if cells is None:
            yield Row(number, place, None, problem)
        elif header is None:
            yield _unnamed(number, place, cells, ending)
        elif len(cells) == len(header):
            yield Row(number, place, dict(zip(header, cells)))
        else:
            yield Row(number, place, None, f'not {len(header)} columns')


def _columns(file: BinaryIO, ending: str) -> tuple[str, list[str] | None]:
    """What separates a table's columns, and their names if the first line holds names."""
    start = file.peek(1).removeprefix(b'\xef\xbb\xbf')  # type: ignore[attr-defined]
    line = start.partition(b'\n')[0].decode('utf-8', 'replace').rstrip('\r')
    for mark in '\t,;|':
        names = [_unquoted(cell.strip()).strip().lower() for cell in line.split(mark)]
        known = [name for name in names if name in TEXT_FIELDS]
        if known and (
            len(names) == 1 == (ending in ('.csv', '.tsv'))
            or len(names) > 1
            and (ending in ('.csv', '.tsv') or any(name in _OTHER_FIELDS for name in names))
        ):
            if not any(_is_address(name) for name in names):
                return mark if len(names) > 1 else '\t,'[ending == '.csv'], names
    return ',' if ending == '.csv' else '\t', None


def _is_address(cell: str) -> bool:
    """Whether a cell holds an address, or an image's file."""
    cell = cell.strip()
    return cell.startswith(_ADDRESS) or bool(_IMAGE.fullmatch(cell))


def _unnamed(number: int, place: str, cells: list[str], ending: str) -> Row:
    """A row of columns without names: a caption alone, or beside an address."""
    addresses = [_is_address(cell) for cell in cells]
    if len(cells) == 1 and ending != '.tsv':
        if addresses[0] and ' ' not in cells[0].strip():
            return Row(number, place, None, 'an address and no caption')
        return Row(number, place, cells[0])
    if len(cells) < 2 or not any(addresses[:2]) or all(addresses[:2]):
        return Row(number, place, None, 'not a caption and an address with a tab between')
    order = 1 if addresses[0] else 0
    return Row(number, place, cells[order], order=order)


def _line_cells(file: BinaryIO, name: Path) -> Iterator[tuple[int, list[str] | None, str]]:
    for number, line in read_lines(file, name, LONGEST_ROW):
        text, problem = _decoded(line)
        if text is None:
            yield number, None, problem
        elif text.strip():
            yield number, [_unquoted(cell) for cell in text.split('\t')], ''


def _unquoted(cell: str) -> str:
    """A cell without the quotes that a spreadsheet puts round it."""
    if len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ''):
        return cell[1:-1].replace('""', '"')
    return cell


def _csv_cells(
    file: BinaryIO, name: Path, mark: str, columns: int | None
) -> Iterator[tuple[int, list[str] | None, str]]:
    """The rows of a CSV file, in which a quoted cell may have several lines.

    Lines are one row only if they make a valid one, of as many ``columns``; if not, the first is a
    bad row, and those after it are read by themselves.
    """
    lines = read_lines(file, name, LONGEST_ROW)
    waiting: deque[tuple[int, bytes | None]] = deque()

    def next_line() -> tuple[int, bytes | None] | None:
        return waiting.popleft() if waiting else next(lines, None)

    while first := next_line():
        number, line = first
        text, problem = _decoded(line)
        if text is None:
            yield number, None, problem
            continue
        if not text.strip():
            continue
        taken: list[tuple[int, bytes | None]] = []
        row = csv.reader(
            _row_lines(text, next_line, taken), strict=True, delimiter=mark, skipinitialspace=True
        )
        cells: list[str] | None = None
        try:
            cells = next(row)
        except csv.Error:
            open_quote = taken or text.count('"') % 2
            problem = 'a quote without an end' if open_quote else 'not valid CSV'
        if cells is None or columns not in (None, len(cells)):
            waiting.extendleft(reversed(taken))
        yield number, cells, problem


def _row_lines(
    text: str,
    next_line: Callable[[], tuple[int, bytes | None] | None],
    taken: list[tuple[int, bytes | None]],
) -> Iterator[str]:
    """A row's first line and, as the reader asks for them, those after it, noted in ``taken``."""
    length = len(text)
    yield text + '\n'
    while len(taken) < MOST_LINES and length < LONGEST_ROW and (following := next_line()):
        taken.append(following)
        more, _ = _decoded(following[1])
        if more is None:
            return
        length += len(more) + 1
        yield more + '\n'


# Parquet, tar, folders


def _parquet_rows(file: BinaryIO, name: Path, fields: Collection[str]) -> Iterator[Row]:
    pyarrow = _pyarrow(f'{name}')
    from pyarrow import parquet

    if not file.seekable() or isinstance(file, (gzip.GzipFile, zipfile.ZipExtFile)):
        raise ValueError(f'{name}: a packed Parquet file; unpack it first')
    try:
        table = parquet.ParquetFile(file, pre_buffer=False)  # else it keeps all that was read
        wanted = {*TEXT_FIELDS, *_NESTED, 'id', 'region_id', 'sentid'}
        columns = [
            field.name
            for field in table.schema_arrow
            if field.name.lower() in wanted
            or field.name.lower() in fields
            and not _is_image(field.type)
        ]
        if not any(field.lower() in (*TEXT_FIELDS, *_NESTED) for field in columns):
            raise ValueError(
                f'{name} has no column of captions; its columns are '
                f'{excerpt(", ".join(table.schema_arrow.names), 200)}'
            )
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for value in batch.to_pylist():
                number += 1
                yield from _items(number, f'{name}, row {number}', value, fields)
    except (pyarrow.ArrowException, RecursionError) as error:
        raise ValueError(f'{name} is damaged: {excerpt(first_line(error), 200)[1:-1]}') from None


def _is_image(kind: Any) -> bool:
    """Whether a column's type can be that of images: bytes, somewhere in it, or an array."""
    from pyarrow import types

    kind = getattr(kind, 'storage_type', kind)  # of an extension
    if types.is_struct(kind):
        return any(_is_image(kind.field(index).type) for index in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return types.is_primitive(kind.value_type) or _is_image(kind.value_type)
    return str(kind).startswith(('binary', 'large_binary', 'fixed_size_binary'))


class _Bounded:
    """A file of which no more is read at once than a tar's own entries need."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LONGEST_ITEM:
            raise tarfile.ReadError('an entry of impossible size')
        return self._file.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()


def _tar_rows(file: BinaryIO, name: Path, fields: Collection[str]) -> Iterator[Row]:
    """The captions in a shard of img2dataset or webdataset, or in the tar of a data set."""
    number = 0
    previous: tuple[str, bool] = ('', False)
    bounded: Any = _Bounded(file)  # the stubs ask for write() too
    with tarfile.open(fileobj=bounded, mode='r:') as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # else all of them are kept
            stem, ending = os.path.splitext(member.name.lower())
            base = os.path.basename(stem)
            if not member.isfile() or ending not in (
                '.txt',
                '.json',
                '.jsonl',
                '.csv',
                '.tsv',
                '.cls',
                '.caption',
            ):
                continue
            if ending == '.cls' or base.endswith(('_stats', '_urls')) or base.startswith('._'):
                continue
            # An image's .json and .txt hold the same caption.
            if previous == (stem, True):
                continue
            number += 1
            place = f'{name}, {member.name}'
            content: Any = archive.extractfile(member)  # the stubs ask for readinto()
            if content is None:
                continue
            if base.endswith('_captions') or ending in ('.jsonl', '.csv', '.tsv'):
                for row in _rows_of(
                    io.BufferedReader(content),
                    Path(place),
                    member.name.lower(),
                    fields,
                    small=False,
                ):
                    yield Row(number, row.place, row.value, row.problem, row.order)
                    number += 1
                continue
            data = content.read(LONGEST_ROW + 1)
            text, problem = _decoded(data if len(data) <= LONGEST_ROW else None)
            rows: Iterable[Row] = [Row(number, place, text, problem)]
            if text is not None and ending == '.json':
                try:
                    rows = list(_items(number, place, load_json(text), fields))
                except ValueError as error:
                    rows = [Row(number, place, None, str(error).partition(' (')[0])]
            for row in rows:
                previous = (stem, previous == (stem, True) or row.value is not None)
                yield row


_BEST_FIRST = ('.parquet', '.tar', '.jsonl', '.ndjson', '.json', '.csv', '.tsv', '.txt', '.caption')


def _unpacked_name(name: str) -> str:
    """A file's name in lower case, without the endings of what it is packed with."""
    plain = name.lower()
    for packed in _PACKED:
        plain = plain.removesuffix(packed) if packed != '.zip' else plain
    return plain


def _may_hold_captions(name: str) -> bool:
    """Whether a file of a folder is one to read, by its name."""
    stem, ending = os.path.splitext(_unpacked_name(name))
    return (
        ending in _BEST_FIRST
        and not stem.endswith(('_stats', '_urls'))
        and not name.startswith('.')
    )


def _folder_rows(folder: Path, fields: Collection[str]) -> Iterator[Row]:
    number = 0
    found = False
    unlisted: list[OSError] = []
    for where, folders, names in os.walk(folder, onerror=unlisted.append):
        folders.sort()
        for link in [inner for inner in folders if os.path.islink(os.path.join(where, inner))]:
            folders.remove(link)  # os.walk doesn't go into links; say so
            number += 1
            yield Row(number, os.path.join(where, link), None, 'a link in a folder')
        chosen: dict[str, str] = {}
        for name in sorted(filter(_may_hold_captions, names)):
            stem, ending = os.path.splitext(_unpacked_name(name))
            other = chosen.get(stem)
            if other is None or _BEST_FIRST.index(ending) < _rank(other):
                chosen[stem] = name
        images = {
            os.path.splitext(name.lower())[0]
            for name in names
            if name.lower().endswith(IMAGE_ENDINGS)
        }
        for stem, name in sorted(chosen.items(), key=lambda item: item[1]):
            found = True
            path = Path(where, name)
            place = path.relative_to(folder)
            if path.is_symlink():
                number += 1
                yield Row(number, str(place), None, 'a link in a folder')
                continue
            try:
                for row in _file_rows(path, place, fields, True, stem in images):
                    number += 1
                    yield Row(number, row.place, row.value, row.problem, row.order)
            except (ValueError, FileNotFoundError) as error:
                number += 1
                yield Row(number, str(error), None, "a file that can't be read")
    for failed in unlisted:
        number += 1
        problem = f"a folder that can't be listed ({failed.strerror})"
        yield Row(number, failed.filename, None, problem)
    if not found:
        raise ValueError(
            f'the folder {folder} holds no file of captions ({", ".join(_BEST_FIRST)})'
        )


def _rank(name: str) -> int:
    return next(
        rank
        for rank, ending in enumerate(_BEST_FIRST)
        if ending
        in (
            os.path.splitext(name.lower())[1],
            os.path.splitext(os.path.splitext(name.lower())[0])[1],
        )
    )

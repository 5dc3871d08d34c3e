"""Images that exist already, with their captions: where they are, and reading one of them.

A source is listed once, without opening an image; each entry says where its image is, so that any
worker can read any image later. Read are

- a folder of images: captions in ``metadata.jsonl`` (or ``.csv``, ``.parquet``), or in a
  ``.txt``, ``.caption`` or ``.json`` beside the image, or in a caption file given apart: that of
  COCO, or any that `freeatm_mm.prompts.tables.read_rows` reads and that names the image. Parquet
  files without images, which img2dataset writes beside its folders, are passed over;
- a WebDataset: tar files, or a folder of them;
- a data set of Hugging Face on disk: what ``save_to_disk`` wrote, or Parquet files;
- a store, such as ``tools/generate.py --no-masks`` or another engine's program wrote, also at an
  address (``s3://``, ``gs://``, ``hf://``, ``https://``).
"""

from __future__ import annotations

import os
import re
import tarfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from freeatm_mm.addresses import UnreachableError, file_here, is_address
from freeatm_mm.errors import InputError, MissingFileError, listed, pip_install
from freeatm_mm.files import IMAGE_ENDINGS, open_regular, parse_json, read_bytes, read_json
from freeatm_mm.generation.outcomes import SourceError
from freeatm_mm.prompts.tables import TEXT_FIELDS, read_rows
from freeatm_mm.store import Store, StoreError
from freeatm_mm.store.layout import MANIFEST

__all__ = ['Found', 'ImageReader', 'find_images']

#: Bytes of the largest image file that is read.
MAX_IMAGE_BYTES = 1 << 27
#: Files kept open at a time.
_MOST_OPEN = 64
_METADATA = ('metadata.jsonl', 'metadata.csv', 'metadata.parquet')
_TEXT_ENDINGS = ('.txt', '.caption', '.json')
#: Fields of a row that may name its image.
_PATH_FIELDS = (
    'file_name',
    'filename',
    'filepath',
    'file_path',
    'image_path',
    'image_name',
    'image',
    'img',
    'file',
    'path',
)
#: What is read of a row besides its caption.
_FIELDS = frozenset((*_PATH_FIELDS, 'image_id', 'nouns'))
_LONGEST_TEXT = 1 << 20


@dataclass(frozen=True)
class Found:
    """An image of a source, or a place where there should be one.

    Args:
        name: Where the image is, in words; unique in its source.
        place: Where `ImageReader` finds it, JSON values only.
        captions: Its captions.
        nouns: The nouns that the source names: a list of words or of objects with their span (or
            one of them), or ``None`` where it names none.
        problem: Why it can't be used, or ``''``.
        nouns_of_each: The nouns of each caption, in place of ``nouns``, where they are named apart.
    """

    name: str
    place: dict[str, Any] = field(default_factory=dict)
    captions: tuple[str, ...] = ()
    nouns: Any = None
    problem: str = ''
    nouns_of_each: tuple[Any, ...] | None = None


def find_images(source: str | Path, captions: str | Path | None = None) -> Iterator[Found]:
    """Yield the images of a source, in an order that is always the same.

    Args:
        source: A folder or a file, or the address of a store; see the module's text for the kinds.
        captions: A caption file that names the images of the folder ``source``, or its address.

    Raises:
        FileNotFoundError: If there is no such source or file.
        ValueError: If the source holds no images of a kind that is read, or is damaged.
        ImportError: If a package that reads the format is not installed.
    """
    if is_address(source):
        if captions is not None:
            raise InputError(f'{source} is no folder of images, to go with the captions {captions}')
        return _in_store(_store_at(str(source)))
    source = Path(source)
    if not source.exists():
        raise MissingFileError.of('source of images', source)
    if captions is not None:
        if not source.is_dir():
            raise InputError(f'{source} is no folder of images, to go with the captions {captions}')
        return _by_rows(source, file_here(captions))
    return _reader_of(source)(source)


def _reader_of(source: Path) -> Callable[[Path], Iterator[Found]]:
    """The function that lists a source of this kind."""
    if source.is_file():
        ending = source.suffix.lower()
        if ending == '.tar':
            return _in_tars
        if ending == '.parquet':
            return _in_tables
        if ending in ('.jsonl', '.ndjson', '.json', '.csv', '.tsv'):
            return lambda file: _by_rows(file.parent, file)
        raise InputError(
            f'{source} is no source of images: give a folder, a tar, a Parquet file, or a table '
            '(.jsonl, .json, .csv, .tsv) that names images beside it'
        )
    if not source.is_dir():
        raise InputError(f'{source} is no source of images: neither a file nor a folder')
    names = {entry.name for entry in os.scandir(source)}
    if MANIFEST in names:
        return lambda folder: _in_store(Store(folder))
    if 'dataset_dict.json' in names:
        splits = sorted(
            entry.name for entry in os.scandir(source) if (Path(entry.path) / 'state.json').exists()
        )
        raise InputError(
            f'{source} holds the splits {listed(splits, 10)}: give one of their folders, such as '
            f'{source / (splits[0] if splits else "train")}'
        )
    if 'state.json' in names:
        return _in_tables
    for name in _METADATA:
        if name in names:
            return lambda folder, name=name: _by_rows(folder, folder / name)  # type: ignore[misc]
    if any(name.endswith('.tar') for name in names):
        return _in_tars
    any_table = False
    passed_over: list[Found] = []
    for entry in _walk(source):
        if isinstance(entry, Found):
            passed_over.append(entry)
            continue
        where, file, _ = entry
        # A table without images says more of the files beside it, as img2dataset writes it.
        if _is_parquet(Path(file)):
            any_table = True
            if _holds_images(where / file):
                return _in_tables
        elif file.lower().endswith(IMAGE_ENDINGS):
            return _beside_texts
    if any_table:
        return _in_tables
    raise InputError(
        f'the folder {source} holds no images ({", ".join(IMAGE_ENDINGS)}), tars, Parquet files, '
        'data set or store'
        + ''.join(f'; {found.name}: {found.problem}' for found in passed_over[:1])
    )


def _walk(folder: Path) -> Iterator[tuple[Path, str, set[str]] | Found]:
    """The folder, name and neighbours of all files below a folder, in order.

    A folder that is not gone into, as it is a link or can't be listed, is a `Found` with a problem.
    """
    untold: list[Found] = []

    def pass_over(path: str, problem: str) -> None:
        untold.append(Found(Path(path).relative_to(folder).as_posix(), problem=problem))

    def tell(error: OSError) -> None:
        pass_over(error.filename, f"it is a folder that can't be listed ({error.strerror})")

    for where, folders, names in os.walk(folder, onerror=tell):
        folders.sort()
        for name in folders:
            path = os.path.join(where, name)
            if os.path.islink(path):
                pass_over(path, 'it is a link to a folder, which is not followed')
        yield from untold
        untold.clear()
        neighbours = set(names)
        for name in sorted(names):
            if not name.startswith('.'):
                yield Path(where), name, neighbours
    yield from untold


# Folders


def _beside_texts(folder: Path) -> Iterator[Found]:
    """Images with a text file of the same name beside each."""
    for entry in _walk(folder):
        if isinstance(entry, Found):
            yield entry
            continue
        where, name, neighbours = entry
        if not name.lower().endswith(IMAGE_ENDINGS):
            continue
        path = where / name
        relative = path.relative_to(folder).as_posix()
        texts: dict[str, bytes] = {}
        problem = 'it is a link' if path.is_symlink() else ''
        for ending in _TEXT_ENDINGS:
            text = path.stem + ending
            if text in neighbours and not problem:
                try:
                    if (where / text).is_symlink():
                        raise InputError(f'{where / text} is a link')
                    texts[ending] = read_bytes(where / text, _LONGEST_TEXT)
                except InputError as error:
                    problem = str(error)
        yield _found(relative, {'file': relative, 'bytes': _size(path)}, texts, problem)


def _by_rows(folder: Path, file: Path) -> Iterator[Found]:
    """Images that the rows of a table name."""
    root = os.path.realpath(folder)
    order: OrderedDict[str, dict[str, Any]] = OrderedDict()
    for place, name, captions, nouns, problem in _rows(file, root):
        if problem:
            yield Found(place, problem=problem)
            continue
        entry = order.setdefault(name, {'captions': [], 'nouns': []})
        entry['captions'] += captions
        entry['nouns'] += [nouns] * len(captions)
    for name, entry in order.items():
        problem = ''
        try:
            path = os.path.realpath(os.path.join(root, name))
        except ValueError as error:  # a zero byte
            path, problem = root, f"it can't be the name of a file ({error})"
        if problem:
            pass
        elif not path.startswith(root + os.sep):
            problem = 'it lies outside the folder'
        elif not os.path.isfile(path):
            problem = 'there is no such file'
        yield Found(
            name,
            {'file': name, 'bytes': 0 if problem else _size(Path(path))},
            tuple(entry['captions']),
            problem=problem,
            nouns_of_each=tuple(entry['nouns']),
        )


def _rows(file: Path, root: str) -> Iterator[tuple[str, str, list[str], Any, str]]:
    """Place, name of the image, captions, nouns and problem of the rows of a table.

    Args:
        file: The table.
        root: The folder that names are of.
    """
    names = _coco_names(file)
    for row in read_rows(file, _FIELDS):
        if row.problem:
            yield row.place, '', [], None, row.problem
            continue
        fields = _lower(row.value)
        number = fields.get('image_id')
        told = {
            key: fields[key]
            for key in _PATH_FIELDS
            if isinstance(fields.get(key), str) and fields[key]
        }
        name = next(
            iter(told.values()), names.get(number) if isinstance(number, (int, str)) else None
        )
        if next(iter(told), '') == 'filename' and 'filepath' in told:  # Karpathy's
            inner = os.path.join(told['filepath'], told['filename'])
            if os.path.isfile(os.path.join(root, inner)):  # else in the folder itself
                name = inner
        if not name:
            yield row.place, '', [], None, "the row doesn't name its image"
            continue
        try:
            yield row.place, name, _captions_of(fields), _nouns_of(fields), ''
        except InputError as error:
            yield row.place, '', [], None, str(error)


def _coco_names(file: Path) -> dict[Any, str]:
    """The file names of images by their ids, where a file lists them as COCO's does."""
    if file.suffix.lower() != '.json':
        return {}
    content = read_json(file)
    images = content.get('images') if isinstance(content, dict) else None
    names: dict[Any, str] = {}
    for image in images if isinstance(images, list) else []:
        if (
            isinstance(image, dict)
            and isinstance(image.get('id'), (int, str))
            and isinstance(image.get('file_name'), str)
            and names.setdefault(image['id'], image['file_name']) != image['file_name']
        ):
            raise InputError(f'{file}: two of the images have the id {image["id"]}')
    return names


# Tars


def _in_tars(source: Path) -> Iterator[Found]:
    """The images of a WebDataset: of a tar, or of the tars in a folder."""
    tars = [source] if source.is_file() else sorted(source.glob('*.tar'))
    root = source.parent if source.is_file() else source
    for tar in tars:
        name = tar.relative_to(root).as_posix()
        try:
            with os.fdopen(open_regular(tar), 'rb') as file:
                yield from _in_tar(file, name)
        except tarfile.TarError as error:
            yield Found(name, problem=f'the tar is damaged after what was read: {error}')


def _in_tar(file: Any, tar: str) -> Iterator[Found]:
    """The images of a tar.

    WebDataset ends a key at the name's first dot: ``a.mask.png`` is a part of the sample ``a``. An
    image so named is a problem if the sample has no image without, or the image a text of its own.
    """
    key: str | None = None
    dotted: dict[str, str] = {}  # such images, by their names without the ending
    said: set[str] = set()  # names without the ending of texts
    image: tuple[str, dict[str, Any]] | None = None
    texts: dict[str, bytes] = {}
    with tarfile.open(fileobj=file, mode='r:') as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # else all of them are kept
            base = os.path.basename(member.name)
            if not member.isfile() or base.startswith('.'):
                continue
            stem, dot, ending = base.partition('.')
            ending = (dot + ending).lower()
            own = os.path.join(os.path.dirname(member.name), stem)
            if own != key:
                yield from _in_sample(tar, image, texts, dotted, said)
                key, image, texts, dotted, said = own, None, {}, {}, set()
            whole, last = os.path.splitext(member.name)
            if last.lower() in IMAGE_ENDINGS and last.lower() != ending:
                dotted.setdefault(whole, member.name)
            elif last.lower() in _TEXT_ENDINGS:
                said.add(whole)
            if ending in IMAGE_ENDINGS:
                if image is None:
                    place = {'file': tar, 'offset': member.offset_data, 'bytes': member.size}
                    image = f'{tar}/{member.name}', place
            elif ending in _TEXT_ENDINGS and member.size <= _LONGEST_TEXT:
                content = archive.extractfile(member)
                texts[ending] = b'' if content is None else content.read()
    yield from _in_sample(tar, image, texts, dotted, said)


def _in_sample(
    tar: str,
    image: tuple[str, dict[str, Any]] | None,
    texts: dict[str, bytes],
    dotted: dict[str, str],
    said: set[str],
) -> Iterator[Found]:
    """The image of a sample in a tar, and those that can't be told from parts of it."""
    if image is not None:
        yield _found(*image, texts)
    for whole, name in dotted.items():
        if image is None or whole in said:
            yield Found(
                f'{tar}/{name}',
                problem='its name has a dot before its ending, where WebDataset ends a key: '
                'write the tar with other names (a-1.jpg, not a.1.jpg)',
            )


# Tables that hold the images themselves


def _in_tables(source: Path) -> Iterator[Found]:
    """The images of a data set of Hugging Face on disk, or of Parquet files."""
    arrow = _pyarrow()
    root = source.parent if source.is_file() else source
    for file in _tables(source):
        if isinstance(file, Found):
            yield file
            continue
        name = file.relative_to(root).as_posix()
        number = 0
        try:
            column, others = _columns(_schema(file), file)
            for batch in _batches(file, others):
                for value in batch.to_pylist():
                    yield _found_fields(
                        f'{name}, row {number}',
                        {'file': name, 'row': number, 'column': column},
                        _lower(value),
                    )
                    number += 1
        except arrow.ArrowException as error:
            yield Found(f'{name}, row {number}', problem=f'the file is damaged: {error}')


def _tables(source: Path) -> Iterator[Path | Found]:
    """The files of a data set, and folders that are passed over."""
    if source.is_file():
        yield source
        return
    state = source / 'state.json'
    if not state.exists():
        for entry in _walk(source):
            if isinstance(entry, Found):
                yield entry
            elif _is_parquet(Path(entry[1])):
                yield entry[0] / entry[1]
        return
    content = read_json(state)
    files = content.get('_data_files') if isinstance(content, dict) else None
    names = [item.get('filename') for item in files or [] if isinstance(item, dict)]
    own = [name for name in names if isinstance(name, str) and name == Path(name).name]
    if not own or len(own) < len(names):
        raise InputError(f'{state} names no files of its own folder')
    yield from (source / name for name in own)


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() == '.parquet'


def _holds_images(table: Path) -> bool:
    """Whether a Parquet file has a column of images; not if it is damaged."""
    arrow = _pyarrow()
    try:
        return bool(_image_columns(_schema(table)))
    except arrow.ArrowException:
        return False


def _image_columns(schema: Any) -> list[str]:
    """The columns that may hold images."""
    import pyarrow.types as types

    def holds_image(kind: Any) -> bool:
        return types.is_struct(kind) and kind.get_field_index('bytes') >= 0

    return [item.name for item in schema if holds_image(item.type)] or [
        item.name
        for item in schema
        if types.is_binary(item.type) or types.is_large_binary(item.type)
    ]


def _columns(schema: Any, file: Path) -> tuple[str, list[str]]:
    """The column with the images, and those that may hold captions and nouns."""
    found = _image_columns(schema)
    if not found:
        raise InputError(f'{file} has no column of images')
    column = next((name for name in found if name.lower() in ('image', 'img', 'jpg')), found[0])
    wanted = (*TEXT_FIELDS, 'nouns')
    return column, [item.name for item in schema if item.name.lower() in wanted]


def _schema(file: Path) -> Any:
    if _is_parquet(file):
        import pyarrow.parquet as parquet

        os.close(open_regular(file))  # a pipe would be waited for
        return parquet.read_schema(file)
    return _stream(file).schema


def _batches(file: Path, columns: list[str]) -> Iterator[Any]:
    """Batches of rows with these columns alone."""
    if _is_parquet(file):
        import pyarrow.parquet as parquet

        table = parquet.ParquetFile(file, pre_buffer=False)  # else it keeps all that was read
        if columns:
            yield from table.iter_batches(batch_size=256, columns=columns)
        else:
            raise InputError(
                f'{file} has no column of captions ({", ".join(TEXT_FIELDS[:3])}, ...)'
            )
        return
    for batch in _stream(file):
        yield batch.select(columns)


def _stream(file: Path) -> Any:
    """An Arrow file as `datasets` writes it, mapped and not read."""
    arrow = _pyarrow()
    os.close(open_regular(file))
    return arrow.ipc.open_stream(arrow.memory_map(str(file)))


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise ImportError(
            f'reading a data set of Hugging Face needs pyarrow: {pip_install("export")}'
        ) from None
    return pyarrow


# Stores


def _store_at(address: str) -> Store:
    """The store at an address."""
    try:
        return Store(address)
    except UnreachableError:
        raise
    except StoreError as error:
        raise InputError(
            f'{error} (of addresses only stores are read: copy tars, tables and folders of images '
            'here first)'
        ) from None


def _in_store(store: Store) -> Iterator[Found]:
    for number, raw in enumerate(store.texts()):
        nouns = raw.info['nouns'] or None
        yield Found(raw.key, {'sample': number}, (raw.info['caption'],), nouns)


# What an image's texts say


def _found(name: str, place: dict[str, Any], texts: dict[str, bytes], problem: str = '') -> Found:
    """An image with the texts beside it; plain text counts before JSON."""
    fields: dict[str, Any] = {}
    if '.json' in texts:
        try:
            fields = _lower(parse_json(texts['.json']))
        except ValueError as error:
            problem = problem or f'its JSON is damaged: {error}'
    captions = []
    for ending in _TEXT_ENDINGS[:2]:
        try:
            captions += [texts[ending].decode()] if ending in texts else []
        except UnicodeDecodeError:
            problem = problem or f'its {ending} is not UTF-8 text'
    return _found_fields(name, place, fields, captions, problem)


def _found_fields(
    name: str,
    place: dict[str, Any],
    fields: dict[str, Any],
    captions: list[str] | None = None,
    problem: str = '',
) -> Found:
    nouns = None
    try:
        nouns = _nouns_of(fields)
    except InputError as error:
        problem = problem or str(error)
    return Found(name, place, tuple(captions or _captions_of(fields)), nouns, problem)


def _nouns_of(fields: dict[str, Any]) -> Any:
    """The nouns that an object's fields, or a table's cells, name; ``None`` if they name none.

    A text is a JSON list, or nouns with semicolons or commas between; a blank one names none.

    Raises:
        InputError: If it begins as a JSON list does and isn't one.
    """
    nouns = fields.get('nouns')
    if not isinstance(nouns, str):
        return nouns
    if nouns.lstrip().startswith('['):
        try:
            return parse_json(nouns)
        except ValueError:
            raise InputError(
                f'its nouns, {nouns[:80]!r}, are no JSON list: write ["dog", "ball"] or dog; ball'
            ) from None
    return [noun for noun in map(str.strip, re.split('[;,]', nouns)) if noun] or None


def _captions_of(fields: dict[str, Any]) -> list[str]:
    value = next((fields[key] for key in TEXT_FIELDS if fields.get(key)), None)
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


def _lower(value: Any) -> dict[str, Any]:
    """The fields of an object, their names in lower case; none of what isn't one."""
    if not isinstance(value, dict):
        return {}
    return {key.lower(): item for key, item in value.items() if isinstance(key, str)}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


# Reading


class ImageReader:
    """Reads the encoded images of a source, where `find_images` found them.

    Args:
        source: The same source.
    """

    def __init__(self, source: str | Path) -> None:
        self._source = source
        self._root = Path(source) if Path(source).is_dir() else Path(source).parent
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._store: Store | None = None
        # Of all tables together one group of rows is kept: decoded, it can take gigabytes.
        self._group: tuple[str, int, str] | None = None
        self._cells: Any = None

    def read(self, place: dict[str, Any]) -> bytes:
        """Read an image file's bytes.

        Args:
            place: Of `Found`.

        Raises:
            ValueError: If it can't be read, has more than 128 MiB, or changed since it was found.
            SourceError: If the server that has it can't be reached.
        """
        if 'sample' in place:
            try:
                if self._store is None:
                    self._store = Store(self._source)
                return self._store.read(place['sample']).image_bytes
            except UnreachableError as error:
                raise SourceError(
                    f'{error}; finished shards are kept: start the same command again'
                ) from None
            except (StoreError, IndexError) as error:
                raise InputError(str(error)) from None
        if is_address(self._source):
            raise InputError('it is no sample of a store, and of addresses only stores are read')
        if 'row' in place:
            return self._cell(place['file'], place['row'], place['column'])
        size = place['bytes']
        if size > MAX_IMAGE_BYTES:
            raise InputError(f'its file has {size:,} bytes, more than {MAX_IMAGE_BYTES:,}')
        handle = self._opened(place['file'], self._open_file)
        # No more than one byte too many: a file that grew is one that changed.
        whole = 'offset' not in place
        data = os.pread(handle, size + whole, place.get('offset', 0))
        if len(data) != size:
            raise InputError('its file is not as long as it was when the images were listed')
        return data

    def _opened(self, name: str, opens: Callable[[Path], Any]) -> Any:
        if name not in self._files:
            path = os.path.realpath(self._root / name)
            if not path.startswith(os.path.realpath(self._root) + os.sep):
                raise InputError('it lies outside the folder')
            self._files[name] = opens(Path(path))
            if len(self._files) > _MOST_OPEN:
                self._close(self._files.popitem(last=False)[1])
        self._files.move_to_end(name)
        return self._files[name]

    @staticmethod
    def _open_file(path: Path) -> int:
        return open_regular(path)

    @staticmethod
    def _close(opened: Any) -> None:
        if isinstance(opened, int):
            os.close(opened)

    def _cell(self, name: str, row: int, column: str) -> bytes:
        arrow = _pyarrow()
        try:
            table = self._opened(name, _Table)
            group, first = table.group_of(row)
            if self._group != (name, group, column):
                self._group = self._cells = None  # freed before the next is read
                self._cells = table.cells(group, column)
                self._group = (name, group, column)
            value = self._cells[row - first].as_py()
        except (arrow.ArrowException, IndexError, KeyError) as error:
            raise InputError(f"its row can't be read: {error}") from None
        if isinstance(value, dict):
            value = value.get('bytes')
        if not isinstance(value, bytes):
            raise InputError('its row holds no image')
        if len(value) > MAX_IMAGE_BYTES:
            raise InputError(f'it has {len(value):,} bytes, more than {MAX_IMAGE_BYTES:,}')
        return value

    def close(self) -> None:
        """Close the files, and let go of what is kept of them."""
        self._group = self._cells = None
        while self._files:
            self._close(self._files.popitem()[1])


class _Table:
    """The groups of rows of a Parquet file; an Arrow file, which is mapped, is one group."""

    def __init__(self, path: Path) -> None:
        if not _is_parquet(path):
            self._file, self._table = None, _stream(path).read_all()
            sizes = [self._table.num_rows]
        else:
            import pyarrow.parquet as parquet

            # Without pre_buffer, which keeps all that was read as long as the file is open.
            self._file, self._table = parquet.ParquetFile(path, pre_buffer=False), None
            metadata = self._file.metadata
            sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
        self._starts = [0, *accumulate(sizes)]

    def group_of(self, row: int) -> tuple[int, int]:
        """Return the number of a row's group, and that of the group's first row."""
        if not 0 <= row < self._starts[-1]:
            raise IndexError(f'the file has {self._starts[-1]:,} rows')
        group = bisect_right(self._starts, row) - 1
        return group, self._starts[group]

    def cells(self, group: int, column: str) -> Any:
        """Load a group's column."""
        if self._file is None:
            return self._table[column]
        return self._file.read_row_group(group, columns=[column])[column]

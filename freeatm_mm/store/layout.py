"""Names, versions and the fixed-width index that writer, reader and verification share."""

from __future__ import annotations

import hashlib
import io
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from freeatm_mm import files
from freeatm_mm.addresses import RemoteFolder, UnreachableError, is_address
from freeatm_mm.errors import InputError, MissingFileError, counted
from freeatm_mm.files import check_json, file_sha256, handle_sha256, parse_json, read_json
from freeatm_mm.store.errors import StoreError, UnreachableStoreError

__all__ = [
    'BLOCK',
    'ENTRY_FIELDS',
    'INDEX_FIELDS',
    'MANIFEST',
    'PROGRESS',
    'SHARD_FORMAT',
    'STORE_FORMAT',
    'TOTALS',
    'VERSION',
    'config_digest',
    'dump_json',
    'dump_manifest',
    'file_sha256',
    'handle_sha256',
    'index_dtype',
    'left_out_keys',
    'load_index',
    'load_manifest',
    'mask_bytes',
    'open_regular',
    'planned_samples',
    'read_exactly',
    'read_index_header',
    'read_manifest',
    'shard_name',
]

#: What writers make. Version 1 is read as well: its samples without nouns have no masks.png, their
#: meta is an object, and nothing vouches for the whole of a manifest.
VERSION = 2
STORE_FORMAT = 'freeatm-store'
SHARD_FORMAT = 'freeatm-shard'
MANIFEST = 'store.json'
#: What workers write into while they generate; gone when the store is finished.
PROGRESS = 'progress.u32'
#: Size of a tar header, and what members are padded to.
BLOCK = 512
#: What store.json sums up over its shards.
TOTALS = ('samples', 'nouns', 'bytes', 'image_bytes', 'mask_bytes')
#: What store.json repeats of a shard's JSON.
ENTRY_FIELDS = (
    'name',
    'samples',
    'nouns',
    'bytes',
    'image_bytes',
    'mask_bytes',
    'sha256',
    'index_bytes',
    'index_sha256',
    'notes',
)
# More than the header of any index takes.
_HEADER_BYTES = 4096
_SEAL = 'manifest_sha256'
_MOST = 1 << 50  # samples or bytes of a shard

_ENTRY = {
    'name': str,
    'samples': int,
    'bytes': int,
    'sha256': str,
    'index_bytes': int,
    'index_sha256': str,
    'nouns?': int,
    'image_bytes?': int,
    'mask_bytes?': int,
    'notes?': dict,
}
_SHAPES = {
    STORE_FORMAT: {
        'complete': bool,
        'samples_per_shard': int,
        'config': dict,
        'config_sha256': str,
        'shards': [_ENTRY],
        **{name: int for name in TOTALS},
    },
    SHARD_FORMAT: {**_ENTRY, 'config_sha256': str},
}

# offset: first byte of the member's content, counted from the start of the tar. crc32 covers the
# whole sample: headers, contents and padding, which stand together in the order below.
INDEX_FIELDS = (
    ('json_offset', '<i8'),
    ('json_size', '<i8'),
    ('masks_offset', '<i8'),
    ('masks_size', '<i8'),
    ('image_offset', '<i8'),
    ('image_size', '<i8'),
    ('image_format', 'S4'),
    ('nouns', '<u4'),
    ('crc32', '<u4'),
)

#: Characters of a setting that a message shows.
_LONGEST_VALUE = 80


def index_dtype(key_length: int) -> np.dtype:
    """Row of the index for keys of at most ``key_length`` bytes."""
    return np.dtype([('key', f'S{max(1, key_length)}'), *INDEX_FIELDS])


#: Bytes of a row for the longest key that a sample may have.
_MOST_ROW = index_dtype(80).itemsize


def mask_bytes(index: np.ndarray) -> int:
    """Bytes of the masks of nouns that an index lists."""
    return int(index['masks_size'][index['nouns'] > 0].sum())


def shard_name(index: int) -> str:
    """Name of shard number ``index``, without ending."""
    return f'shard-{index:06d}'


def config_digest(config: dict[str, Any]) -> str:
    """Hex sha256 of a configuration, whatever the order of its keys."""
    text = json.dumps(config, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def name_differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Say which settings differ and how: values that fill more than a line are only named."""
    told = []
    for name in sorted(there.keys() | here.keys()):
        values = [repr(settings.get(name)) for settings in (there, here)]
        if there.get(name) != here.get(name):
            told.append(
                f'{name} is {values[0]} there and {values[1]} here'
                if max(map(len, values)) <= _LONGEST_VALUE
                else f'another {name}'
            )
    return told


def left_out_keys(notes: Any) -> set[str]:
    """Keys of the samples that a shard, by its notes, goes without: they could not be made."""
    listed = notes.get('left_out') if isinstance(notes, dict) else None
    if not isinstance(listed, list):
        return set()
    return {
        item['key']
        for item in listed
        if isinstance(item, dict) and isinstance(item.get('key'), str)
    }


def planned_samples(shard: dict[str, Any]) -> int:
    """How many samples a shard was to hold, with those that were left out."""
    return shard['samples'] + len(left_out_keys(shard.get('notes')))


def open_regular(path: str | Path) -> int:
    """Open a file for reading and return its handle; a pipe or device is refused, not waited for.

    Raises:
        StoreError: If it can't be opened or is no plain file.
    """
    try:
        return files.open_regular(path)
    except InputError as error:
        raise StoreError(str(error)) from None


def read_exactly(handle: int, size: int, offset: int) -> bytes:
    """Read ``size`` bytes, fewer only at the end of the file."""
    data = os.pread(handle, size, offset)
    while len(data) < size:
        more = os.pread(handle, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def load_index(path: Path, digest: str | None = None) -> np.ndarray:
    """Map a shard's index into memory, without reading its rows.

    Args:
        path: The index.
        digest: The sha256 that it must have, if that is to be looked at: this reads it whole.

    Raises:
        StoreError: If the file is missing, is no index, or another one.
    """
    try:
        with os.fdopen(open_regular(path), 'rb') as file:
            dtype, rows, first_row = read_index_header(file.fileno())
            if digest is not None and handle_sha256(file.fileno()) != digest:
                raise StoreError(
                    "is not the one that was written: its sha256 isn't the recorded one"
                )
            if not rows:  # of a shard whose samples were all left out
                return np.empty(0, dtype)
            return np.memmap(file, dtype, mode='r', offset=first_row, shape=(rows,))
    except StoreError as error:
        raise StoreError(
            f'the index {path} {error}'.replace(f'{path} {path} ', f'{path} ')
        ) from None
    except (OSError, ValueError) as error:
        raise StoreError(f'the index {path} is corrupt ({error})') from None


def read_index_header(handle: int) -> tuple[np.dtype, int, int]:
    """Read the header of an open index and check the size of its file.

    Returns:
        The type of a row, the number of rows, and where the first row stands.

    Raises:
        StoreError: If it is no index of this version, or its size isn't that of its rows.
    """
    start = os.pread(handle, _HEADER_BYTES, 0)
    length = 10 + int.from_bytes(start[8:10], 'little')  # numpy's format 1.0
    dtype, rows, first_row = _parse_index_header(start[:length])
    size = os.fstat(handle).st_size
    if type(rows) is not int or rows < 0 or size != first_row + rows * dtype.itemsize:
        raise StoreError(
            f'is corrupt: it has {counted(size, "byte")} where {counted(rows, "row")} would take '
            f'{first_row + rows * dtype.itemsize}'
        )
    return dtype, rows, first_row


@lru_cache(maxsize=64)
def _parse_index_header(start: bytes) -> tuple[np.dtype, int, int]:
    """Read the header of an index from the first bytes of its file.

    Args:
        start: At least the whole header; the shards of a store share a few different ones.

    Returns:
        The type of a row, the number of rows, and where the first row stands.

    Raises:
        StoreError: If it is no header of an index of this version.
    """
    stream = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f'its numpy format is {version}')
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # numpy parses the header as Python, and raises what that raises
        raise StoreError(f'is corrupt ({type(error).__name__} in its header)') from None
    key_length = dtype['key'].itemsize if 'key' in (dtype.names or ()) else 0
    if len(shape) != 1 or dtype != index_dtype(key_length):
        raise StoreError('is not an index that this version of freeatm_mm reads')
    return dtype, shape[0], stream.tell()


def dump_json(value: Any, indent: int | None = None) -> bytes:
    """JSON as bytes, the same for the same value, that can be read again.

    Raises:
        StoreError: If the value isn't made of JSON values, or of such as no reader takes: NaN, half
            of a surrogate pair, two keys of one name, nested for ever.
    """
    separators = (',', ':') if indent is None else None
    try:
        data = json.dumps(
            value, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators
        ).encode()
        parse_json(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f'a value to store is not JSON: {error}') from None
    return data + (b'\n' if indent else b'')


def dump_manifest(manifest: dict[str, Any]) -> bytes:
    """A manifest as bytes, with a checksum of all else that it says.

    Raises:
        StoreError: If it holds something that JSON can't.
    """
    rest = {name: value for name, value in manifest.items() if name != _SEAL}
    rest = parse_json(dump_json(rest))  # as a reader sees it: no tuples, names that are text
    return dump_json(rest | {_SEAL: config_digest(rest)}, indent=1)


def read_manifest(store: str | Path) -> dict[str, Any]:
    """Read and check the `store.json` of a store's folder or address, as `load_manifest`.

    Raises:
        FileNotFoundError: If there is none.
        StoreError: If it is corrupt, of another format or of a version this code can't read, or an
            address can't be read.
    """
    if not is_address(store):
        return load_manifest(Path(store) / MANIFEST, STORE_FORMAT)
    where = str(store)
    try:
        folder = RemoteFolder(where)
        where = f'{folder.address}/{MANIFEST}'
        value = parse_json(folder.read_cached(MANIFEST))
    except MissingFileError:
        raise
    except UnreachableError as error:
        raise UnreachableStoreError(str(error)) from None
    except InputError as error:
        text = str(error)
        raise StoreError(text if '://' in text else f'{where} is corrupt: {text}') from None
    return _check_manifest(value, where, STORE_FORMAT)


def load_manifest(path: Path, expected_format: str) -> dict[str, Any]:
    """Read ``store.json`` or a shard's JSON, and check that it says what was written.

    All fields are there and of the right types, names are those that a writer gives, numbers are
    possible, and settings, totals and all else fit their checksums.

    Raises:
        FileNotFoundError: If there is none.
        StoreError: If it is corrupt, of another format or of a version this code can't read.
    """
    try:
        manifest = read_json(path)
    except MissingFileError:
        raise
    except InputError as error:
        raise StoreError(f'the manifest is corrupt: {error}') from None
    return _check_manifest(manifest, path, expected_format)


def _check_manifest(manifest: Any, path: Path | str, expected_format: str) -> dict[str, Any]:
    """Check what a manifest's file holds, as `load_manifest` does."""
    if not isinstance(manifest, dict) or manifest.get('format') != expected_format:
        raise StoreError(f'{path} is not a {expected_format} manifest')
    version = manifest.get('version')
    if type(version) is not int or not 1 <= version <= VERSION:
        raise StoreError(
            f'{path} is of format version {version!r}; this version of freeatm_mm '
            f'reads versions 1 to {VERSION}'
        )
    try:
        check_json(manifest, _SHAPES[expected_format], f'{path} is corrupt')
        _check_contents(manifest, expected_format, version)
    except StoreError as error:
        raise StoreError(f'{path} is corrupt: {error}') from None
    except InputError as error:
        raise StoreError(str(error)) from None
    return manifest


def _check_contents(manifest: dict[str, Any], expected_format: str, version: int) -> None:
    """Check what a manifest says against itself.

    Raises:
        StoreError: At the first contradiction.
    """
    is_store = expected_format == STORE_FORMAT
    shards = manifest['shards'] if is_store else [manifest]
    for number, shard in enumerate(shards):
        # Names in a file are not trusted as paths: they must be the ones that a writer gives.
        if is_store and shard['name'] != shard_name(number):
            raise StoreError(
                f'its list of shards is not one that a writer makes: shard {number} '
                f'is called {shard["name"]!r}'
            )
        for name in ('samples', 'bytes', 'index_bytes'):
            # A shard may go without all its samples, if its notes say so.
            least = 0 if name == 'samples' and left_out_keys(shard.get('notes')) else 1
            if not least <= shard[name] < _MOST:
                raise StoreError(f"{shard['name']} can't have {shard[name]} {name}")
        # At an address it is fetched whole before it can be compared with anything.
        if shard['index_bytes'] > _HEADER_BYTES + shard['samples'] * _MOST_ROW:
            raise StoreError(
                f"{shard['name']} can't have an index of {shard['index_bytes']} bytes for "
                f'{counted(shard["samples"], "sample")}'
            )
    if is_store:
        if config_digest(manifest['config']) != manifest['config_sha256']:
            raise StoreError('the settings are not those that were written (config_sha256)')
        each = manifest['samples_per_shard']
        planned = [planned_samples(shard) for shard in shards]
        if (
            each < 1
            or any(count != each for count in planned[:-1])
            or any(count > each for count in planned[-1:])
        ):
            raise StoreError(
                f"its shards don't hold {counted(each, 'sample')} each (samples_per_shard)"
            )
        for name in TOTALS:
            total = sum(shard.get(name, 0) for shard in shards)
            if manifest[name] != total:
                raise StoreError(
                    f'it says {manifest[name]} {name} in all, and its shards have {total}'
                )
    if version > 1 or _SEAL in manifest:
        rest = {name: value for name, value in manifest.items() if name != _SEAL}
        if manifest.get(_SEAL) != config_digest(rest):
            raise StoreError(f'it is not what was written ({_SEAL})')

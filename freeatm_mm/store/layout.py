"""Names, versions and the fixed-width index that writer, reader and verification share."""
from __future__ import annotations

import hashlib
import io
import json
import os
import tokenize
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import StoreError

__all__ = ['BLOCK', 'INDEX_FIELDS', 'MANIFEST', 'PROGRESS', 'SHARD_FORMAT', 'STORE_FORMAT',
           'VERSION', 'config_digest', 'file_sha256', 'index_dtype', 'left_out_keys', 'load_index',
           'load_manifest', 'parse_json', 'read_index_header', 'shard_name']

VERSION = 1
STORE_FORMAT = 'freeatm-store'
SHARD_FORMAT = 'freeatm-shard'
MANIFEST = 'store.json'
#: What workers write into while they draw; gone when the store is finished.
PROGRESS = 'progress.u32'
#: Size of a tar header, and what members are padded to.
BLOCK = 512
# More than the header of any index takes.
_HEADER_BYTES = 4096

# offset: first byte of the member's content, counted from the start of the tar. crc32 covers the
# whole sample: headers, contents and padding, which stand together in the order below.
INDEX_FIELDS = (
    ('json_offset', '<i8'), ('json_size', '<i8'),
    ('masks_offset', '<i8'), ('masks_size', '<i8'),
    ('image_offset', '<i8'), ('image_size', '<i8'),
    ('image_format', 'S4'), ('nouns', '<u4'), ('crc32', '<u4'))


def index_dtype(key_length: int) -> np.dtype:
    """Row of the index for keys of at most ``key_length`` bytes."""
    return np.dtype([('key', f'S{max(1, key_length)}'), *INDEX_FIELDS])


def shard_name(index: int) -> str:
    """Name of shard number ``index``, without ending."""
    return f'shard-{index:06d}'


def config_digest(config: dict[str, Any]) -> str:
    """Hex sha256 of a configuration, whatever the order of its keys."""
    text = json.dumps(config, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def left_out_keys(notes: Any) -> set[str]:
    """Keys of the samples that a shard, by its notes, goes without: they could not be made."""
    listed = notes.get('left_out') if isinstance(notes, dict) else None
    if not isinstance(listed, list):
        return set()
    return {item['key'] for item in listed
            if isinstance(item, dict) and isinstance(item.get('key'), str)}


def load_index(path: Path) -> np.ndarray:
    """Map a shard's index into memory, without reading its rows.

    Raises:
        StoreError: If the file is missing or is no index.
    """
    try:
        with path.open('rb') as file:
            dtype, rows, first_row = read_index_header(file.fileno())
        if not rows:  # of a shard whose samples were all left out
            return np.empty(0, dtype)
        return np.memmap(path, dtype, mode='r', offset=first_row, shape=(rows,))
    except FileNotFoundError:
        raise StoreError(f'the index {path} is missing') from None
    except (OSError, ValueError) as error:
        raise StoreError(f'the index {path} is corrupt ({error})') from None
    except StoreError as error:
        raise StoreError(f'the index {path} {error}') from None


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
    if rows < 0 or size != first_row + rows * dtype.itemsize:
        raise StoreError(f'is corrupt: it has {size} bytes where {rows} rows need '
                         f'{first_row + rows * dtype.itemsize}')
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
    except (ValueError, SyntaxError, TypeError, EOFError, RecursionError, MemoryError,
            tokenize.TokenError) as error:
        raise StoreError(f'is corrupt ({type(error).__name__} in its header)') from None
    key_length = dtype['key'].itemsize if 'key' in (dtype.names or ()) else 0
    if len(shape) != 1 or dtype != index_dtype(key_length):
        raise StoreError(f'is not an index of version {VERSION}')
    return dtype, shape[0], stream.tell()


def parse_json(data: bytes) -> Any:
    """Parse JSON that may come from anywhere.

    Raises:
        ValueError: If it is no JSON, isn't UTF-8 or is nested too deeply.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError('it is nested too deeply') from None


def load_manifest(path: Path, expected_format: str) -> dict[str, Any]:
    """Read and check ``store.json`` or a shard's JSON.

    Raises:
        FileNotFoundError: If there is none.
        StoreError: If it is corrupt, of another format or of a version this code can't read.
    """
    try:
        manifest = parse_json(path.read_bytes())
    except ValueError as error:
        raise StoreError(f'{path} is corrupt: it is not JSON ({error})') from None
    if not isinstance(manifest, dict) or manifest.get('format') != expected_format:
        raise StoreError(f'{path} is not a {expected_format} manifest')
    if manifest.get('version') != VERSION:
        raise StoreError(f'{path} is of format version {manifest.get("version")!r}; this version '
                         f'of freeatm_mm reads version {VERSION}')
    return manifest

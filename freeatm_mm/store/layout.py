"""Names, versions and the fixed-width index that writer, reader and verification share."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from .errors import StoreError

__all__ = ['BLOCK', 'INDEX_FIELDS', 'MANIFEST', 'SHARD_FORMAT', 'STORE_FORMAT', 'VERSION',
           'config_digest', 'file_sha256', 'index_dtype', 'load_index', 'load_manifest',
           'shard_name']

VERSION = 1
STORE_FORMAT = 'freeatm-store'
SHARD_FORMAT = 'freeatm-shard'
MANIFEST = 'store.json'
#: Size of a tar header, and what members are padded to.
BLOCK = 512

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


def load_index(path: Path) -> np.ndarray:
    """Map a shard's index into memory, without reading it.

    Raises:
        StoreError: If the file is missing or is no index.
    """
    try:
        rows = np.load(path, mmap_mode='r', allow_pickle=False)
    except FileNotFoundError:
        raise StoreError(f'the index {path} is missing') from None
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise StoreError(f'the index {path} is corrupt ({error})') from None
    key_length = rows.dtype['key'].itemsize if 'key' in (rows.dtype.names or ()) else 0
    if rows.ndim != 1 or rows.dtype != index_dtype(key_length):
        raise StoreError(f'{path} is not an index of version {VERSION}')
    return rows


def load_manifest(path: Path, expected_format: str) -> dict[str, Any]:
    """Read and check ``store.json`` or a shard's JSON.

    Raises:
        FileNotFoundError: If there is none.
        StoreError: If it is corrupt, of another format or of a version this code can't read.
    """
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreError(f'{path} is corrupt: it is not JSON ({error})') from None
    if not isinstance(manifest, dict) or manifest.get('format') != expected_format:
        raise StoreError(f'{path} is not a {expected_format} manifest')
    if manifest.get('version') != VERSION:
        raise StoreError(f'{path} is of format version {manifest.get("version")!r}; this version '
                         f'of freeatm_mm reads version {VERSION}')
    return manifest

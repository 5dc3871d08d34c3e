"""Checking a store byte by byte."""
from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import StoreError
from .layout import file_sha256, load_index
from .reader import Store

__all__ = ['Problem', 'verify_store']


class Problem(NamedTuple):
    """Something wrong with a store.

    Args:
        where: The file, or the file and the sample.
        what: What is wrong with it.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f'{self.where}: {self.what}'


def verify_store(path: str | Path, decode: bool = True) -> Iterator[Problem]:
    """Yield what is wrong with a store; nothing if it is sound.

    Checks sizes and checksums of shards and indexes, that every index row points at the members
    that the tar lists, that keys are unique, and, with ``decode``, that every sample decodes.

    Args:
        path: The store's folder.
        decode: Also decode every image and every mask.
    """
    try:
        store = Store(path)
    except StoreError as error:
        yield Problem(str(path), str(error))
        return
    keys: list[np.ndarray] = []
    first = 0
    for entry in store.manifest['shards']:
        tar_path = store.path / f'{entry["name"]}.tar'
        index_path = tar_path.with_suffix('.index.npy')
        sound = True
        for file, digest in ((tar_path, entry['sha256']), (index_path, entry['index_sha256'])):
            if file_sha256(file) != digest:
                sound = False
                yield Problem(str(file), 'its sha256 is not the one in store.json')
        try:
            rows = load_index(index_path)
            keys.append(np.array(rows['key']))
            yield from _compare_members(tar_path, rows)
        except (StoreError, tarfile.TarError, OSError) as error:
            yield Problem(str(tar_path), str(error))
        # A shard with the right checksum needs no second look at each sample's own checksum.
        if decode or not sound:
            for number in range(first, first + entry['samples']):
                try:
                    _ = store[number].image
                except StoreError as error:
                    yield Problem(str(tar_path), str(error))
        first += entry['samples']
    if keys:
        names, counts = np.unique(np.concatenate(keys), return_counts=True)
        for name in names[counts > 1]:
            yield Problem(str(store.path), f'several samples have the key {name.decode()!r}')


def _compare_members(tar_path: Path, rows: np.ndarray) -> Iterator[Problem]:
    """Compare the tar's own list of members with the index."""
    with tarfile.open(tar_path, 'r:') as tar:
        listed = [(member.name, member.offset_data, member.size) for member in tar]
    indexed: list[tuple[str, Any, Any]] = []
    for row in rows:
        key, ending = row['key'].decode(), row['image_format'].decode()
        for kind, name in (('json', 'json'), ('masks', 'masks.png'), ('image', ending)):
            if kind != 'masks' or row['nouns']:
                indexed.append((f'{key}.{name}', row[f'{kind}_offset'], row[f'{kind}_size']))
    if listed != indexed:
        yield Problem(str(tar_path), 'its members are not those that its index lists')

"""Reading a store at random, through offsets."""

from __future__ import annotations

import operator
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from freeatm_mm.errors import listed
from freeatm_mm.store.errors import StoreError
from freeatm_mm.store.layout import (
    MANIFEST,
    handle_sha256,
    open_regular,
    read_exactly,
    read_index_header,
    read_manifest,
)
from freeatm_mm.store.sample import RawSample, Sample, decode_sample
from freeatm_mm.store.tar import read_info, read_sample

__all__ = ['Store']


class Store(Sequence):
    """The samples of a finished store, by number.

    Opening reads ``store.json`` and the folder's listing only. A sample is one small read from its
    shard's index and one read from the tar, however many samples there are. What is returned is
    proved by what was read: the index by its sha256 in ``store.json``, once in a process for each
    shard, and the sample by its CRC-32 and the names and sizes in the tar. A store can be pickled,
    forked and shared by threads; every process opens its own files.

    Args:
        path: The store's folder.
        max_open_shards: Shards kept open at a time (two file handles each); by default a half of
            the handles that this process may have, and at most 2048.

    Raises:
        StoreError: If the folder holds no store, an unfinished or empty one, or lacks a shard.
    """

    def __init__(self, path: str | Path, max_open_shards: int | None = None) -> None:
        self.path = Path(path)
        if max_open_shards is None:
            handles = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            max_open_shards = min(2048, handles // 4) if handles > 0 else 2048
        self.max_open_shards = max(1, max_open_shards)
        self._folder = os.path.join(self.path, '')
        self.manifest = self._load_manifest()
        shards = self.manifest['shards']
        counts = np.array([shard['samples'] for shard in shards], np.int64)
        #: Number of the first sample of each shard, and the number of samples at the end.
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._reset()

    @property
    def config(self) -> dict[str, Any]:
        """What made the samples, as given to the writer."""
        return self.manifest['config']

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # takes no slices
        """Sample number ``index``; negative numbers count from the end.

        Raises:
            IndexError: If there is no such sample.
            StoreError: If the shard is missing or corrupt; names shard and sample.
        """
        shard_number, row_number = self._locate(index)
        try:
            return decode_sample(self._read(shard_number, row_number))
        except StoreError as error:
            raise StoreError(f'{self._shard_path(shard_number)}: {error}') from None

    def read(self, index: int) -> RawSample:
        """Sample number ``index`` with nothing decoded but its JSON.

        Raises:
            IndexError: If there is no such sample.
            StoreError: If the shard is missing or corrupt; names shard and sample.
        """
        shard_number, row_number = self._locate(index)
        try:
            return self._read(shard_number, row_number)
        except StoreError as error:
            raise StoreError(f'{self._shard_path(shard_number)}: {error}') from None

    def names(self, index: int) -> list[str]:
        """What the nouns of sample number ``index`` are called, from its JSON alone.

        Many times less is read than by :meth:`read`, and so less is proved: not that nobody changed
        a letter of a name.

        Raises:
            IndexError: If there is no such sample.
            StoreError: If the shard is missing or corrupt; names shard and sample.
        """
        shard_number, row_number = self._locate(index)
        try:
            return self._shard(shard_number).names(row_number)
        except StoreError as error:
            raise StoreError(f'{self._shard_path(shard_number)}: {error}') from None

    def sample_keys(self) -> Iterator[str]:
        """Yield the key of each sample, in order, from the indexes alone: no sample is read.

        Raises:
            StoreError: If a shard is missing, was cut off, or its index is corrupt; names it.
        """
        for number, shard in enumerate(self.manifest['shards']):
            if shard['samples']:
                try:
                    keys = self._shard(number).keys()
                except StoreError as error:
                    raise StoreError(f'{self._shard_path(number)}: {error}') from None
                yield from keys

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for field in ('_open', '_lock', '_pid', '_proved'):
            del state[field]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __repr__(self) -> str:
        return f'Store({str(self.path)!r}, {len(self)} samples)'

    def _reset(self) -> None:
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._proved: set[int] = set()  # shards whose index was compared with its sha256
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def _load_manifest(self) -> dict[str, Any]:
        if not self.path.is_dir():
            raise StoreError(f'there is no store at {self.path}: no such folder')
        try:
            manifest = read_manifest(self.path)
        except FileNotFoundError:
            raise StoreError(f'{self.path} is not a store: it has no {MANIFEST}') from None
        complete, shards = manifest['complete'], manifest['shards']
        if not complete:
            raise StoreError(
                f'the store {self.path} is not finished; run the command that makes '
                'it once more, it goes on where it was'
            )
        if not any(shard['samples'] for shard in shards):
            raise StoreError(f'the store {self.path} is empty')
        present = {entry.name for entry in os.scandir(self.path)}
        missing = [
            name
            for shard in shards
            for name in (f'{shard["name"]}.tar', f'{shard["name"]}.index.npy')
            if name not in present
        ]
        if missing:
            raise StoreError(f'the store {self.path} lacks {listed(missing)}')
        return manifest

    def _locate(self, index: int) -> tuple[int, int]:
        """Number of the shard, and of the row in it."""
        number = operator.index(index)
        if number < 0:
            number += len(self)
        if not 0 <= number < len(self):
            raise IndexError(f'sample {index} of {self.path}, which has {len(self)}')
        shard_number = int(np.searchsorted(self._starts, number, side='right')) - 1
        return shard_number, number - int(self._starts[shard_number])

    def _shard_path(self, shard_number: int) -> str:
        # No Path: making one takes as long as opening a file.
        return f'{self._folder}{self.manifest["shards"][shard_number]["name"]}.tar'

    def _shard(self, shard_number: int) -> _OpenShard:
        if self._pid != os.getpid():  # after a fork: the parent's lock may be held for ever
            self._reset()
        with self._lock:
            shard = self._open.get(shard_number)
            if shard is None:
                shard = _OpenShard(
                    self._shard_path(shard_number),
                    self.manifest['shards'][shard_number],
                    prove=shard_number not in self._proved,
                )
                self._proved.add(shard_number)
                self._open[shard_number] = shard
                # A shard dropped here stays open until a thread that is reading it lets go.
                while len(self._open) > self.max_open_shards:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard_number)
            return shard

    def _read(self, shard_number: int, row_number: int) -> RawSample:
        return self._shard(shard_number).read(row_number)


class _OpenShard:
    """An open tar and its open index; a sample is one small read from each.

    The index is not mapped: among thousands of shards most reads open one, and parsing its header
    once for all shards that share it makes that as cheap as in a small store.
    """

    def __init__(self, path: str, entry: dict[str, Any], prove: bool) -> None:
        index_path = f'{path[: -len(".tar")]}.index.npy'
        self.index_handle = open_regular(index_path)
        try:
            self.dtype, rows, self.first_row = read_index_header(self.index_handle)
        except StoreError as error:
            raise StoreError(f'the index {index_path} {error}') from None
        if rows != entry['samples']:
            raise StoreError(f'its index has {rows} rows, store.json says {entry["samples"]}')
        if prove and handle_sha256(self.index_handle) != entry['index_sha256']:
            raise StoreError(
                f'the index {index_path} is not the one that was written: its sha256 '
                "isn't that in store.json; tools/store/verify.py --repair makes it "
                'again'
            )
        self.rows = rows
        self.handle = open_regular(path)
        self.size = os.fstat(self.handle).st_size
        if self.size != entry['bytes']:
            raise StoreError(
                f'the shard has {self.size} bytes, store.json says {entry["bytes"]}: '
                'it is truncated or was changed'
            )

    def __del__(self) -> None:
        for name in ('handle', 'index_handle'):
            if hasattr(self, name):
                os.close(getattr(self, name))

    def _row(self, number: int) -> tuple:
        data = read_exactly(
            self.index_handle, self.dtype.itemsize, self.first_row + number * self.dtype.itemsize
        )
        if len(data) < self.dtype.itemsize:
            raise StoreError('its index was cut off while it was open')
        return np.frombuffer(data, self.dtype)[0].item()

    def keys(self) -> list[str]:
        """Return the key of each sample, from the index."""
        size = self.rows * self.dtype.itemsize
        data = read_exactly(self.index_handle, size, self.first_row)
        if len(data) < size:
            raise StoreError('its index was cut off while it was open')
        return [key.decode('ascii', 'replace') for key in np.frombuffer(data, self.dtype)['key']]

    def names(self, row_number: int) -> list[str]:
        """Read what a sample's nouns are called."""
        row = self._row(row_number)
        try:
            info = read_info(self.handle, self.size, row)
        except OSError as error:
            raise StoreError(f"it can't be read ({error.strerror})") from None
        return RawSample(row[0].decode(), b'', '', info, b'').names()

    def read(self, row_number: int) -> RawSample:
        """Read one sample and check it."""
        try:
            return read_sample(self.handle, self.size, self._row(row_number))
        except OSError as error:
            raise StoreError(f"it can't be read ({error.strerror})") from None

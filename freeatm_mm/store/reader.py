"""Reading a store at random, through offsets."""
from __future__ import annotations

import json
import operator
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import StoreError
from .layout import BLOCK, MANIFEST, STORE_FORMAT, load_index, load_manifest, shard_name
from .sample import IMAGE_FORMATS, RawSample, Sample, decode_sample

__all__ = ['Store']


class Store(Sequence):
    """The samples of a finished store, by number.

    Opening reads ``store.json`` and the folder's listing only. Each shard's index is mapped into
    memory when first used, and one sample is one read from the tar, checked against its CRC-32.
    A store can be pickled, forked and shared by threads; every process opens its own files.

    Args:
        path: The store's folder.
        max_open_shards: Shards kept open at a time (two file handles each).

    Raises:
        StoreError: If the folder holds no store, an unfinished or empty one, or lacks a shard.
    """

    def __init__(self, path: str | Path, max_open_shards: int = 128) -> None:
        self.path = Path(path)
        self.max_open_shards = max(1, max_open_shards)
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

    def __getitem__(self, index: int) -> Sample:
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

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for field in ('_open', '_lock', '_pid'):
            del state[field]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __repr__(self) -> str:
        return f'Store({str(self.path)!r}, {len(self)} samples)'

    def _reset(self) -> None:
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def _load_manifest(self) -> dict[str, Any]:
        if not self.path.is_dir():
            raise StoreError(f'there is no store at {self.path}: no such folder')
        try:
            manifest = load_manifest(self.path / MANIFEST, STORE_FORMAT)
        except FileNotFoundError:
            raise StoreError(f'{self.path} is not a store: it has no {MANIFEST}') from None
        try:
            complete, shards = manifest['complete'], manifest['shards']
            # Names in a file are not trusted as paths: they must be the ones that a writer gives.
            sound = all(shard['name'] == shard_name(index) and shard['samples'] > 0
                        and shard['bytes'] > 0 for index, shard in enumerate(shards))
        except (KeyError, TypeError):
            sound = False
        if not sound:
            raise StoreError(f'{self.path / MANIFEST} is corrupt: its list of shards is not one '
                             'that a writer makes')
        if not complete:
            raise StoreError(f'the store {self.path} is not finished; run the command that makes '
                             'it once more, it goes on where it was')
        if not shards:
            raise StoreError(f'the store {self.path} is empty')
        present = {entry.name for entry in os.scandir(self.path)}
        missing = [name for shard in shards
                   for name in (f'{shard["name"]}.tar', f'{shard["name"]}.index.npy')
                   if name not in present]
        if missing:
            more = f' and {len(missing) - 3} more' if len(missing) > 3 else ''
            raise StoreError(f'the store {self.path} lacks {", ".join(missing[:3])}{more}')
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

    def _shard_path(self, shard_number: int) -> Path:
        return self.path / f'{self.manifest["shards"][shard_number]["name"]}.tar'

    def _shard(self, shard_number: int) -> _OpenShard:
        if self._pid != os.getpid():  # after a fork: the parent's lock may be held for ever
            self._reset()
        with self._lock:
            shard = self._open.get(shard_number)
            if shard is None:
                shard = _OpenShard(self._shard_path(shard_number),
                                   self.manifest['shards'][shard_number])
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
    """An open tar and its index."""

    def __init__(self, path: Path, entry: dict[str, Any]) -> None:
        self.rows = load_index(path.with_suffix('.index.npy'))
        if len(self.rows) != entry['samples']:
            raise StoreError(f'its index has {len(self.rows)} rows, store.json says '
                             f'{entry["samples"]}')
        try:
            self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"the shard can't be opened ({error.strerror})") from None
        self.size = os.fstat(self.handle).st_size
        if self.size != entry['bytes']:
            raise StoreError(f'the shard has {self.size} bytes, store.json says {entry["bytes"]}: '
                             'it is truncated or was changed')

    def __del__(self) -> None:
        if hasattr(self, 'handle'):
            os.close(self.handle)

    def read(self, row_number: int) -> RawSample:
        """Read one sample and check it."""
        (key, json_at, json_size, masks_at, masks_size, image_at, image_size, image_format, _,
         crc) = self.rows[row_number].item()
        key, image_format = key.decode('ascii', 'replace'), image_format.decode('ascii', 'replace')
        start, end = json_at - BLOCK, image_at + image_size + -image_size % BLOCK
        fits = (0 <= start < json_at <= json_at + json_size <= image_at <= end <= self.size
                and (not masks_size or json_at <= masks_at <= masks_at + masks_size <= image_at)
                and image_format in IMAGE_FORMATS)
        if not fits:
            raise StoreError(f'sample {key!r}: the index points outside the shard; it is corrupt')
        data = _pread_all(self.handle, end - start, start)
        if len(data) != end - start or zlib.crc32(data) != crc:
            raise StoreError(f"sample {key!r} is corrupt: its bytes don't match the checksum")
        try:
            info = json.loads(data[BLOCK:BLOCK + json_size])
        except ValueError as error:
            raise StoreError(f'sample {key!r}: its JSON is corrupt ({error})') from None
        masks = data[masks_at - start:masks_at - start + masks_size] if masks_size else b''
        image = data[image_at - start:image_at - start + image_size]
        return RawSample(key, image, image_format, info, masks)


def _pread_all(handle: int, size: int, offset: int) -> bytes:
    """Read ``size`` bytes, fewer only at the end of the file."""
    data = os.pread(handle, size, offset)
    while len(data) < size:
        more = os.pread(handle, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data

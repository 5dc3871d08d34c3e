"""Reading a store at random, through offsets."""

from __future__ import annotations

import operator
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from freeatm_mm.addresses import RemoteFolder, UnreachableError, is_address
from freeatm_mm.errors import InputError, counted, is_distant, listed
from freeatm_mm.store.errors import StoreError, UnreachableStoreError
from freeatm_mm.store.layout import (
    MANIFEST,
    handle_sha256,
    open_regular,
    read_exactly,
    read_index_header,
    read_manifest,
)
from freeatm_mm.store.remote import MOST_AHEAD, RemoteFiles, RemoteTar
from freeatm_mm.store.sample import RawSample, Sample, decode_sample
from freeatm_mm.store.tar import parse_sample, parse_text, sample_span

__all__ = ['Store']

#: Requests at a time for one batch.
_MOST_REQUESTS = 16
#: What samples may be apart, in bytes, to come with one; and what texts alone may.
_GAP, _GAP_OF_TEXTS = 1 << 18, 1 << 14
#: Samples whose JSON is read at once, where it is that of all.
_TEXTS_AT_ONCE = 256


class Store(Sequence):
    """The samples of a finished store, by number.

    Opening reads ``store.json`` and the folder's listing only. A sample is one small read from its
    shard's index and one read from the tar, however many samples there are. All that is read is
    verified: the index by its sha256 in ``store.json``, once in a process for each shard, and the
    sample by its CRC-32 and the names and sizes in the tar. A store can be pickled,
    forked and shared by threads; every process opens its own files, or has its own connection.

    Args:
        path: The store's folder, or its address (`s3://`, `gs://`, `hf://`, `https://`): then
            `store.json` and indexes are kept in a cache, and samples are read by range, or from
            shards that are kept whole.
        max_open_shards: Shards kept open at a time (two file handles each); by default a half of
            the handles that this process may have, and at most 2048.
        cache: Of a store at an address, the bytes of whole shards to keep on this machine, such as
            `'50GB'`: those opened longest ago go first. By default what the environment variable
            `FREEATM_SHARD_CACHE` says, or none.

    Raises:
        StoreError: If the folder holds no store, an unfinished or empty one, or lacks a shard; or
            an address can't be read.
        InputError: If `cache` is no number of bytes.
    """

    def __init__(
        self,
        path: str | Path,
        max_open_shards: int | None = None,
        cache: str | int | None = None,
    ) -> None:
        #: The folder, or the address as text.
        self.path: Path | str = path if is_address(path) else Path(path)
        self._remote: RemoteFiles | None = None
        if is_address(path):
            try:
                folder = RemoteFolder(path)
            except InputError as error:
                raise StoreError(str(error)) from None
            self.path = folder.address
            self._remote = RemoteFiles(folder, cache)
        if max_open_shards is None:
            handles = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            max_open_shards = min(2048, handles // 4) if handles > 0 else 2048
        self.max_open_shards = max(1, max_open_shards)
        # Whatever folder the process is in later.
        place = str(self.path) if self._remote else os.path.abspath(self.path)
        self._folder = os.path.join(place, '')
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

    @property
    def has_nouns(self) -> bool:
        """Whether any sample has a noun; true also where the manifest doesn't count them."""
        return bool(self.manifest.get('nouns', 1))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # takes no slices
        """Sample number ``index``; negative numbers count from the end.

        Raises:
            IndexError: If there is no such sample.
            StoreError: If the shard is missing or corrupt; names shard and sample.
        """
        shard_number, row_number = self._locate(index)
        with self._told_of(shard_number):
            return decode_sample(self._shard(shard_number).read(row_number))

    def read(self, index: int) -> RawSample:
        """Sample number ``index`` with nothing decoded but its JSON.

        Raises:
            IndexError: If there is no such sample.
            StoreError: If the shard is missing or corrupt; names shard and sample.
        """
        return self._read(index)

    def _read(self, index: int, text_alone: bool = False) -> RawSample:
        if (held := self._held.get(index)) is not None:
            return held
        shard_number, row_number = self._locate(index)
        with self._told_of(shard_number):
            return self._shard(shard_number).read(row_number, text_alone)

    def read_many(self, indices: Sequence[int]) -> list[RawSample]:
        """Samples by number, as `read` gives each.

        At an address several requests are made at once, and samples that stand close together in a
        shard come with one.

        Raises:
            IndexError: If there is no such sample.
            StoreError: If a shard is missing or corrupt; names shard and sample.
        """
        return self._read_many(indices)

    def read_texts(self, indices: Sequence[int]) -> list[RawSample]:
        """Samples by number, with their JSON alone: without image and masks.

        Many times less is read than by `read_many`, and so less is proved: not that nobody changed
        a letter of a caption.

        Raises:
            IndexError: If there is no such sample.
            StoreError: If a shard is missing or corrupt; names shard and sample.
        """
        return self._read_many(indices, text_alone=True)

    def texts(self) -> Iterator[RawSample]:
        """Yield all samples in order with their JSON alone, as `read_texts` gives them.

        Raises:
            StoreError: If a shard is missing or corrupt; names shard and sample.
        """
        for first in range(0, len(self), _TEXTS_AT_ONCE):
            yield from self.read_texts(range(first, min(first + _TEXTS_AT_ONCE, len(self))))

    def _read_many(self, indices: Sequence[int], text_alone: bool = False) -> list[RawSample]:
        places = [self._locate(index) for index in indices]
        if self._remote is None or len(places) < 2:
            return [self._read(index, text_alone) for index in indices]
        by_shard: dict[int, set[int]] = {}
        for shard_number, row in places:
            by_shard.setdefault(shard_number, set()).add(row)
        found: dict[tuple[int, int], RawSample] = {}

        def pieces_of(shard_number: int) -> list[tuple[int, list[int]]]:
            with self._told_of(shard_number):
                shard, rows = self._shard(shard_number), sorted(by_shard[shard_number])
                return [(shard_number, piece) for piece in shard.pieces(rows, text_alone)]

        def fetch(piece: tuple[int, list[int]]) -> None:
            shard_number, rows = piece
            with self._told_of(shard_number):
                samples = self._shard(shard_number).read_many(rows, text_alone)
                found.update({(shard_number, row): raw for row, raw in zip(rows, samples)})

        # Threads of this call alone: none is there when a process forks.
        with ThreadPoolExecutor(_MOST_REQUESTS) as pool:
            due = [piece for pieces in pool.map(pieces_of, by_shard) for piece in pieces]
            for _ in pool.map(fetch, due):
                pass
        return [found[place] for place in places]

    @contextmanager
    def at_hand(self, indices: Sequence[int]) -> Iterator[None]:
        """Keep samples for `read` as long as the `with` lasts, read as by `read_many`.

        For code that asks for one sample at a time and knows which a batch will need. Nothing is
        read here of a store in a folder; where the samples can't be read, `read` says why.
        """
        held: dict[int, RawSample] = {}
        if self._remote is not None and len(indices) > 1:
            try:
                held = dict(zip(indices, self.read_many(indices)))
            except StoreError:
                pass
        self._held.update(held)
        try:
            yield
        finally:
            for index in held:
                self._held.pop(index, None)

    def names(self, index: int) -> list[str]:
        """What the nouns of sample number ``index`` are called, from its JSON alone.

        Many times less is read than by `read`, and so less is proved: not that nobody changed
        a letter of a name.

        Raises:
            IndexError: If there is no such sample.
            StoreError: If the shard is missing or corrupt; names shard and sample.
        """
        (raw,) = self.read_texts([index])
        return raw.names()

    def sample_keys(self) -> Iterator[str]:
        """Yield the key of each sample, in order, from the indexes alone: no sample is read.

        Raises:
            StoreError: If a shard is missing, was cut off, or its index is corrupt; names it.
        """
        for number, shard in enumerate(self.manifest['shards']):
            if shard['samples']:
                with self._told_of(number):
                    keys = self._shard(number).keys()
                yield from keys

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for field in ('_open', '_lock', '_pid', '_proved', '_held'):
            del state[field]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __repr__(self) -> str:
        return f'Store({str(self.path)!r}, {counted(len(self), "sample")})'

    def _reset(self) -> None:
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._proved: set[int] = set()  # shards whose index was compared with its sha256
        self._held: dict[int, RawSample] = {}  # by `at_hand`
        self._lock = threading.Lock()
        self._pid = os.getpid()
        if self._remote is not None:
            self._remote.reset()

    def _load_manifest(self) -> dict[str, Any]:
        if isinstance(self.path, Path) and not self.path.is_dir():
            text = str(self.path)
            hint = ' (give an address as text, not as a Path)' if is_distant(text) else ''
            raise StoreError(f'there is no store at {text}: no such folder{hint}')
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
        if self._remote is not None:
            return manifest
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
        try:
            number = operator.index(index)
        except TypeError:
            raise TypeError(f'samples are chosen by their number, got {index!r}') from None
        if number < 0:
            number += len(self)
        if not 0 <= number < len(self):
            raise IndexError(f'sample {index} of {self.path}, which has {len(self)}')
        shard_number = int(np.searchsorted(self._starts, number, side='right')) - 1
        return shard_number, number - int(self._starts[shard_number])

    @contextmanager
    def _told_of(self, shard_number: int) -> Iterator[None]:
        """Have an error say which shard it is of, unless it begins with a file's name there."""
        try:
            yield
        except InputError as error:
            text, path = str(error), self._shard_path(shard_number)
            named = text.startswith(f'{self.path}/' if is_address(path) else path)
            kind = UnreachableStoreError if isinstance(error, UnreachableError) else StoreError
            raise kind(text if named else f'{path}: {text}') from None

    def _shard_path(self, shard_number: int) -> str:
        # No Path: making one takes as long as opening a file.
        return f'{self._folder}{self.manifest["shards"][shard_number]["name"]}.tar'

    def _shard(self, shard_number: int) -> _OpenShard:
        if self._pid != os.getpid():  # after a fork: the parent's lock may be held for ever
            self._reset()
        with self._lock:
            shard = self._open.get(shard_number)
            if shard is None:
                shard = self._open_shard(shard_number)
                self._proved.add(shard_number)
                self._open[shard_number] = shard
                # A shard dropped here stays open until a thread that is reading it lets go.
                while len(self._open) > self.max_open_shards:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard_number)
            return shard

    def _open_shard(self, number: int) -> _OpenShard:
        path, entry = self._shard_path(number), self.manifest['shards'][number]
        prove = number not in self._proved
        if self._remote is None:
            return _OpenShard(f'{path[: -len(".tar")]}.index.npy', path, entry, prove)
        return _OpenShard(
            str(self._remote.index(entry, prove)),
            str(self._remote.tar(entry) or ''),
            entry,
            prove,
            RemoteTar(self._remote, entry),
        )


class _OpenShard:
    """An open tar and its open index; a sample is one small read from each.

    The index is not mapped: among thousands of shards most reads open one, and parsing its header
    once for all shards that share it makes that as cheap as in a small store.

    Args:
        index_path: Its index.
        path: Its tar; '' for one that is only at an address.
        entry: What `store.json` says of it.
        prove: Whether to compare the index with its sha256.
        remote: Its tar at the address.
    """

    def __init__(
        self,
        index_path: str,
        path: str,
        entry: dict[str, Any],
        prove: bool,
        remote: RemoteTar | None = None,
    ) -> None:
        self.index_handle = open_regular(index_path)
        try:
            self.dtype, rows, self.first_row = read_index_header(self.index_handle)
        except StoreError as error:
            raise StoreError(f'the index {index_path} {error}') from None
        if rows != entry['samples']:
            raise StoreError(
                f'its index has {counted(rows, "row")}, store.json says {entry["samples"]}'
            )
        if prove and handle_sha256(self.index_handle) != entry['index_sha256']:
            raise StoreError(
                f"the index {index_path} is not the one that was written: its sha256 isn't that "
                'in store.json; freeatm verify --repair makes it again'
            )
        self.rows, self.path, self.remote = rows, path, remote
        self.size: int = entry['bytes']
        if not path:
            return
        try:
            self.handle = open_regular(path)
            self.size = os.fstat(self.handle).st_size
            if self.size != entry['bytes']:
                raise StoreError(
                    f'the shard has {self.size} bytes, store.json says {entry["bytes"]}: '
                    'it is truncated or was changed'
                )
        except StoreError:
            if remote is None:
                raise
            # The cache has it no more, as another process made room: read by range, then.
            self.path, self.size = '', entry['bytes']

    def __del__(self) -> None:
        for name in ('handle', 'index_handle'):
            if hasattr(self, name):
                os.close(getattr(self, name))

    def row(self, number: int) -> tuple:
        """Return a row of the index, as plain values."""
        data = self._rows(number, 1)
        return np.frombuffer(data, self.dtype)[0].item()

    def keys(self) -> list[str]:
        """Return the key of each sample, from the index."""
        data = self._rows(0, self.rows)
        return [key.decode('ascii', 'replace') for key in np.frombuffer(data, self.dtype)['key']]

    def _rows(self, first: int, count: int) -> bytes:
        size = self.dtype.itemsize
        try:
            data = read_exactly(self.index_handle, count * size, self.first_row + first * size)
        except OSError as error:
            raise StoreError(f"its index can't be read: {error.strerror or error}") from None
        if len(data) < count * size:
            raise StoreError('its index was cut off while it was open')
        return data

    def read(self, row_number: int, text_alone: bool = False) -> RawSample:
        """Read one sample and check it; or its JSON alone, of which less can be proved."""
        row = self.row(row_number)
        start, stop = self._span(row, text_alone)
        parse = parse_text if text_alone else parse_sample
        if self.path:
            try:
                return parse(row, read_exactly(self.handle, stop - start, start))
            except (OSError, StoreError) as error:
                if text_alone:
                    return self.read(row_number)  # says what is wrong, or fetches it again
                if self.remote is None:
                    if isinstance(error, StoreError):
                        raise
                    raise StoreError(f"it can't be read ({error.strerror})") from None
            # What the cache holds was damaged: it is fetched again, next time. Another thread may
            # have found out at the same moment, and the cache may be another user's.
            path, self.path = self.path, ''
            if path:
                with suppress(OSError):
                    os.unlink(path)
        assert self.remote is not None
        return parse(row, self.remote.read(start, stop))

    def _span(self, row: tuple, text_alone: bool) -> tuple[int, int]:
        start, stop = sample_span(self.size, row)
        return start, row[1] + row[2] if text_alone else stop

    def pieces(self, row_numbers: Sequence[int], text_alone: bool = False) -> list[list[int]]:
        """Group samples, numbered in rising order, that one request is to bring."""
        if self.path or self.remote is None:
            return [list(row_numbers)]
        gap = _GAP_OF_TEXTS if text_alone else _GAP
        pieces: list[list[int]] = []
        first = last = 0
        for number in row_numbers:
            start, stop = self._span(self.row(number), text_alone)
            if not pieces or start - last > gap or stop - first > MOST_AHEAD:
                pieces.append([])
                first = start
            pieces[-1].append(number)
            last = stop
        return pieces

    def read_many(self, row_numbers: Sequence[int], text_alone: bool = False) -> list[RawSample]:
        """Read the samples of a piece, as `read` does each, with one request."""
        if self.path or self.remote is None:
            return [self.read(number, text_alone) for number in row_numbers]
        rows = [self.row(number) for number in row_numbers]
        spans = [self._span(row, text_alone) for row in rows]
        parse, first = parse_text if text_alone else parse_sample, spans[0][0]
        data = self.remote.read(first, spans[-1][1])
        return [
            parse(row, data[start - first : stop - first])
            for row, (start, stop) in zip(rows, spans)
        ]

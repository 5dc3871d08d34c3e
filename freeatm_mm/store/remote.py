"""A store's files at an address: indexes and whole shards in a cache, samples by range."""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from freeatm_mm.addresses import RemoteFolder, cache_folder, keeping, parse_bytes
from freeatm_mm.store.errors import StoreError
from freeatm_mm.store.layout import file_sha256
from freeatm_mm.store.locking import hold, locked_write

__all__ = ['MOST_AHEAD', 'RemoteFiles', 'RemoteTar']

#: The setting of how many bytes of whole shards are kept, where a store isn't told.
CACHE_VARIABLE = 'FREEATM_SHARD_CACHE'
#: What is read ahead, in bytes, when samples are read one after the other: at first, and at most.
FIRST_AHEAD, MOST_AHEAD = 1 << 20, 1 << 24

_SHA256 = re.compile('[0-9a-f]{64}')


class RemoteFiles:
    """The files of a store at an address, as far as they are needed on this machine.

    In the cache they are named by their sha256, as the store's manifest has it: what is there is
    what was written, whichever store it came from.

    Args:
        folder: The store's folder.
        cache: Bytes of whole shards to keep in the cache, such as '50GB'; 0 to keep none, and read
            each sample by range. By default as `FREEATM_SHARD_CACHE` says, or none.

    Raises:
        InputError: If that is no number of bytes.
    """

    def __init__(self, folder: RemoteFolder, cache: str | int | None) -> None:
        self.folder = folder
        self.limit = parse_bytes(os.environ.get(CACHE_VARIABLE) or 0 if cache is None else cache)
        self.reset()

    def __getstate__(self) -> dict[str, Any]:
        return {'folder': self.folder, 'limit': self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.reset()

    def reset(self) -> None:
        """Begin anew in a process that was forked: a lock of its parent may be held for ever."""
        self._lock = threading.Lock()
        self._ahead: tuple[str, int, bytes] = ('', 0, b'')
        self._next, self._step = ('', -1), FIRST_AHEAD

    def index(self, entry: dict[str, Any], prove: bool) -> Path:
        """Return a shard's index in the cache, fetched if it isn't there as it was written.

        Args:
            entry: The shard's, of `store.json`.
            prove: Compare a copy that is there with its sha256, not only with its size.

        Raises:
            StoreError: If it can't be read, or is another one.
        """
        size, digest = entry['index_bytes'], entry['index_sha256']
        return self._copy(f'{entry["name"]}.index.npy', size, digest, cache_folder(), prove)

    def tar(self, entry: dict[str, Any]) -> Path | None:
        """Return a shard's tar in the cache, fetched if need be; `None` if shards aren't kept."""
        if entry['bytes'] > self.limit:
            return None
        folder, name = cache_folder() / 'shards', f'{entry["name"]}.tar'
        with keeping(name):
            folder.mkdir(exist_ok=True)
        path = self._copy(name, entry['bytes'], entry['sha256'], folder)
        with suppress(OSError):  # another user's, or just removed to make room for others
            os.utime(path)
        return path

    def _copy(self, name: str, size: int, digest: str, folder: Path, prove: bool = False) -> Path:
        if not _SHA256.fullmatch(digest):
            raise StoreError(f'store.json has no sha256 of {name} but {digest[:80]!r}')
        path = folder / (digest + Path(name).suffix)
        if path.is_file() and path.stat().st_size == size:
            if not prove or file_sha256(path) == digest:
                return path
        # One process fetches, others that want the same wait.
        with keeping(name), hold(path):
            if not (path.is_file() and file_sha256(path) == digest):
                if path.suffix == '.tar':
                    self._make_room(folder, size)
                self.folder.fetch(name, path, size, digest, write=locked_write)
        return path

    def _make_room(self, folder: Path, size: int) -> None:
        """Remove the shards that were opened longest ago, until one more fits in.

        One that another process has open stays readable to it.
        """
        kept = []
        for entry in os.scandir(folder):
            if entry.name.endswith('.tar'):
                with suppress(FileNotFoundError):  # another process makes room, too
                    status = entry.stat()
                    kept.append((status.st_mtime, status.st_size, entry.path))
        total = size + sum(each for _, each, _ in kept)
        for _, each, path in sorted(kept):
            if total <= self.limit:
                return
            Path(path).unlink(missing_ok=True)
            total -= each

    def read(self, name: str, start: int, stop: int, size: int) -> bytes:
        """Read a range of a shard, and more of what follows where samples are read in order.

        Args:
            name: The shard's tar.
            start: The first byte.
            stop: The byte after the last.
            size: Bytes of the tar.

        Raises:
            StoreError: If it can't be read.
        """
        with self._lock:
            held, first, data = self._ahead
            in_order = (name, start) == self._next
            self._next = (name, stop)
            if held == name and first <= start and stop <= first + len(data):
                return data[start - first : stop - first]
            step = self._step if in_order else 0
            self._step = min(MOST_AHEAD, 2 * self._step) if in_order else FIRST_AHEAD
        data = self.folder.read(name, start, min(size, stop + step))
        if step:
            with self._lock:
                self._ahead = (name, start, data)
        return data[: stop - start]


class RemoteTar:
    """A shard's tar at an address; like an open file, read by range.

    Args:
        files: The store's.
        entry: The shard's, of `store.json`.
    """

    def __init__(self, files: RemoteFiles, entry: dict[str, Any]) -> None:
        self.files, self.name, self.size = files, f'{entry["name"]}.tar', entry['bytes']

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes `start` to `stop`; raises as `RemoteFiles.read`."""
        return self.files.read(self.name, start, stop, self.size)

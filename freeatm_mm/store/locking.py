"""Writing a store's files: whole or not at all, and never by two workers at once."""
from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from freeatm_mm.files import sync_folder

from .errors import StoreError

__all__ = ['ShardBusy', 'can_lock', 'locked_write']

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class ShardBusy(StoreError):
    """Another process is writing the shard."""


def can_lock(file: Path) -> bool:
    """Whether the file system that ``file`` lies on has locks."""
    with file.open('rb') as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _NO_LOCKS
        return True


@contextmanager
def locked_write(path: Path, wait: bool = True) -> Iterator[BinaryIO]:
    """Like :func:`freeatm_mm.files.atomic_write`, with a temporary name that is always the same.

    So what a killed process left is written over and never piles up, however large, and a lock on
    it (released by the system when its holder dies) keeps a second worker away.

    Args:
        path: The file to write.
        wait: Wait for another process that is writing it, instead of raising.

    Yields:
        The open temporary file.

    Raises:
        ShardBusy: If another process is writing ``path`` and ``wait`` is false.
    """
    temporary = path.with_name(path.name + '.tmp')
    with _open_locked(temporary, wait) as file:
        file.truncate(0)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def _open_locked(path: Path, wait: bool) -> BinaryIO:
    """Open a file for writing and lock it, making sure that the lock is on the named file."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            name = path.name.split('.')[0]
            raise ShardBusy(f'another process is writing {name} in {path.parent}; '
                            'give each worker its own rank') from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:  # some network file systems have no locks
                os.close(handle)
                raise
        # The process that held the lock may have renamed the file to its final name meanwhile.
        try:
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return os.fdopen(handle, 'wb')
        except FileNotFoundError:
            pass
        os.close(handle)

"""Writing a store's files: whole or not at all, and never by two workers at once.

Own code rather than filelock: the lock is on the file that is written, so that what a killed worker
left is told from what another still writes, and no file of locks lies beside it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from freeatm_mm.files import sync_folder
from freeatm_mm.store.errors import StoreError

__all__ = ['ShardBusy', 'can_lock', 'hold', 'locked_write', 'new_folder']

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
    """Like `freeatm_mm.files.atomic_write`, with a temporary name that is always the same.

    So what a killed process left is found and never piles up, however large, and a lock on the
    file (released by the system when its holder dies) keeps a second worker away. The file is
    always a new one: what lies under the temporary name is removed, once nobody holds its lock, and
    never written into, as it may be another name of a file elsewhere.

    Args:
        path: The file to write.
        wait: Wait for another process that is writing it, instead of raising.

    Yields:
        The open temporary file.

    Raises:
        ShardBusy: If another process is writing ``path`` and ``wait`` is false, or took the
            temporary name, where locks don't reach it.
        StoreError: If a link, pipe, device or folder lies under the temporary name, or a folder
            under ``path``.
    """
    temporary = path.with_name(path.name + '.tmp')
    if path.is_dir() and not path.is_symlink():
        raise StoreError(f'{path} is a folder, where a file of the store is to be: remove it')
    with _create_locked(temporary, wait) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not _is_named(file.fileno(), temporary):
                raise _busy(temporary)
            os.replace(temporary, path)
        except BaseException:
            if _is_named(file.fileno(), temporary):
                temporary.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keep a file to oneself while it is read, changed and replaced; others that do so wait.

    What is locked is a file of its own beside it, `.NAME.lock`, which is gone afterwards. Where the
    file system has no locks, nobody waits.

    Args:
        path: The file; its folder must be there.

    Raises:
        StoreError: If a link, pipe, device or folder lies under the lock's name.
    """
    lock = path.with_name(f'.{path.name}.lock')
    with _create_locked(lock, wait=True) as file:
        try:
            yield
        finally:
            if _is_named(file.fileno(), lock):
                lock.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder that appears under `path` only when the block ends without an error.

    As with `locked_write`, its temporary name is always the same, and locked: what a killed process
    left there is removed, and what another is still writing into isn't.

    Args:
        path: The folder; nothing may be there.

    Yields:
        The folder under its temporary name, empty.

    Raises:
        StoreError: If something is under `path`, or appears there meanwhile, another process is
            making the folder, or what is under the temporary name is no folder.
    """
    _check_free(path)
    temporary = path.with_name(f'.{path.name}.tmp')
    handle = _lock_folder(temporary, path)
    try:
        _check_free(path)  # made by another process in the meantime
        _empty(temporary)
        yield temporary
        _check_free(path)
        os.replace(temporary, path)
    except BaseException:
        if _is_named(handle, temporary):
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def _check_free(path: Path) -> None:
    if os.path.lexists(path):
        raise StoreError(f'{path} is there already; choose another folder, or remove it')


def _lock_folder(temporary: Path, path: Path) -> int:
    """Make a folder, unless it is there, and hold its lock."""
    while True:
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            handle = _open_folder(temporary)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP):
                raise
            raise StoreError(
                f"the folder {temporary} can't be made: what is there stands in the way; remove it"
            ) from None
        if handle is None:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise StoreError(
                f'another process is making {path}: wait until it has ended, or choose another '
                'folder'
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(handle)
                raise
        if _is_named(handle, temporary):
            return handle
        os.close(handle)


def _open_folder(path: Path) -> int | None:
    """Open a folder; `None` if it is gone: another process has just given it its name."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY)
    except FileNotFoundError:
        return None


def _empty(folder: Path) -> None:
    """Remove all that a killed process left in a folder."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _create_locked(path: Path, wait: bool) -> BinaryIO:
    """Make a new file that is locked, in the place of one that nobody holds any more."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        try:
            handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            _remove_unlocked(path, wait)
            continue
        try:
            _lock(handle, path, wait)
            # Between the two calls another process may have taken it for one left over.
            if _is_named(handle, path):
                return os.fdopen(handle, 'wb')
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _remove_unlocked(path: Path, wait: bool) -> None:
    """Remove a temporary file as soon as nobody holds its lock; it may be gone or another by then.

    Raises:
        ShardBusy: If it is held and ``wait`` is false.
        StoreError: If it is no plain file.
    """
    try:
        handle = os.open(
            path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        )
    except FileNotFoundError:
        return
    except OSError as error:
        if path.is_symlink() or path.is_dir():
            raise _foreign(path) from None
        raise StoreError(f"{path} can't be opened to write ({error.strerror})") from None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _foreign(path)
        _lock(handle, path, wait)
        if _is_named(handle, path):
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _lock(handle: int, path: Path, wait: bool) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise _busy(path) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # some network file systems have no locks
            raise


def _is_named(handle: int, path: Path) -> bool:
    """Whether an open file is the one that a name stands for."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _busy(path: Path) -> ShardBusy:
    return ShardBusy(
        f'another process is writing {path.name.split(".")[0]} in {path.parent}: wait until it has '
        'ended, and give each worker of a run its own rank'
    )


def _foreign(path: Path) -> StoreError:
    what = (
        'a symbolic link' if path.is_symlink() else 'a folder' if path.is_dir() else 'no plain file'
    )
    return StoreError(
        f'{path} is {what}, which no writer makes, and nothing is written through it: remove it'
    )

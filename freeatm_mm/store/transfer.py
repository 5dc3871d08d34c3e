"""Stores copied to addresses and back: resumable, proved, and never readable before they are whole.

A shard's JSON comes after its tar and index, and `store.json` after all shards: a copy that was
stopped, whenever it was, is no store yet, and the same call goes on where it was.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from freeatm_mm.addresses import RemoteFolder, check_address, is_address, local_folder
from freeatm_mm.errors import InputError, MissingFileError, counted
from freeatm_mm.files import MAX_BYTES, atomic_write, parse_json, read_bytes
from freeatm_mm.progress import progress_bar
from freeatm_mm.store.errors import StoreError
from freeatm_mm.store.layout import (
    ENTRY_FIELDS,
    MANIFEST,
    SHARD_FORMAT,
    file_sha256,
    load_manifest,
    read_manifest,
    shard_name,
)
from freeatm_mm.store.locking import locked_write
from freeatm_mm.store.verify import SHARD_FILE, has_files, shard_entry, shard_numbers

__all__ = ['TransferReport', 'pull_store', 'push_store']

#: Shards that go to the Hub in one commit: of commits it takes a few in a minute.
_SHARDS_A_COMMIT = 8
_SHARD_JSON = 1 << 24  # the most bytes that one may have


@dataclass
class TransferReport:
    """What was copied.

    Attributes:
        copied: Files that were copied.
        there: Files that were there already, by checksum.
        bytes: Bytes of what was copied.
        complete: Whether the copy is a whole store now.
    """

    copied: int = 0
    there: int = 0
    bytes: int = 0
    complete: bool = False

    def __str__(self) -> str:
        ending = '' if self.complete else '; the store is not finished, so its copy is none yet'
        return (
            f'{counted(self.copied, "file")} copied ({counted(self.bytes, "byte")}), '
            f'{self.there} there already{ending}'
        )


class _File(NamedTuple):
    path: Path
    name: str
    sha256: str
    size: int
    state: tuple[int, ...]


def _file(path: Path, name: str, digest: str = '') -> _File:
    """A file as it is now.

    Raises:
        StoreError: If its sha256 is another than `digest`, if that is given.
    """
    state = _state(path)
    found = file_sha256(path)
    if digest and found != digest:
        raise StoreError(f'{path} is not what was written: freeatm verify {path.parent} says more')
    return _File(path, name, found, state[0], state)


def _state(path: Path) -> tuple[int, ...]:
    """Size, and what is another once a file was replaced or written to."""
    status = path.stat()
    return status.st_size, status.st_ino, status.st_mtime_ns


def _changed(path: Path) -> StoreError:
    return StoreError(
        f'{path} was changed while the store was copied: start the same command once more'
    )


def push_store(
    path: str | Path,
    address: str,
    *,
    jobs: int = 4,
    replace: bool = False,
    beside: Sequence[tuple[Path, str]] = (),
) -> TransferReport:
    """Copy a store to an address, shard by shard, and prove what arrived.

    Of a store that isn't finished, the shards that are whole: the same call goes on once there are
    more. What is there already is not copied again.

    Args:
        path: The store's folder.
        address: Of the copy: `s3://`, `gs://` or `hf://`.
        jobs: Shards copied at a time.
        replace: Take the place of another store there, which is none from then on.
        beside: Further files, with their names there; they come before `store.json`.

    Returns:
        What was copied.

    Raises:
        StoreError: If there is no store, one of its files is damaged, or another store is there.
        InputError: If the address can't be written to.
    """
    if is_address(path):
        raise InputError(
            f'{check_address(path)} is an address, and what is copied is a folder of this '
            'machine: freeatm pull it first'
        )
    folder, remote, report = Path(path), RemoteFolder(address), TransferReport()
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        raise StoreError(f'{folder} is not a store: it has no {MANIFEST}') from None
    whole = read_bytes(folder / MANIFEST) if manifest['complete'] else None
    if whole is not None and parse_json(whole) != manifest:
        raise _changed(folder / MANIFEST)
    entries = _entries(folder, manifest)
    there = _manifest_there(remote)
    if there is not None and there != whole:
        if not replace:
            raise StoreError(
                f'{remote.address} holds another store: choose another address, or --replace it'
            )
        remote.remove(MANIFEST)
        for name in remote.names() or ():
            match = SHARD_FILE.fullmatch(name)
            if match and shard_name(int(match[1])) not in {entry['name'] for entry in entries}:
                remote.remove(name)
    at_once = _SHARDS_A_COMMIT if remote.commits else 1
    groups = [entries[start : start + at_once] for start in range(0, len(entries), at_once)]
    lock = threading.Lock()
    total = sum(entry['bytes'] + entry['index_bytes'] for entry in entries)
    with progress_bar(total=total, desc='uploading', unit='B', unit_scale=True) as bar:

        def copy(group: list[dict[str, Any]]) -> None:
            files = [file for entry in group for file in _shard_files(folder, entry)]
            _send(remote, files, report, lock)
            bar.update(sum(entry['bytes'] + entry['index_bytes'] for entry in group))

        _in_parallel(copy, groups, 1 if remote.commits else jobs)
    _send(remote, [_file(file, name) for file, name in beside], report, lock)
    if whole is not None and _manifest_there(remote) not in (None, whole):
        raise StoreError(
            f'{remote.address} was given another store in the meantime, and files of both are '
            'there: choose another address, or --replace what is there'
        )
    if whole is not None:
        last = _file(folder / MANIFEST, MANIFEST)
        if last.sha256 != hashlib.sha256(whole).hexdigest():
            raise _changed(last.path)
        _send(remote, [last], report, lock)
        report.complete = True
    return report


def _entries(folder: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The shards of a store that are whole; raises if a finished store lacks one."""
    if not manifest['complete']:
        found = (shard_entry(folder, number) for number in shard_numbers(folder))
        return [entry for entry in found if entry is not None and has_files(folder, entry)]
    for number, entry in enumerate(manifest['shards']):
        own = shard_entry(folder, number)
        if own is None or not has_files(folder, entry):
            raise StoreError(
                f'{folder} lacks files of {entry["name"]}: freeatm verify {folder} says which'
            )
        if not _agrees(own, entry, manifest['config_sha256']):
            raise StoreError(
                f'{folder / entry["name"]}.json says otherwise than {MANIFEST}: freeatm verify '
                f'{folder} says more'
            )
    return manifest['shards']


def _manifest_there(remote: RemoteFolder) -> bytes | None:
    try:
        return b''.join(remote.pieces(MANIFEST, min(remote.state(MANIFEST).size, MAX_BYTES)))
    except MissingFileError:
        return None


def _shard_files(folder: Path, entry: dict[str, Any]) -> list[_File]:
    """A shard's files in the order in which they are copied, compared with what was written."""
    base = folder / entry['name']
    return [
        _file(path, path.name, digest)
        for path, digest in (
            (base.with_suffix('.tar'), entry['sha256']),
            (base.with_suffix('.index.npy'), entry['index_sha256']),
            (base.with_suffix('.json'), ''),
        )
    ]


def _send(
    remote: RemoteFolder, files: list[_File], report: TransferReport, lock: threading.Lock
) -> None:
    """Upload those of some files that aren't there."""
    due = [file for file in files if not remote.holds(file.path, file.name, file.sha256)]
    remote.upload_many([(file.path, file.name, file.sha256) for file in due])
    for file in files:
        # Many servers' checksums are compared with those of the file as it is by now.
        if _state(file.path) != file.state:
            raise _changed(file.path)
    with lock:
        report.copied += len(due)
        report.there += len(files) - len(due)
        report.bytes += sum(file.size for file in due)


def _in_parallel(work: Callable[[Any], None], items: Iterable[Any], jobs: int) -> None:
    """Do something with each item; the first error ends it once what is under way is done."""
    ended = threading.Event()

    def one(item: Any) -> None:
        if ended.is_set():
            return
        try:
            work(item)
        except BaseException:
            ended.set()
            raise

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = [pool.submit(one, item) for item in items]
        try:
            for future in futures:
                future.result()
        finally:
            ended.set()


def pull_store(address: str, path: str | Path, *, jobs: int = 4) -> TransferReport:
    """Copy a store from an address into a folder, proving every file.

    What is in the folder already is proved as well, and copied again where it is damaged.

    Args:
        address: Of the store.
        path: The folder; made if missing.
        jobs: Shards copied at a time.

    Returns:
        What was copied.

    Raises:
        StoreError: If there is no whole store at the address, or another one in the folder.
        InputError: If the address can't be read, or what comes is not what was written.
    """
    folder, remote, report = local_folder(path), RemoteFolder(address), TransferReport()
    try:
        manifest = read_manifest(remote.address)
    except FileNotFoundError:
        raise StoreError(f'{remote.address} is not a store: it has no {MANIFEST}') from None
    if not manifest['complete']:
        raise StoreError(f'the store {remote.address} is not finished')
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} can't be a store: it is a file")
    text = _manifest_there(remote)
    if text is None or parse_json(text) != manifest:
        raise StoreError(f'{remote.address} is being changed: start the same command once more')
    if (folder / MANIFEST).exists() and (folder / MANIFEST).read_bytes() != text:
        raise StoreError(f'{folder} holds another store: choose another folder')
    folder.mkdir(parents=True, exist_ok=True)
    entries, lock = manifest['shards'], threading.Lock()
    total = sum(entry['bytes'] + entry['index_bytes'] for entry in entries)
    with progress_bar(total=total, desc='downloading', unit='B', unit_scale=True) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        def copy(number: int) -> None:
            entry = entries[number]
            noted = _is_noted(folder, number, entry, manifest['config_sha256'])
            base = folder / entry['name']
            copied = there = fetched = 0
            for ending, size, digest in (
                ('.tar', entry['bytes'], entry['sha256']),
                ('.index.npy', entry['index_bytes'], entry['index_sha256']),
            ):
                file = base.with_suffix(ending)
                if _is_whole(file, size, digest):
                    there += 1
                    advance(size)
                    continue
                remote.fetch(file.name, file, size, digest, advance, write=locked_write)
                copied += 1
                fetched += size
            if noted:
                there += 1
            else:
                note = base.with_suffix('.json')
                size = min(remote.state(note.name).size, _SHARD_JSON)
                with locked_write(note) as opened:
                    opened.write(b''.join(remote.pieces(note.name, size)))
                if not _is_noted(folder, number, entry, manifest['config_sha256']):
                    note.unlink()
                    raise StoreError(
                        f'{remote.address}/{note.name} says otherwise than {MANIFEST}: freeatm '
                        f'verify {remote.address} says more'
                    )
                copied += 1
                fetched += size
            with lock:
                report.copied += copied
                report.there += there
                report.bytes += fetched

        _in_parallel(copy, range(len(entries)), jobs)
    if not (folder / MANIFEST).exists():
        with atomic_write(folder / MANIFEST) as file:
            file.write(text)
        report.copied += 1
        report.bytes += len(text)
    else:
        report.there += 1
    report.complete = True
    return report


def _is_noted(folder: Path, number: int, entry: dict[str, Any], config_sha256: str) -> bool:
    """Whether a shard's JSON has been copied.

    Raises:
        StoreError: If the folder has one of another store under its name.
    """
    try:
        own = load_manifest(folder / f'{shard_name(number)}.json', SHARD_FORMAT)
    except FileNotFoundError:
        return False
    except StoreError:
        return False  # cut off, or changed
    if own['config_sha256'] != config_sha256:
        raise StoreError(f'{folder} holds {own["name"]} of another store: choose another folder')
    return _agrees(own, entry, config_sha256)


def _is_whole(path: Path, size: int, sha256: str) -> bool:
    """Whether a file is here as it was written; one that can't be read is not."""
    try:
        return path.stat().st_size == size and file_sha256(path) == sha256
    except (InputError, OSError):
        return False


def _agrees(own: dict[str, Any], entry: dict[str, Any], config_sha256: str) -> bool:
    """Whether a shard's own JSON says what a store's does."""
    same = all(own.get(name) == entry.get(name) for name in ENTRY_FIELDS)
    return same and own['config_sha256'] == config_sha256

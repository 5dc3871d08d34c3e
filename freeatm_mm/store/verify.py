"""Checking a store byte by byte: everything that is missing, cut, changed, doubled or foreign."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from freeatm_mm.addresses import RemoteFolder, is_address
from freeatm_mm.errors import InputError, MissingFileError, counted
from freeatm_mm.files import MAX_BYTES
from freeatm_mm.store.errors import StoreError
from freeatm_mm.store.layout import (
    ENTRY_FIELDS,
    MANIFEST,
    PROGRESS,
    SHARD_FORMAT,
    config_digest,
    file_sha256,
    left_out_keys,
    load_index,
    load_manifest,
    mask_bytes,
    open_regular,
    planned_samples,
    read_manifest,
    shard_name,
)
from freeatm_mm.store.sample import decode_sample
from freeatm_mm.store.tar import read_members, read_sample, scan_shard

__all__ = [
    'KINDS',
    'SHARD_FILE',
    'Problem',
    'SampleSource',
    'ShardState',
    'examine_shard',
    'has_files',
    'shard_entries',
    'shard_entry',
    'shard_numbers',
    'verify_store',
]

#: What can be wrong with a file, a shard or a sample.
KINDS = ('missing', 'cut', 'changed', 'doubled', 'foreign')

#: What stands beside a store at an address and isn't looked at.
_BESIDE = ('README.md', 'preview.jpg', '.gitattributes')

#: Names of a store's files: number, kind, and whether it is being written.
SHARD_FILE = re.compile(r'shard-(\d{6,})(\.tar|\.index\.npy|\.json)(\.tmp)?')


class Problem(NamedTuple):
    """Something wrong with a store.

    Args:
        where: The file.
        what: What is wrong with it, naming the sample if it is one's.
        kind: One of `KINDS`.
        shard: Number of the shard, or ``None`` if it is the whole store's.
        key: Key of the sample, or ``None`` if it is the whole file's.
    """

    where: str
    what: str
    kind: str = 'changed'
    shard: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        return f'{self.kind}: {self.where}: {self.what}'


class SampleSource(Protocol):
    """What knows which samples a store should hold, and can make them again.

    Attributes:
        config: The store's configuration.
        samples_per_shard: Samples in each shard but the last.
        num_samples: Samples in the whole store.
    """

    config: dict[str, Any]
    samples_per_shard: int
    num_samples: int

    def keys(self, shard: int) -> list[str]:
        """The keys that a shard should hold, in order."""

    def generate(self, shard: int, rows: Sequence[int], notes: dict[str, Any]) -> dict[int, Any]:
        """Make some samples of a shard again, given its notes: number in the shard -> sample.

        Raises:
            StoreError: If one of them can't be made, which says nothing of other shards; the
                message names it. Any other error is taken to be the source's own.
        """


@dataclass
class ShardState:
    """What `examine_shard` found of one shard.

    Attributes:
        tar_sound: Whether the tar is, byte for byte, what was written.
        index_sound: Whether the index is.
        rows: The index's rows as they were written, or ``None`` where neither index nor tar
            vouches for them.
        bad: Numbers of the samples that are not whole in the tar.
        problems: What is wrong.
    """

    tar_sound: bool = False
    index_sound: bool = False
    rows: np.ndarray | None = None
    bad: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def verify_store(
    path: str | Path, decode: bool = True, source: SampleSource | None = None
) -> Iterator[Problem]:
    """Yield what is wrong with a store; nothing if it is sound.

    Settings, totals and records that contradict each other or their checksums; files that are
    missing or don't belong; shards and indexes whose size or checksum is not the recorded one, and
    then each sample that is cut off, changed, there twice or not the shard's; keys that several
    shards have; and, with ``decode``, samples that don't decode. A shard after a broken one is
    looked at as well, and a broken ``store.json`` is stood in for by the shards' own.

    Args:
        path: The store's folder, or its address: then one shard at a time is copied here.
        decode: Also decode every image and every mask.
        source: Knows the keys that each shard should hold: others are foreign, and those that
            aren't there are missing.
    """
    if is_address(path):
        with _Mirror(str(path)) as mirror:
            for problem in _verify(mirror.path, decode, source, mirror):
                yield mirror.named(problem)
        return
    path = Path(path)
    if not path.is_dir():
        yield Problem(str(path), 'there is no such folder', 'missing')
        return
    yield from _verify(path, decode, source)


def _verify(
    path: Path, decode: bool, source: SampleSource | None, mirror: _Mirror | None = None
) -> Iterator[Problem]:
    """Look at the store in a folder, whose shards a mirror brings and takes away."""
    entries, problems = shard_entries(path)
    yield from problems
    yield from _foreign_files(path, entries)
    manifest = None if problems else read_manifest(path)
    if manifest is not None:
        yield from _compare_with_settings(path, manifest, source)
    keys: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    for number in sorted(entries):
        with mirror.shard(entries[number]) if mirror else nullcontext():
            state = examine_shard(path, number, entries[number], decode)
        yield from state.problems
        if state.rows is None:
            continue
        keys.append(np.array(state.rows['key']))
        owners.append(np.full(len(state.rows), number, np.int32))
        if source is not None:
            yield from _compare_with_source(
                path, number, state.rows, source, left_out_keys(entries[number].get('notes'))
            )
    yield from _doubled(path, keys, owners)
    if source is not None:
        count = -(-source.num_samples // source.samples_per_shard)
        for number in set(range(count)) - entries.keys():
            yield Problem(
                str(path / f'{shard_name(number)}.tar'),
                _missing_shard(source.keys(number)),
                'missing',
                number,
            )


class _Mirror:
    """A folder with the names and the JSON of a store at an address, and one shard at a time.

    Attributes:
        path: The folder.
    """

    def __init__(self, address: str) -> None:
        self._remote = RemoteFolder(address)

    def __enter__(self) -> _Mirror:
        self._folder = tempfile.TemporaryDirectory(prefix='freeatm-verify-')
        self.path = Path(self._folder.name)
        try:
            names = self._remote.names()
            if names is not None:
                for name, size in names.items():
                    if name not in _BESIDE:
                        self._note(name, size)
            else:  # over HTTP nothing is listed: what store.json names is looked for
                self._look_for(MANIFEST)
                with suppress(OSError, StoreError):
                    for entry in read_manifest(self.path)['shards']:
                        for ending in ('.json', '.tar', '.index.npy'):
                            self._look_for(f'{entry["name"]}{ending}')
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def _look_for(self, name: str) -> None:
        with suppress(MissingFileError):
            self._note(name, self._remote.state(name).size)

    def _note(self, name: str, size: int) -> None:
        """Put a file's name into the folder, and what it holds if it is one of the store's JSON."""
        if '/' in name or name in ('', '.', '..'):
            return
        (self.path / name).touch()
        ours = name == MANIFEST or (match := SHARD_FILE.fullmatch(name)) and match[2] == '.json'
        if ours and size <= MAX_BYTES:
            self._remote.fetch(name, self.path / name, size)

    @contextmanager
    def shard(self, entry: dict[str, Any]) -> Iterator[None]:
        """Have a shard's tar and index in the folder, as they are at the address."""
        names = [f'{entry["name"]}.tar', f'{entry["name"]}.index.npy']
        try:
            for name, due in zip(names, (entry['bytes'], entry['index_bytes'])):
                try:
                    size = self._remote.state(name).size
                    # Of a file of another size, so much that its size shows.
                    self._remote.fetch(name, self.path / name, min(size, due + 1))
                except MissingFileError:
                    (self.path / name).unlink(missing_ok=True)
            yield
        finally:
            for name in names:
                if (self.path / name).exists():
                    os.truncate(self.path / name, 0)

    def named(self, problem: Problem) -> Problem:
        """Say a problem with the address in the folder's place."""
        where, what = (
            text.replace(str(self.path), self._remote.address)
            for text in (problem.where, problem.what)
        )
        return problem._replace(where=where, what=what)


def shard_entries(path: Path) -> tuple[dict[int, dict[str, Any]], list[Problem]]:
    """What each shard of a store should be: from ``store.json``, or else from the shards' JSON.

    Returns:
        Number of the shard -> its entry (sizes, checksums, counts), and what is wrong with
        ``store.json``.
    """
    file = path / MANIFEST
    problems: list[Problem] = []
    try:
        manifest = read_manifest(path)
        if manifest['complete']:
            if not manifest['shards']:
                raise StoreError(f'{file} lists no shards')
            return dict(enumerate(manifest['shards'])), problems
        problems.append(
            Problem(
                str(file),
                'the store is not finished: the command that makes it goes on where it was',
                'missing',
            )
        )
    except FileNotFoundError:
        problems.append(Problem(str(file), 'is missing', 'missing'))
    except (StoreError, OSError) as error:
        problems.append(Problem(str(file), str(error)))
    found = {}
    for number in shard_numbers(path):
        entry = shard_entry(path, number)
        if entry is not None:
            found[number] = entry
    return found, problems


def examine_shard(
    path: Path, number: int, entry: dict[str, Any], decode: bool = True
) -> ShardState:
    """Compare one shard with what it should be.

    Args:
        path: The store's folder.
        number: Number of the shard.
        entry: What it should be (see `shard_entries`).
        decode: Also decode every image and every mask.
    """
    state = ShardState()
    tar_path = path / f'{shard_name(number)}.tar'
    index_path = tar_path.with_suffix('.index.npy')

    def report(file: Path, what: str, kind: str = 'changed', key: str | None = None) -> None:
        state.problems.append(Problem(str(file), what, kind, number, key))

    index_problem = _file_problem(index_path, entry['index_bytes'], entry['index_sha256'])
    state.index_sound = index_problem is None
    if state.index_sound:
        try:
            state.rows = np.array(load_index(index_path))
        except StoreError as error:  # a store whose checksums were made for it
            state.index_sound, index_problem = False, (str(error), 'changed')
    if index_problem is not None:
        report(index_path, *index_problem)
    tar_problem = _file_problem(tar_path, entry['bytes'], entry['sha256'])
    state.tar_sound = tar_problem is None
    if tar_problem is not None and tar_problem[1] == 'missing':
        if state.rows is not None:
            state.bad = list(range(len(state.rows)))
            tar_problem = (
                _missing_shard([key.decode('ascii', 'replace') for key in state.rows['key']]),
                'missing',
            )
        report(tar_path, *tar_problem)
        return state
    if tar_problem is not None:
        report(tar_path, *tar_problem)
    file, own = tar_path.with_suffix('.json'), shard_entry(path, number)
    if own is None:
        report(
            file,
            'is not what a writer makes' if file.exists() else 'is missing',
            'changed' if file.exists() else 'missing',
        )
    elif differences := [name for name in ENTRY_FIELDS if own.get(name) != entry.get(name)]:
        report(file, f'says otherwise than {MANIFEST} of {", ".join(differences)}')
    try:
        handle = open_regular(tar_path)
    except StoreError as error:
        if (str(error), 'changed') != tar_problem:
            report(tar_path, str(error))
        return state
    try:
        if state.tar_sound:
            try:
                scanned = scan_shard(tar_path, empty=entry['samples'] == 0)
            except StoreError as error:
                state.tar_sound = False
                report(tar_path, str(error))
            else:
                if state.index_sound and not (
                    state.rows is not None and np.array_equal(scanned, state.rows)
                ):
                    state.index_sound = False
                    report(index_path, 'its members are not those that the tar lists')
                state.rows = scanned
        if state.rows is None:
            report(tar_path, 'neither tar nor index is as written: nothing vouches for its samples')
            return state
        if not state.tar_sound:
            _compare_members(handle, state.rows, lambda *what: report(tar_path, *what))
        said = {
            name: int(state.rows[column].sum())
            for name, column in (('nouns', 'nouns'), ('image_bytes', 'image_size'))
        }
        said |= {'samples': len(state.rows), 'mask_bytes': mask_bytes(state.rows)}
        if wrong := [name for name, value in said.items() if entry.get(name, value) != value]:
            report(file, f'what is recorded of its {", ".join(wrong)} is not what it holds')
        if decode or not state.tar_sound:
            _read_samples(handle, state, decode, lambda *what: report(tar_path, *what))
    finally:
        os.close(handle)
    return state


def _compare_with_settings(
    path: Path, manifest: dict[str, Any], source: SampleSource | None
) -> Iterator[Problem]:
    """Compare a finished store with its settings, and the settings with the shards' own."""
    file, config = str(path / MANIFEST), manifest['config']
    due = config.get('num_samples')
    planned = sum(map(planned_samples, manifest['shards']))
    if type(due) is int and due != planned:
        yield Problem(
            file,
            f'lists {counted(planned, "sample")}, and its settings say {due}',
            'missing' if due > planned else 'foreign',
        )
    for number in range(len(manifest['shards'])):
        own = shard_entry(path, number)
        if own is not None and own['config_sha256'] != manifest['config_sha256']:
            yield Problem(
                str(path / f'{shard_name(number)}.json'),
                f'was made with other settings than {MANIFEST} says',
                'changed',
                number,
            )
    if source is not None and config_digest(dict(source.config)) != manifest['config_sha256']:
        yield Problem(file, 'the settings are not those of the given pipeline and prompts')


def _read_samples(handle: int, state: ShardState, decode: bool, report: Any) -> None:
    """Read every sample, noting in ``state.bad`` those that are not whole."""
    assert state.rows is not None
    size = os.fstat(handle).st_size
    for row_number, row in enumerate(state.rows):
        key = row['key'].decode('ascii', 'replace')
        try:
            raw = read_sample(handle, size, row.item())
            if decode:
                _ = decode_sample(raw).image
        except StoreError as error:
            state.bad.append(row_number)
            cut = int(row['image_offset']) + int(row['image_size']) > size
            report(str(error), 'cut' if cut else 'changed', key)


def _compare_members(handle: int, rows: np.ndarray, report: Any) -> None:
    """Report members of a damaged tar that its index doesn't list."""
    due = {
        (row['key'].decode('ascii', 'replace'), int(row[f'{kind}_offset']))
        for row in rows
        for kind in ('json', 'masks', 'image')
        if kind != 'masks' or row['masks_size']
    }
    keys = {key for key, _ in due}
    named = set()
    try:
        for member in read_members(handle):
            if (member.key, member.offset) in due or member.key in named:
                continue
            named.add(member.key)
            if member.key in keys:
                report(f'sample {member.key!r} is there twice', 'doubled', member.key)
            else:
                report(f'sample {member.key!r} is not one of its own', 'foreign', member.key)
    except StoreError as error:
        report(str(error), 'cut' if 'cut off' in str(error) else 'changed', None)


def _compare_with_source(
    path: Path, number: int, rows: np.ndarray, source: SampleSource, left_out: set[str]
) -> Iterator[Problem]:
    """Compare a shard's keys with those that are due."""
    file = str(path / f'{shard_name(number)}.tar')
    found = [key.decode('ascii', 'replace') for key in rows['key']]
    due = [key for key in source.keys(number) if key not in left_out]
    for key in sorted(set(due) - set(found)):
        yield Problem(file, f'sample {key!r} is missing', 'missing', number, key)
    for key in sorted(set(found) - set(due)):
        yield Problem(file, f'sample {key!r} is not one of its own', 'foreign', number, key)
    if set(due) == set(found) and due != found:
        yield Problem(file, 'its samples stand in another order', 'changed', number)


def _doubled(path: Path, keys: list[np.ndarray], owners: list[np.ndarray]) -> Iterator[Problem]:
    """Report keys that stand in several places; at 14 million samples this takes about 1 GB."""
    if not keys:
        return
    names, places = np.concatenate(keys), np.concatenate(owners)
    order = np.argsort(names, kind='stable')
    names, places = names[order], places[order]
    again = np.flatnonzero(names[1:] == names[:-1]) + 1
    for place in again:
        key = names[place].decode('ascii', 'replace')
        yield Problem(
            str(path / f'{shard_name(int(places[place]))}.tar'),
            f'several samples have the key {key!r}; another stands in '
            f'{shard_name(int(places[place - 1]))}',
            'doubled',
            int(places[place]),
            key,
        )


def _foreign_files(path: Path, entries: dict[int, dict[str, Any]]) -> Iterator[Problem]:
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        match = SHARD_FILE.fullmatch(entry.name)
        if entry.name == MANIFEST:
            continue
        if entry.name in (PROGRESS, f'{MANIFEST}.tmp') or match and match[3]:
            yield Problem(
                entry.path, 'was being written, or was left by a worker that died', 'foreign', None
            )
        elif not match:
            yield Problem(entry.path, "doesn't belong to the store", 'foreign')
        elif int(match[1]) not in entries:
            yield Problem(entry.path, 'belongs to no shard that is whole', 'foreign', int(match[1]))


def shard_numbers(path: Path) -> list[int]:
    """Numbers of the shards of which there is a JSON, in order."""
    return sorted(
        {
            int(match[1])
            for entry in os.scandir(path)
            if (match := SHARD_FILE.fullmatch(entry.name)) and match[2] == '.json' and not match[3]
        }
    )


def shard_entry(path: Path, number: int) -> dict[str, Any] | None:
    """A shard's own JSON, or ``None`` if it is missing or not what a writer makes."""
    try:
        entry = load_manifest(path / f'{shard_name(number)}.json', SHARD_FORMAT)
    except (StoreError, OSError):
        return None
    return entry if entry['name'] == shard_name(number) else None


def has_files(path: Path, entry: dict[str, Any]) -> bool:
    """Whether a shard's tar and index are there and of the size that its JSON says."""
    try:
        return all(
            (path / f'{entry["name"]}{ending}').stat().st_size == entry[size]
            for ending, size in (('.tar', 'bytes'), ('.index.npy', 'index_bytes'))
        )
    except OSError:
        return False


def _file_problem(file: Path, size: int, digest: str) -> tuple[str, str] | None:
    """What is wrong with a file that should have this size and sha256, and of which kind it is."""
    try:
        if not file.is_file():
            return ('is no plain file', 'foreign') if file.exists() else ('is missing', 'missing')
        found = file.stat().st_size
        if found < size:
            return f'is cut off: it has {found} of {size} bytes', 'cut'
        if found > size:
            return f'has {found} bytes where {size} were written', 'changed'
        if file_sha256(file) != digest:
            return 'its sha256 is not the recorded one', 'changed'
    except InputError as error:
        return str(error), 'changed'
    except OSError as error:
        return f"can't be read ({error.strerror})", 'changed'
    return None


def _missing_shard(keys: Sequence[str]) -> str:
    between = f' {keys[0]!r} to {keys[-1]!r}' if keys else ''
    return f'is missing, with its {counted(len(keys), "sample")}{between}'

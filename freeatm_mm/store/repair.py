"""Making a damaged store whole again without touching what is good."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freeatm_mm.errors import InputError, counted
from freeatm_mm.files import read_json
from freeatm_mm.store.errors import StoreError
from freeatm_mm.store.layout import (
    MANIFEST,
    config_digest,
    left_out_keys,
    open_regular,
    planned_samples,
    read_manifest,
    shard_name,
)
from freeatm_mm.store.sample import RawSample, Sample
from freeatm_mm.store.tar import read_sample
from freeatm_mm.store.verify import (
    SampleSource,
    ShardState,
    examine_shard,
    shard_entries,
    shard_entry,
)
from freeatm_mm.store.writer import StoreWriter

__all__ = ['RepairReport', 'repair_store']

_LOG = logging.getLogger(__name__)


@dataclass
class RepairReport:
    """What `repair_store` did.

    Args:
        restored: Files and shards that are again, byte for byte, what was recorded of them.
        remade: Shards whose samples are all there again, with other bytes than recorded (other
            hardware or software); the records were brought up to date.
        left: What could not be repaired, and why.
        generated: Samples that were made again.
    """

    restored: list[str] = field(default_factory=list)
    remade: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    generated: int = 0

    def __str__(self) -> str:
        lines = [f'restored byte for byte: {name}' for name in self.restored]
        lines += [f'made again, with other bytes than before: {name}' for name in self.remade]
        lines += [f'NOT repaired: {name}' for name in self.left]
        if self.generated:
            lines.append(f'{counted(self.generated, "sample")} made again')
        return '\n'.join(lines) or 'nothing to repair'


def repair_store(path: str | Path, source: SampleSource | None = None) -> RepairReport:
    """Repair what can be.

    Indexes and the shards' JSON are made again from tars that are whole. In a tar that isn't,
    samples that match their checksums are kept, and the others are made again by ``source``; the
    new tar replaces the old one at once, when it is complete. A shard of which a sample can't be
    made again stays as it is and is listed, and the next one is repaired. Files that don't belong
    to the store are left alone.

    Args:
        path: The store's folder.
        source: Makes lost samples again; without it, only what needs none is repaired.

    Raises:
        StoreError: If there is no store that could be repaired, or ``source`` is of another
            configuration than the store. What else ``source`` raises than a `StoreError` is not of
            one sample alone, and passes through.
    """
    path = Path(path)
    report = RepairReport()
    writer, num_samples = _writer(path, source)
    entries, _ = shard_entries(path)
    due = range(-(-num_samples // writer.samples_per_shard))
    was_finished = _is_finished(path)
    for number in due:
        try:
            _repair_shard(path, number, entries.get(number), writer, source, report)
        except StoreError as error:  # this shard's own, which says nothing of the others
            text, name = str(error), shard_name(number)
            report.left.append(text if text.startswith(name) else f'{name}: {text}')
    for number in sorted(entries.keys() - set(due)):
        report.left.append(
            f'{shard_name(number)}: the store should have {counted(len(due), "shard")} only'
        )
    if not report.left and (report.restored or report.remade or not was_finished):
        try:
            missing = writer.finish(num_samples)
        except StoreError as error:  # what was repaired is reported all the same
            report.left.append(f'{MANIFEST}: {error}')
            return report
        report.left += [f'{shard_name(number)} is missing' for number in missing]
        if not missing and not was_finished:
            report.restored.append(MANIFEST)
    return report


def _repair_shard(
    path: Path,
    number: int,
    entry: dict[str, Any] | None,
    writer: StoreWriter,
    source: SampleSource | None,
    report: RepairReport,
) -> None:
    """Repair one shard where it needs it, and report it.

    Raises:
        StoreError: If it can't be repaired. It is as it was.
    """
    name = shard_name(number)
    state = ShardState() if entry is None else examine_shard(path, number, entry, decode=False)
    notes = dict(getattr(source, 'notes', {})) if entry is None else entry.get('notes', {})
    if entry is not None and not state.problems and writer.is_complete(number):
        return
    generated = 0
    if not state.tar_sound:
        samples, generated = _samples(path, number, state, source, notes, writer.config)
        found = writer.write_shard(number, samples, notes)
    else:
        assert state.rows is not None  # a sound tar lists them
        found = writer.adopt_shard(number, state.rows, notes)
    report.generated += generated
    same = entry is not None and all(found[key] == entry[key] for key in ('sha256', 'index_sha256'))
    (report.restored if same else report.remade).append(name)


def _is_finished(path: Path) -> bool:
    try:
        return read_manifest(path).get('complete') is True
    except (StoreError, OSError):
        return False


def _writer(path: Path, source: SampleSource | None) -> tuple[StoreWriter, int]:
    """A writer of this store, and how many samples the store should have."""
    if not path.is_dir():
        raise StoreError(f'there is no store at {path}: no such folder')
    file = path / MANIFEST
    config = None
    try:
        manifest = read_manifest(path)
        config, each = manifest['config'], manifest['samples_per_shard']
        # A store may go without some of the samples that were planned.
        num_samples = config.get('num_samples')
        if num_samples is None and manifest['complete']:
            num_samples = sum(map(planned_samples, manifest['shards']))
        sound = type(num_samples) is int and num_samples > 0
    except (StoreError, OSError):
        sound = False
    vouched = None if sound or source is not None else _vouched_settings(path)
    if source is not None or vouched is not None:
        if not sound and os.path.lexists(file):
            # Kept beside the new one: nothing is thrown away that somebody may want to look at.
            names = (
                f'{MANIFEST}.broken{f"-{number}" if number > 1 else ""}'
                for number in itertools.count(1)
            )
            os.replace(
                file,
                next(
                    file.with_name(name)
                    for name in names
                    if not os.path.lexists(file.with_name(name))
                ),
            )
        if vouched is not None:
            config, each, num_samples = vouched
            return StoreWriter(path, each, config), num_samples
        assert source is not None
        writer = StoreWriter(path, source.samples_per_shard, source.config)
        return writer, source.num_samples
    if not sound:
        raise StoreError(
            f'{file} is missing, broken or unfinished, and only what made the store '
            f'can write it again: {_way(file, config)}'
        )
    assert config is not None  # it is sound
    return StoreWriter(path, each, config), num_samples


def _way(record: Path, config: dict[str, Any] | None) -> str:
    """What makes again what is lost.

    Args:
        record: The JSON for whose sake it would be taken for there.
        config: Of the store; None where it can't be read.
    """
    remove = f'remove {record.name} and ' if os.path.lexists(record) else ''
    again = f'{remove}start what made the store again, with the same settings'
    if config is None:
        return f'give the pipeline and the prompts if it was generated, else {again}'
    if 'prompts_sha256' not in config:  # imported, or made of other stores
        return again
    source = 'the images' if 'levels' in config else 'the prompts'
    return f'give the pipeline and {source}'


def _vouched_settings(path: Path) -> tuple[dict[str, Any], int, int] | None:
    """Settings, samples a shard and samples in all that a broken ``store.json`` still holds.

    Only where all shards are there and each records that it was made with these settings.
    """
    try:
        manifest = read_json(
            path / MANIFEST, shape={'config': dict, 'samples_per_shard': int, 'shards': list}
        )
    except InputError:
        return None
    entries, _ = shard_entries(path)
    found = [shard_entry(path, number) for number in range(len(entries))]
    own = [entry for entry in found if entry is not None]
    config, each = manifest['config'], manifest['samples_per_shard']
    digest = config_digest(config)
    if (
        not own
        or not len(own) == len(found) == len(manifest['shards'])
        or any(entry['config_sha256'] != digest for entry in own)
    ):
        return None
    planned = [planned_samples(entry) for entry in own]
    total = sum(planned)
    fits = all(count == each for count in planned[:-1]) and planned[-1] <= each
    return (config, each, total) if fits and config.get('num_samples', total) == total else None


def _samples(
    path: Path,
    number: int,
    state: ShardState,
    source: SampleSource | None,
    notes: dict[str, Any],
    config: dict[str, Any],
) -> tuple[Iterator[Sample | RawSample], int]:
    """The samples of a shard whose tar is not sound, and how many of them are made again.

    Raises:
        StoreError: If some are lost and there is no source.
    """
    name = shard_name(number)
    if state.rows is None and source is None:
        raise StoreError(f'{name}: nothing is left of it; {_way(path / f"{name}.json", config)}')
    keys = None
    if state.rows is not None:
        keys = [key.decode('ascii', 'replace') for key in state.rows['key']]
    if source is not None:
        left_out = left_out_keys(notes)
        due = [key for key in source.keys(number) if key not in left_out]
        if keys is not None and keys != due:
            keys = None  # another store's shard
        count, bad = len(due), list(range(len(due))) if keys is None else state.bad
    else:
        assert keys is not None
        count, bad = len(keys), state.bad
        if bad:
            lost = ', '.join(repr(keys[row]) for row in bad[:5])
            lost += ', ...' if len(bad) > 5 else ''
            raise StoreError(
                f'{name}: {len(bad)} of its {counted(count, "sample")} lost ({lost}); '
                + _way(path / f'{name}.json', config)
            )
    if bad:
        _LOG.info('%s: making %d of %d samples again', name, len(bad), count)

    def samples() -> Iterator[Sample | RawSample]:
        generated = source.generate(number, bad, notes) if source is not None and bad else {}
        handle = None
        try:
            for row in range(count):
                if row in generated:
                    yield generated.pop(row)
                    continue
                if handle is None:
                    handle = open_regular(path / f'{name}.tar')
                    size = os.fstat(handle).st_size
                assert state.rows is not None  # else all are generated
                yield read_sample(handle, size, state.rows[row].item())
        finally:
            if handle is not None:
                os.close(handle)

    return samples(), len(bad)

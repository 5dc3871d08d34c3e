"""Generating once more what could not be generated, in another number format."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freeatm_mm.generation.generate import GenerationSummary
from freeatm_mm.generation.source import ShardSource
from freeatm_mm.progress import progress_bar
from freeatm_mm.store import RawSample, Sample, StoreError, StoreWriter
from freeatm_mm.store.layout import MANIFEST, STORE_FORMAT, load_index, load_manifest
from freeatm_mm.store.tar import open_regular, read_sample

__all__ = ['redo_failed']

#: Settings in which the run that redoes may differ from the one that failed.
_FREE = ('dtype',)


def redo_failed(
    source: ShardSource, out: str | Path, *, progress: bool = True
) -> GenerationSummary:
    """Generate the samples that failed, and put those that succeed now into their places.

    The other samples keep their bytes. Each sample's ``meta`` names the number format it was
    generated in, and a shard's notes list under ``redone`` what was generated here.

    Args:
        source: The run as it was made, but for the number format of its pipeline.
        out: The store's folder, finished or not.
        progress: Show a progress bar over the shards.

    Returns:
        What was generated, and under ``left_out`` what still isn't there.

    Raises:
        StoreError: If there is no store, or it was made with other settings; says which differ.
    """
    start = time.monotonic()
    out = Path(out)
    try:
        manifest = load_manifest(out / MANIFEST, STORE_FORMAT)
    except FileNotFoundError:
        raise StoreError(f'there is no store at {out} with samples to generate again') from None
    changes = {name: manifest['config'].get(name) for name in _FREE}
    # Refuses other settings.
    writer = StoreWriter(out, source.samples_per_shard, source.config | changes)
    summary = GenerationSummary()
    shards = range(source.plan.num_shards)
    for shard in progress_bar(shards, unit='shard', disable=not progress):
        entry = writer.shard_manifest(shard)
        if entry is None:
            summary.missing_shards += 1
            continue
        summary.skipped += entry['samples']
        notes = dict(entry.get('notes', {}))
        due = source.keys(shard)
        left_out = [item for item in notes.get('left_out', []) if item.get('key') in due]
        failed = [item['key'] for item in left_out if item.get('kind') == 'failed']
        generated = source.generate_alone(shard, failed) if failed else {}
        found = {key: item for key, item in generated.items() if isinstance(item, Sample)}
        notes['left_out'] = [
            item | ({'reason': generated[item['key']]} if item['key'] in generated else {})
            for item in left_out
            if item['key'] not in found
        ]
        if found:
            dtype = source.config['dtype']
            notes['redone'] = notes.get('redone', []) + [
                {'key': key, 'dtype': dtype} for key in found
            ]
            writer.write_shard(shard, _merged(writer, shard, entry, due, found), notes)
            summary.samples += len(found)
            summary.nouns += sum(len(sample.nouns) for sample in found.values())
            summary.image_bytes += sum(len(sample.image_bytes) for sample in found.values())
            summary.reencoded_images += sum('encoded_anew' in item.meta for item in found.values())
        summary.left_out += notes['left_out']
    if not summary.missing_shards:
        writer.finish(source.num_samples)
    summary.seconds = time.monotonic() - start
    return summary


def _merged(
    writer: StoreWriter,
    shard: int,
    entry: dict[str, Any],
    keys: list[str],
    found: dict[str, Sample],
) -> Iterator[Sample | RawSample]:
    """The samples of a shard in their order: the new ones, and those that are there as they are.

    Raises:
        StoreError: If the shard isn't what it was when the samples were chosen.
    """
    # Looked at once more: only now the shard is locked.
    if writer.shard_manifest(shard) != entry:
        raise StoreError(
            f'{entry["name"]} in {writer.path} was changed by another process in the meantime; '
            'start the same command once more'
        )
    base = writer.path / entry['name']
    rows: dict[str, Any] = {
        row['key'].decode('ascii', 'replace'): row
        for row in load_index(base.with_suffix('.index.npy'))
    }
    handle = open_regular(base.with_suffix('.tar'))
    try:
        size = os.fstat(handle).st_size
        for key in keys:
            if key in found:
                yield found[key]
            elif key in rows:
                yield read_sample(handle, size, rows[key].item())
    finally:
        os.close(handle)

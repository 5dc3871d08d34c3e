"""Generating prompts into a store, so that a run can be stopped anywhere and goes on where it was.

Every worker of every engine does the same: take a shard, generate it, write it. Which worker takes
which shard changes nothing in the store (see `freeatm_mm.generation.source` for what is exact
down to the byte).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from freeatm_mm.errors import MissingFileError, counted
from freeatm_mm.files import open_in_place, read_bytes
from freeatm_mm.generation.limits import MAX_SHARDS
from freeatm_mm.generation.outcomes import Counts
from freeatm_mm.generation.source import ShardSource
from freeatm_mm.progress import progress_bar
from freeatm_mm.prompts import PromptRecord
from freeatm_mm.store import Sample, StoreWriter
from freeatm_mm.store.layout import MANIFEST, PROGRESS
from freeatm_mm.store.locking import ShardBusy, can_lock
from freeatm_mm.store.verify import has_files, shard_entry, shard_numbers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = [
    'GenerationSummary',
    'ShardWorker',
    'SharedProgress',
    'generate',
    'generate_store',
    'shared_bar',
    'summarise_shards',
]

#: Seconds between two looks at what the other workers do.
POLL_SECONDS = 0.5
#: The same, where there is nothing left to do but to wait for them.
MAX_POLL_SECONDS = 8.0


@dataclass
class GenerationSummary(Counts):
    """What one run did.

    Args:
        samples: Samples generated in this run.
        skipped: Samples of this worker that were in the store already.
        left_out: The samples that the store goes without (see `Counts`), also those left out
            in earlier runs.
        nouns: Nouns with a mask, in the samples generated.
        image_bytes: Bytes of the samples' images.
        mask_bytes: Bytes of the samples' masks.
        seconds: Duration of the run.
        missing_shards: Shards that other workers still have to write; 0 when the store is ready.
        replaced_workers: Workers that died and were replaced.
        reencoded_images: Images that were there and whose bytes couldn't be kept.
    """

    samples: int = 0
    skipped: int = 0
    nouns: int = 0
    image_bytes: int = 0
    mask_bytes: int = 0
    seconds: float = 0.0
    missing_shards: int = 0
    replaced_workers: int = 0
    reencoded_images: int = 0

    def add(self, other: GenerationSummary) -> None:
        """Add what another worker did."""
        for item in fields(self):
            if item.name not in ('seconds', 'missing_shards', 'skipped'):
                value = getattr(self, item.name) + getattr(other, item.name)
                setattr(self, item.name, value)

    def __str__(self) -> str:
        return self.text()

    def text(
        self,
        done: str = 'generated',
        again: str = 'to try another number format: the same command with --redo-failed --dtype '
        'float32',
    ) -> str:
        """Return what the run did, in words.

        Args:
            done: What became of the images.
            again: How what failed is done again.
        """
        each = max(1, self.samples)
        lines = [
            f'{counted(self.samples, "image")} {done} in {self.seconds:.0f} s '
            f'({self.samples / max(self.seconds, 1e-9):.2f} a second), {self.skipped} there '
            'already',
            f'{counted(self.nouns, "mask")}; an image takes {self.image_bytes / each:.0f} bytes, '
            f'its masks {self.mask_bytes / each:.0f}',
        ]
        for count, noun, what in (
            (
                self.lost_nouns,
                'noun',
                "left out: cut off or not found by the tokenizer (listed in their samples' meta)",
            ),
            (
                self.partial_nouns,
                'noun',
                'with a mask that leaves out one of several text encoders, as the prompt was cut '
                "off before it (listed in their samples' meta)",
            ),
            (self.cut_prompts, 'prompt', 'with more tokens than the text encoders read'),
            (self.flat_masks, 'flat mask', 'with the same attention everywhere'),
            (self.hidden_images, 'image', "blacked out by the pipeline's safety checker"),
            (
                len(self._left_out('hidden')),
                'image',
                'of these left out of the store (--keep-hidden keeps such images)',
            ),
            (self.split_batches, 'batch', f'{done} again one by one, having failed as a whole'),
            (
                self.reencoded_images,
                'image',
                'encoded anew: neither JPEG nor PNG in RGB or grey, or stored lying on its side',
            ),
            (self.replaced_workers, 'worker', 'replaced, having died'),
            (self.missing_shards, 'shard', 'still to be written by other workers'),
        ):
            if count:
                lines.append(f'{counted(count, noun)} {what}')
        failed = self._left_out('failed')
        if failed:
            lines.append(
                f'{counted(len(failed), "sample")} could not be {done}, and left out ({again}):'
            )
            lines += [
                f'  {item.get("key")} (prompt {item.get("prompt_id")}, image '
                f'{item.get("image_number")}): {item.get("reason")}'
                for item in failed[:20]
            ]
            if len(failed) > 20:
                lines.append(f"  ... and {len(failed) - 20} more, in the shards' notes (left_out)")
        return '\n'.join(lines)

    def _left_out(self, kind: str) -> list[dict[str, Any]]:
        return [item for item in self.left_out if item.get('kind') == kind]


def generate(
    pipeline: DiffusionPipeline,
    prompts: Sequence[PromptRecord],
    out: str | Path,
    *,
    rank: int = 0,
    world: int = 1,
    take_over: bool = True,
    wait: bool = False,
    progress: bool = True,
    **options: Any,
) -> GenerationSummary:
    """Generate every prompt and store the images with one attention mask per noun.

    Shards that are whole are skipped, so the same call goes on after an interruption. Several
    workers with the same arguments and their own ``rank`` share one store; the last to end
    finishes it.

    Args:
        pipeline: A text-to-image pipeline of a family that the recorder knows.
        prompts: The prompts, a list or a `freeatm_mm.generation.PromptFile`.
        out: The store's folder.
        rank: Number of this worker, from 0; it generates shards ``rank``, ``rank + world``, ...
        world: Number of workers.
        take_over: Having generated its own shards, a worker takes those of others that nobody is
            generating: of workers that are slower, died or never started.
        wait: Having nothing left to generate, stay until the store is finished, and generate what a
            worker that dies leaves.
        progress: Show a progress bar for all workers together, with images a second and the time
            left.
        **options: Steps, guidance, sizes, ...: see `freeatm_mm.generation.ShardSource`.

    Returns:
        Counts, sizes and time.

    Raises:
        ValueError: If an argument is out of range, the pipeline's family is unknown, a prompt id
            can't be used, or (with ``lost_nouns='raise'``) a noun is lost.
        StoreError: If ``out`` holds a store made with other settings; says which differ.
        FloatingPointError: If all that the pipeline generates is not a number.
        GenerationError: If generating fails whatever the prompt, or more samples fail than may.
    """
    source = ShardSource(pipeline, prompts, **options)
    if rank == 0:
        source.tell_chosen()
    return generate_store(
        source,
        out,
        rank=rank,
        world=world,
        take_over=take_over,
        wait=wait,
        progress=progress,
    )


def generate_store(
    source: ShardSource,
    out: str | Path,
    *,
    rank: int = 0,
    world: int = 1,
    take_over: bool = True,
    wait: bool = False,
    progress: bool = True,
) -> GenerationSummary:
    """Do one worker's part of a run; the arguments are those of `generate`."""
    if world < 1:
        raise ValueError(f'world must be at least 1, got {world}')
    if not 0 <= rank < world:
        raise ValueError(f'rank must be from 0 to {world - 1} for a world of {world}, got {rank}')
    start = time.monotonic()
    worker = ShardWorker(source, out)
    count = source.plan.num_shards
    summary = worker.summary
    mine = range(rank, count, world)
    for shard in mine:
        before = worker.writer.shard_manifest(shard)
        if before is not None:
            summary.skipped += before['samples']
            summary.left_out += _summary_of(before).left_out
    # Alone, nobody could leave anything; without locks, two workers would generate into one file.
    others = take_over and world > 1 and can_lock(worker.writer.path / MANIFEST)
    with worker.progress, shared_bar(worker.progress, source.num_samples, progress) as refresh:
        for shard in mine:
            worker.run(shard, refresh, steal=others)
        missing = worker.finish()
        pause = POLL_SECONDS
        while missing and (others or wait):
            # From the end, where their owners come last.
            taken = [
                shard
                for shard in reversed(missing)
                if others and worker.run(shard, refresh, steal=True)
            ]
            missing = [shard for shard in missing if not worker.is_complete(shard)]
            if not missing:
                missing = worker.finish()
            elif not taken:
                if not wait:
                    break
                refresh()
                time.sleep(pause)
                pause = min(2 * pause, MAX_POLL_SECONDS)
        refresh(finished=not missing)
    summary.missing_shards = len(missing)
    summary.seconds = time.monotonic() - start
    return summary


class ShardWorker:
    """Generates shards into a store, whoever tells it which.

    Args:
        source: Generates the samples.
        out: The store's folder.

    Attributes:
        summary: What this worker did so far.
        progress: How far all workers are.

    Raises:
        StoreError: If ``out`` holds a store made with other settings; says which differ.
    """

    def __init__(self, source: ShardSource, out: str | Path) -> None:
        self.source = source
        self.writer = StoreWriter(out, source.samples_per_shard, source.config)
        self.summary = GenerationSummary()
        self.progress = SharedProgress(self.writer.path, source.plan.num_shards)
        self._failed = _FailedSoFar(self.writer.path, source.plan.num_shards)

    def is_complete(self, shard: int) -> bool:
        """Whether a shard is whole; if it is, the progress knows."""
        complete = self.writer.is_complete(shard)
        if complete:
            self.progress.set(shard, self.source.size(shard))
        return complete

    def run(
        self, shard: int, refresh: Callable[[], Any] | None = None, steal: bool = False
    ) -> bool:
        """Generate and write a shard, unless it is there.

        Args:
            shard: Number of the shard.
            refresh: Called after each batch.
            steal: Leave a shard that another process is generating to it, instead of raising.

        Returns:
            Whether this worker wrote it.

        Raises:
            ShardBusy: If another process is generating it and ``steal`` is false.
        """
        if self.is_complete(shard):
            return False

        def on_batch(done: int) -> None:
            self.progress.set(shard, done)
            if refresh is not None:
                refresh()

        def samples() -> Iterator[Sample]:
            # Only now the shard is locked; another worker may have just finished it.
            if self.writer.is_complete(shard):
                raise _AlreadyThere
            self.progress.set(shard, 0)
            self.source.failed_before = self._failed.count(but=shard)
            yield from self.source.samples(shard, counts, on_batch)

            notes.update(asdict(counts))

        counts, notes = self.source.counts_class(), dict(self.source.notes)
        try:
            manifest = self.writer.write_shard(shard, samples(), notes)
        except _AlreadyThere:
            return False
        except ShardBusy:
            if not steal:
                raise
            return False
        self.summary.add(_summary_of(manifest))
        return True

    def finish(self) -> list[int]:
        """Finish the store if all shards are there; else return the numbers of the missing."""
        missing = self.writer.finish(self.source.num_samples)
        if not missing:
            self.progress.remove()
        return missing


def summarise_shards(out: str | Path, count: int) -> dict[int, GenerationSummary]:
    """What is known of each finished shard of a store, whoever generated it.

    Args:
        out: The store's folder; need not be there yet.
        count: Number of shards.

    Returns:
        Number of the shard -> what its worker wrote of it.
    """
    found = {}
    for shard in range(count):
        entry = shard_entry(Path(out), shard)
        if entry is not None and has_files(Path(out), entry):
            found[shard] = _summary_of(entry)
    return found


def _summary_of(manifest: dict[str, Any]) -> GenerationSummary:
    notes = manifest.get('notes', {})
    known = {
        item.name: notes[item.name]
        for item in fields(GenerationSummary)
        if type(notes.get(item.name)) is (list if item.name == 'left_out' else int)
    }
    return GenerationSummary(
        **known
        | {name: manifest[name] for name in ('samples', 'nouns', 'image_bytes', 'mask_bytes')},
    )


class _FailedSoFar:
    """How many samples failed in the finished shards of a run, whoever generated them.

    A shard's notes are read once, when it is first seen.

    Args:
        folder: The store's folder.
        num_shards: Shards in all.
    """

    def __init__(self, folder: Path, num_shards: int) -> None:
        self._folder, self._num_shards = folder, num_shards
        self._known: dict[int, int] = {}

    def count(self, but: int) -> int:
        """Count them as of now, without those of the shard that is being generated."""
        for shard in shard_numbers(self._folder):
            if shard in self._known or shard >= self._num_shards:
                continue
            entry = shard_entry(self._folder, shard)
            if entry is not None and has_files(self._folder, entry):
                self._known[shard] = _summary_of(entry).failed
        return sum(self._known.values()) - self._known.get(but, 0)


class _AlreadyThere(Exception):
    """The shard was finished by another worker in the meantime."""


class SharedProgress:
    """How many samples of each shard are generated, kept by all workers in one small file.

    It lies beside the shards until the store is finished, and steers nothing: a wrong number in it
    is a wrong number on the screen.

    Args:
        folder: The store's folder.
        num_shards: Shards in all.
    """

    def __init__(self, folder: Path, num_shards: int) -> None:
        self.path = Path(folder) / PROGRESS
        self.num_shards = num_shards
        self._file: BinaryIO | None = None

    def __enter__(self) -> SharedProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def set(self, shard: int, samples: int) -> None:
        """Say that ``samples`` samples of a shard are generated."""
        if self._file is None:
            self._file = open_in_place(self.path)
        os.pwrite(self._file.fileno(), np.uint32(samples).tobytes(), 4 * shard)

    def total(self) -> int | None:
        """Samples generated by all workers so far; ``None`` without a file, before or after."""
        try:
            data = read_bytes(self.path, 4 * MAX_SHARDS)
        except MissingFileError:
            return None
        counts = np.frombuffer(data[: len(data) // 4 * 4], '<u4')[: self.num_shards]
        return int(counts.sum(dtype=np.int64))

    def remove(self) -> None:
        """Take the file away: the store is finished."""
        self.path.unlink(missing_ok=True)


@contextmanager
def shared_bar(
    progress: SharedProgress, num_samples: int, show: bool
) -> Iterator[Callable[..., None]]:
    """Show one bar for all workers.

    Args:
        progress: How far they are.
        num_samples: Samples in the whole run.
        show: Show it at all.

    Yields:
        A function that brings the bar up to date, to the end with ``finished=True``.
    """
    with progress_bar(
        total=num_samples,
        initial=progress.total() or 0,
        unit='img',
        smoothing=0.05,
        desc='generating',
        disable=not show,
    ) as bar:

        def refresh(finished: bool = False) -> None:
            total = num_samples if finished else progress.total()
            if show and total not in (None, bar.n):
                bar.update(total - bar.n)

        yield refresh

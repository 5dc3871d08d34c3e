"""What a run will take: shards, bytes and hours, from a few batches generated on the spot."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from freeatm_mm.errors import counted
from freeatm_mm.generation.source import ShardSource
from freeatm_mm.store import StoreWriter
from freeatm_mm.store.diversity import NounCoverage, noun_coverage
from freeatm_mm.store.layout import BLOCK, load_index, shard_name

__all__ = ['RunEstimate', 'estimate_run']


@dataclass(frozen=True)
class RunEstimate:
    """What a run is expected to take.

    Args:
        samples: Samples in all.
        shards: Shards in all.
        samples_per_shard: Samples in each but the last.
        timed: Samples that were generated for the estimate.
        device: What they were generated on.
        batch_size: Images generated at once.
        generation_seconds: Seconds to generate an image and record its masks.
        write_seconds: Seconds to encode it and to write and hash it into a shard.
        image_bytes: Mean bytes of an image.
        mask_bytes: Mean bytes of an image's masks.
        sample_bytes: Mean bytes that a sample takes in the store, with JSON, headers and index.
        nouns: What the prompts' nouns cover.
    """

    samples: int
    shards: int
    samples_per_shard: int
    timed: int
    device: str
    batch_size: int
    generation_seconds: float
    write_seconds: float
    image_bytes: float
    mask_bytes: float
    sample_bytes: float
    nouns: NounCoverage

    @property
    def total_bytes(self) -> float:
        """Bytes of the whole store."""
        return self.samples * self.sample_bytes

    @property
    def device_hours(self) -> float:
        """Hours that one device needs for the whole run."""
        return self.samples * (self.generation_seconds + self.write_seconds) / 3600

    def text(self, workers: int = 1) -> str:
        """The estimate in words.

        Args:
            workers: Devices that share the run.
        """
        seconds = self.generation_seconds + self.write_seconds
        hours = self.device_hours
        return '\n'.join(
            [
                f'{counted(self.samples, "sample")} in {counted(self.shards, "shard")} of '
                f'{self.samples_per_shard:,}',
                f'{size_text(self.total_bytes)}: {self.sample_bytes:,.0f} bytes a sample, of which '
                f'image {self.image_bytes:,.0f} and masks {self.mask_bytes:,.0f}; '
                f'{size_text(self.sample_bytes * min(self.samples, self.samples_per_shard))} a '
                'shard',
                f'{seconds:.3g} s an image on {self.device} at batch size {self.batch_size}, of '
                f'which encoding and writing {100 * self.write_seconds / seconds:.1f} %',
                f'{self.samples:,} x {seconds:.3g} s / 3600 = {_number(hours)} hours on one '
                f'device, {_number(hours / workers)} hours ({_number(hours / workers / 24)} days) '
                f'on {workers}',
                f'estimated from {counted(self.timed, "image")} generated just now, after one '
                'batch to warm up; loading weights and reading prompts happen once per worker',
                f'prompts: {self.nouns}',
            ]
        )


def estimate_run(source: ShardSource, batches: int = 2) -> RunEstimate:
    """Generate a few batches, the first one untimed, and project time and size of the whole run.

    The run's folder isn't touched: what is generated goes to a temporary one and is thrown away.

    Args:
        source: The run.
        batches: Batches to time; the run's own first samples, again from the start if it is
            smaller than that.

    Raises:
        ValueError: If ``batches`` is below 1; and what generating raises.
    """
    if batches < 1:
        raise ValueError(f'batches must be at least 1, got {batches}')
    size = min(source.batch_size, source.size(0))
    rows, notes = list(range(size)), {'batch_size': size}
    source.generate(0, rows, notes, strict=False)
    generated, generation_seconds = [], 0.0
    for number in range(batches):
        first = size * (number + 1)
        rows = list(range(first, first + size))
        if rows[-1] >= source.size(0):
            rows = list(range(size))
        _synchronize()
        start = time.perf_counter()
        generated.append(source.generate(0, rows, notes, strict=False))
        _synchronize()
        generation_seconds += time.perf_counter() - start
    generated = [part for part in generated if part]
    if not generated:
        raise ValueError(
            'none of the samples generated for the estimate can be stored; try more batches'
        )
    with tempfile.TemporaryDirectory() as scratch:
        writer = StoreWriter(Path(scratch) / 'store', size)
        start = time.perf_counter()
        shards = [
            writer.write_shard(number, part.values()) for number, part in enumerate(generated)
        ]
        write_seconds = time.perf_counter() - start
        content = sum(_content_bytes(writer.path, number) for number in range(len(shards)))
    timed = sum(shard['samples'] for shard in shards)

    def mean(field: str) -> float:
        return sum(shard[field] for shard in shards) / timed

    device = source.pipeline.device
    return RunEstimate(
        samples=source.num_samples,
        shards=source.plan.num_shards,
        samples_per_shard=source.samples_per_shard,
        timed=timed,
        device=torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device),
        batch_size=size,
        generation_seconds=generation_seconds / timed,
        write_seconds=write_seconds / timed,
        image_bytes=mean('image_bytes'),
        mask_bytes=mean('mask_bytes'),
        sample_bytes=content / timed,
        nouns=noun_coverage((record.prompt, record.nouns) for record in source.plan.prompts),
    )


def _content_bytes(folder: Path, number: int) -> int:
    """Bytes of a shard's samples and index rows, without what each shard has once."""
    rows = load_index(folder / f'{shard_name(number)}.index.npy')
    end = int(rows[-1]['image_offset'] + rows[-1]['image_size'])
    return end + -end % BLOCK + rows.nbytes


def size_text(count: float) -> str:
    """Bytes in the unit that suits them, of powers of 1000: ``'1.26 TB'``."""
    for unit in ('bytes', 'kB', 'MB', 'GB', 'TB'):
        if count < 1000 or unit == 'TB':
            return f'{count:.3g} {unit}' if count < 1000 else f'{count:,.0f} {unit}'
        count /= 1000
    raise AssertionError('every size has a unit')


def _number(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.2g}'


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

"""Drawing prompts into a store, so that a run can be stopped anywhere and goes on where it was.

What is exact. A sample's noise comes from its own seed and nothing else, so the *same sample* is
drawn whatever the batch size, the number of workers or the order. Its *bytes* are the same
whenever it is drawn in a batch of the same composition with the same software and hardware
(number of threads included): batches are formed inside a shard, a shard is written whole or not at
all, so a run that was killed ends with the bytes of one that wasn't, whatever the number of
workers. With another batch size, matrix products round differently: on a CPU, five steps of a
tiny Stable Diffusion differed by at most 2e-6 in a pixel's value (0 to 1), that is one pixel in
10,000 by one level.
"""
from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from freeatm_mm.attention import (
    AttentionRecorder,
    NounAlignmentError,
    find_family,
    minmax,
    quantize,
)
from freeatm_mm.prompts import PromptRecord
from freeatm_mm.store import Sample, StoreWriter
from freeatm_mm.store.sample import IMAGE_FORMATS

from .plan import Plan, sample_key, sample_seed

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ['GenerationSummary', 'generate']

_PACKAGES = ('freeatm_mm', 'torch', 'diffusers', 'transformers')


@dataclass
class GenerationSummary:
    """What one run of :func:`generate` did.

    Args:
        samples: Samples drawn in this run.
        skipped: Samples of this worker that were in the store already.
        nouns: Nouns with a mask, in the samples drawn.
        lost_nouns: Nouns left out because the tokenizer cut them off, or because they aren't
            found among the tokens; the samples' ``meta`` lists them with the reason.
        flat_masks: Masks with the same attention everywhere (stored, but they show nothing).
        hidden_images: Images that the pipeline's safety checker blacked out.
        image_bytes: Bytes of the samples' images.
        mask_bytes: Bytes of the samples' masks.
        seconds: Duration of the run.
        missing_shards: Shards that other workers still have to write; 0 when the store is ready.
    """

    samples: int = 0
    skipped: int = 0
    nouns: int = 0
    lost_nouns: int = 0
    flat_masks: int = 0
    hidden_images: int = 0
    image_bytes: int = 0
    mask_bytes: int = 0
    seconds: float = 0.0
    missing_shards: int = 0

    def __str__(self) -> str:
        each = max(1, self.samples)
        lines = [f'{self.samples} images drawn in {self.seconds:.0f} s '
                 f'({self.samples / max(self.seconds, 1e-9):.2f} a second), {self.skipped} there '
                 'already',
                 f'{self.nouns} masks; an image takes {self.image_bytes / each:.0f} bytes, its '
                 f'masks {self.mask_bytes / each:.0f}']
        for count, what in (
                (self.lost_nouns, 'nouns left out: cut off or not found by the tokenizer (listed '
                 "in their samples' meta)"),
                (self.flat_masks, 'masks are flat: the attention is the same everywhere'),
                (self.hidden_images, "images blacked out by the pipeline's safety checker"),
                (self.missing_shards, 'shards still to be written by other workers')):
            if count:
                lines.append(f'{count} {what}')
        return '\n'.join(lines)


def generate(pipeline: DiffusionPipeline, prompts: Sequence[PromptRecord], out: str | Path, *,
             steps: int = 50, guidance: float = 7.5, batch_size: int = 8, seed: int = 0,
             samples_per_shard: int = 5000, images_per_prompt: int = 1, height: int | None = None,
             width: int | None = None, image_format: str = 'jpg', quality: int = 95, rank: int = 0,
             world: int = 1, lost_nouns: str = 'skip', name: str | None = None,
             revision: str | None = None, progress: bool = True) -> GenerationSummary:
    """Draw every prompt and store the images with one attention mask per noun.

    Shards that are whole are skipped, so the same call goes on after an interruption. Several
    workers with the same arguments and their own ``rank`` share one store; the last to end
    finishes it.

    Args:
        pipeline: A text-to-image pipeline of a family that the recorder knows.
        prompts: The prompts, a list or a :class:`~freeatm_mm.generation.PromptFile`.
        out: The store's folder.
        steps: Denoising steps.
        guidance: Classifier-free guidance scale; 1 or less switches guidance off.
        batch_size: Images drawn at once. Changes the speed, and the samples by rounding only.
        seed: Seed of the run; a sample's seed is a hash of it, the prompt's id and the number of
            the image.
        samples_per_shard: Samples in a shard, the unit of work and of resuming.
        images_per_prompt: Images drawn from each prompt.
        height: Height of the images in pixels, together with ``width``; the default is the
            pipeline's.
        width: Width of the images in pixels.
        image_format: ``'jpg'`` or ``'png'``.
        quality: JPEG quality, 1 to 100.
        rank: Number of this worker, from 0; it draws shards ``rank``, ``rank + world``, ...
        world: Number of workers.
        lost_nouns: What to do with a noun that the tokenizer cut off or that isn't found among
            the tokens: ``'skip'`` keeps the sample without it, lists it under ``lost_nouns`` in
            the sample's ``meta`` and counts it; ``'raise'`` stops.
        name: Name of the pipeline for the records; the default is its class.
        revision: Revision of the pipeline for the records.
        progress: Show a progress bar with images a second and the time left.

    Returns:
        Counts, sizes and time.

    Raises:
        ValueError: If an argument is out of range, the pipeline's family is unknown, a prompt id
            can't be used, or (with ``lost_nouns='raise'``) a noun is lost.
        StoreError: If ``out`` holds a store made with other settings; says which differ.
        FloatingPointError: If the pipeline draws something that is not a number.
    """
    for label, value, least in (('steps', steps, 1), ('batch_size', batch_size, 1),
                                ('world', world, 1), ('height', height, 1), ('width', width, 1)):
        if value is not None and value < least:
            raise ValueError(f'{label} must be at least {least}, got {value}')
    if (height is None) != (width is None):
        # Pipelines would silently draw their own size.
        raise ValueError(f'give height and width together, got {height} and {width}')
    if not 0 <= rank < world:
        raise ValueError(f'rank must be from 0 to {world - 1} for a world of {world}, got {rank}')
    if not 1 <= quality <= 100:
        raise ValueError(f'quality must be from 1 to 100, got {quality}')
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f'image_format must be one of {", ".join(IMAGE_FORMATS)}, got '
                         f'{image_format!r}')
    if lost_nouns not in ('skip', 'raise'):
        raise ValueError(f'lost_nouns must be "skip" or "raise", got {lost_nouns!r}')
    find_family(pipeline)  # refuses a family that can't be recorded, before anything is written
    plan = Plan(prompts, images_per_prompt, samples_per_shard)
    settings = {
        'pipeline': name or type(pipeline).__name__,
        'revision': revision, 'pipeline_class': type(pipeline).__name__,
        'scheduler': type(pipeline.scheduler).__name__, 'steps': steps, 'guidance': guidance,
        'height': height, 'width': width, 'dtype': str(pipeline.dtype).removeprefix('torch.')}
    config = settings | {
        'seed': seed, 'images_per_prompt': images_per_prompt, 'image_format': image_format,
        'quality': quality if image_format == 'jpg' else None,
        'prompts_sha256': plan.fingerprint, 'num_samples': plan.num_samples}
    writer = StoreWriter(out, samples_per_shard, config)
    artist = _Artist(
        pipeline, plan, GenerationSummary(), settings | {'versions': _versions()}, seed=seed,
        lost_nouns=lost_nouns, image_format=image_format, quality=quality)
    summary = artist.summary
    start = time.monotonic()
    mine = range(rank, plan.num_shards, world)
    todo = []
    for index in mine:
        manifest = writer.shard_manifest(index)
        if manifest is None:
            todo.append(index)
        else:
            summary.skipped += manifest['samples']
    total = sum(min(samples_per_shard, plan.num_samples - index * samples_per_shard)
                for index in mine)
    with _quiet(pipeline), tqdm(total=total, initial=summary.skipped, unit='img', smoothing=0.05,
                                desc='drawing', disable=not progress) as bar:
        for index in todo:
            samples = artist.draw(plan.shard(index), batch_size, bar)
            manifest = writer.write_shard(index, samples)
            summary.samples += manifest['samples']
            summary.nouns += manifest['nouns']
            summary.image_bytes += manifest['image_bytes']
            summary.mask_bytes += manifest['mask_bytes']
    summary.missing_shards = len(writer.finish(plan.num_samples))
    summary.seconds = time.monotonic() - start
    return summary


class _Artist:
    """Draws batches and makes samples of them."""

    def __init__(self, pipeline: DiffusionPipeline, plan: Plan, summary: GenerationSummary,
                 settings: dict[str, Any], *, seed: int, lost_nouns: str, image_format: str,
                 quality: int) -> None:
        self.pipeline = pipeline
        self.plan = plan
        self.summary = summary
        self.settings = settings
        self.seed = seed
        self.lost_nouns = lost_nouns
        self.image_format = image_format
        self.quality = quality
        self.call_options: dict[str, Any] = {
            'num_inference_steps': settings['steps'], 'guidance_scale': settings['guidance'],
            'height': settings['height'], 'width': settings['width'], 'output_type': 'pil'}
        self.recorder_options: dict[str, Any] = {'truncated': lost_nouns}
        if 'clean_caption' in inspect.signature(pipeline.__call__).parameters:
            # DeepFloyd IF would clean web captions, with two more packages; prompts are clean.
            self.call_options['clean_caption'] = False
            self.recorder_options['clean_caption'] = False

    def draw(self, work: Sequence[tuple[PromptRecord, int]], batch_size: int,
             bar: tqdm) -> Iterator[Sample]:
        """Yield the samples of a shard, drawn in batches that depend on the shard alone."""
        for first in range(0, len(work), batch_size):
            batch = work[first:first + batch_size]
            yield from self._draw_batch(batch)
            bar.update(len(batch))

    def _draw_batch(self, batch: Sequence[tuple[PromptRecord, int]]) -> Iterator[Sample]:
        prompts = [record.prompt for record, _ in batch]
        seeds = [sample_seed(self.seed, record.id, number) for record, number in batch]
        try:
            recorder, recorded, lost = self._recorder(batch)
            # Noise from the CPU is the same on every device. Casting what is not a number to a
            # pixel would give black; errstate makes it an error.
            with recorder, np.errstate(invalid='raise'):
                output = self.pipeline(
                    prompts, generator=[torch.Generator().manual_seed(value) for value in seeds],
                    **self.call_options)
            maps = [(*quantize(masks), minmax(masks)[1]) for masks in recorder.masks()]
        except (FloatingPointError, ValueError) as error:
            names = ', '.join(record.id for record, _ in batch[:4])
            more = ', ...' if len(batch) > 4 else ''
            error.args = (f'drawing the prompts {names}{more} failed: {error}', )
            raise
        if len(output.images) != len(batch):
            raise ValueError(f'{type(self.pipeline).__name__} drew {len(output.images)} images '
                             f'from {len(batch)} prompts')
        wanted = (self.settings['width'], self.settings['height'])
        if wanted != (None, None) and output.images[0].size != wanted:
            raise ValueError(f'{type(self.pipeline).__name__} drew images of size '
                             f'{output.images[0].size} (width, height), not {wanted}')
        hidden = getattr(output, 'nsfw_content_detected', None)
        hidden = getattr(output, 'nsfw_detected', None) if hidden is None else hidden
        for place, (record, number) in enumerate(batch):
            meta = {'prompt_id': record.id, 'source': record.source, 'image_number': number,
                    'seed': seeds[place], **self.settings}
            if lost[place]:
                meta['lost_nouns'] = [record.nouns[index].to_json() | {'reason': reason}
                                      for index, reason in sorted(lost[place].items())]
                self.summary.lost_nouns += len(lost[place])
            if hidden is not None and hidden[place]:
                meta['hidden_by_safety_checker'] = True
                self.summary.hidden_images += 1
            kept = [row for row, index in enumerate(recorded[place]) if index not in lost[place]]
            levels, scales, flat = (tensor.numpy()[kept] for tensor in maps[place])
            self.summary.flat_masks += int(flat.sum())
            yield Sample.from_image(
                sample_key(record.id, number, self.plan.images_per_prompt), output.images[place],
                image_format=self.image_format, quality=self.quality, caption=record.prompt,
                nouns=tuple(record.nouns[recorded[place][row]] for row in kept), masks=levels,
                scales=scales, meta=meta)

    def _recorder(self, batch: Sequence[tuple[PromptRecord, int]]) -> tuple[
            AttentionRecorder, list[list[int]], list[dict[int, str]]]:
        """A recorder for a batch.

        Returns:
            The recorder; for each prompt the numbers of the nouns it records; and for each prompt
            the numbers of the nouns that have no mask, with the reason.
        """
        recorded = [list(range(len(record.nouns))) for record, _ in batch]
        lost: list[dict[int, str]] = [{} for _ in batch]
        try:
            recorder = self._recorder_of(batch, recorded)
        except NounAlignmentError:
            if self.lost_nouns == 'raise':
                raise
            for place, sample in enumerate(batch):
                for index in recorded[place]:
                    try:
                        self._recorder_of([sample], [[index]])
                    except NounAlignmentError:
                        lost[place][index] = 'not found among the tokens'
            recorded = [[index for index in indices if index not in gone]
                        for indices, gone in zip(recorded, lost)]
            recorder = self._recorder_of(batch, recorded)
        for place, row in recorder.truncated:
            lost[place][recorded[place][row]] = 'cut off by the tokenizer'
        return recorder, recorded, lost

    def _recorder_of(self, batch: Sequence[tuple[PromptRecord, int]],
                     indices: Sequence[Sequence[int]]) -> AttentionRecorder:
        nouns = [[record.nouns[index] for index in chosen]
                 for (record, _), chosen in zip(batch, indices)]
        return AttentionRecorder(self.pipeline, [record.prompt for record, _ in batch], nouns,
                                 **self.recorder_options)


@contextmanager
def _quiet(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Switch the pipeline's own progress bar off for a while."""
    before = getattr(pipeline, '_progress_bar_config', {})
    pipeline.set_progress_bar_config(**before | {'disable': True})
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**before)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # imported from a checkout
            continue
    return found

"""What `add_masks.py` measures: masks of images that exist, by noise level, and their cost."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch

from freeatm_mm.attention import AttentionRecorder
from freeatm_mm.generation import load_pipeline
from freeatm_mm.generation.calls import sampling_options
from freeatm_mm.generation.existing import LEVELS
from freeatm_mm.miniature.compose import compose_scenes
from freeatm_mm.miniature.evaluation import (
    TIMESTEPS,
    NounSegmenter,
    record_generated_scenes,
    record_noised_scenes,
    trained,
)
from freeatm_mm.miniature.scenes import Scene, sample_prompt
from freeatm_mm.miniature.sources import fetch_sources
from freeatm_mm.probing.mask_quality import MaskQuality, mask_quality, mean_box_size, summarise

__all__ = ['measure', 'report']

#: Levels that are recorded apart.
EVERY = tuple(sorted({*TIMESTEPS, 100, 200, 300}))
BATCH = 50


def choices_of_levels(pipe: Any, scenes: Sequence[Scene]) -> dict[tuple[int, ...], dict[str, Any]]:
    """The quality of the masks of one level, of two, of the best two with a third, and of ten."""
    recorded = list(record_noised_scenes(pipe, scenes, EVERY, separate='steps'))
    found: dict[tuple[int, ...], dict[str, Any]] = {}

    def judge(levels: tuple[int, ...]) -> None:
        steps = [EVERY.index(level) for level in levels]
        found[levels] = scores(
            [
                mask_quality(masks.numpy(), scene.masks)
                for recorder, batch in recorded
                for masks, scene in zip(recorder.masks(steps=steps), batch)
            ]
        )

    for count in (1, 2):
        for levels in itertools.combinations(EVERY, count):
            judge(levels)
    pair = max(found, key=lambda levels: found[levels]['iou'] if len(levels) == 2 else 0)
    for level in EVERY:
        if level not in pair:
            judge(tuple(sorted((*pair, level))))
    judge(TIMESTEPS)
    return found


def scores(qualities: Sequence[MaskQuality]) -> dict[str, Any]:
    """What the tables show of `freeatm_mm.probing.mask_quality.summarise`."""
    summary = summarise(qualities)
    kept = ('iou', 'best_iou', 'best_threshold', 'found_box_iou', 'pointing', 'nouns')
    return {name: summary[name] for name in kept}


def seconds_of(work: Any) -> float:
    """CPU seconds that some work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Do the work."""
    sources = fetch_sources(args.cache, args.sources)
    pipe = load_pipeline(args.generator).pipe
    pipe.set_progress_bar_config(disable=True)
    by_choice = choices_of_levels(pipe, list(compose_scenes(sources, 'val', args.scenes)))
    spread = max(by_choice, key=len)
    best = [
        max((c for c in by_choice if len(c) == count), key=lambda c: by_choice[c]['iou'])
        for count in (1, 2, 3)
    ]
    tests = list(compose_scenes(sources, 'test', args.scenes))
    box_size = mean_box_size(scene.masks for scene in tests)
    real = {}
    for levels in dict.fromkeys([*best, LEVELS, spread]):
        qualities = [
            mask_quality(masks.numpy(), scene.masks, box_size=box_size)
            for recorder, batch in record_noised_scenes(pipe, tests, levels)
            for masks, scene in zip(recorder.masks(), batch)
        ]
        real[levels] = scores(qualities)
    with torch.enable_grad():
        segmenter = trained(
            NounSegmenter(),
            args.work / f'segmenter-{args.segmenter_scenes}x{args.segmenter_epochs}.safetensors',
            lambda: compose_scenes(sources, 'train', args.segmenter_scenes, seed=3),
            args.segmenter_epochs,
        )
    prompts = [sample_prompt(f'masks-{number:05d}', 0) for number in range(args.scenes)]
    recorded, scenes = [], []
    for recorder, batch in record_generated_scenes(
        pipe, prompts, segmenter, args.steps, args.guidance
    ):
        scenes += batch
        recorded += [
            mask_quality(masks.numpy(), scene.masks)
            for masks, scene in zip(recorder.masks(), batch)
        ]
    generated = {'recorded while generating': scores(recorded)}
    for levels in dict.fromkeys([*best, LEVELS, spread]):
        generated[f'added afterwards, {text_of(levels)}'] = scores(
            [
                mask_quality(masks.numpy(), scene.masks)
                for recorder, batch in record_noised_scenes(pipe, scenes, levels)
                for masks, scene in zip(recorder.masks(), batch)
            ]
        )
    return {
        'chosen_on': {text_of(levels): found for levels, found in by_choice.items()},
        'real': {text_of(levels): found for levels, found in real.items()},
        'generated': generated,
        'seconds': seconds_of_both(pipe, scenes[:BATCH], args),
        'images': BATCH,
    }


def seconds_of_both(
    pipe: Any, few: Sequence[Scene], args: argparse.Namespace
) -> list[tuple[float, float]]:
    """CPU seconds of generating scenes' prompts with masks, and of adding masks to the scenes."""
    call = sampling_options(pipe, steps=args.steps, guidance=args.guidance)

    def generate() -> None:
        texts = [scene.record.prompt for scene in few]
        nouns = [scene.record.nouns for scene in few]
        with AttentionRecorder(pipe, texts, nouns, call_options=call) as recorder:
            pipe(texts, **call)
        recorder.masks()

    def add() -> None:
        for recorder, _ in record_noised_scenes(pipe, few, LEVELS):
            recorder.masks()

    return [(seconds_of(generate), seconds_of(add)) for _ in range(args.pairs)]


def text_of(levels: Sequence[int]) -> str:
    """Levels as the tables name them."""
    return f'{len(levels)} levels' if len(levels) > 3 else ', '.join(map(str, levels))


def report(results: dict[str, Any], args: argparse.Namespace) -> str:
    """The results as Markdown."""

    def table(title: str, rows: dict[str, dict[str, Any]]) -> list[str]:
        return [
            f'| {title} | IoU at 0.45 | best IoU (threshold) | box IoU at 0.45 | pointing |',
            '| --- | ---: | ---: | ---: | ---: |',
            *(
                f'| {name} | {row["iou"]:.3f} | {row["best_iou"]:.3f} '
                f'({row["best_threshold"]:.2f}) | {row["found_box_iou"]:.3f} | '
                f'{row["pointing"]:.1%} |'
                for name, row in rows.items()
            ),
            '',
        ]

    ratios = sorted(added / generated for generated, added in results['seconds'])
    generated, added = (sorted(column)[len(ratios) // 2] for column in zip(*results['seconds']))
    best = sorted(results['chosen_on'].items(), key=lambda item: -item[1]['iou'])
    singles = {name: row for name, row in results['chosen_on'].items() if name.isdecimal()}
    pairs = {name: row for name, row in best if name.count(',') == 1}
    return '\n'.join(
        [
            '# Masks added to images that exist',
            '',
            f'`{results["command"]}`',
            '',
            f'{results["date"]}, {results["hardware"]}.',
            '',
            '## Cost',
            '',
            f'{results["images"]} images of the miniature: {added:.2f} CPU seconds to add masks at '
            f'levels {text_of(LEVELS)} (VAE, text encoder, {len(LEVELS)} calls of the UNet), '
            f'{generated:.2f} to generate them with masks in {args.steps} steps with guidance; '
            f'ratio {ratios[len(ratios) // 2]:.4f} ({ratios[0]:.4f} to {ratios[-1]:.4f}, '
            f'{len(ratios)} pairs), target at most 0.1.',
            '',
            '## Real scenes, exact masks',
            '',
            f'{args.scenes} scenes of objects never seen (split `test`); {text_of(LEVELS)} are the '
            'default, the others the best of their number on the split `val`, and the ten levels '
            'that spread over the schedule.',
            '',
            *table('levels', results['real']),
            '## Generated images, masks of a segmenter',
            '',
            f'{args.scenes} images in {args.steps} steps at guidance {args.guidance:g}.',
            '',
            *table('masks', results['generated']),
            '## The choice of levels (split `val`)',
            '',
            *table('one level', singles),
            *table('two levels, the ten best pairs', dict(list(pairs.items())[:10])),
        ]
    )

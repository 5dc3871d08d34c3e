"""Which attention makes the best mask: variants of one recording, scored against exact masks.

A recorder that kept steps and heads apart gives all variants of the paper's figure 5, and those
beyond it, from one run. What has to be chosen (heads) is chosen on other scenes than are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from freeatm_mm.attention import AttentionRecorder, dense_crf, mask_trust, minmax, resize
from freeatm_mm.attention.overlay import NOUN_COLOURS, overlay
from freeatm_mm.ops.masks import THRESHOLD
from freeatm_mm.probing.mask_quality import MaskQuality, mask_quality, mean_box_size, summarise

__all__ = [
    'RECORDING',
    'Variant',
    'best_heads',
    'make_variants',
    'score_variants',
    'trust_report',
    'variants_picture',
    'variants_report',
]

RECORDING = {'separate': ('steps', 'heads')}
"""Options of the recorder that variants choose from, beside ``self_attention``."""

Recordings = Iterable[tuple[AttentionRecorder, Sequence[Any]]]


@dataclass(frozen=True)
class Variant:
    """One way to make masks of a recording.

    Attributes:
        name: What to call it in tables.
        options: Of `AttentionRecorder.masks`.
        crf: Whether to end with `freeatm_mm.attention.dense_crf`.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    crf: bool = False


def make_variants(
    recorder: AttentionRecorder,
    num_steps: int,
    noisier: Sequence[int],
    heads: Mapping[str, Sequence[int]] | None = None,
) -> list[Variant]:
    """The variants that a recording has in it.

    Args:
        recorder: One that has recorded as `RECORDING` says, self-attention included.
        num_steps: How many steps it saw.
        noisier: The steps with more noise, of which some variants are made.
        heads: From `best_heads`, for the variants with chosen heads.

    Returns:
        The paper's three (figure 5) first: each block at the middle step, all steps of the down
        blocks, all steps of all blocks, which is its default.
    """
    blocks = list(
        dict.fromkeys(
            '.'.join(layer.split('.')[: 2 if layer.split('.')[1].isdigit() else 1])
            for layer in recorder.layers
        )
    )
    sides = sorted({min(part.size) for part in recorder._sums})
    largest = {'resolutions': [sides[-1]]}
    middle = num_steps // 2
    variants = [
        Variant(f'figure 5a: one step, {block}', {'steps': [middle], 'blocks': block})
        for block in blocks
    ]
    variants += [
        Variant('figure 5b: all steps, down blocks', {'blocks': 'down'}),
        Variant("figure 5c: all steps, all blocks (the paper's)"),
        Variant('up blocks', {'blocks': 'up'}),
        Variant('each resolution the same', {'weights': 'resolution'}),
        *(Variant(f'{side}x{side} alone', {'resolutions': [side]}) for side in sides),
        Variant(f'{sides[-1]}x{sides[-1]}, the noisier steps', largest | {'steps': noisier}),
        Variant(
            f'{sides[-1]}x{sides[-1]}, every third step',
            largest | {'steps': range(1, num_steps, 3)},
        ),
    ]
    if heads is not None:
        number = sum(len(each) for each in heads.values())
        variants.append(Variant(f'the {number} best heads', {'heads': heads}))
    variants += [
        Variant('all blocks, propagated once', {'propagate': 1}),
        Variant('all blocks, propagated 4 times', {'propagate': 4}),
        Variant(f'{sides[-1]}x{sides[-1]}, propagated once', largest | {'propagate': 1}),
        Variant(f'{sides[-1]}x{sides[-1]}, propagated 4 times', largest | {'propagate': 4}),
        Variant('all blocks, CRF', {}, True),
        Variant(f'{sides[-1]}x{sides[-1]}, CRF', largest, True),
        Variant(
            f'{sides[-1]}x{sides[-1]}, the noisier steps, CRF', largest | {'steps': noisier}, True
        ),
        Variant(f'{sides[-1]}x{sides[-1]}, propagated once, CRF', largest | {'propagate': 1}, True),
    ]
    if heads is not None:
        variants.append(Variant(f'the {number} best heads, CRF', {'heads': heads}, True))
    return variants


def best_heads(
    recordings: Recordings, counts: Sequence[int] = (1, 2, 4, 8, 16)
) -> dict[str, list[int]]:
    """The heads whose mean makes the best masks: ranked alone, then as many as are best together.

    Args:
        recordings: Recorders and their scenes, as many batches as wanted.
        counts: How many heads to try.

    Returns:
        For each layer with chosen heads their numbers.
    """
    recordings = list(recordings)

    def iou(heads: Mapping[str, Sequence[int]]) -> float:
        return summarise(
            [
                mask_quality(masks.numpy(), scene.masks)
                for recorder, scenes in recordings
                for masks, scene in zip(recorder.masks(heads=heads), scenes)
            ]
        )['best_iou']

    ranked = sorted(
        (
            (layer, head)
            for layer, number in recordings[0][0].layers.items()
            for head in range(number)
        ),
        key=lambda pair: -iou({pair[0]: [pair[1]]}),
    )

    def first(count: int) -> dict[str, list[int]]:
        chosen: dict[str, list[int]] = {}
        for layer, head in ranked[:count]:
            chosen.setdefault(layer, []).append(head)
        return {layer: sorted(heads) for layer, heads in sorted(chosen.items())}

    return max((first(count) for count in counts if count <= len(ranked)), key=iou)


def score_variants(
    recordings: Recordings,
    variants_of: Callable[[AttentionRecorder], list[Variant]],
    crf_size: int = 32,
) -> tuple[list[dict[str, Any]], dict[str, list[np.ndarray]], dict[str, list[MaskQuality]]]:
    """Score every variant on the same scenes.

    Args:
        recordings: Recorders and their scenes (``image`` uint8, ``masks`` (K, H, W) booleans).
        variants_of: What `make_variants` gives for a recorder.
        crf_size: Side to which masks are resized for the CRF; its matrix joins so many pixels
            squared.

    Returns:
        Rows for a result file (``method``: the variant, ``metrics``); the masks of each variant,
        one (K, h, w) array for each scene; and their scores.
    """
    masks: dict[str, list[np.ndarray]] = {}
    scores: dict[str, list[MaskQuality]] = {}
    recordings = list(recordings)
    box_size = mean_box_size(scene.masks for _, scenes in recordings for scene in scenes)
    for recorder, scenes in recordings:
        variants = variants_of(recorder)
        found = {
            variant.name: [each.numpy() for each in recorder.masks(**variant.options)]
            for variant in variants
        }
        refined = [variant.name for variant in variants if variant.crf]
        for place, scene in enumerate(scenes):
            # The nouns of all variants at once: the image's matrix is the same.
            stacked = np.concatenate([found[name][place] for name in refined])
            sharp = dense_crf(resize(minmax(stacked)[0], (crf_size, crf_size)), scene.image)
            for name, part in zip(refined, np.split(sharp, len(refined))):
                found[name][place] = part
        for name, each in found.items():
            masks.setdefault(name, []).extend(each)
            scores.setdefault(name, []).extend(
                mask_quality(soft, scene.masks, box_size=box_size)
                for soft, scene in zip(each, scenes)
            )
    rows = []
    for name, qualities in scores.items():
        summary = summarise(qualities)
        other = summary['controls']['other_noun'] or {'iou': float('nan')}
        rows.append(
            {
                'method': name,
                'metrics': {
                    'iou': summary['iou'],
                    'best_iou': summary['best_iou'],
                    'best_threshold': summary['best_threshold'],
                    'box_iou': summary['found_box_iou'],
                    'best_box_iou': summary['best_found_box_iou'],
                    'pointing': summary['pointing'],
                    'other_noun_iou': other['iou'],
                },
                'sweep': summary['sweep'],
                'controls': {
                    'centred_box': summary['controls']['centred_box'],
                    'whole_image': summary['controls']['whole_image'],
                },
            }
        )
    return rows, masks, scores


def trust_report(
    masks: Sequence[np.ndarray], qualities: Sequence[MaskQuality]
) -> dict[str, dict[str, float]]:
    """How well each measure of `freeatm_mm.attention.mask_trust` tells good masks.

    Args:
        masks: Raw attention of each image's nouns.
        qualities: Their scores.

    Returns:
        For each measure its rank correlation with the IoU at the paper's threshold, and the mean
        IoU of all masks and of the half with the better measure (small area, small overlap).
    """
    fixed = int(np.flatnonzero(np.isclose(qualities[0].thresholds, THRESHOLD))[0])
    iou = np.concatenate([quality.iou[:, fixed] for quality in qualities])
    trust = [each for maps in masks for each in mask_trust(maps)]
    there = np.isfinite(iou)
    report = {}
    for name, sign in (('peakedness', 1), ('area', -1), ('overlap', -1)):
        values = sign * np.array([getattr(each, name) for each in trust])[there]
        better = np.argsort(-values, kind='stable')[: len(values) // 2]
        report[name] = {
            'rank_correlation': float(sign * np.corrcoef(_ranks(values), _ranks(iou[there]))[0, 1]),
            'iou': float(iou[there].mean()),
            'iou_of_better_half': float(iou[there][better].mean()),
        }
    return report


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, equal values sharing their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[places]


def variants_report(results: Mapping[str, Any]) -> str:
    """The table in Markdown, from the figures of ``tools/miniature/evaluate_masks.py``."""
    lines = [
        '# Which attention makes the best mask',
        '',
        f'`{results["command"]}`',
        '',
        f'{results["date"]}, {results["hardware"]}.',
        '',
    ]
    for part in results['parts']:
        lines += [f'## {part["title"]}', '', part['description'], '']
        lines += _variants_table(part['rows'])
        controls = part['rows'][0]['controls']
        lines += [
            '',
            'A centred box of the mean object size scores '
            f'{controls["centred_box"]:.3f}, the whole image {controls["whole_image"]:.3f}.',
            '',
            '| measure of the mask | rank correlation with IoU | IoU, all | IoU, better half |',
            '| --- | ---: | ---: | ---: |',
        ]
        for name, score in part['trust'].items():
            lines.append(
                f'| {name} | {score["rank_correlation"]:.2f} | {score["iou"]:.3f} | '
                f'{score["iou_of_better_half"]:.3f} |'
            )
        lines += ['', f'![Masks of the variants]({part["picture"]})', '']
    lines += [f'Heads chosen on other scenes: {results["heads"]}.']
    return '\n'.join(lines) + '\n'


def _variants_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        '| masks | IoU at 0.45 | best IoU (threshold) | box IoU at 0.45 | best box IoU | '
        "pointing | IoU of the other noun's mask |",
        '| --- | ---: | ---: | ---: | ---: | ---: | ---: |',
    ]
    for row in rows:
        score = row['metrics']
        lines.append(
            f'| {row["method"]} | {score["iou"]:.3f} | {score["best_iou"]:.3f} '
            f'({score["best_threshold"]:.2f}) | {score["box_iou"]:.3f} | '
            f'{score["best_box_iou"]:.3f} | {score["pointing"]:.1%} | '
            f'{score["other_noun_iou"]:.3f} |'
        )
    return lines


def variants_picture(
    scenes: Sequence[Any],
    masks: Mapping[str, Sequence[np.ndarray]],
    size: int = 112,
    reference: str = 'exact mask',
) -> Image.Image:
    """A column for each noun: the image, the scene's mask, and the mask of each variant.

    Args:
        scenes: Those to show.
        masks: For each variant to show the masks of those scenes.
        size: Side of a panel in pixels.
        reference: What the scenes' masks are called.
    """
    gap, margin = 4, 210
    font = ImageFont.load_default(13)
    nouns = [
        (place, number)
        for place, scene in enumerate(scenes)
        for number in range(len(scene.record.nouns))
    ]
    picture = Image.new(
        'RGB', (margin + len(nouns) * (size + gap), (len(masks) + 2) * (size + gap) + 20), 'white'
    )
    draw = ImageDraw.Draw(picture)
    rows = ['image', reference, *masks]
    for row, name in enumerate(rows):
        top = 20 + row * (size + gap)
        for line, text in enumerate(_wrap(name, 28)):
            draw.text((6, top + 8 + 17 * line), text, 'black', font)
        for column, (place, number) in enumerate(nouns):
            scene, left = scenes[place], margin + column * (size + gap)
            image = Image.fromarray(scene.image)
            if row == 0:
                draw.text((left, 2), scene.record.nouns[number].text, 'black', font)
                panel = image.resize((size, size), Image.Resampling.LANCZOS)
            else:
                soft = (
                    scene.masks[number].astype(np.float32)
                    if row == 1
                    else minmax(masks[name][place][number][None].astype(np.float32))[0][0]
                )
                panel = overlay(image, soft, NOUN_COLOURS[number % len(NOUN_COLOURS)], size)
            picture.paste(panel, (left, top))
    return picture


def _wrap(text: str, width: int) -> list[str]:
    lines = ['']
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append('')
        lines[-1] = f'{lines[-1]} {word}'.strip()
    return lines

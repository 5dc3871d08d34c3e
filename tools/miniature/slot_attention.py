"""Slot attention, Table 4's peer: trained on real scenes without labels, scored as masks are.

    python tools/miniature/slot_attention.py --steps 400

The scenes and measures are those of tools/miniature/compare_masks.py, whose masks know their nouns.
Slots have no names: each noun gets the slot that overlaps it most, one each, which takes the exact
masks to know. The same is done for colour segmentation, and for slots that were not trained. Writes
`NAME.json` and `NAME.md` into the folder.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._numbers import SEED, number, whole
from freeatm_mm.cli._scoring import add_scoring_options, portable_command, write_report
from freeatm_mm.errors import counted, tool

PUBLISHED_STEPS = 500_000


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--steps',
        type=whole(1, 10**7),
        default=400,
        help=f'of training, {PUBLISHED_STEPS:,} as published (%(default)s)',
    )
    parser.add_argument(
        '--train-scenes', type=whole(1, 10**7), default=4000, help='to train on (%(default)s)'
    )
    parser.add_argument(
        '--batch-size', type=whole(1, 10**5), default=64, help='scenes in each step (%(default)s)'
    )
    parser.add_argument(
        '--lr',
        type=number(0, 1e3),
        default=1e-3,
        help='peak learning rate, 4e-4 as published (%(default)s)',
    )
    parser.add_argument(
        '--slots',
        type=whole(2, 100),
        default=4,
        help='of each scene, one more than it can have objects (%(default)s)',
    )
    parser.add_argument(
        '--width', type=whole(1, 4096), default=32, help='channels of convolutions (%(default)s)'
    )
    parser.add_argument(
        '--seed', type=SEED, default=0, help='of weights, order and slots (%(default)s)'
    )
    parser.add_argument('--device', default='cpu', help='to train on (%(default)s)')
    add_scoring_options(parser, 'slot-attention')
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Train, score, write and print."""
    args = parse_args(argv)
    import numpy as np
    import torch

    from freeatm_mm.miniature.compose import compose_scenes
    from freeatm_mm.miniature.slots import SlotAttention, slot_regions, train_slots
    from freeatm_mm.miniature.sources import fetch_sources
    from freeatm_mm.probing.mask_quality import (
        mask_quality,
        match_regions,
        mean_box_size,
        summarise,
    )
    from freeatm_mm.results import new_results
    from freeatm_mm.store.regions import Segmenter, colour_clusters

    sources = fetch_sources(args.cache, args.sources)
    scenes = list(compose_scenes(sources, args.split, args.scenes))
    box = mean_box_size(scene.masks for scene in scenes)
    rows: list[dict[str, Any]] = []

    def score(name: str, segment: Segmenter) -> None:
        qualities = []
        for scene in scenes:
            (labels,) = segment([scene.image], [scene.record.id])
            matched = match_regions(labels, scene.masks)
            qualities.append(mask_quality(matched.astype(float), scene.masks, box_size=box))
        found = summarise(qualities)
        controls = {key: found['controls'][key] for key in ('centred_box', 'whole_image')}
        rows.append({'method': name, 'iou': found['iou'], 'nouns': found['nouns'], **controls})

    torch.manual_seed(args.seed)
    network = SlotAttention(args.slots, args.width)
    score('slots without training', slot_regions(network, args.seed))
    images = [scene.image for scene in compose_scenes(sources, 'train', args.train_scenes, seed=4)]
    began = time.process_time()
    losses = train_slots(
        network, np.stack(images), args.steps, args.batch_size, args.lr, args.seed, args.device
    )
    seconds = time.process_time() - began
    score('slot attention', slot_regions(network, args.seed))
    score('k-means of colours and places', colour_clusters(args.slots, args.seed))
    last = losses[-max(len(losses) // 20, 1) :]
    results = new_results(
        args.name, portable_command('tools/miniature/slot_attention.py', args, argv)
    )
    results |= {
        'scenes': args.scenes,
        'split': args.split,
        'steps': args.steps,
        'batch_size': args.batch_size,
        'processor_seconds': round(seconds),
        'loss': {'first': losses[0], 'last': float(np.mean(last))},
        'rows': rows,
    }
    write_report(args.out, args.name, results, _report(results))
    return 0


def _report(results: Mapping[str, Any]) -> str:
    lines = [
        '# Slot attention on the scenes that masks are compared on',
        '',
        f'`{results["command"]}`',
        '',
        f'{results["date"]}, {results["hardware"]}. {results["scenes"]} real scenes of the split '
        f'`{results["split"]}`, {results["rows"][0]["nouns"]} nouns; each has the region that '
        'overlaps it most, no region twice, which takes the exact masks to know. Trained for '
        f'{counted(results["steps"], "step")} of {results["batch_size"]}, '
        f'{results["processor_seconds"]:,} seconds of processor time; {PUBLISHED_STEPS:,} '
        'are published, so that what is shown is a beginning, not the method. '
        f'Loss {results["loss"]["first"]:.4f} to '
        f'{results["loss"]["last"]:.4f}.',
        '',
        '| regions | IoU of the best region |',
        '| --- | ---: |',
    ]
    lines += [f'| {row["method"]} | {row["iou"]:.3f} |' for row in results['rows']]
    first = results['rows'][0]
    lines += [
        f'| centred box of the mean size | {first["centred_box"]:.3f} |',
        f'| whole image | {first["whole_image"]:.3f} |',
    ]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    sys.exit(main())

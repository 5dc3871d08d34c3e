"""Which attention makes the best mask? Every variant against exact masks, in one table.

    python tools/miniature/evaluate_masks.py weights/miniature-generator

Two tables. On real scenes the masks are exact: scenes of objects that the generator never saw are
noised, and its UNet looks at them. In images that it generates, a segmenter trained on real scenes
marks the named nouns. Every variant is made of one recording; heads are chosen on real scenes of
the split 'val'. Writes `mask-quality.json`, `.md` and two pictures into the folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._numbers import number, whole
from freeatm_mm.cli._scoring import add_folder_options, portable_command, write_report
from freeatm_mm.errors import tool

ROOT = Path(__file__).resolve().parents[2]
PICTURED = ('figure 5b', 'figure 5c', 'alone', 'CRF')  # how variants begin or end


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('generator', help='folder of the pipeline')
    parser.add_argument(
        '--scenes',
        type=whole(1, 10**7),
        default=200,
        help='to score, of either kind, and as many to choose heads on (%(default)s)',
    )
    parser.add_argument(
        '--first-step',
        type=whole(0, 10_000),
        default=4,
        help='of the variant with the noisier '
        'steps; they go from little noise to much (%(default)s)',
    )
    parser.add_argument(
        '--self-attention',
        type=whole(1, 10**7),
        default=32,
        help='largest side at which it is recorded (%(default)s)',
    )
    parser.add_argument(
        '--crf-size', type=whole(1, 96), default=32, help='side of masks for the CRF (%(default)s)'
    )
    parser.add_argument(
        '--steps', type=whole(1, 10_000), default=12, help='denoising steps (%(default)s)'
    )
    parser.add_argument(
        '--guidance', type=number(-1000, 1000), default=5.0, help='guidance scale (%(default)s)'
    )
    parser.add_argument(
        '--segmenter-scenes',
        type=whole(1, 10**7),
        default=15000,
        help='real scenes that the segmenter learns from (%(default)s)',
    )
    parser.add_argument(
        '--segmenter-epochs', type=whole(0, 10**6), default=3, help='of the segmenter (%(default)s)'
    )
    parser.add_argument(
        '--work',
        type=Path,
        default=Path('work_dirs/evaluation'),
        help='folder of what is trained and generated for it (%(default)s)',
    )
    add_folder_options(parser)
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Record, score, write and print."""
    args = parse_args(argv)
    from freeatm_mm.generation import load_pipeline
    from freeatm_mm.miniature.compose import compose_scenes
    from freeatm_mm.miniature.evaluation import (
        TIMESTEPS,
        NounSegmenter,
        record_generated_scenes,
        record_noised_scenes,
        trained,
    )
    from freeatm_mm.miniature.scenes import sample_prompt
    from freeatm_mm.miniature.sources import fetch_sources
    from freeatm_mm.probing.mask_quality import mask_quality, summarise
    from freeatm_mm.probing.mask_variants import RECORDING, best_heads, variants_report
    from freeatm_mm.results import new_results

    sources = fetch_sources(args.cache, args.sources)
    pipe = load_pipeline(args.generator).pipe
    segmenter = trained(
        NounSegmenter(),
        args.work / f'segmenter-{args.segmenter_scenes}x{args.segmenter_epochs}.safetensors',
        lambda: compose_scenes(sources, 'train', args.segmenter_scenes, seed=3),
        args.segmenter_epochs,
    )
    recording = RECORDING | {'self_attention': args.self_attention}

    def noised(split: str) -> list:
        scenes = list(compose_scenes(sources, split, args.scenes))
        return list(record_noised_scenes(pipe, scenes, **recording))

    chosen_on = noised('val')
    heads = best_heads(chosen_on)
    limit = summarise(
        [
            mask_quality(
                segmenter.masks(scene.image, scene.record.nouns).astype(float), scene.masks
            )
            for _, scenes in chosen_on
            for scene in scenes
        ]
    )['iou']
    del chosen_on
    prompts = [sample_prompt(f'masks-{number:05d}', 0) for number in range(args.scenes)]
    generated = list(
        record_generated_scenes(pipe, prompts, segmenter, args.steps, args.guidance, **recording)
    )
    parts = [
        evaluate(
            args,
            'Noised real scenes, exact masks',
            'mask-quality.png',
            noised('test'),
            heads,
            len(TIMESTEPS),
            range(args.first_step, len(TIMESTEPS)),
            f'{args.scenes} scenes of objects never seen, {{nouns}} nouns, each looked at with '
            f'{len(TIMESTEPS)} amounts of noise; means over nouns; CRF at '
            f'{args.crf_size}x{args.crf_size}.',
        ),
        # the same share of steps is the noisier one; sampling goes from much noise to little
        evaluate(
            args,
            'Generated images, masks of a segmenter',
            'mask-quality-drawn.png',
            generated,
            heads,
            args.steps,
            range(round(args.steps * (1 - args.first_step / len(TIMESTEPS)))),
            f'{args.scenes} images sampled in {args.steps} steps at guidance {args.guidance:g}. A '
            'segmenter trained on real scenes and told the nouns marks them: on real scenes its '
            f'masks have a mean IoU of {limit:.3f} with the exact ones. Of {{all}} nouns it '
            'sees {nouns}; only those are scored.',
            "segmenter's mask",
        ),
    ]
    command = portable_command('tools/miniature/evaluate_masks.py', args, argv)
    results = new_results('mask-quality', command)
    del results['rows']
    results |= {'heads': heads, 'segmenter_iou': limit, 'parts': parts}
    write_report(args.out, 'mask-quality', results, variants_report(results))
    return 0


def evaluate(
    args: argparse.Namespace,
    title: str,
    picture: str,
    recorded: list,
    heads: dict,
    num_steps: int,
    noisier: range,
    description: str,
    reference: str = 'exact mask',
) -> dict[str, Any]:
    """Every variant of some recordings: figures, and the picture, which is written."""
    from freeatm_mm.probing.mask_variants import (
        make_variants,
        score_variants,
        trust_report,
        variants_picture,
    )

    variants_of = partial(make_variants, num_steps=num_steps, noisier=noisier, heads=heads)
    rows, masks, scores = score_variants(recorded, variants_of, args.crf_size)
    default = next(
        variant.name
        for variant in variants_of(recorded[0][0])
        if not variant.options and not variant.crf
    )
    there = [(quality.area > 0) for quality in scores[default]]
    shown = {
        name: each[:6]
        for name, each in masks.items()
        if name.startswith(PICTURED) or name.endswith(PICTURED)
    }
    image = variants_picture(
        [scene for _, scenes in recorded for scene in scenes][:6], shown, reference=reference
    )
    args.out.mkdir(parents=True, exist_ok=True)
    image.save(args.out / picture, optimize=True)
    return {
        'title': title,
        'picture': picture,
        'description': description.format(
            nouns=sum(int(each.sum()) for each in there), all=sum(map(len, there))
        ),
        'trust': trust_report(masks[default], scores[default]),
        'rows': rows,
    }


if __name__ == '__main__':
    sys.exit(main())

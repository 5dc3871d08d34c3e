#!/usr/bin/env python
"""Which attention makes the best mask? Every variant against exact masks, in one table.

    python tools/judge_masks.py weights/miniature-generator

Real scenes of objects that the generator never saw are noised, its UNet looks at them once, and
every variant is made of that one recording. Heads are chosen on scenes of the split 'val'. Writes
`mask-quality.json`, `.md` and `.png` into the folder.
"""
from __future__ import annotations

import argparse
import json
import shlex
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from freeatm_mm.evaluation.mask_variants import (  # noqa: E402
    RECORDING,
    best_heads,
    make_variants,
    score_variants,
    trust_report,
    variants_picture,
    variants_report,
)
from freeatm_mm.evaluation.results import new_results  # noqa: E402
from freeatm_mm.files import atomic_write  # noqa: E402
from freeatm_mm.generation import load_pipeline  # noqa: E402
from freeatm_mm.miniature.compose import compose_scenes  # noqa: E402
from freeatm_mm.miniature.judge import TIMESTEPS, record_noised_scenes  # noqa: E402
from freeatm_mm.miniature.sources import fetch_sources  # noqa: E402

PICTURED = ('figure 5b', 'figure 5c', 'alone', 'CRF')  # how variants begin or end


def main(argv: list[str] | None = None) -> None:
    """Records, scores, writes and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('generator', help='folder of the pipeline')
    parser.add_argument('--scenes', type=int, default=200,
                        help='to score, and as many to choose heads on (%(default)s)')
    parser.add_argument('--first-step', type=int, default=4, help='of the variant with the noisier '
                        'steps; they go from little noise to much (%(default)s)')
    parser.add_argument('--self-attention', type=int, default=32,
                        help='largest side at which it is recorded (%(default)s)')
    parser.add_argument('--crf-size', type=int, default=32,
                        help='side of masks for the CRF (%(default)s)')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/results', help='(%(default)s)')
    parser.add_argument('--sources', help='folder with the unpacked Debian packages')
    parser.add_argument('--cache', default='.cache', help='(%(default)s)')
    args = parser.parse_args(argv)
    sources = fetch_sources(args.cache, args.sources)
    pipe = load_pipeline(args.generator).pipe

    def recordings(split: str) -> list:
        scenes = list(compose_scenes(sources, split, args.scenes))
        return list(record_noised_scenes(pipe, scenes, **RECORDING,
                                         self_attention=args.self_attention))

    heads = best_heads(recordings('val'))
    recorded = recordings('test')
    variants_of = partial(make_variants, num_steps=len(TIMESTEPS), first_clear=args.first_step,
                          heads=heads)
    rows, masks, scores = score_variants(recorded, variants_of, args.crf_size)
    kept = list(argv or sys.argv[1:])
    if args.sources:  # where they lie says nothing to others
        kept[kept.index('--sources') + 1] = 'SOURCES'
    results = new_results('mask-quality', shlex.join(['python', 'tools/judge_masks.py', *kept]))
    default = next(variant.name for variant in variants_of(recorded[0][0])
                   if not variant.options and not variant.crf)
    nouns = sum(len(quality) for quality in scores[default])
    results |= {
        'description': f'{args.scenes} noised real scenes of objects never seen, {nouns} nouns, '
                       f'each looked at with {len(TIMESTEPS)} amounts of noise; means over nouns; '
                       f'CRF at {args.crf_size}x{args.crf_size}.',
        'heads': heads, 'trust': trust_report(masks[default], scores[default]), 'rows': rows}
    with atomic_write(args.out / 'mask-quality.json') as file:
        file.write(json.dumps(results, indent=1).encode())
    report = variants_report(results)
    with atomic_write(args.out / 'mask-quality.md') as file:
        file.write(report.encode())
    shown = {name: each[:6] for name, each in masks.items()
             if name.startswith(PICTURED) or name.endswith(PICTURED)}
    picture = variants_picture([scene for _, scenes in recorded for scene in scenes][:6], shown)
    picture.quantize(256).save(args.out / 'mask-quality.png', optimize=True)  # a third of the bytes
    print(report)


if __name__ == '__main__':
    main()

"""What the recorder's options make of a generator's masks, against exact ones.

    python tools/miniature/compare_masks.py weights/miniature-generator

Real scenes of objects that the generator never saw are noised, its denoiser looks at them, and
each option's masks are scored at the paper's threshold. Then the same for few steps: as many noise
levels as a sampler of so many steps has. Writes `NAME.json` and `NAME.md` into the folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._numbers import whole
from freeatm_mm.cli._scoring import add_scoring_options, portable_command, write_report
from freeatm_mm.errors import counted, tool

CLEAR = {'steps': range(4)}
"""The four least noisy of the ten noise levels."""
COMMON: dict[str, dict[str, Any]] = {
    "the paper's average": {},
    'heads by contribution': {'head_weights': 'contribution'},
    'rescaled over words': {'rescale': 'words'},
    'both': {'head_weights': 'contribution', 'rescale': 'words'},
    'the four least noisy steps': CLEAR,
    'the four least noisy steps, heads by contribution': {**CLEAR, 'head_weights': 'contribution'},
}
ONE_SIZE = {'resolutions': [8]}
OF_UNET: dict[str, dict[str, Any]] = {
    '8x8 alone': ONE_SIZE,
    '8x8, heads by contribution': {**ONE_SIZE, 'head_weights': 'contribution'},
    '8x8, the four least noisy steps, heads by contribution': {
        **ONE_SIZE,
        **CLEAR,
        'head_weights': 'contribution',
    },
}
OF_TRANSFORMER: dict[str, dict[str, Any]] = {'outputs': {'maps': 'output'}}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('generator', help='folder of the pipeline')
    parser.add_argument(
        '--crf-size', type=whole(1, 96), default=32, help='side of masks for the CRF (%(default)s)'
    )
    add_scoring_options(parser, 'mask-options')
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Record, score, write and print."""
    args = parse_args(argv)
    import numpy as np
    import torch

    from freeatm_mm.attention import dense_crf, minmax, resize
    from freeatm_mm.generation import load_pipeline
    from freeatm_mm.miniature.compose import compose_scenes
    from freeatm_mm.miniature.evaluation import TIMESTEPS, record_noised_scenes
    from freeatm_mm.miniature.sources import fetch_sources
    from freeatm_mm.probing.mask_quality import mask_quality, summarise
    from freeatm_mm.results import new_results

    pipe = load_pipeline(args.generator).pipe
    scenes = list(compose_scenes(fetch_sources(args.cache, args.sources), args.split, args.scenes))
    rows: list[dict[str, Any]] = []

    def score(
        name: str, options: Mapping[str, Any], timesteps: Sequence[int], crf: bool = False
    ) -> None:
        plain, sharp = [], []
        for recorder, batch in record_noised_scenes(pipe, scenes, timesteps, **options):
            for maps, scene in zip(recorder.masks(), batch):
                plain.append(mask_quality(maps.numpy(), scene.masks))
                if crf:
                    soft = minmax(resize(maps, (args.crf_size, args.crf_size)))[0]
                    sharp.append(mask_quality(dense_crf(soft, scene.image), scene.masks))
        for label, qualities in ((name, plain), (f'{name}, CRF', sharp)):
            if qualities:
                found = summarise(qualities)
                kept = ('iou', 'best_iou', 'best_threshold', 'pointing')
                rows.append({'method': label, **{key: found[key] for key in kept}})

    def limit(side: int) -> float:
        cells = [
            torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(scene.masks).float(), side)
            for scene in scenes
        ]
        return float(
            summarise(
                [mask_quality(np.asarray(each), scene.masks) for each, scene in zip(cells, scenes)]
            )['iou']
        )

    transformer = hasattr(pipe, 'transformer')
    options = COMMON | (OF_TRANSFORMER if transformer else OF_UNET)
    best = list(options)[-1] if not transformer else 'the four least noisy steps'
    for name, each in options.items():
        score(name, each, TIMESTEPS, crf=not each or name == best)
    weighted = {'head_weights': 'contribution'}
    for steps in (1, 2, 4, 8):
        # A sampler's last step is the least noisy, at 1/steps of the way from the image to noise.
        levels = [round(999 * (step + 1) / steps) for step in range(steps)]
        number = counted(steps, 'step')
        score(number, weighted, levels)
        if steps > 2:
            score(f'{number}, the last half alone', weighted, levels[: steps // 2])
        if steps > 1:
            score(f'{number}, the last alone', weighted, levels[:1])
    results = new_results(
        args.name, portable_command('tools/miniature/compare_masks.py', args, argv)
    )
    results |= {'scenes': args.scenes, 'split': args.split, 'limit_8x8': limit(8), 'rows': rows}
    write_report(args.out, args.name, results, _report(results))
    return 0


def _report(results: Mapping[str, Any]) -> str:
    lines = [
        "# What the recorder's options make of the masks",
        '',
        f'`{results["command"]}`',
        '',
        f'{results["date"]}, {results["hardware"]}. {results["scenes"]} noised real scenes of the '
        f'split `{results["split"]}`; exact masks averaged over 8x8 cells, the most that maps of '
        f'8x8 can reach, score {results["limit_8x8"]:.3f}.',
        '',
        '| masks | IoU at 0.45 | best IoU (threshold) | pointing |',
        '| --- | ---: | ---: | ---: |',
    ]
    lines += [
        f'| {row["method"]} | {row["iou"]:.3f} | {row["best_iou"]:.3f} '
        f'({row["best_threshold"]:.2f}) | {row["pointing"]:.1%} |'
        for row in results['rows']
    ]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    sys.exit(main())

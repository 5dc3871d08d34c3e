"""Make the miniature world: real scenes to evaluate on, and prompts for the generator.

    python tools/miniature/make_world.py data/world

Writes `train`, `val` and `test` (images, COCO JSON, label maps, retrieval JSON, class folders) and
`prompts.jsonl`; with --plain-prompts also `plain_prompts.jsonl`; with --exact also `exact`, a store
of composed scenes with exact masks; with --garments also `garments`, 8,000 single objects to
evaluate on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._numbers import SEED, whole
from freeatm_mm.errors import tool
from freeatm_mm.miniature.export import export_exact_store, export_world, same_object_share
from freeatm_mm.miniature.scenes import sample_prompt
from freeatm_mm.miniature.sources import fetch_sources
from freeatm_mm.prompts import write_prompts


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', type=Path, help='folder of the world')
    parser.add_argument('--train', type=whole(1, 10**7), default=3000, help='scenes (%(default)s)')
    parser.add_argument('--val', type=whole(1, 10**7), default=750, help='scenes (%(default)s)')
    parser.add_argument('--test', type=whole(1, 10**7), default=1500, help='scenes (%(default)s)')
    parser.add_argument(
        '--prompts', type=whole(1, 10**7), default=4000, help='how many (%(default)s)'
    )
    parser.add_argument(
        '--plain-prompts',
        action='store_true',
        help='also `plain_prompts.jsonl`: "a photo of a dress" (Table 6) for each prompt, of its '
        'first noun',
    )
    parser.add_argument(
        '--exact',
        type=whole(0, 10**7),
        default=0,
        metavar='SCENES',
        help='also a store of so many composed scenes with exact masks',
    )
    parser.add_argument(
        '--garments',
        action='store_true',
        help='also `garments`, a test set of 8,000 different objects: each test photo of a '
        'garment in a scene of its own, with 5,000 other ones to train and choose classifiers',
    )
    parser.add_argument('--seed', type=SEED, default=0, help='number of the world (%(default)s)')
    parser.add_argument(
        '--sources',
        type=Path,
        help='folder with the unpacked Debian packages '
        '(it holds usr/share), instead of fetching them',
    )
    parser.add_argument(
        '--cache', type=Path, default='.cache', help='where to unpack them (%(default)s)'
    )
    parser.add_argument('--workers', type=whole(1, 1024), help='processes; one per core by default')
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    sources = fetch_sources(args.cache, args.sources)
    export_world(
        sources,
        args.out,
        {'train': args.train, 'val': args.val, 'test': args.test},
        args.seed,
        args.workers,
    )
    if args.exact:
        export_exact_store(
            sources, args.out / 'exact', args.exact, args.seed + 1, workers=args.workers
        )
    if args.garments:
        from freeatm_mm.miniature.garments import export_garments  # imports torch

        export_garments(sources, args.out / 'garments', seed=args.seed, workers=args.workers)
    for plain in (False, True) if args.plain_prompts else (False,):
        write_prompts(
            args.out / ('plain_prompts.jsonl' if plain else 'prompts.jsonl'),
            (sample_prompt(f'{number:07d}', args.seed, plain) for number in range(args.prompts)),
        )
    print(
        f'world in {args.out}; {same_object_share(sources):.2%} of random pairs of instances '
        'show the very same photo'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())

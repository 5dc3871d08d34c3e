"""Compare a store's masks with those of SAM (Table 4 of the paper), whatever generator made them.

    freeatm judge STORE --sam facebook/sam-vit-huge --one-instance --under animal --limit 10000
    freeatm judge STORE --sam FOLDER --device cuda --out masks.json

Masks are made binary after a DenseCRF, and without it. Two controls are compared with the same
masks of SAM: a centred box of the objects' mean size, and the mask of another image. Intervals are
of 95 %, by a bootstrap over images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import islice

from freeatm_mm.cli import command_line
from freeatm_mm.cli._numbers import whole
from freeatm_mm.cli._paths import path_here
from freeatm_mm.errors import counted, tool
from freeatm_mm.files import atomic_write, check_replaceable

TITLES = {
    'refined': 'masks, DenseCRF',
    'plain': 'masks',
    'centred_box': 'centred box',
    'other_image': "another image's mask",
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('store', help="the store's folder")
    add('--sam', required=True, metavar='MODEL', help="SAM's folder, or a hub id (owner/name)")
    add(
        '--one-instance',
        action='store_true',
        help='only images whose prompt names one noun, as in the paper',
    )
    add(
        '--under',
        metavar='LEVEL',
        help="only nouns below this level of WordNet's hierarchy, as ImageNet's classes have it: "
        'animal, dog, bird, vehicle ...',
    )
    add('--nouns', nargs='+', default=[], metavar='NAME', help='only these nouns, or these, too')
    add(
        '--limit',
        type=whole(2, 10**7),
        default=10_000,
        metavar='N',
        help='the first N images that match (%(default)s)',
    )
    add(
        '--crf-size',
        type=whole(8, 96),
        default=64,
        metavar='SIDE',
        help='longer side of the masks that the CRF sees, in pixels (%(default)s)',
    )
    add('--device', default='cpu', help='for SAM (%(default)s)')
    add('--out', type=path_here, metavar='FILE', help='also write the figures as JSON')
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print."""
    args = parse_args(argv)
    from freeatm_mm.probing.reference import (
        Sam,
        choose_nouns,
        compare_with_reference,
        judged_samples,
    )
    from freeatm_mm.progress import progress_bar
    from freeatm_mm.store import Store

    if args.out:
        check_replaceable(args.out, 'a file of freeatm judge', '"reference": ')
    store, wanted = Store(args.store), choose_nouns(args.under, args.nouns)
    chosen = islice(judged_samples(store, wanted, args.one_instance), args.limit)
    found = compare_with_reference(
        chosen,
        Sam(args.sam, args.device),
        args.crf_size,
        progress=lambda each: progress_bar(each, 'comparing'),
    )
    print(
        f'{counted(found["nouns"], "noun")} of {counted(found["images"], "image")}, '
        f'{found["unmarked"]} unmarked by SAM'
    )
    for name, title in TITLES.items():
        line = f'{title:22} IoU {_text(found["iou"][name])}'
        if name in found['differences']:
            line += f'   masks with CRF are ahead by {_text(found["differences"][name])}'
        print(line)
    if args.out:
        kept = {
            'command': command_line(),
            'store': store.manifest['config_sha256'],
            'reference': args.sam,
            **found,
        }
        with atomic_write(args.out) as file:
            file.write((json.dumps(kept, indent=1) + '\n').encode())
    return 0


def _text(figure: dict[str, float]) -> str:
    return f'{figure["mean"]:.3f} ({figure["low"]:.3f} to {figure["high"]:.3f})'

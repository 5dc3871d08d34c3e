"""Make a store of images and masks that you have, for pretraining, viewing and exporting.

    freeatm import coco IMAGES instances.json STORE    COCO's instances
    freeatm import masks IMAGES MASKS STORE            MASKS/<image>/dog.png, ball.png, dog_2.png
    freeatm import labels IMAGES MASKS STORE           MASKS/<image>.png of classes, classes.txt
    freeatm import sam IMAGES MASKS STORE              MASKS/<image>.json, as SA-1B has them

The folders that SAM's own program writes (0.png, 1.png ...) are read by masks. The same command
continues a stopped run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import whole
from freeatm_mm.cli._paths import path_here
from freeatm_mm.errors import InputError, tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('format', choices=('coco', 'masks', 'labels', 'sam'), help='as above')
    add('images', type=path_here, help='folder of the images')
    add('masks', type=path_here, help='the JSON, or the folder of the masks')
    add('out', type=path_here, help='the store to make')
    add('--noun', default='object', help='for masks without a name (default: object)')
    add(
        '--mask-size',
        type=whole(1, 4096),
        default=64,
        metavar='N',
        help='longer side of the masks that are stored, in cells (default: 64)',
    )
    add(
        '--most',
        type=whole(1, 10_000),
        default=20,
        metavar='N',
        help='masks taken of an image, the largest (default: 20)',
    )
    add(
        '--max-bad',
        type=whole(0, 10**9),
        default=0,
        metavar='N',
        help='leave out up to N images that cannot be used (default: 0)',
    )
    add('--limit', type=whole(1, 10**9), metavar='N', help='take the first N images only')
    add(
        '--samples-per-shard',
        type=whole(1, 10**6),
        default=5000,
        metavar='N',
        help='in a file (default: 5000)',
    )
    add('--quiet', action='store_true', help='no progress bar')
    args = parser.parse_args(argv)
    refuse_idle(
        named_options(args, parser, argv),
        args.format == 'labels',
        'with labels, whose masks all have names in classes.txt',
        'noun',
    )
    return args


@tool(resumes=True, told_to_end=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Make the store."""
    args = parse_args(argv)
    from itertools import islice

    from freeatm_mm.progress import progress_bar
    from freeatm_mm.store import write_store
    from freeatm_mm.store.importing import READERS, ImportReport, fingerprint, import_samples

    if not args.noun.strip():
        raise InputError('--noun is empty')
    report = ImportReport()
    pictures = READERS[args.format](args.images, args.masks, report, args.noun)
    samples = import_samples(
        progress_bar(islice(pictures, args.limit), desc='reading', disable=args.quiet),
        report,
        mask_size=args.mask_size,
        most=args.most,
        max_bad=args.max_bad,
    )
    config = {
        'imported': args.format,
        'mask_size': args.mask_size,
        'most': args.most,
        'limit': args.limit,
        'noun': args.noun,
        # The same command over other files would take what is there for done.
        'source_sha256': fingerprint(args.images, args.masks, args.out),
    }
    write_store(args.out, samples, args.samples_per_shard, config)
    for line in report.unusable:
        print(f'left out: {line}')
    print(report)
    return 0

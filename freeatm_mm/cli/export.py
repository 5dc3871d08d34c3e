"""Write a store in a format that other tools read.

    freeatm export coco STORE OUT       images/, coco.json with masks as RLE
    freeatm export mmseg STORE OUT      images/, labels/*.png, classes.txt
    freeatm export folders STORE OUT    CATEGORY/KEY.jpg; with --crop one noun each
    freeatm export parquet STORE OUT    data/*.parquet for Hugging Face datasets

The shards themselves are WebDataset tars: the webdataset package reads them as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import number
from freeatm_mm.errors import InputError, tool
from freeatm_mm.paper import THRESHOLD
from freeatm_mm.store.export import (
    export_class_folders,
    export_coco,
    export_mmseg,
    export_parquet,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('format', choices=('coco', 'mmseg', 'folders', 'parquet'), help='as above')
    parser.add_argument('store', help='the store: a folder or an address')
    parser.add_argument('out', help='the folder to make')
    parser.add_argument(
        '--categories',
        nargs='+',
        metavar='NAME',
        help='export these, in this order (default: all, sorted)',
    )
    parser.add_argument(
        '--threshold',
        type=number(0, 1),
        metavar='T',
        help=f'smallest foreground value of a mask, 0 to 1 ({THRESHOLD})',
    )
    parser.add_argument(
        '--crop',
        action='store_true',
        help="folders: the box round each noun's mask, not the whole image",
    )
    args = parser.parse_args(argv)
    whole = args.format == 'folders' and not args.crop
    refuse_idle(named_options(args, parser, argv), whole, 'on folders without --crop', 'threshold')
    return args


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Write the store in the format asked for."""
    args = parse_args(argv)
    if args.format == 'parquet' and (args.categories or args.threshold is not None):
        raise InputError(
            'parquet holds all nouns with their soft masks: no --categories, --threshold'
        )
    if args.crop and args.format != 'folders':
        raise InputError('--crop goes with folders only')
    threshold = THRESHOLD if args.threshold is None else args.threshold
    options = {'categories': args.categories, 'threshold': threshold}
    if args.format == 'coco':
        report = export_coco(args.store, args.out, **options)
    elif args.format == 'mmseg':
        report = export_mmseg(args.store, args.out, **options)
    elif args.format == 'folders':
        report = export_class_folders(args.store, args.out, crop=args.crop, **options)
    else:
        report = export_parquet(args.store, args.out)
    print(report)
    return 0

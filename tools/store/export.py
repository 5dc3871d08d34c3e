#!/usr/bin/env python3
"""Write a store in a format that other tools read.

    python tools/store/export.py coco STORE OUT       images/, coco.json with masks as RLE
    python tools/store/export.py mmseg STORE OUT      images/, labels/*.png, classes.txt
    python tools/store/export.py folders STORE OUT    CATEGORY/KEY.jpg; with --crop one noun each
    python tools/store/export.py parquet STORE OUT    data/*.parquet for Hugging Face datasets

The shards themselves are WebDataset tars: the webdataset package reads them as they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from freeatm_mm.errors import print_any_text
from freeatm_mm.paper import THRESHOLD
from freeatm_mm.store.export import (
    export_class_folders,
    export_coco,
    export_mmseg,
    export_parquet,
)

USAGE_ERROR = 2


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('format', choices=('coco', 'mmseg', 'folders', 'parquet'))
    parser.add_argument('store', help='the store')
    parser.add_argument('out', help='the folder to make')
    parser.add_argument(
        '--categories',
        nargs='+',
        metavar='NAME',
        help='export these, in this order (default: all, sorted)',
    )
    parser.add_argument(
        '--threshold',
        type=float,
        metavar='T',
        help=f'smallest foreground value of a mask, 0 to 1 ({THRESHOLD})',
    )
    parser.add_argument(
        '--crop',
        action='store_true',
        help="folders: the box round each noun's mask, not the whole image",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    print_any_text()
    if args.format == 'parquet' and (args.categories or args.threshold is not None):
        parser.error('parquet holds all nouns with their soft masks: no --categories, --threshold')
    if args.crop and args.format != 'folders':
        parser.error('--crop goes with folders only')
    threshold = THRESHOLD if args.threshold is None else args.threshold
    options = {'categories': args.categories, 'threshold': threshold}
    try:
        if args.format == 'coco':
            report = export_coco(args.store, args.out, **options)
        elif args.format == 'mmseg':
            report = export_mmseg(args.store, args.out, **options)
        elif args.format == 'folders':
            report = export_class_folders(args.store, args.out, crop=args.crop, **options)
        else:
            report = export_parquet(args.store, args.out)
    except (ValueError, OSError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return USAGE_ERROR
    print(report)
    return 0


if __name__ == '__main__':
    sys.exit(main())

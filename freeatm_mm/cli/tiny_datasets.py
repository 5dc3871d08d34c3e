r"""Write tiny data sets in the layouts of VOC, COCO, Cityscapes, ADE20K and ImageNet.

For seeing whether a downstream config runs on a machine before the real data is there:

    freeatm tiny-datasets data/tiny
    freeatm train configs/downstream/mmdet/coco_mask-rcnn_r50-fpn_1x.py \
        --data-root data/tiny/coco --smoke --no-validate --cfg-options init=random

The second command says each of its steps; on two cores they take about a minute together.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from freeatm_mm.cli._numbers import whole
from freeatm_mm.cli._paths import path_here
from freeatm_mm.downstream.tiny_datasets import LAYOUTS, make_tiny_dataset
from freeatm_mm.errors import tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'out',
        type=path_here,
        help='each data set gets a folder in there, as freeatm downstream looks for it',
    )
    parser.add_argument(
        '--layouts', nargs='+', choices=tuple(LAYOUTS), default=list(LAYOUTS), help='which (all)'
    )
    parser.add_argument(
        '--images', type=whole(1, 10_000), default=8, help='in each split (%(default)s)'
    )
    parser.add_argument(
        '--side', type=whole(32, 4096), default=128, help='of the images (%(default)s)'
    )
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Write them and say where."""
    args = parse_args(argv)
    for layout in args.layouts:
        print(make_tiny_dataset(layout, args.out / LAYOUTS[layout].folder, args.images, args.side))
    return 0

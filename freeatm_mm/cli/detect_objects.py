r"""Detect objects in a store's images with any mmdet detector: the boxes of PTP's prompts.

    freeatm detect-objects CONFIG CHECKPOINT STORE detections.json
    freeatm lavis-train configs/lavis/baselines/blip_pretrain_ptp.yaml \
        --options datasets.freeatm_pretrain.build_info.detections=detections.json

The same command continues a stopped run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from freeatm_mm import compat
from freeatm_mm.cli._numbers import number, whole
from freeatm_mm.cli._paths import path_here
from freeatm_mm.errors import tool
from freeatm_mm.progress import progress_bar


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help="the detector's config")
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('source', help='folder of a store, or of plain images')
    parser.add_argument('out', type=path_here, help='JSON file to write')
    parser.add_argument(
        '--score', type=number(0, 1), default=0.3, help='least score of an object (%(default)s)'
    )
    parser.add_argument(
        '--most',
        type=whole(1, 10_000),
        default=10,
        help='the most confident objects of an image, at most this many (%(default)s, as PTP)',
    )
    parser.add_argument(
        '--batch-size', type=whole(1, 4096), default=8, help='images at once (%(default)s)'
    )
    parser.add_argument(
        '--skip-unreadable',
        action='store_true',
        help="pictures that can't be "
        'decoded have no objects and are counted, instead of ending the run',
    )
    parser.add_argument('--device', default='cpu', help='cpu, cuda ... (%(default)s)')
    return parser.parse_args(argv)


@tool(resumes=True, told_to_end=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Detect them, and show how many images are done."""
    args = parse_args(argv)
    compat.skip_multimodal_models()
    from freeatm_mm.datasets.detections import Detector, detect_objects

    detector = Detector(args.config, args.checkpoint, args.device)
    described = f'{Path(args.config).name}, {Path(args.checkpoint).name}'
    progress = progress_bar(desc='images', mininterval=1)
    for done in detect_objects(
        detector,
        args.source,
        args.out,
        described,
        args.score,
        args.most,
        args.batch_size,
        args.skip_unreadable,
    ):
        progress.update(done - progress.n)
    progress.close()
    return 0

r"""Measure what position prompts cost: a training step of BLIP and loading, against LAVIS's own.

    python tools/benchmarks/blip.py configs/lavis/miniature/blip_pretrain_freeatm.yaml STORE \
        work_dirs/results/benchmark-lavis.json

The table is printed and kept in the result file; each figure is a ratio, ours to LAVIS's.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._numbers import whole
from freeatm_mm.cli._paths import path_option
from freeatm_mm.errors import tool
from freeatm_mm.results import (
    add_row,
    new_results,
    to_markdown,
    write_results,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='yaml of a pretraining with position prompts')
    parser.add_argument('store', help='store of images with masks')
    parser.add_argument('out', type=Path, help='result file to write')
    parser.add_argument(
        '--batch-size', type=whole(1, 4096), default=32, help='images of a step (%(default)s)'
    )
    parser.add_argument(
        '--repeats', type=whole(1, 10_000), default=7, help='pairs of a case (%(default)s)'
    )
    parser.add_argument('--device', default='cpu', help='cpu or cuda (%(default)s)')
    parser.add_argument(
        '--options', nargs='+', default=[], metavar='KEY=VALUE', help='change any entry of the yaml'
    )
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print."""
    args = parse_args(argv)
    if args.device == 'cpu':
        import torch

        torch.set_num_threads(1)
    store = path_option('datasets.freeatm_pretrain.build_info.store', args.store)
    options = [store, *args.options]
    results = new_results(args.out.stem, shlex.join(['python', *sys.argv]))
    results['description'] = (
        f"BLIP with position prompts against LAVIS's own, at the sizes of {args.config} and "
        f"{args.batch_size} images: a training step at equal text length, a step at LAVIS's "
        'shorter one, and loading (decoding, augmenting, text) on one core, which worker processes '
        'do beside the steps.'
    )
    from blip_cases import benchmark_blip

    for row in benchmark_blip(args.config, options, args.batch_size, args.repeats, args.device):
        add_row(results, row)
    write_results(args.out, results)
    print(to_markdown(results))
    return 0


if __name__ == '__main__':
    sys.exit(main())

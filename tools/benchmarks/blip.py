"""Measures what position prompts cost: a training step of BLIP and loading, against LAVIS's own.

python tools/benchmarks/blip.py configs/lavis/miniature/blip_pretrain_freeatm.yaml STORE \
        work_dirs/results/benchmark-lavis.json
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402

from freeatm_mm.compat import worker_message  # noqa: E402
from freeatm_mm.results import (  # noqa: E402
    add_row,
    new_results,
    to_markdown,
    write_results,
)
from freeatm_mm.store import StoreError  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    """Measures; whatever is wrong is told in one sentence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='yaml of a pretraining with position prompts')
    parser.add_argument('store', help='store of images with masks')
    parser.add_argument('out', type=Path, help='result file to write')
    parser.add_argument('--batch-size', type=int, default=32, help='(%(default)s)')
    parser.add_argument('--repeats', type=int, default=7, help='pairs of a case (%(default)s)')
    parser.add_argument('--device', default='cpu', help='cpu or cuda (%(default)s)')
    parser.add_argument(
        '--options', nargs='+', default=[], metavar='KEY=VALUE', help='change any entry of the yaml'
    )
    args = parser.parse_args(argv)
    if args.device == 'cpu':
        torch.set_num_threads(1)
    options = [f'datasets.freeatm_pretrain.build_info.store={args.store}', *args.options]
    results = new_results(args.out.stem, shlex.join(['python', *sys.argv]))
    results['description'] = (
        f"BLIP with position prompts against LAVIS's own, at the sizes of {args.config} and "
        f"{args.batch_size} images: a training step at equal text length, a step at LAVIS's "
        'shorter one, and loading (decoding, augmenting, text) on one core, which worker processes '
        'do beside the steps.'
    )
    try:
        from blip_cases import benchmark_blip

        for row in benchmark_blip(args.config, options, args.batch_size, args.repeats, args.device):
            add_row(results, row)
    except (ImportError, FileNotFoundError, ValueError, StoreError) as error:
        sys.exit(f'{parser.prog}: {worker_message(error)}')
    write_results(args.out, results)
    print(to_markdown(results))


if __name__ == '__main__':
    main()

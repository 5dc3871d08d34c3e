r"""Train a LAVIS yaml: BLIP with position prompts, or its fine-tuning for retrieval.

    freeatm lavis-train configs/lavis/blip_pretrain_freeatm.yaml \
        --options datasets.freeatm_pretrain.build_info.store=STORE
    python -m torch.distributed.run --nproc-per-node 8 -m freeatm_mm lavis-train CONFIG --resume

Takes LAVIS's own yaml, which LAVIS's train.py reads as well. Runs on a CPU, one GPU or several;
stopped and resumed, it ends bit-equal to a run that was never stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from freeatm_mm.cli._numbers import SEED
from freeatm_mm.cli._paths import path_here
from freeatm_mm.errors import tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='yaml, for example configs/lavis/blip_pretrain_freeatm.yaml')
    parser.add_argument(
        '--work-dir',
        type=path_here,
        help="where logs and checkpoints go; default: the config's run.output_dir",
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='continue from the last checkpoint in the work directory, if there is any',
    )
    parser.add_argument('--seed', type=SEED, help="random seed; default: the config's")
    parser.add_argument(
        '--options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='change any entry of the yaml, for example run.max_epoch=10',
    )
    return parser.parse_args(argv)


@tool(resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Train."""
    args = parse_args(argv)
    options = list(args.options)
    if args.seed is not None:
        options.append(f'run.seed={args.seed}')
    from freeatm_mm.lavis_ext.launch import train

    train(args.config, options, args.resume, args.work_dir)
    return 0

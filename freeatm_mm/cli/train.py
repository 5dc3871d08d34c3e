"""Train a config, as the frameworks' own train tools do: mmpretrain's, mmdet's and mmseg's alike.

    freeatm train CONFIG --data-root STORE
    freeatm train configs/downstream/... --data-root FOLDER --cfg-options init=CHECKPOINT
    python -m torch.distributed.run --nproc-per-node 8 -m freeatm_mm train CONFIG --launcher pytorch

Logs and checkpoints go to --work-dir; the same command with --resume continues a stopped run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from freeatm_mm.cli._effects import refuse_idle
from freeatm_mm.cli._launched import add_launch_options, parse_launched
from freeatm_mm.cli._numbers import SEED
from freeatm_mm.configs import (
    add_checks,
    check_datasets,
    check_honoured,
    check_init,
    check_precision,
    complete_config,
    open_config,
    scale_rate,
    use_bfloat16,
)
from freeatm_mm.downstream.runs import make_smoke
from freeatm_mm.errors import InputError, MissingFileError, keeping_tracebacks, tool

if TYPE_CHECKING:
    from mmengine.config import Config

#: Settings of the evaluation during training.
VALIDATION = ('val_cfg', 'val_dataloader', 'val_evaluator')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file, for example configs/mocov2_freeatm.py')
    parser.add_argument(
        '--work-dir',
        help='where logs and checkpoints go; default: '
        'work_dirs/<path of the config below configs/>',
    )
    parser.add_argument(
        '--data-root',
        metavar='FOLDER[,FOLDER...]',
        help='instead of what the config names: the folder of the data set; for pretraining a '
        'store or a folder of images, or several with commas between them',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from this checkpoint, or without one from the last in the '
        'work directory, if there is any',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision: float16 on a GPU, on a CPU as --bf16',
    )
    parser.add_argument(
        '--bf16',
        action='store_true',
        help='compute the backbone in bfloat16, on a GPU or a CPU, and all else in float32',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the whole batch size',
    )
    parser.add_argument(
        '--no-pin-memory', action='store_true', help='do not pin the memory of loaded batches'
    )
    parser.add_argument(
        '--no-persistent-workers',
        action='store_true',
        help='start the loading processes anew each epoch',
    )
    parser.add_argument(
        '--no-validate', action='store_true', help='do not evaluate checkpoints during training'
    )
    parser.add_argument(
        '--smoke',
        action='store_true',
        help='of a benchmark: two steps of a few images, to see that it runs',
    )
    parser.add_argument('--seed', type=SEED, help="random seed; default: the config's")
    add_launch_options(
        parser, ', for example train_cfg.max_epochs=10 optim_wrapper.optimizer.lr=0.1'
    )
    return parse_launched(parser, argv)


def load_config(args: argparse.Namespace) -> Config:
    """Return the config with what the command line changes.

    Raises:
        FileNotFoundError: If the config, or one that it inherits, doesn't exist, or what it is to
            be resumed from.
        ValueError: If a data root is given and the config's data sets don't share one, the learning
            rate can't be scaled, or something was asked for that would not be done.
    """
    from mmengine.device import get_device

    from freeatm_mm.checkpoints import check_starts, last_checkpoint

    cfg = open_config(args.config, args.work_dir, args.launcher)
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.amp and args.bf16:
        raise InputError('--amp and --bf16 are two precisions: give one of them')
    bfloat16 = args.bf16 or args.amp and get_device() == 'cpu'
    if not bfloat16 and args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.seed is not None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=args.seed)
    complete_config(
        cfg,
        args.data_root,
        args.cfg_options,
        not args.no_pin_memory,
        not args.no_persistent_workers,
    )
    check_honoured(cfg, args.cfg_options)
    if bfloat16:
        use_bfloat16(cfg, args.cfg_options)
    scale_rate(cfg, args.auto_scale_lr)
    add_checks(cfg)
    if args.no_validate:  # last: an option for the evaluation may have been among the others
        refuse_idle(
            ['no_validate'],
            all(cfg.get(name) is None for name in VALIDATION),
            'on a config that evaluates nothing during training',
            'no_validate',
        )
        cfg.update(dict.fromkeys(VALIDATION))
    if args.smoke:
        make_smoke(cfg)
    if cfg.get('resume') and not cfg.get('load_from'):
        last = last_checkpoint(cfg.work_dir)
        cfg.load_from = str(last) if last else None
    check_starts(cfg)
    return cfg


@tool(resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Train."""
    args = parse_args(argv)
    cfg = load_config(args)
    check_init(cfg)
    import freeatm_mm.openmmlab  # noqa: F401 - what stops a run, which a config need not import
    from freeatm_mm.checkpoints import check_complete
    from freeatm_mm.engine.runner import ShortConsoleRunner

    pretrained = cfg.get('model', {}).get('pretrained')
    if pretrained and '://' not in pretrained and not Path(pretrained).is_file():
        raise MissingFileError(
            f'there is no checkpoint {pretrained}: train what makes it first, or set it '
            'with --cfg-options model.pretrained=CHECKPOINT'
        )
    check_precision(cfg)
    check_datasets(cfg)
    with keeping_tracebacks():
        runner = ShortConsoleRunner.from_cfg(cfg)
    if pretrained and Path(pretrained).is_file():  # mmengine would warn and leave out the rest
        try:
            check_complete(getattr(runner.model, 'module', runner.model), pretrained)
        except InputError as error:
            raise InputError(f'model.pretrained: {error}') from None
    with keeping_tracebacks():
        runner.train()
    return 0

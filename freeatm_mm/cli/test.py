"""Evaluate a checkpoint of a downstream config: mmpretrain's, mmdet's and mmseg's alike.

    freeatm test configs/downstream/... CHECKPOINT --data-root FOLDER --out metrics.json
    python -m torch.distributed.run --nproc-per-node 8 -m freeatm_mm test ... --launcher pytorch

A checkpoint that doesn't fill the config's model, or holds NaN or infinite weights, is refused.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from freeatm_mm import compat
from freeatm_mm.cli._launched import add_launch_options, parse_launched
from freeatm_mm.cli._paths import path_here
from freeatm_mm.configs import check_datasets, check_read, complete_config, open_config
from freeatm_mm.downstream.runs import make_smoke
from freeatm_mm.errors import InputError, keeping_tracebacks, tool
from freeatm_mm.files import atomic_write, check_replaceable

if TYPE_CHECKING:
    from mmengine.config import Config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config that the checkpoint was trained with')
    parser.add_argument(
        'checkpoint', help='file, or the work directory that holds it: then the last one in it'
    )
    parser.add_argument('--work-dir', help='where logs go; default: as in freeatm train')
    parser.add_argument('--out', type=path_here, help='also write the metrics there, as JSON')
    parser.add_argument(
        '--data-root', help='folder of the data set, instead of the one that the config names'
    )
    parser.add_argument(
        '--smoke', action='store_true', help='evaluate a few images only, to see that it runs'
    )
    parser.add_argument(
        '--show-dir',
        metavar='FOLDER',
        help='also draw what was predicted, into this folder (mmdet, mmseg)',
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='average over flips and scales (test-time augmentation), as the config says',
    )
    add_launch_options(parser)
    return parse_launched(parser, argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print and write the metrics."""
    args = parse_args(argv)
    if args.out:
        check_replaceable(args.out, 'a file of metrics', '{\n "', empty='{}')
    from freeatm_mm.checkpoints import check_complete, check_finite, load_weights

    checkpoint = find_checkpoint(args.checkpoint)
    cfg = open_config(args.config, args.work_dir, args.launcher)
    complete_config(cfg, args.data_root, args.cfg_options)
    check_read(args.cfg_options or ())
    if args.show_dir:
        draw_predictions(cfg, args.show_dir)
    if args.tta:
        average_views(cfg)
    if args.smoke:
        make_smoke(cfg)
    check_datasets(cfg, ('test_dataloader',))
    check_finite(load_weights(checkpoint), checkpoint)
    cfg.load_from, cfg.resume = str(checkpoint), False

    from mmengine.dist import is_main_process
    from mmengine.model import is_model_wrapper

    import freeatm_mm.openmmlab  # noqa: F401 - the hooks, and reading without running
    from freeatm_mm.engine.runner import ShortConsoleRunner

    if cfg.get('default_scope') == 'mmdet':
        compat.keep_digits_of_ap()
    with keeping_tracebacks():
        runner = ShortConsoleRunner.from_cfg(cfg)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    check_complete(model.module if args.tta else model, checkpoint)
    with keeping_tracebacks():
        metrics = runner.test()
    if args.out and is_main_process():
        with atomic_write(args.out) as file:
            file.write(
                json.dumps({key: float(value) for key, value in metrics.items()}, indent=1).encode()
            )
    return 0


def draw_predictions(cfg: Config, folder: str) -> None:
    """Let the framework's visualization hook draw every prediction into a folder.

    Raises:
        InputError: If the config's framework draws none.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if not hook or cfg.get('default_scope') not in ('mmdet', 'mmseg'):
        raise InputError(
            '--show-dir: only mmdet and mmseg draw predictions, by the '
            'default_hooks.visualization of their configs'
        )
    hook.update(draw=True)
    if cfg.default_scope == 'mmdet':
        hook.update(test_out_dir=str(Path(folder).absolute()))
    cfg.visualizer.update(save_dir=str(Path(folder).absolute()))


def average_views(cfg: Config) -> None:
    """Let the framework average its predictions over the config's flips and scales.

    Raises:
        InputError: If the config says neither, or they are of no use for masks.
    """
    if cfg.get('default_scope') not in ('mmdet', 'mmseg'):
        raise InputError('--tta: only mmdet and mmseg average over views')
    if cfg.default_scope == 'mmdet':
        if 'mask_head' in cfg.model.get('roi_head', {}):
            raise InputError(
                "--tta: mmdet averages boxes alone, and this config's model also gives masks"
            )
        if 'tta_model' not in cfg:  # as mmdet's own tool: as it is, and mirrored
            cfg.tta_model = dict(
                type='DetTTAModel',
                tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
            )
        if 'tta_pipeline' not in cfg:
            packing = dict(cfg.test_dataloader.dataset.pipeline[-1])
            packing['meta_keys'] = (*packing['meta_keys'], 'flip', 'flip_direction')
            flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
            cfg.tta_pipeline = [
                *cfg.test_dataloader.dataset.pipeline[:-1],
                dict(type='TestTimeAug', transforms=[flips, [packing]]),
            ]
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise InputError('--tta: this config has no tta_model and tta_pipeline')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


def find_checkpoint(path: str) -> Path:
    """Return the checkpoint itself, or the last one of a work directory.

    Raises:
        FileNotFoundError: If there is none.
    """
    from freeatm_mm.checkpoints import check_regular, last_checkpoint

    found = Path(path)
    if found.is_dir():
        last = last_checkpoint(found)
        if last is None:
            raise FileNotFoundError(f'there is no checkpoint in {path}: train it first')
        return last
    return check_regular(found)

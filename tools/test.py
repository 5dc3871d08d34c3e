#!/usr/bin/env python
"""Evaluates a checkpoint of a downstream config: mmpretrain's, mmdet's and mmseg's alike.

    python tools/test.py configs/downstream/... CHECKPOINT --data-root FOLDER --out metrics.json
    python -m torch.distributed.run --nproc-per-node 8 tools/test.py ... --launcher pytorch
"""
from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.config import DictAction  # noqa: E402

from freeatm_mm import compat  # noqa: E402
from freeatm_mm.checkpoints import check_complete, last_checkpoint  # noqa: E402
from freeatm_mm.configs import check_datasets, complete_config, open_config  # noqa: E402
from freeatm_mm.errors import InputError  # noqa: E402
from freeatm_mm.files import atomic_write  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    """Evaluates; a wrong path, or a checkpoint of another model, is told in one sentence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config that the checkpoint was trained with')
    parser.add_argument('checkpoint', help='file, or the work directory that holds it: then the '
                        'last one in it')
    parser.add_argument('--work-dir', help='where logs go; default: as in tools/train.py')
    parser.add_argument('--out', help='also write the metrics there, as JSON')
    parser.add_argument('--data-root', help='folder of the data set, in the place of the one that '
                        'the config names')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='what started the processes')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='change any entry of the config')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    try:
        checkpoint = find_checkpoint(args.checkpoint)
        cfg = open_config(args.config, args.work_dir, args.launcher)
        complete_config(cfg, args.data_root, args.cfg_options)
        check_datasets(cfg, ('test_dataloader', ))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    cfg.load_from, cfg.resume = str(checkpoint), False
    compat.skip_multimodal_models()

    from mmengine.dist import is_main_process
    from mmengine.model import is_model_wrapper
    from mmengine.runner import Runner
    runner = Runner.from_cfg(cfg)
    try:
        check_complete(runner.model.module if is_model_wrapper(runner.model) else runner.model,
                       checkpoint)
    except ValueError as error:
        parser.error(str(error))
    try:
        metrics = runner.test()
    except InputError as error:  # of the hook that looks for missing images
        parser.error(str(error))
    if args.out and is_main_process():
        with atomic_write(args.out) as file:
            file.write(json.dumps({key: float(value) for key, value in metrics.items()},
                                  indent=1).encode())


def find_checkpoint(path: str) -> Path:
    """The checkpoint itself, or the last one of a work directory.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = Path(path)
    if found.is_dir():
        last = last_checkpoint(found)
        if last is None:
            raise FileNotFoundError(f'there is no checkpoint in {path}: train it first')
        return last
    if not found.is_file():
        raise FileNotFoundError(f'there is no checkpoint {found}')
    return found


if __name__ == '__main__':
    main()

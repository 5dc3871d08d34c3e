"""From a yaml to a finished run: what the two tools do."""
from __future__ import annotations

import argparse
import datetime
import logging
import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from lavis.common.config import Config
from lavis.common.dist_utils import get_rank, setup_for_distributed
from lavis.common.registry import registry
from lavis.tasks import setup_task
from lavis.tasks.retrieval import RetrievalTask
from omegaconf import DictConfig, OmegaConf

from freeatm_mm.lavis_ext.runner import FreeATMRunner, newest_checkpoint

__all__ = ['RETRIEVAL_METRICS', 'build_runner', 'judge', 'load_config', 'read_yaml',
           'start_processes', 'stop_processes', 'train']

RETRIEVAL_METRICS = {'txt_r1': 'TR@1', 'txt_r5': 'TR@5', 'txt_r10': 'TR@10',
                     'img_r1': 'IR@1', 'img_r5': 'IR@5', 'img_r10': 'IR@10', 'mirror': 'mirror'}
"""LAVIS's names for text and image retrieval at 1, 5 and 10, and everybody else's; and that of
:class:`~freeatm_mm.lavis_ext.tasks.FreeATMRetrievalTask`, for sets with mirrored pairs."""


def read_yaml(path: str | Path) -> DictConfig:
    """A yaml, laid over those that its `_base_` names (paths from its own folder).

    Raises:
        FileNotFoundError: If the file, or one that it inherits, doesn't exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no config {path}')
    own = OmegaConf.load(path)
    bases = own.pop('_base_', [])
    bases = [bases] if isinstance(bases, str) else list(bases)
    return OmegaConf.merge(*(read_yaml(path.parent / base) for base in bases), own)


class _Config(Config):
    """LAVIS's `Config` of a yaml that may inherit others."""

    def __init__(self, cfg_path: str | Path, options: Sequence[str]) -> None:
        self.args = argparse.Namespace(cfg_path=str(cfg_path), options=list(options))
        registry.register('configuration', self)
        user = self._build_opt_list(self.args.options)
        # Before the parts are built, so that options may choose the model or its type.
        yaml = OmegaConf.merge(read_yaml(cfg_path), user)
        self.config = OmegaConf.merge(
            self.build_runner_config(yaml), self.build_model_config(yaml),
            self.build_dataset_config(yaml))


def load_config(path: str | Path, options: Sequence[str] = ()) -> Config:
    """LAVIS's config of a yaml.

    Args:
        path: The yaml.
        options: Changes, each `key.of.the.yaml=value`.

    Raises:
        FileNotFoundError: If the yaml doesn't exist.
        ValueError: If it names a model, its type or a dataset that LAVIS doesn't know, or an option
            is none.
    """
    for option in options:
        if '=' not in option:
            raise ValueError(f'the option {option!r} must be KEY=VALUE, for example '
                             'run.max_epoch=1')
    yaml = OmegaConf.merge(read_yaml(path), OmegaConf.from_dotlist(list(options)))
    for part in ('model', 'datasets', 'run'):
        if part not in yaml:
            raise ValueError(f'{path} has no part {part!r}')
    if registry.get_model_class(yaml.model.arch) is None:
        raise ValueError(f'{path}: LAVIS knows no model {yaml.model.arch!r}')
    types = registry.get_model_class(yaml.model.arch).PRETRAINED_MODEL_CONFIG_DICT
    if yaml.model.get('model_type') not in types:
        raise ValueError(f'{path}: model.model_type of {yaml.model.arch} is one of '
                         f'{", ".join(types)}, got {yaml.model.get("model_type")!r}')
    for name in yaml.datasets:
        if registry.get_builder_class(name) is None:
            raise ValueError(f'{path}: LAVIS knows no dataset {name!r}')
    cfg = _Config(path, options)
    run = cfg.run_cfg
    if run.get('device', 'auto') == 'auto':
        run.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    run.evaluate = bool(run.get('evaluate', False))
    run.distributed = False
    return cfg


def start_processes(cfg: Config) -> None:
    """Joins the other processes that torchrun or SLURM started; alone, it does nothing.

    Args:
        cfg: Its `run` is told rank, world size and GPU.

    Raises:
        ValueError: If there are others and nothing says where they meet.
    """
    run = cfg.run_cfg
    if 'RANK' in os.environ and 'WORLD_SIZE' in os.environ:
        rank, world = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
        local = int(os.environ.get('LOCAL_RANK', 0))
    elif int(os.environ.get('SLURM_NTASKS', 1)) > 1 and 'SLURM_PROCID' in os.environ:
        rank, world = int(os.environ['SLURM_PROCID']), int(os.environ['SLURM_NTASKS'])
        local = int(os.environ.get('SLURM_LOCALID', 0))
    else:
        device = torch.device(run.device)
        if device.type == 'cuda' and device.index is not None:
            torch.cuda.set_device(device)  # LAVIS sends batches to the current one
        return
    if not dist.is_initialized() and not {'MASTER_ADDR', 'MASTER_PORT'} <= set(os.environ):
        raise ValueError(
            f'{world} processes were started, but nothing says where they meet: export '
            'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) and '
            'MASTER_PORT=29500 before srun, or start them by torchrun')
    on_gpu = torch.device(run.device).type == 'cuda'
    run.distributed, run.rank, run.world_size, run.gpu = True, rank, world, local
    if on_gpu:
        # SLURM may show each process its own GPU alone, which is then number 0.
        run.gpu = local = local % torch.cuda.device_count()
        run.device = f'cuda:{local}'
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        # Judging a large set, processes that have less to do wait for the others.
        dist.init_process_group('nccl' if on_gpu else 'gloo', rank=rank, world_size=world,
                                timeout=datetime.timedelta(hours=6))
    setup_for_distributed(rank == 0)  # LAVIS's: only the first process prints


def stop_processes() -> None:
    """Leaves the other processes, if there are any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def setup_logging() -> None:
    """Messages with the time, of the first process alone; warnings of all."""
    level = logging.INFO if int(os.environ.get('RANK', 0)) == 0 else logging.WARNING
    logging.basicConfig(level=level, format='%(asctime)s %(levelname)s %(message)s')


def _seed_all(seed: int) -> None:
    """Seeds every generator, each process differently."""
    seed += get_rank()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def build_runner(cfg: Config, resume: bool = False) -> FreeATMRunner:
    """Task, datasets, model and runner of a config.

    Args:
        cfg: From :func:`load_config`, after :func:`start_processes`.
        resume: Go on from the last checkpoint in `run.output_dir`, if there is one; it must be of
            the same config.
    """
    run = cfg.run_cfg
    if resume:
        found = newest_checkpoint(run.output_dir)
        if found is None:
            logging.info('%s holds no checkpoint yet: starting from the beginning', run.output_dir)
        run.resume_ckpt_path = str(found) if found else None
    _seed_all(int(run.get('seed', 0)))
    task = setup_task(cfg)
    datasets = task.build_datasets(cfg)
    model = task.build_model(cfg)
    runner_class = registry.get_runner_class(run.get('runner', 'freeatm_runner'))
    if runner_class is None:
        raise ValueError(f'LAVIS knows no runner {run.runner!r}')
    runner = runner_class(cfg=cfg, task=task, model=model, datasets=datasets, job_id='')
    runner.same_run = resume
    return runner


def train(path: str | Path, options: Sequence[str] = (), resume: bool = False) -> FreeATMRunner:
    """Trains a yaml to its end.

    Args:
        path: The yaml.
        options: Changes, each `key.of.the.yaml=value`.
        resume: Go on from the last checkpoint in `run.output_dir`, if there is one.

    Returns:
        The runner, done.
    """
    setup_logging()
    cfg = load_config(path, options)
    start_processes(cfg)
    runner = build_runner(cfg, resume)
    runner.train()
    stop_processes()
    return runner


def judge(path: str | Path, options: Sequence[str] = ()) -> dict[str, dict[str, float]] | None:
    """Judges a retrieval yaml's checkpoint on its test splits.

    Args:
        path: The yaml.
        options: Changes, each `key.of.the.yaml=value`.

    Returns:
        Split -> figure (:data:`RETRIEVAL_METRICS`) -> value in percent; ``None`` in all but the
        first of several processes.

    Raises:
        ValueError: If the yaml is of no retrieval task.
    """
    setup_logging()
    cfg = load_config(path, [*options, 'run.evaluate=True'])
    if not issubclass(registry.get_task_class(cfg.run_cfg.task) or object, RetrievalTask):
        raise ValueError(f'{path} is of the task {cfg.run_cfg.task!r}; only retrieval is judged')
    start_processes(cfg)
    results = build_runner(cfg).train()
    first = get_rank() == 0
    stop_processes()
    if not first:
        return None
    return {split: {title: float(found[name]) for name, title in RETRIEVAL_METRICS.items()
                    if name in found}
            for split, found in results.items()}

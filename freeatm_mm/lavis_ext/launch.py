"""From a yaml to a finished run: what the two tools do."""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lavis.common.config import Config
from lavis.common.dist_utils import get_rank, setup_for_distributed
from lavis.common.registry import registry
from lavis.tasks import setup_task
from lavis.tasks.image_text_pretrain import ImageTextPretrainTask
from lavis.tasks.retrieval import RetrievalTask
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from freeatm_mm.errors import InputError, MissingFileError, one_sentence
from freeatm_mm.files import read_text
from freeatm_mm.lavis_ext.datasets import FreeATMPretrainDataset, StorePairs
from freeatm_mm.lavis_ext.grounding import Pointing, point
from freeatm_mm.lavis_ext.processors import (
    FreeATMCaptionProcessor,
    FreeATMImageTrainProcessor,
    WholeView,
)
from freeatm_mm.lavis_ext.resuming import newest_checkpoint
from freeatm_mm.lavis_ext.runner import FreeATMRunner
from freeatm_mm.lavis_ext.settings import (
    check_entries,
    check_run,
    check_values,
    find_device,
    plain,
    text,
)
from freeatm_mm.ops.masks import THRESHOLD
from freeatm_mm.packaged import find_config

__all__ = [
    'RETRIEVAL_METRICS',
    'build_runner',
    'evaluate',
    'evaluated_checkpoint',
    'load_config',
    'point_at_nouns',
    'read_yaml',
    'start_processes',
    'stop_processes',
    'train',
]

_TASKS = (ImageTextPretrainTask, RetrievalTask)  # of those of LAVIS's, what our models are for
_PARTS = ('model', 'datasets', 'run')
_MOST_BYTES = 1 << 20  # of a yaml

RETRIEVAL_METRICS = {
    'txt_r1': 'TR@1',
    'txt_r5': 'TR@5',
    'txt_r10': 'TR@10',
    'img_r1': 'IR@1',
    'img_r5': 'IR@5',
    'img_r10': 'IR@10',
    'mirror': 'mirror',
}
"""LAVIS's names for text and image retrieval at 1, 5 and 10, and everybody else's; and that of
`freeatm_mm.lavis_ext.tasks.FreeATMRetrievalTask`, for sets with mirrored pairs."""


def read_yaml(path: str | Path, options: Sequence[str] = ()) -> DictConfig:
    """A yaml with its changes.

    Args:
        path: The yaml, or `freeatm_mm::NAME` for one that comes with the package.
        options: Changes, each `key.of.the.yaml=value`.

    Raises:
        MissingFileError: If the file doesn't exist.
        InputError: If it is no yaml of LAVIS's, or an option is none; names it.
    """
    path = find_config(path)
    if not os.path.lexists(path):
        raise MissingFileError.of('config', path)
    try:
        yaml: Any = OmegaConf.create(read_text(path, _MOST_BYTES))
    except (YAMLError, OmegaConfBaseException, RecursionError, AttributeError) as error:
        raise InputError(f'{path} is no yaml ({one_sentence(error)[:200]})') from None
    if not isinstance(yaml, DictConfig):
        raise InputError(f'{path} must have the parts {", ".join(_PARTS)}')
    if '_base_' in yaml:
        raise InputError(
            f"{path} inherits by _base_, which LAVIS's Config doesn't read: copy that file "
            '(freeatm configs NAME says where ours lie) and change the copy, or give --options'
        )
    for option in options:
        if '=' not in option:
            raise InputError(
                f'the option {option!r} must be KEY=VALUE, for example run.max_epoch=1'
            )
        try:
            yaml = OmegaConf.merge(yaml, OmegaConf.from_dotlist([option]))
        except Exception as error:  # of many kinds, yaml's and OmegaConf's
            raise InputError(
                f"the option {option!r} can't be read or does not fit the yaml "
                f'({one_sentence(error)[:200]})'
            ) from None
    check_entries(yaml, _PARTS, str(path))
    try:
        plain(yaml, str(path))
    except InputError as error:
        raise InputError(f'{error}: a reference leads nowhere') from None
    for part in _PARTS:
        if not isinstance(yaml.get(part), DictConfig):
            raise InputError(
                f'{path} has no part {part!r}'
                if part not in yaml
                else f'{path}: {part} must hold names and values, got {yaml[part]!r}'
            )
    return yaml


class _Config(Config):
    """LAVIS's `Config`, of a yaml that is read already."""

    def __init__(self, yaml: DictConfig, path: str | Path, options: Sequence[str]) -> None:
        self.args = argparse.Namespace(cfg_path=str(path), options=list(options))
        registry.register('configuration', self)
        # The options lie over the yaml before its parts are built, so that they may choose the
        # model or its type.
        self.config = OmegaConf.merge(
            self.build_runner_config(yaml),
            self.build_model_config(yaml),
            self.build_dataset_config(yaml),
        )


def load_config(
    path: str | Path, options: Sequence[str] = (), output_dir: str | Path | None = None
) -> Config:
    """LAVIS's config of a yaml.

    Args:
        path: The yaml, or `freeatm_mm::NAME` for one that comes with the package.
        options: Changes, each `key.of.the.yaml=value`.
        output_dir: In the place of `run.output_dir`, as it is: an option's value is read as yaml.

    Raises:
        MissingFileError: If the yaml doesn't exist.
        InputError: If it names a model, its type or a dataset that LAVIS doesn't know, or has an
            entry of `run` that can't be honoured.
    """
    path = find_config(path)
    yaml = read_yaml(path, options)
    if output_dir is not None:
        yaml.run.output_dir = str(output_dir).replace('${', r'\${')  # no reference
    arch = yaml.model.get('arch')
    if text(arch) or registry.get_model_class(arch) is None:
        raise InputError(f'{path}: LAVIS knows no model {arch!r}')
    types = registry.get_model_class(arch).PRETRAINED_MODEL_CONFIG_DICT
    if text(yaml.model.get('model_type')) or yaml.model.model_type not in types:
        raise InputError(
            f'{path}: model.model_type of {arch} is one of '
            f'{", ".join(types)}, got {yaml.model.get("model_type")!r}'
        )
    for name, data in yaml.datasets.items():
        builder = registry.get_builder_class(name)
        if builder is None:
            raise InputError(f'{path}: LAVIS knows no dataset {name!r}')
        content = plain(data, f'{path}: datasets.{name}')
        if str(content.get('type', 'default')) not in builder.DATASET_CONFIG_DICT:
            raise InputError(
                f'{path}: datasets.{name}.type is one of '
                f'{", ".join(builder.DATASET_CONFIG_DICT)}, got {content["type"]!r}'
            )
    if not yaml.datasets:
        raise InputError(f'{path}: datasets names none')
    try:
        cfg = _Config(yaml, path, options)
    except OmegaConfBaseException as error:
        raise InputError(f'{path}: {one_sentence(error)[:200]}') from None
    run = cfg.run_cfg
    _find_runner(run)
    check_run(run)
    task = registry.get_task_class(run.task)
    if not _of_lavis(registry.get_model_class(arch)) and _of_lavis(task, _TASKS):
        raise InputError(
            f'{path}: the task {run.task} does not fit the model {arch}: set run.task to '
            'image_text_pretrain, retrieval or freeatm_retrieval'
        )
    run.device = str(find_device(run))
    run.evaluate = bool(run.get('evaluate', False))
    run.distributed = False
    return cfg


def _place() -> tuple[int, int, int] | None:
    """Rank, world size and rank on this machine, as torchrun or SLURM says; ``None`` alone."""
    said = os.environ
    if 'RANK' in said and 'WORLD_SIZE' in said:
        return int(said['RANK']), int(said['WORLD_SIZE']), int(said.get('LOCAL_RANK', 0))
    if int(said.get('SLURM_NTASKS', 1)) > 1 and 'SLURM_PROCID' in said:
        return (
            int(said['SLURM_PROCID']),
            int(said['SLURM_NTASKS']),
            int(said.get('SLURM_LOCALID', 0)),
        )
    return None


def start_processes(cfg: Config) -> None:
    """Join the other processes that torchrun or SLURM started; alone, do nothing.

    Args:
        cfg: Its `run` is told rank, world size and GPU.

    Raises:
        InputError: If there are others and nothing says where they meet.
    """
    run = cfg.run_cfg
    place = _place()
    if place is None:
        device = torch.device(run.device)
        if device.type == 'cuda' and device.index is not None:
            torch.cuda.set_device(device)  # LAVIS sends batches to the current one
        return
    rank, world, local = place
    if not dist.is_initialized() and not {'MASTER_ADDR', 'MASTER_PORT'} <= set(os.environ):
        raise InputError(
            f'{world} processes were started, but nothing says where they meet: export '
            'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) and '
            'MASTER_PORT=29500 before srun, or start them by torchrun'
        )
    on_gpu = torch.device(run.device).type == 'cuda'
    run.distributed, run.rank, run.world_size, run.gpu = True, rank, world, local
    if on_gpu:
        # SLURM may show each process its own GPU alone, which is then number 0.
        run.gpu = local = local % torch.cuda.device_count()
        run.device = f'cuda:{local}'
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        # Evaluating a large set, processes that have less to do wait for the others.
        dist.init_process_group(
            'nccl' if on_gpu else 'gloo',
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(hours=6),
        )
    setup_for_distributed(rank == 0)  # LAVIS's: only the first process prints


def stop_processes() -> None:
    """Leave the other processes, if there are any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def setup_logging() -> None:
    """Messages with the time, of the first process alone; warnings of all."""
    rank, *_ = _place() or (0,)
    level = logging.WARNING if rank else logging.INFO
    logging.basicConfig(level=level, format='%(asctime)s %(levelname)s %(message)s')


def _seed_all(seed: int) -> None:
    """Seeds every generator, each process differently."""
    seed += get_rank()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _of_lavis(kind: type, besides: tuple[type, ...] = ()) -> bool:
    """Whether a class is LAVIS's own, and none of some, nor made from one."""
    return kind.__module__.partition('.')[0] == 'lavis' and not issubclass(kind, besides)


def _find_runner(run: Mapping[str, Any]) -> type[FreeATMRunner]:
    """The class of `run.runner`; `freeatm_runner` if it isn't given.

    Raises:
        InputError: If LAVIS knows none of that name, or it is LAVIS's own.
    """
    name = run.get('runner') or 'freeatm_runner'
    found = None if text(name) else registry.get_runner_class(name)
    if found is None:
        known = [
            each
            for each in registry.list_runners()
            if not _of_lavis(registry.get_runner_class(each))
        ]
        raise InputError(
            f'LAVIS knows no runner {name!r}: leave run.runner out, or set it to one of '
            f'{", ".join(known)}'
        )
    if _of_lavis(found):
        raise InputError(
            f"run.runner is {name}, LAVIS's own, which needs a GPU and torchrun, evaluates nothing "
            'on request and cannot be resumed exactly: leave run.runner out for freeatm_runner, or '
            "start LAVIS's own train.py (docs/lavis.md)"
        )
    return found


def build_runner(cfg: Config, resume: bool = False) -> FreeATMRunner:
    """Task, datasets, model and runner of a config.

    Args:
        cfg: From `load_config`, after `start_processes`.
        resume: Go on from the last checkpoint in `run.output_dir`, if there is one; it must be of
            the same config.
    """
    run = cfg.run_cfg
    if resume:
        found = newest_checkpoint(run.output_dir)
        if found is None:
            logging.info('%s holds no checkpoint yet: starting from the beginning', run.output_dir)
        else:
            run.resume_ckpt_path = str(found)
    runner_class = _find_runner(run)
    _seed_all(int(run.get('seed') or 0))
    try:
        task = setup_task(cfg)
    except OmegaConfBaseException as error:
        raise InputError(
            f'the task {run.task} needs entries of run that freeatm_runner does not take '
            f"({one_sentence(error)[:200]}): start it by LAVIS's own train.py"
        ) from None
    datasets = task.build_datasets(cfg)
    model = task.build_model(cfg)
    runner = runner_class(cfg=cfg, task=task, model=model, datasets=datasets, job_id='')
    runner.same_run = resume
    return runner


def train(
    path: str | Path,
    options: Sequence[str] = (),
    resume: bool = False,
    output_dir: str | Path | None = None,
) -> FreeATMRunner:
    """Train a yaml to its end.

    Args:
        path: The yaml, or `freeatm_mm::NAME` for one that comes with the package.
        options: Changes, each `key.of.the.yaml=value`.
        resume: Go on from the last checkpoint in `run.output_dir`, if there is one.
        output_dir: In the place of `run.output_dir`, if given.

    Returns:
        The runner, done.
    """
    setup_logging()
    cfg = load_config(path, options, output_dir)
    start_processes(cfg)
    runner = build_runner(cfg, resume)
    runner.train()
    stop_processes()
    return runner


def evaluated_checkpoint(model: Mapping[str, Any]) -> str:
    """The checkpoint that a retrieval yaml's `model` is evaluated with.

    Raises:
        InputError: If it names none.
    """
    path = model.get('finetuned' if model.get('load_finetuned') else 'pretrained')
    if not path:
        raise InputError(
            'there is no checkpoint to evaluate: set model.pretrained, or '
            'model.load_finetuned=True and model.finetuned'
        )
    return str(path)


def evaluate(path: str | Path, options: Sequence[str] = ()) -> dict[str, dict[str, float]] | None:
    """Evaluate a retrieval yaml's checkpoint on its test splits.

    Args:
        path: The yaml, or `freeatm_mm::NAME` for one that comes with the package.
        options: Changes, each `key.of.the.yaml=value`.

    Returns:
        Split -> figure (`RETRIEVAL_METRICS`) -> value in percent; ``None`` in all but the
        first of several processes.

    Raises:
        InputError: If the yaml is of no retrieval task.
    """
    setup_logging()
    task = read_yaml(path, options).run.get('task')
    if not issubclass(registry.get_task_class(task) or object, RetrievalTask):
        raise InputError(f'{path} is of the task {task!r}; only retrieval is evaluated')
    cfg = load_config(path, [*options, 'run.evaluate=True'])
    start_processes(cfg)
    results = build_runner(cfg).train()
    first = get_rank() == 0
    stop_processes()
    if not first:
        return None
    assert results is not None  # the run names test splits
    return {
        split: {
            title: float(found[name]) for name, title in RETRIEVAL_METRICS.items() if name in found
        }
        for split, found in results.items()
    }


def point_at_nouns(
    cfg: Config, store: str | Path, batch_size: int = 64, limit: int | None = None
) -> Pointing:
    """See which patches the nouns of a store's captions look at in a pretrained BLIP.

    Args:
        cfg: From `load_config`, of a pretraining; `model.pretrained` names the weights.
        store: The store, whose masks say where objects are.
        batch_size: Pairs at a time.
        limit: So many pairs at most, from the first on.

    Raises:
        InputError: If the yaml is of no pretraining.
        StoreError: If the store can't be used.
    """
    if cfg.model_cfg.arch != 'freeatm_blip_pretrain' or 'freeatm_pretrain' not in cfg.datasets_cfg:
        raise InputError(
            f'the yaml must be of a pretraining, freeatm_blip_pretrain on freeatm_pretrain, got '
            f'{cfg.model_cfg.arch} on {", ".join(cfg.datasets_cfg)}'
        )
    model = registry.get_model_class(cfg.model_cfg.arch).from_config(cfg.model_cfg)
    embed = model.visual_encoder.patch_embed
    view, where = cfg.datasets_cfg.freeatm_pretrain, 'datasets.freeatm_pretrain'
    for part in ('vis_processor', 'train'):
        view, where = plain(view, where).get(part), f'{where}.{part}'
    view = plain(view, where)
    check_values(view, FreeATMImageTrainProcessor.CHECKS, where)
    dataset = FreeATMPretrainDataset(
        WholeView(embed.img_size[0], view.get('mean'), view.get('std')),
        FreeATMCaptionProcessor(),
        [StorePairs(store, None, THRESHOLD)],
        mask_grid=embed.grid_size[0],
    )
    return point(model.to(cfg.run_cfg.device).eval(), dataset, batch_size, limit)

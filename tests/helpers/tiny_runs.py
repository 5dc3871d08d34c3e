"""Small trainings through all the real parts: store, loader, model, runner, checkpoints."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from helpers.tiny_models import BACKBONE, DINO, GRID, MAE

NECK = dict(in_channels=8, hid_channels=8, out_channels=6)
HEAD = dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.2)
MODELS = {
    'mocov2': dict(
        type='FreeATMMoCo',
        backbone=BACKBONE,
        queue_len=25,
        feat_dim=6,
        momentum=0.1,
        neck=dict(NECK, type='FreeATMMoCoV2Neck'),
        head=HEAD,
    ),
    'simclr': dict(
        type='FreeATMSimCLR',
        backbone=BACKBONE,
        head=HEAD,
        neck=dict(NECK, type='FreeATMNonLinearNeck', norm_cfg=dict(type='BN1d')),
    ),
    'dino': dict(
        DINO,
        warmup_teacher_temperature=0.02,
        teacher_temperature=0.08,
        warmup=0.4,
    ),
    'mae': dict(MAE, backbone=dict(MAE['backbone'], drop_path_rate=0.2)),
}


def config(store, work_dir, method='mocov2', workers=0, **changes):
    """A tiny training with 10 images a batch, 3 epochs."""
    views = [
        dict(type='FreeATMRandomResizedCrop', scale=32, crop_ratio_range=(0.3, 1.0)),
        dict(type='RandomApply', prob=0.8, transforms=[dict(type='ColorJitter', brightness=0.4)]),
        dict(type='FreeATMRandomFlip', prob=0.5),
    ]
    if method != 'mae':
        views = [dict(type='FreeATMMultiView', num_views=2, transforms=[views])]
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            work_dir=str(work_dir),
            randomness=dict(seed=3),
            model=dict(
                MODELS[method],
                data_preprocessor=dict(
                    type='SelfSupDataPreprocessor', mean=[128.0] * 3, std=[64.0] * 3
                ),
            ),
            train_dataloader=dict(
                batch_size=10,
                num_workers=workers,
                persistent_workers=workers > 0,
                drop_last=True,
                sampler=dict(type='SeededSampler'),
                collate_fn=dict(type='default_collate'),
                dataset=dict(
                    type='FreeATMDataset',
                    data_root=[str(path) for path in store]
                    if isinstance(store, list)
                    else str(store),
                    pipeline=[
                        dict(type='LoadFromStore'),
                        *views,
                        dict(type='PackFreeATMInputs', grid_size=GRID),
                    ],
                ),
            ),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
            param_scheduler=[dict(type='CosineAnnealingLR', T_max=3, by_epoch=True)],
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=3),
            custom_hooks=[dict(type='SeedEachIterationHook'), dict(type='ChannelsLastHook')],
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1),
                logger=dict(type='LoggerHook', interval=1),
            ),
            log_level='WARNING',
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


class Killed(Exception):
    """Stands for a process that ends without warning."""


class WatchHook(Hook):
    """Keeps what each iteration gave, and ends the run before one of them if told so."""

    def __init__(self, killed_at=None):
        self.killed_at = killed_at
        self.outputs, self.batches = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.killed_at:
            raise Killed
        self.batches.append(data_batch)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.outputs.append({key: value.item() for key, value in outputs.items()})


def state(runner):
    """A copy of the model's state."""
    return {key: value.clone() for key, value in runner.model.state_dict().items()}


def run(cfg, name):
    """Trains to the end; the runner and its `WatchHook`.

    Args:
        cfg: The config; not changed.
        name: mmengine keeps loggers and message hubs by name in one process: a new name is a new
            start.
    """
    return _run(cfg, name, None)


def train(cfg, name, killed_at=None):
    """Trains to the end, or until it is killed before this iteration; the model's state."""
    return state(_run(cfg, name, killed_at)[0])


def _run(cfg, name, killed_at):
    cfg = Config(cfg.to_dict())
    cfg.experiment_name = name
    ends = contextlib.nullcontext() if killed_at is None else pytest.raises(Killed)
    # To set the config nicely for the log takes longer than the training.
    with mock.patch('yapf.yapflib.yapf_api.FormatCode', lambda text, **kwargs: (text, True)), ends:
        runner = Runner.from_cfg(cfg)
        watch = WatchHook(killed_at)
        runner.register_hook(watch, priority='VERY_HIGH')
        runner.train()
    return runner, watch


def different(one, other):
    """Names of the tensors in which two states differ."""
    assert one.keys() == other.keys()
    return [key for key in one if not torch.equal(one[key], other[key])]

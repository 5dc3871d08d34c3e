"""Hooks: exact resuming, memory layout."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from freeatm_mm import compat
from freeatm_mm.datasets.samplers import mix_seed
from freeatm_mm.origins import note_pretraining


@HOOKS.register_module()
class SeedEachIterationHook(Hook):
    """Seeds Python, NumPy and torch before each training iteration from (seed, iteration, rank).

    mmengine's checkpoints hold weights, optimiser and schedules, but no random state: what a model
    draws (MoCo's shuffle, MAE's masks, stochastic depth) would go differently after a resume. With
    this hook, and a sampler of :mod:`freeatm_mm.datasets.samplers` for the data, weights and queue
    end bit-equal.

    A run without a given seed draws one; resumed, mmengine takes it from the checkpoint, and this
    hook passes it on to the sampler, which was built before.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Gives the sampler the run's seed; see the class."""
        note_pretraining(runner)
        loader = runner.train_dataloader
        sampler = loader.sampler
        if hasattr(sampler, 'seed'):
            # The sampler's seed must be the same in all processes.
            differs = runner.cfg.get('randomness', {}).get('diff_rank_seed', False)
            sampler.seed = runner.seed - (get_rank() if differs else 0)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seeds; the batch is loaded by then, so that its loading can't interfere."""
        seed = mix_seed(runner.seed, runner.iter, get_rank())
        random.seed(seed)
        np.random.seed(seed)
        # `torch.manual_seed` would queue a call for CUDA each time where CUDA isn't in use.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keeps convolution weights, and so feature maps, in channels-last order.

    Convolutions run faster so: a third on CPUs, and on GPUs with `--amp`, whose tensor cores want
    that order. Results agree up to rounding. Strided 1x1 convolutions of fewer than 16 channels
    keep the usual order: see `freeatm_mm.compat.avoid_strided_pointwise_fault`.
    """

    def before_train(self, runner: Runner) -> None:
        """Reorders the weights in place, after they were loaded."""
        runner.model.to(memory_format=torch.channels_last)
        compat.avoid_strided_pointwise_fault(runner.model)

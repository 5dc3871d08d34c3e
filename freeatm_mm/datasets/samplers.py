"""Samplers that give every draw its own seed.

With them a sample's augmentation depends on the run's seed, the epoch and the sample alone, not on
the number of worker processes nor on what they did before. A resumed run therefore sees exactly
what the run would have seen that was never stopped; mmengine alone restores the order of samples,
but not the random state of its (persistent) workers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmpretrain.registry import DATA_SAMPLERS


def mix_seed(*numbers: int) -> int:
    """One 32-bit seed out of several numbers, different for different ones.

    The mixing is that of SplitMix64 (Steele et al., 2014): neighbouring numbers give unrelated
    seeds, the same on every machine.

    Args:
        *numbers: Integers from 0, for example the run's seed, an epoch and a sample's number.

    Returns:
        An integer in [0, 2**32).
    """
    mask = (1 << 64) - 1
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 32


def seeded_uniforms(seeds: np.ndarray, count: int, start: int = 0) -> np.ndarray:
    """Random numbers of many seeds at once, by SplitMix64 as well.

    Args:
        seeds: (B,) uint64.
        count: How many numbers of each.
        start: How many of each to pass over.

    Returns:
        (B, count) float64 in [0, 1); a row follows from its seed alone.
    """
    step = np.uint64(0x9E3779B97F4A7C15)

    def mixed(state: np.ndarray) -> np.ndarray:
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))

    places = np.arange(start + 1, start + count + 1, dtype=np.uint64) * step
    state = mixed(seeds.astype(np.uint64) + step)[:, None] + places
    return (mixed(state) >> np.uint64(11)) * 2.0**-53


def seed_draw(seed: int) -> None:
    """Seeds Python, NumPy and torch on the CPU: all random choices that a pipeline makes."""
    random.seed(seed)
    np.random.seed(seed)
    # Not `torch.manual_seed`: it would also queue a call, with a stack trace, for CUDA.
    torch.default_generator.manual_seed(seed)


def _seeded_items(dataset: Any, draws: Sequence) -> list:
    """The items of some draws, each a number or a (number, seed)."""
    if hasattr(dataset, 'draw_batch') and all(isinstance(draw, tuple) for draw in draws):
        return dataset.draw_batch(draws)
    items = []
    for draw in draws:
        if isinstance(draw, tuple):
            draw, seed = draw
            seed_draw(seed)
        items.append(dataset[draw])
    return items


def take_seeds(dataset: Any) -> None:
    """Let any dataset be asked for (number, seed) by a `DataLoader`, whatever is wrapped in it.

    Wrappers (`RepeatDataset`, `ConcatDataset`, `ClassBalancedDataset`, `KFoldDataset`, torch's
    `Subset` ...) calculate with an item's number, and would fail with a pair. A loader asks a
    dataset that has `__getitems__` for a whole batch; so the seeds are set before they are asked.

    Args:
        dataset: The dataset; it gets an attribute `__getitems__`. One that takes no attributes (a
            list, a range) is left as it is.
    """
    if hasattr(dataset, '__dict__'):
        dataset.__getitems__ = partial(_seeded_items, dataset)


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """mmengine's `DefaultSampler` in the same order, yielding (number, seed of this draw).

    For `EpochBasedTrainLoop` and `freeatm_mm.datasets.FreeATMDataset`, alone or in wrappers
    (`take_seeds`). Takes the same arguments as `DefaultSampler`; mmengine's `DistSamplerSeedHook`
    (on by default) tells it the epoch.
    """

    def __init__(self, dataset: Any, *args, **kwargs) -> None:
        super().__init__(dataset, *args, **kwargs)
        take_seeds(dataset)
        self._passed_over = 0

    def pass_over(self, draws: int) -> None:
        """Begin the next epoch after its first draws, which a resumed run has had.

        Args:
            draws: How many of this process.
        """
        self._passed_over = draws

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start, self._passed_over = self._passed_over, 0
        for number in islice(super().__iter__(), start, None):
            yield number, mix_seed(self.seed, self.epoch, number)


@DATA_SAMPLERS.register_module()
class SeededInfiniteSampler(InfiniteSampler):
    """mmengine's `InfiniteSampler` in the same order, yielding (number, seed of this draw).

    For `IterBasedTrainLoop` and `freeatm_mm.datasets.FreeATMDataset`, alone or in wrappers
    (`take_seeds`). Takes the same arguments as `InfiniteSampler`.
    """

    def __init__(self, dataset: Any, *args, **kwargs) -> None:
        super().__init__(dataset, *args, **kwargs)
        take_seeds(dataset)

    def _infinite_indices(self) -> Iterator[tuple[int, int]]:
        for draw, number in enumerate(super()._infinite_indices()):
            yield number, mix_seed(self.seed, draw // self.size, number)

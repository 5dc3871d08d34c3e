"""Which patches a masked autoencoder hides, guided by attention (Free-ATM, section 3.3, part 2)."""
from __future__ import annotations

import math

import numpy as np
import torch
from mmengine.logging import MessageHub
from mmpretrain.registry import TASK_UTILS
from torch import Tensor

SCHEDULES = {
    'linear': lambda progress: progress,
    'constant': lambda progress: 1.0,
    'reverse': lambda progress: 1.0 - progress,
    'cosine': lambda progress: (1.0 - math.cos(math.pi * progress)) / 2,
}
"""Share of the ceiling that beta has reached, for the progress of the training in [0, 1]."""


def training_progress() -> float:
    """How far the running training is: 0 in its first iteration, 1 in its last.

    Read from mmengine's message hub, which the runner keeps, also after a resume: the main process
    knows it, whatever workers and epochs do. Outside of a training it is 0.
    """
    hub = MessageHub.get_current_instance()
    iteration, last = hub.get_info('iter', 0), hub.get_info('max_iters', 1) - 1
    return min(iteration / last, 1.0) if last > 0 else 0.0


@TASK_UTILS.register_module()
class AttentionGuidedMaskGenerator:
    """Hides a growing share of the patches by attention, the rest at random.

    Of the patches that are hidden, the share beta are those with the highest attention, the rest
    are drawn from all others. Beta goes from 0 to its ceiling over the training (section 4.3:
    linearly, to 0.8), so that the network learns whole images first and foregrounds later.

    Args:
        ceiling: The largest beta, in [0, 1].
        schedule: How beta grows: 'linear' (the paper), 'cosine', 'constant' (always the ceiling),
            'reverse' (from the ceiling to 0).

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, ceiling: float = 0.8, schedule: str = 'linear') -> None:
        if not 0 <= ceiling <= 1:
            raise ValueError(f'AttentionGuidedMaskGenerator: ceiling {ceiling} is not in [0, 1].')
        if schedule not in SCHEDULES:
            raise ValueError(f'AttentionGuidedMaskGenerator: schedule {schedule!r} is unknown: use '
                             f'one of {", ".join(SCHEDULES)}.')
        self.ceiling = ceiling
        self.schedule = schedule

    def beta(self, progress: float | None = None) -> float:
        """Beta at a point of the training.

        Args:
            progress: In [0, 1]; by default that of the running training.
        """
        progress = training_progress() if progress is None else progress
        return self.ceiling * SCHEDULES[self.schedule](progress)

    def __call__(self, scores: Tensor, num_masked: int, beta: float | None = None) -> Tensor:
        """An order of each image's patches whose last `num_masked` are to be hidden.

        Exactly floor(beta * num_masked) patches are chosen by score. Among equal scores chance
        decides; so an image of equal scores is masked at random, as MAE does.

        Args:
            scores: (B, L) attention of the patches.
            num_masked: How many patches of each image to hide.
            beta: Share by score; by default the schedule's.

        Returns:
            (B, L) int64, each row a permutation of the patches: those that stay visible, then those
            to be hidden, each from the first to the last.
        """
        beta = self.beta() if beta is None else beta
        length = scores.shape[1]
        patches = torch.arange(length, device=scores.device)
        if not num_masked:
            return patches.repeat(len(scores), 1)
        # Nothing is sorted: a patch is hidden if its key is among the largest. All keys of an image
        # differ, as their lowest bits are the patch's number; so counts are exact. One draw gives
        # both: the noise, decided by its upper half, and the lower half, which breaks ties.
        bits = length.bit_length()
        keys = torch.empty(scores.shape, dtype=torch.int64, device=scores.device).random_()
        keys.bitwise_right_shift_(bits).bitwise_left_shift_(bits).bitwise_or_(patches)
        chosen = int(beta * num_masked + 1e-9)
        if chosen:
            by_score = ordered_integers(scores) << 32 | keys & 0xFFFFFFFF
            by_score = by_score >= kth_largest(by_score, chosen)
            keys.masked_fill_(by_score, torch.iinfo(keys.dtype).max)
        hidden = keys >= kth_largest(keys, num_masked)
        num_hidden = hidden.cumsum(dim=1)
        places = torch.where(hidden, num_hidden + (length - num_masked - 1), patches - num_hidden)
        return torch.empty_like(places).scatter_(1, places, patches.expand_as(places))


def ordered_integers(values: Tensor) -> Tensor:
    """Integers of 32 bits, as int64, in the same order as floating-point numbers.

    The bits of positive IEEE numbers are ordered like the numbers; those of negative ones the other
    way round.
    """
    bits = (values.float() + 0.0).view(torch.int32)  # + 0.0: minus zero is zero
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)).long()


def kth_largest(keys: Tensor, number: int) -> Tensor:
    """(B, 1) the `number`-th largest of each row of (B, L) integers; 1 is the largest."""
    place = keys.shape[1] - number
    if keys.is_cpu:  # where NumPy selects four times as fast as torch
        found = np.partition(keys.numpy(), place, axis=1)[:, place:place + 1]
        return torch.from_numpy(found)
    # Not `kthvalue`, which CUDA refuses where deterministic algorithms are asked for.
    return keys.topk(number, dim=1).values[:, -1:]

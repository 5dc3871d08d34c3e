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
            raise ValueError(
                f'AttentionGuidedMaskGenerator: schedule {schedule!r} is unknown: use '
                f'one of {", ".join(SCHEDULES)}.'
            )
        self.ceiling = ceiling
        self.schedule = schedule

    @torch.compiler.disable  # the running state is no constant
    def beta(self, progress: float | None = None) -> float:
        """Beta at a point of the training.

        Args:
            progress: In [0, 1]; by default that of the running training.
        """
        progress = training_progress() if progress is None else progress
        return self.ceiling * SCHEDULES[self.schedule](progress)

    @torch.compiler.disable  # NumPy selects
    def __call__(self, scores: Tensor, num_masked: int, beta: float | None = None) -> Tensor:
        """An order of each image's patches whose last `num_masked` are to be hidden.

        Chance is the very draw that MAE makes. So with the same seed the baseline hides the same
        patches where beta is 0 (bit for bit the same order) and in images of equal scores, and what
        is not chosen by score follows the same draw; whatever is drawn later is the same, too.

        Exactly floor(beta * num_masked) patches are chosen by score. Scores are compared in steps
        of 1/10,000 of an image's range, so that rounding, which differs between processors, doesn't
        order equal ones. Among equal scores chance decides, independently of the rest.

        Args:
            scores: (B, L) attention of the patches, finite.
            num_masked: How many patches of each image to hide.
            beta: Share by score; by default the schedule's.

        Returns:
            (B, L) int64, each row a permutation of the patches: those that stay visible, then those
            to be hidden.
        """
        beta = self.beta() if beta is None else beta
        noise = torch.rand(scores.shape, device=scores.device)
        chosen = int(beta * num_masked + 1e-9)
        if not chosen:
            return noise.argsort(dim=1)
        # Nothing is sorted: a patch is hidden if its key is among the largest. All keys of an image
        # differ, as their lowest bits are the patch's number; so counts are exact.
        length = scores.shape[1]
        bits = length.bit_length()
        patches = torch.arange(length, device=scores.device)
        levels = score_levels(scores)
        # Ties decided by the noise itself would leave its small values to the rest. Its bits times
        # an odd number, modulo 2^24, are as good as independent of it and cost no further draw.
        draws = (noise * 2**24).long()
        by_score = (levels << 24 | draws * 0x9E3779 & 0xFFFFFF) << bits | patches
        by_score = by_score >= kth_largest(by_score, chosen)
        by_score &= levels.amax(dim=1, keepdim=True) > 0
        keys = (draws << bits | patches).masked_fill_(by_score, torch.iinfo(torch.int64).max)
        hidden = keys >= kth_largest(keys, num_masked)
        num_hidden = hidden.cumsum(dim=1)
        places = torch.where(hidden, num_hidden + (length - num_masked - 1), patches - num_hidden)
        return torch.empty_like(places).scatter_(1, places, patches.expand_as(places))


def score_levels(scores: Tensor) -> Tensor:
    """Scores in whole steps: 0 for an image's lowest, at most 10,000 for its highest.

    A step is 1/10,000 of the image's range, but not less than a millionth of its largest score,
    which is as fine as sums of several float32 numbers are: a range of rounding errors is none.

    Args:
        scores: (B, L) finite.

    Returns:
        (B, L) int64.
    """
    lowest, highest = scores.float().aminmax(dim=1, keepdim=True)
    step = torch.maximum((highest - lowest) / 10_000, torch.maximum(highest, -lowest) * 1e-6)
    return ((scores - lowest) / step.clamp(min=torch.finfo(step.dtype).tiny)).round().long()


def kth_largest(keys: Tensor, number: int) -> Tensor:
    """(B, 1) the `number`-th largest of each row of (B, L) integers; 1 is the largest."""
    place = keys.shape[1] - number
    if keys.is_cpu:  # where NumPy selects four times as fast as torch
        found = np.partition(keys.numpy(), place, axis=1)[:, place : place + 1]
        return torch.from_numpy(found)
    # Not `kthvalue`, which CUDA refuses where deterministic algorithms are asked for.
    return keys.topk(number, dim=1).values[:, -1:]

"""Which patches a masked autoencoder hides, guided by attention (Free-ATM, section 3.3, part 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import MessageHub
from mmpretrain.registry import TASK_UTILS
from torch import Tensor

from freeatm_mm.ops.choices import check_choice
from freeatm_mm.ops.patch_masking import (
    BAND,
    NOISES,
    SHARES,
    attention_guided_order,
    beta_at,
    check_band,
)


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
        share_of: What beta is a share of: 'hidden' (the paper), or 'foreground', each image's own,
            so that objects are hidden from the inside and whole at beta 1 alone.
        noise: What the rest is drawn from: 'white', each patch by itself (MAE), or 'green', clumps
            of a few patches (ColorMAE); with `ceiling=0` all of it.
        band: Of green noise; see `freeatm_mm.ops.green_noise`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        ceiling: float = 0.8,
        schedule: str = 'linear',
        share_of: str = 'hidden',
        noise: str = 'white',
        band: Sequence[float] = BAND,
    ) -> None:
        try:
            beta_at(0.0, ceiling, schedule)
            check_choice('share_of', share_of, SHARES)
            check_choice('noise', noise, NOISES)
            check_band(band)
        except ValueError as error:
            raise ValueError(f'AttentionGuidedMaskGenerator: {error}') from None
        self.ceiling = ceiling
        self.schedule = schedule
        self.share_of = share_of
        self.noise = noise
        self.band: Any = tuple(band)

    @torch.compiler.disable  # the running state is no constant
    def beta(self, progress: float | None = None) -> float:
        """Beta at a point of the training.

        Args:
            progress: In [0, 1]; by default that of the running training.
        """
        progress = training_progress() if progress is None else progress
        return beta_at(progress, self.ceiling, self.schedule)

    @torch.compiler.disable  # NumPy selects
    def __call__(self, scores: Tensor, num_masked: int, beta: float | None = None) -> Tensor:
        """An order of each image's patches whose last `num_masked` are to be hidden.

        See `freeatm_mm.ops.attention_guided_order` for what chance decides.

        Args:
            scores: (B, L) attention of the patches, finite.
            num_masked: How many patches of each image to hide.
            beta: Share by score; by default the schedule's.

        Returns:
            (B, L) int64, each row a permutation of the patches: those that stay visible, then those
            to be hidden.
        """
        beta = self.beta() if beta is None else beta
        return attention_guided_order(
            scores, num_masked, beta, self.share_of, self.noise, self.band
        )

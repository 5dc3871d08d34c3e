"""Attention-guided hiding of patches for any ViT (Free-ATM, section 3.3, part 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from freeatm_mm.errors import InputError, counted
from freeatm_mm.ops import (
    COMBINE,
    NOISES,
    SHARES,
    attention_guided_order,
    beta_at,
    mask_patches,
    num_visible,
    patch_scores,
)

__all__ = ['GuidedMasking']


class GuidedMasking(nn.Module):
    """Chooses which patches a masked autoencoder hides, by the attention of the nouns.

    `forward` hides tokens, as an encoder of your own needs; `noise` gives transformers'
    `ViTMAEForPreTraining` its argument of that name, so that it hides the same.

    Args:
        mask_ratio: Share of the patches that is hidden, in (0, 1).
        ceiling: The largest share of these that attention chooses, in [0, 1].
        schedule: How that share grows over the training; see `freeatm_mm.ops.beta_at`.
        combine: How the attention of several nouns becomes one score: 'sum' or 'max'.
        share_of: What the share is of: 'hidden' patches, or each image's own 'foreground'.
        noise: What the rest is drawn from: 'white', or 'green', clumps of patches (ColorMAE).

    Raises:
        InputError: If a setting is out of range.
    """

    def __init__(
        self,
        mask_ratio: float = 0.75,
        ceiling: float = 0.8,
        schedule: str = 'linear',
        combine: str = 'sum',
        share_of: str = 'hidden',
        noise: str = 'white',
    ) -> None:
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise InputError(f'mask_ratio {mask_ratio} is not between 0 and 1')
        if combine not in COMBINE:
            raise InputError(f'combine {combine!r} is none of {", ".join(COMBINE)}')
        for name, value, known in (('share_of', share_of, SHARES), ('noise', noise, NOISES)):
            if value not in known:
                raise InputError(f'{name} {value!r} is none of {", ".join(known)}')
        try:
            beta_at(0.0, ceiling, schedule)
        except ValueError as error:
            raise InputError(str(error)) from None
        self.mask_ratio, self.ceiling = mask_ratio, ceiling
        self.schedule, self.combine = schedule, combine
        self.share_of, self.chance = share_of, noise

    @torch.compiler.disable  # the progress is another one at each step
    def order(self, masks: Tensor, progress: float) -> Tensor:
        """Order the patches, those to be hidden last.

        Args:
            masks: (B, K, h, w) masks on the grid of the patches, as `collate_views` gives them; an
                image whose masks are flat is masked at random.
            progress: How far the training is, in [0, 1].

        Returns:
            (B, L) int64, each row a permutation of the L = h * w patches.

        Raises:
            InputError: If `progress` is out of range, the masks have another shape or are NaN or
                infinite (seen on a CPU, as in `collate_views`, and not on a GPU, which would have
                to be waited for), or no patch would stay visible.
        """
        if not 0 <= progress <= 1:
            raise InputError(f'progress {progress} is not in [0, 1]')
        if masks.ndim != 4:
            raise InputError(f'masks must be (B, K, h, w), got {tuple(masks.shape)}')
        length = masks.shape[-2] * masks.shape[-1]
        try:
            scores = patch_scores(list(masks), length, self.combine)
        except ValueError as error:
            raise InputError(str(error)) from None
        hidden = length - num_visible(length, self.mask_ratio)
        if hidden == length:
            raise InputError(
                f'of {length} patches a mask_ratio of {self.mask_ratio} leaves none visible'
            )
        beta = beta_at(progress, self.ceiling, self.schedule)
        return attention_guided_order(scores, hidden, beta, self.share_of, self.chance)

    def noise(self, masks: Tensor, progress: float) -> Tensor:
        """Return what `ViTMAEForPreTraining(pixel_values, noise=...)` hides by.

        It hides the patches of the highest noise; `mask_ratio` must be that of its config.

        Args:
            masks: As of `order`.
            progress: How far the training is, in [0, 1].

        Returns:
            (B, L) float32 in [0, 1).
        """
        order = self.order(masks, progress)
        ranks = torch.arange(order.shape[1], device=order.device) / order.shape[1]
        return torch.empty_like(order, dtype=ranks.dtype).scatter_(
            1, order, ranks.expand(order.shape)
        )

    def forward(
        self, tokens: Tensor, masks: Tensor, progress: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hide tokens, as MAE's `random_masking` does.

        Args:
            tokens: (B, L, C) tokens of the patches, without class token.
            masks: As of `order`.
            progress: How far the training is, in [0, 1].

        Returns:
            The visible tokens (B, visible, C), the mask (B, L), 1 where a patch is hidden, and
            (B, L) where each patch stands (MAE's `ids_restore`).

        Raises:
            InputError: If there are not as many tokens as cells of the masks.
        """
        order = self.order(masks, progress)
        if tokens.shape[:2] != order.shape:
            raise InputError(
                f'{counted(tokens.shape[1], "token")} of {counted(len(tokens), "image")} do not '
                f'fit masks of {order.shape[1]} cells of {len(order)}: leave out the class token, '
                'and set the grid of StoreDataset to that of the patches'
            )
        return mask_patches(tokens, order, num_visible(order.shape[1], self.mask_ratio))

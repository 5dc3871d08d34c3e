"""How far a mask can be trusted, told from the mask alone, so that bad ones can be left out.

In the miniature world peakedness orders masks by their IoU with the exact ones (rank correlation
about 0.7, ``docs/masks.md``); area and overlap name two ways in which masks go wrong.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from freeatm_mm.ops.masks import THRESHOLD, minmax, peakedness

__all__ = ['MaskTrust', 'mask_trust']


@dataclass(frozen=True)
class MaskTrust:
    """Three measures of one noun's mask. Foreground is what the threshold makes of the mask.

    Attributes:
        peakedness: ``1 - mean attention of the background / mean attention of the foreground``, in
            [0, 1]: 0 where the noun is looked at everywhere alike, near 1 where nowhere else. 0
            for a mask that is flat.
        area: Share of the image that is foreground, in [0, 1].
        overlap: Largest IoU of the foreground with that of another noun of the image, in [0, 1];
            0 for a noun alone. Near 1 two nouns share one mask, and at most one of them is right.
    """

    peakedness: float
    area: float
    overlap: float

    def to_json(self) -> dict[str, float]:
        """As a sample's ``meta`` keeps it: three decimals are more than it tells."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def mask_trust(maps: np.ndarray | Tensor, threshold: float = THRESHOLD) -> list[MaskTrust]:
    """Measure the masks of one image's nouns.

    Args:
        maps: Shape (K, h, w), *raw* attention (not negative), as `AttentionRecorder.masks`
            gives it: stretched maps have lost how high their background was.
        threshold: Of the foreground, after stretching each map to [0, 1].

    Returns:
        One for each noun.

    Raises:
        ValueError: If a value is negative or not finite, or the shape is another.
    """
    maps = torch.as_tensor(maps, dtype=torch.float64)
    if maps.ndim != 3 or not bool((maps >= 0).all()):
        raise ValueError(
            'mask_trust needs raw attention of shape (K, h, w), not negative; got '
            f'shape {tuple(maps.shape)}'
        )
    stretched, _ = minmax(maps)
    inside = (stretched >= threshold).flatten(1).double()
    sizes = inside.sum(1)
    common = inside @ inside.T
    overlap = common / (sizes[:, None] + sizes - common).clamp_min(1)
    overlap.fill_diagonal_(0)
    overlap = overlap.amax(1) if len(maps) else sizes
    measures = [peakedness(maps, threshold), inside.mean(1), overlap]
    return [MaskTrust(*row) for row in torch.stack(measures, dim=1).tolist()]

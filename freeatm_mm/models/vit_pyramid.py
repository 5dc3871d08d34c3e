"""Maps of several scales from a plain ViT, for FPN."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

__all__ = ['ViTPyramid']


@MODELS.register_module()
class ViTPyramid(BaseModule):
    """Rescales maps of a ViT, all of one resolution, one by each of the scales.

    As in "Benchmarking Detection Transfer Learning with Vision Transformers" (arXiv 2111.11429,
    section 2), which is how MAE was fine-tuned on COCO: transposed convolutions upwards, with group
    normalisation and GELU between two of them, and max pooling downwards. mmseg has the same
    (`Feature2Pyramid`), but with batch normalisation and at the price of importing mmseg.

    Args:
        channels: Channels C of the maps.
        scales: What each map's resolution is multiplied by: 4, 2, 1 or 0.5.
        groups: Of the group normalisation.
        init_cfg: See `mmengine.model.BaseModule`.

    Raises:
        ValueError: If a scale is another.
    """

    def __init__(
        self,
        channels: int,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        groups: int = 32,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)

        def double() -> nn.Module:
            return nn.ConvTranspose2d(channels, channels, 2, 2)

        makers = {
            4: lambda: nn.Sequential(double(), nn.GroupNorm(groups, channels), nn.GELU(), double()),
            2: double,
            1: nn.Identity,
            0.5: lambda: nn.MaxPool2d(2, 2),
        }
        unknown = [scale for scale in scales if scale not in makers]
        if unknown:
            raise ValueError(f'ViTPyramid: scale {unknown[0]} is unknown: use 4, 2, 1 or 0.5.')
        self.scales = nn.ModuleList(makers[scale]() for scale in scales)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Rescale.

        Args:
            maps: As many (B, C, H, W) as there are scales, from shallow to deep.

        Returns:
            For each scale s, (B, C, floor(s H), floor(s W)).

        Raises:
            ValueError: If there are more maps or fewer.
        """
        if len(maps) != len(self.scales):
            raise ValueError(
                f'ViTPyramid rescales {len(self.scales)} maps, not {len(maps)}: set '
                'out_indices of the backbone.'
            )
        return tuple(scale(x) for scale, x in zip(self.scales, maps))

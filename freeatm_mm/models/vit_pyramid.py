"""Maps of four scales from a plain ViT, for FPN and UPerNet."""
from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

__all__ = ['ViTPyramid']


@MODELS.register_module()
class ViTPyramid(BaseModule):
    """Rescales four maps of a ViT, all of one resolution, by 4, 2, 1 and 1/2.

    As in "Benchmarking Detection Transfer Learning with Vision Transformers" (arXiv 2111.11429,
    section 2), which is how MAE was fine-tuned on COCO: transposed convolutions upwards, with group
    normalisation and GELU between two of them, and max pooling downwards. mmseg has the same
    (`Feature2Pyramid`), but with batch normalisation and at the price of importing mmseg.

    Args:
        channels: Channels C of the maps.
        groups: Of the group normalisation.
        init_cfg: See `mmengine.model.BaseModule`.
    """

    def __init__(self, channels: int, groups: int = 32, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.scales = nn.ModuleList([
            nn.Sequential(nn.ConvTranspose2d(channels, channels, 2, 2),
                          nn.GroupNorm(groups, channels), nn.GELU(),
                          nn.ConvTranspose2d(channels, channels, 2, 2)),
            nn.ConvTranspose2d(channels, channels, 2, 2),
            nn.Identity(),
            nn.MaxPool2d(2, 2)])

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Rescale.

        Args:
            maps: Four (B, C, H, W), from shallow to deep.

        Returns:
            (B, C, 4H, 4W), (B, C, 2H, 2W), (B, C, H, W), (B, C, H // 2, W // 2).

        Raises:
            ValueError: If there are not four maps.
        """
        if len(maps) != len(self.scales):
            raise ValueError(f'ViTPyramid takes {len(self.scales)} maps, not {len(maps)}: set '
                             'out_indices of the backbone.')
        return tuple(scale(x) for scale, x in zip(self.scales, maps))

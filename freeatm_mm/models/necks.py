"""Attentive pooling of instances in front of any of mmpretrain's necks."""
from __future__ import annotations

from functools import cache

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor


def pool_instances(features: Tensor, masks: Tensor, places: Tensor | None = None) -> Tensor:
    """Attentive pooling, equation 2: z^m = sum_ij a^m_ij z_ij / sum_ij a^m_ij.

    One matrix product per image; the features are not copied per instance.

    Args:
        features: (B, C, h, w) feature maps.
        masks: (B, K, h, w) masks, not negative; or (B, K, 1, 1), which is the plain mean.
        places: (M,) which of the B * K masks are meant. Defaults to all.

    Returns:
        (M, C) one feature for each instance; zeros where a mask is zero everywhere.

    Raises:
        ValueError: If masks and features have different grids or numbers of images.
    """
    batch, channels, height, width = features.shape
    if masks.shape[-2:] == (1, 1):
        masks = masks.expand(-1, -1, height, width)
    if len(masks) != batch or masks.shape[-2:] != (height, width):
        raise ValueError(
            f"Masks of {len(masks)} images on a {masks.shape[-2]}x{masks.shape[-1]} grid don't "
            f'fit the feature maps of {batch} images, {height}x{width}: set grid_size of '
            f'PackFreeATMInputs to ({height}, {width}).')
    weights = masks.flatten(2).float()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    pooled = torch.bmm(weights.to(features.dtype), features.flatten(2).transpose(1, 2))
    pooled = pooled.flatten(0, 1)
    return pooled if places is None else pooled[places]


@MODELS.register_module()
class InstancePoolNeck(BaseModule):
    """Any of mmpretrain's pooling necks, with one feature per instance where masks are given.

    It *is* that neck: the same parameters under the same names, so that checkpoints are
    exchangeable, and without masks the same output bit for bit. With masks, equation 2 takes the
    place of the neck's average pooling and the rest of the neck (the MLP of section 3.3) follows.

    In a config that inherits a neck, `neck=dict(type='InstancePoolNeck', neck='MoCoV2Neck')` is all
    that changes.

    Args:
        neck: Registered name of the neck, for example 'MoCoV2Neck' or 'NonLinearNeck'.
        **kwargs: The neck's own arguments.

    Raises:
        ValueError: If no such neck is registered.
    """

    def __new__(cls, neck: str | None = None, **kwargs):
        # `neck` is missing where a copy of a finished neck is made.
        if neck is None:
            return super().__new__(cls)
        base = MODELS.get(neck)
        if base is None:
            raise ValueError(f'InstancePoolNeck: no neck {neck!r} is registered in mmpretrain.')
        return super().__new__(_with_pooling(base))

    def __init__(self, neck: str, **kwargs) -> None:
        super().__init__(**kwargs)

    def forward(self, x: tuple[Tensor], masks: Tensor | None = None,
                places: Tensor | None = None) -> tuple[Tensor]:
        """The neck's output, per image or per instance.

        Args:
            x: A tuple with one (B, C, h, w) feature map.
            masks: (B, K, h, w) masks, or None for the neck's own pooling.
            places: (M,) which of the B * K masks are meant. Defaults to all.

        Returns:
            A tuple with one tensor: (B, D) without masks, (M, D) with.
        """
        if masks is not None:
            # The neck's average pooling of a 1x1 map is the map itself.
            x = (pool_instances(x[-1], masks, places)[:, :, None, None], )
        return super().forward(x)


@cache
def _with_pooling(base: type) -> type:
    """A neck class with :class:`InstancePoolNeck` in front of it."""
    return type(f'InstancePool{base.__name__}', (InstancePoolNeck, base), {})


def check_pools_instances(model: torch.nn.Module) -> None:
    """Makes sure that a model's neck is an :class:`InstancePoolNeck`.

    Raises:
        TypeError: If not, saying what to write.
    """
    if not isinstance(model.neck, InstancePoolNeck):
        name = type(model.neck).__name__
        raise TypeError(f"{type(model).__name__}: the neck {name} can't pool instances: write "
                        f"neck=dict(type='InstancePoolNeck', neck='{name}', ...).")

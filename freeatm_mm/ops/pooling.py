"""Instance features: attentive pooling of a feature map by masks (Free-ATM, equation 2).

    >>> import torch
    >>> features = torch.randn(2, 64, 7, 7)  # two images
    >>> masks = [torch.rand(1, 3, 7, 7), None]  # three instances in one view; no masks
    >>> batch = pad_instances(masks, views=1)
    >>> pool_instances(features, batch.masks[0], batch.places).shape  # the second image is whole
    torch.Size([4, 64])

Shapes: B images, K the largest number of instances in one of them, M instances in all of them, V
views, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from freeatm_mm.ops.nouns import UNKNOWN_NOUN

__all__ = ['PaddedInstances', 'check_masks', 'pad_instances', 'pool_instances']


class PaddedInstances(NamedTuple):
    """The instances of B images in one tensor, image by image.

    Args:
        masks: (V, B, K, h, w) float32 masks, 0 where an image has fewer than K instances.
        places: (M,) int64, where the instances stand among the B * K places.
        nouns: (M,) int64, the noun of each instance, `UNKNOWN_NOUN` for a whole image.
    """

    masks: Tensor
    places: Tensor
    nouns: Tensor


def check_masks(masks: Tensor, *, signed: bool = False) -> None:
    """Refuse masks that no mean can be weighed by; those on a GPU, which it would wait for, pass.

    Under `torch.compile` and `torch.export`, which know no values, all pass.

    Args:
        masks: Of any shape and type.
        signed: Whether values may be negative, as they may where masks rank and weigh nothing.

    Raises:
        ValueError: If they lie on a CPU and are NaN, infinite or negative somewhere.
    """
    if not masks.is_cpu or not masks.numel() or torch.compiler.is_compiling():
        return
    lowest, highest = (float(value) for value in (masks.amin(), masks.amax()))
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ValueError('masks are NaN or infinite')
    if lowest < 0 and not signed:
        raise ValueError(
            f'masks are negative ({lowest:g}): a mean is weighed by them, so stretch them to [0, 1]'
        )


def pad_instances(
    masks: Sequence[Tensor | None],
    nouns: Sequence[Tensor | None] | None = None,
    *,
    views: int = 2,
    device: torch.device | str | None = None,
) -> PaddedInstances:
    """Put the masks of a batch, of any numbers of instances, into one tensor.

    An image without an instance gets one all-ones mask: it is pooled whole, so that every image
    contributes.

    Args:
        masks: For each of B images its (V, K_b, h, w) masks, finite and not negative, or None; K_b
            may be 0.
        nouns: For each image the (K_b,) int64 nouns of its instances; None where they are unknown.
        views: Number of views where no image has masks to tell it.
        device: Where the result is to lie; by default where the masks lie.

    Raises:
        ValueError: If there is no image, the masks have different grids or numbers of views, an
            image has another number of nouns, or masks are no weights (`check_masks`).
    """
    if not len(masks):
        raise ValueError('there are no images whose instances could be padded')
    found = [0 if mask is None else mask.shape[1] for mask in masks]
    given = [mask for mask, count in zip(masks, found) if mask is not None and count]
    shapes = {(len(mask), *mask.shape[2:]) for mask in given}
    if len(shapes) > 1:
        raise ValueError(
            f'The masks of one batch have different (views, height, width) {sorted(shapes)}: bring '
            'those of all images to one grid (in OpenMMLab, use the same PackFreeATMInputs).'
        )
    # Without a single mask all images are pooled whole; any grid gives the mean.
    views, height, width = shapes.pop() if shapes else (views, 1, 1)
    if device is None and given:
        device = given[0].device

    most = max(*found, 1)
    whole = torch.ones(views, 1, height, width, device=device)
    unknown = torch.full((1,), UNKNOWN_NOUN, device=device)
    places = torch.tensor(
        [
            image * most + number
            for image, count in enumerate(found)
            for number in range(max(count, 1))
        ],
        device=device,
    )
    padded = whole.new_zeros(views, len(found) * most, height, width)
    padded[:, places] = torch.cat(
        [
            whole if mask is None or not count else mask.to(whole)
            for mask, count in zip(masks, found)
        ],
        dim=1,
    )
    check_masks(padded)
    named = [None] * len(found) if nouns is None else nouns
    for image, (noun, count) in enumerate(zip(named, found)):
        if noun is not None and count not in (0, len(noun)):
            raise ValueError(f'image {image} has {count} masks and {len(noun)} nouns')
    numbers = torch.cat(
        [
            unknown.expand(max(count, 1)) if noun is None or not count else noun.to(unknown.device)
            for noun, count in zip(named, found)
        ]
    )
    return PaddedInstances(padded.unflatten(1, (len(found), most)), places, numbers)


def pool_instances(features: Tensor, masks: Tensor, places: Tensor | None = None) -> Tensor:
    """Pool attentively, equation 2: z^m = sum_ij a^m_ij z_ij / sum_ij a^m_ij.

    One matrix product per image; the features are not copied per instance. A mask's scale is
    without effect.

    Args:
        features: (B, C, h, w) feature maps.
        masks: (B, K, h, w) masks, finite and not negative (`check_masks`); or (B, K, 1, 1), which
            is the plain mean.
        places: (M,) which of the B * K masks are meant. Defaults to all.

    Returns:
        (M, C) one feature for each instance, of the features' type; zeros where a mask is zero
        everywhere.

    Raises:
        ValueError: If masks and features have different grids or numbers of images.
    """
    batch, _, height, width = features.shape
    if masks.shape[-2:] == (1, 1):
        masks = masks.expand(-1, -1, height, width)
    if len(masks) != batch or masks.shape[-2:] != (height, width):
        raise ValueError(
            f'the batch size is {len(masks)} and the grid {masks.shape[-2]}x{masks.shape[-1]} of '
            f'the masks, {batch} and {height}x{width} of the feature maps: set the grid of the '
            f'masks (in OpenMMLab, grid_size of PackFreeATMInputs) to ({height}, {width})'
        )
    weights = masks.flatten(2)
    weights = weights.double() if features.dtype == torch.float64 else weights.float()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    pooled = torch.bmm(weights.to(features.dtype), features.flatten(2).transpose(1, 2))
    pooled = pooled.flatten(0, 1)
    return pooled if places is None else pooled[places]

"""Arithmetic on attention masks: resize, normalise, quantise, binarise, box.

    >>> import numpy as np
    >>> maps = np.zeros((1, 4, 4), np.float32)
    >>> maps[0, 1:3, 2:] = 0.02  # raw attention
    >>> stretched, flat = minmax(maps)
    >>> box_of(binarize(stretched)[0])
    (0.5, 0.25, 1.0, 0.75)

All functions take a torch tensor or a numpy array and give back the same kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from freeatm_mm.paper import THRESHOLD

__all__ = [
    'THRESHOLD',
    'binarize',
    'box_of',
    'dequantize',
    'minmax',
    'peakedness',
    'quantize',
    'resize',
]

Array = TypeVar('Array', Tensor, np.ndarray)

# A map whose values differ by less, relative to the largest, shows float32 rounding and no object.
FLAT = 1e-6


def resize(maps: Array, size: tuple[int, int]) -> Array:
    """Resize maps bilinearly, with area averaging where they shrink.

    The operation is linear, so the resized sum of maps is the sum of resized maps.

    Args:
        maps: Shape (..., h, w), floating point.
        size: New `(height, width)` in pixels.

    Returns:
        The maps, shape (..., height, width), same type.
    """
    tensor, restore = _as_tensor(maps)
    height, width = tensor.shape[-2:]
    if (height, width) == tuple(size):
        return restore(tensor.clone())
    flat = tensor.reshape(-1, 1, height, width)
    if flat.shape[0] == 0:
        return restore(tensor.new_zeros(*tensor.shape[:-2], *size))
    shrinks = size[0] < height or size[1] < width
    flat = F.interpolate(
        flat, size=tuple(size), mode='bilinear', align_corners=False, antialias=shrinks
    )
    return restore(flat.reshape(*tensor.shape[:-2], *size))


def minmax(maps: Array) -> tuple[Array, Array]:
    """Stretch each map to [0, 1].

    Args:
        maps: Shape (..., h, w), finite.

    Returns:
        The stretched maps, and for each map (shape `...`, boolean) whether it was flat: all
        values the same but for float32 rounding. A flat map has no foreground to show, and
        stretching it would show noise, so it comes back as zeros.

    Raises:
        ValueError: If a value isn't finite.
    """
    tensor, restore = _as_tensor(maps)
    low, high = _range(tensor)
    flat = high - low <= FLAT * torch.maximum(low.abs(), high.abs())
    return restore(_stretch(tensor, low, high, flat)), restore(flat)


def quantize(maps: Array) -> tuple[Array, Array]:
    """Store each map in 8 bits between its own lowest and highest value.

    Args:
        maps: Shape (K, h, w), finite floating point.

    Returns:
        `levels`, uint8, shape (K, h, w), and `scales`, float32, shape (K, 2), each row
        `(low, high)`; a map is `low + (high - low) * levels / 255` up to half a level. A flat
        map has zeros for levels and is restored exactly.

    Raises:
        ValueError: If a value isn't finite.
    """
    tensor, restore = _as_tensor(maps)
    tensor = tensor.float()
    low, high = _range(tensor)
    levels = (_stretch(tensor, low, high, low == high) * 255).round().to(torch.uint8)
    return restore(levels), restore(torch.stack([low, high], dim=-1))


def dequantize(levels: Array, scales: Array) -> Array:
    """Restore maps from `quantize`.

    Args:
        levels: uint8, shape (K, h, w).
        scales: float32, shape (K, 2): the lowest and highest value of each map.

    Returns:
        The maps, float32, shape (K, h, w), off by at most `(high - low) / 255 / 2`.

    Raises:
        ValueError: If `levels` isn't uint8 or the two differ in length.
    """
    tensor, restore = _as_tensor(levels)
    ranges = torch.as_tensor(scales, dtype=torch.float32, device=tensor.device)
    if tensor.dtype != torch.uint8:
        raise ValueError(f'levels must be uint8, got {tensor.dtype}')
    wanted = tuple(tensor.shape[:-2]) + (2,)
    if ranges.shape != wanted:
        raise ValueError(
            f'scales must have shape {wanted} for levels of shape '
            f'{tuple(tensor.shape)}, got {tuple(ranges.shape)}'
        )
    low, high = ranges[..., 0, None, None], ranges[..., 1, None, None]
    return restore(low + (high - low) * (tensor.float() / 255))


def binarize(maps: Array, threshold: float = THRESHOLD) -> Array:
    """Tell foreground from background at a fixed threshold (paper, section 4).

    Args:
        maps: Values in [0, 1], for example from `minmax`; any shape.
        threshold: Values at or above it are foreground.

    Returns:
        Booleans, same shape.

    Raises:
        ValueError: If a value is outside [0, 1]: raw probabilities must be stretched first.
    """
    tensor, restore = _as_tensor(maps)
    if tensor.numel() and not bool(((tensor >= 0) & (tensor <= 1)).all()):
        raise ValueError(
            'binarize needs maps in [0, 1], got values from '
            f'{tensor.min().item():g} to {tensor.max().item():g}; call minmax first'
        )
    return restore(tensor >= threshold)


def peakedness(maps: Array, threshold: float = THRESHOLD) -> Array:
    """Tell how far each map can be trusted: how much less than its foreground its background has.

    Args:
        maps: Shape (K, h, w), raw attention, not negative.
        threshold: Of the foreground, after stretching each map to [0, 1].

    Returns:
        (K,) 1 - mean of the background / mean of the foreground, in [0, 1]: 0 where everything is
        looked at alike, near 1 where nothing else is. 0 for a flat map. Same type.
    """
    tensor, restore = _as_tensor(maps)
    stretched, flat = minmax(tensor)
    inside = (stretched >= threshold).flatten(1).to(tensor)
    values = tensor.flatten(1)
    front = (values * inside).sum(1) / inside.sum(1).clamp_min(1)
    back = (values * (1 - inside)).sum(1) / (1 - inside).sum(1).clamp_min(1)
    tiny = torch.finfo(tensor.dtype).tiny
    return restore(torch.where(flat, 0, 1 - back / front.clamp_min(tiny)))


def box_of(mask: Array) -> tuple[float, float, float, float] | None:
    """Find the smallest box round the foreground of a binary mask.

    Args:
        mask: Booleans, shape (h, w).

    Returns:
        `(x1, y1, x2, y2)` relative to the mask's width and height: outer edges of the first and
        last foreground pixels, so the box of a mask full of foreground is `(0, 0, 1, 1)`.
        `None` where there is no foreground.

    Raises:
        ValueError: If the mask isn't a boolean plane.
    """
    tensor, _ = _as_tensor(mask)
    if tensor.ndim != 2 or tensor.dtype != torch.bool:
        raise ValueError(
            'box_of needs one boolean mask of shape (h, w), got '
            f'{tensor.dtype} of shape {tuple(tensor.shape)}; call binarize first'
        )
    rows = tensor.any(1).nonzero().flatten().tolist()
    if not rows:
        return None
    columns = tensor.any(0).nonzero().flatten().tolist()
    height, width = tensor.shape
    return (
        columns[0] / width,
        rows[0] / height,
        (columns[-1] + 1) / width,
        (rows[-1] + 1) / height,
    )


def _as_tensor(maps: Tensor | np.ndarray) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The maps as a tensor, and the function that turns a result into the caller's kind."""
    if isinstance(maps, np.ndarray):
        return torch.from_numpy(maps), lambda tensor: tensor.numpy()
    return maps, lambda tensor: tensor


def _stretch(tensor: Tensor, low: Tensor, high: Tensor, flat: Tensor) -> Tensor:
    """Maps from [low, high] to [0, 1], and flat ones to 0."""
    span = torch.where(flat, 1, high - low)
    stretched = (tensor - low[..., None, None]) / span[..., None, None]
    # Rounding may pass the ends by a hair.
    return stretched.clamp(0, 1).masked_fill(flat[..., None, None], 0)


def _range(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each map."""
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError('a map holds values that are not finite')
    if tensor.shape[0] == 0 and tensor.ndim > 2:
        empty = tensor.new_zeros(tensor.shape[:-2])
        return empty, empty
    return tensor.amin((-2, -1)), tensor.amax((-2, -1))

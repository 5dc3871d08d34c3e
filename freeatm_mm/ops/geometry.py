"""Where a view lies in its image, and what a mask looks like in that view.

    >>> import numpy as np
    >>> masks = np.zeros((2, 64, 64), np.uint8)  # two nouns, as a store keeps them
    >>> masks[0, :32, :32] = masks[1, 32:, 32:] = 255
    >>> crop = crop_window(WHOLE, (0, 0, 240, 320), (480, 640))  # the upper left quarter, in pixels
    >>> views = masks_on_views(masks, [crop, flip_window(crop, 'horizontal')], (7, 7))
    >>> views.values.shape, views.kept.tolist()  # the second noun is in neither view
    ((2, 1, 7, 7), [0])

A *window* is four numbers (top, bottom, left, right), fractions of the image's height and width,
that say which part of the image a view shows. A flipped view has its two numbers swapped:
`left > right` is a view flipped from left to right. So any chain of crops, resizes and flips is
one window, and a mask of any resolution is brought to the view's feature grid in one step.

Shapes: K masks, V views, (gh, gw) the grid of an encoder's feature map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from freeatm_mm.ops.choices import check_choice
from freeatm_mm.paper import THRESHOLD

__all__ = [
    'MASK_VALUES',
    'WHOLE',
    'ViewMasks',
    'Window',
    'centred_boxes',
    'choose_object',
    'crop_window',
    'flip_window',
    'masks_on_views',
    'object_boxes',
    'view_masks',
    'visible_share',
]

Window = tuple[float, float, float, float]

#: The window of an image that was neither cropped nor flipped.
WHOLE: Window = (0.0, 1.0, 0.0, 1.0)

#: What a mask on the feature grid says: the noun's attention, that stretched to [0, 1], or 0 and 1.
MASK_VALUES = ('attention', 'normalized', 'binary')


#: The lowest level of a mask's foreground.
_FOREGROUND = math.ceil(THRESHOLD * 255)


class ViewMasks(NamedTuple):
    """The masks of the K instances that every view shows.

    Args:
        values: (V, K, gh, gw) float32 masks on the feature grid.
        visible: (V, K) float32, the share of each instance's foreground that each view shows.
        kept: (K,) int64, which of the masks given these are.
    """

    values: np.ndarray
    visible: np.ndarray
    kept: np.ndarray


def crop_window(window: Window, box: tuple[int, int, int, int], size: tuple[int, int]) -> Window:
    """Return the window after cutting a box out of what a window shows.

    Args:
        window: Window before the crop.
        box: (top, left, height, width) of the crop, in pixels.
        size: (height, width) of the picture that is cropped, in pixels.

    Returns:
        Window after the crop.
    """
    top, bottom, left, right = window
    y_scale, x_scale = (bottom - top) / size[0], (right - left) / size[1]
    y, x, height, width = box
    return (
        top + y * y_scale,
        top + (y + height) * y_scale,
        left + x * x_scale,
        left + (x + width) * x_scale,
    )


def flip_window(window: Window, direction: str) -> Window:
    """Return the window after a flip.

    Args:
        window: Window before the flip.
        direction: 'horizontal', 'vertical' or 'diagonal' (both), as mmcv's `RandomFlip` says.

    Returns:
        Window after the flip.

    Raises:
        ValueError: For another direction.
    """
    if direction not in ('horizontal', 'vertical', 'diagonal'):
        raise ValueError(
            f"Flip direction {direction!r} is unknown: use 'horizontal', 'vertical' or 'diagonal'."
        )
    top, bottom, left, right = window
    if direction != 'horizontal':
        top, bottom = bottom, top
    if direction != 'vertical':
        left, right = right, left
    return top, bottom, left, right


@lru_cache(maxsize=16)
def _borders(cells: int) -> np.ndarray:
    """(cells + 1, 1) borders of equal cells of [0, 1]."""
    return np.linspace(0.0, 1.0, cells + 1)[:, None]


@lru_cache(maxsize=16)
def _cells(length: int) -> np.ndarray:
    """(length,) where each cell starts."""
    return np.arange(length, dtype=np.float64)


@lru_cache(maxsize=16)
def _ones(length: int) -> np.ndarray:
    return np.ones(length, np.float32)


def _overlaps(start: np.ndarray, stop: np.ndarray, cells: int, length: int) -> np.ndarray:
    """Measure how much of each cell of a mask lies in each cell of a view, along one side.

    Args:
        start: (..., 1, 1) where the views start, as fractions of the mask's side.
        stop: (..., 1, 1) where they stop; before `start` in a flipped view.
        cells: Number of cells of the view along this side, G.
        length: Number of cells of the mask along this side, n.

    Returns:
        (..., G, n) float32: the shares of the mask's cells in a cell of the view; they sum to 1.
    """
    # How far each border of the view reaches into each cell of the mask, in [0, 1]: neighbouring
    # borders differ by the overlap. In a flipped view both difference and length are negative.
    extent = (stop - start) * length
    reach = start * length + extent * _borders(cells) - _cells(length)
    np.minimum(np.maximum(reach, 0.0, out=reach), 1.0, out=reach)
    overlaps = reach[..., 1:, :] - reach[..., :-1, :]
    overlaps *= cells / extent
    return overlaps.astype(np.float32)


def masks_on_views(
    masks: np.ndarray,
    windows: Sequence[Window] | np.ndarray,
    grid: tuple[int, int],
    *,
    scales: np.ndarray | None = None,
    values: str = 'normalized',
    min_visible: float = 0.05,
) -> ViewMasks:
    """Bring stored masks to the feature grid of every view, without those that a view cut away.

    An instance that one view cut away is left out in all, as a pair needs both. A mask that is flat
    has no foreground and is left out too.

    Args:
        masks: (K, h, w) uint8 masks over the whole image: 0 is the noun's lowest attention, 255 its
            highest.
        windows: (V, 4) one window for each view, or (V, K, 4) one for each mask, where the masks
            are those of several images.
        grid: (height, width) of the encoder's feature map.
        scales: (K, 2) float32, each noun's lowest and highest attention; for `values` 'attention'.
        values: 'attention' is the averaged attention itself, the paper's choice for contrastive
            learning and MAE (section 3.3); 'normalized' is stretched to [0, 1] per noun; 'binary'
            is the share of each cell where that is 0.45 or more (section 4.1).
        min_visible: Smallest share of the foreground that each view must show, in (0, 1].

    Raises:
        ValueError: If `values` is unknown, or 'attention' without scales.
    """
    check_choice('values', values, MASK_VALUES)
    count = len(masks)
    # Few calls on large arrays: for one image's masks, calling NumPy is most of the time.
    parts = np.empty((2 * count, *masks.shape[1:]), np.float32)
    parts[:count] = masks >= _FOREGROUND
    parts[count:] = masks
    windows = np.asarray(windows, np.float64)
    twice = windows if windows.ndim == 2 else np.concatenate((windows, windows), 1)
    both = view_masks(parts, twice, grid)
    in_view, levels = both[:, :count], both[:, count:]
    visible = visible_share(parts[:count], windows, in_view)
    kept = (visible.min(0) >= min_visible).nonzero()[0]
    if len(kept) < count:
        in_view, levels, visible = in_view[:, kept], levels[:, kept], visible[:, kept]
        scales = None if scales is None else scales[kept]
    if values == 'binary':
        return ViewMasks(np.ascontiguousarray(in_view), visible, kept)
    result = levels * np.float32(1 / 255)
    if values == 'attention':
        if scales is None:
            raise ValueError("values 'attention' needs the scales of the masks")
        lowest, highest = scales.T[:, :, None, None]
        result *= highest - lowest
        result += lowest
    return ViewMasks(result, visible, kept)


def view_masks(
    masks: np.ndarray, windows: Sequence[Window] | np.ndarray, grid: tuple[int, int]
) -> np.ndarray:
    """Take the mean of every mask in every cell of every view's grid, by exact area integration.

    A mask is taken as constant within each of its cells. The integral over a cell of the grid is
    separable: one matrix for the rows, one for the columns.

    Args:
        masks: (K, h, w) masks over the whole image.
        windows: (V, 4) one window for each view, or (V, K, 4) one for each mask.
        grid: (height, width) of the grid wanted, for example of the encoder's feature map.

    Returns:
        (V, K, *grid) float32, in the masks' own units.
    """
    windows = np.asarray(windows, dtype=np.float64)
    (height, width), (rows, columns) = masks.shape[1:], grid
    sides = windows.reshape(-1, 2, 2, 1, 1)
    if height == width and rows == columns:
        across = _overlaps(sides[:, :, 0], sides[:, :, 1], rows, height)
        down, across = across[:, 0], across[:, 1]
    else:
        down = _overlaps(sides[:, 0, 0], sides[:, 0, 1], rows, height)
        across = _overlaps(sides[:, 1, 0], sides[:, 1, 1], columns, width)
    masks = masks.astype(np.float32, copy=False)
    each = windows.shape[:2] if windows.ndim == 3 else (len(windows), 1)
    return (
        down.reshape(*each, rows, height)
        @ masks
        @ across.swapaxes(1, 2).reshape(*each, width, columns)
    )


def visible_share(
    foregrounds: np.ndarray, windows: Sequence[Window] | np.ndarray, in_view: np.ndarray
) -> np.ndarray:
    """Return the share of every instance's foreground that every view shows.

    Args:
        foregrounds: (K, h, w) 1 where the instance is, 0 elsewhere.
        windows: (V, 4) one window for each view, or (V, K, 4) one for each mask.
        in_view: (V, K, gh, gw) `view_masks` of the foregrounds, on any grid.

    Returns:
        (V, K) float32 in [0, 1]; 0 for an instance without any foreground.
    """
    windows = np.asarray(windows)
    sides = windows[..., 1::2] - windows[..., ::2]
    area = np.abs(sides[..., 0] * sides[..., 1])
    pixels = foregrounds.shape[-2] * foregrounds.shape[-1]
    cells = in_view.shape[-2] * in_view.shape[-1]
    # A product sums zeros and ones as exactly, and several times faster; and sums over one flat
    # axis take half the time of NumPy's means over two, on arrays this small.
    whole = foregrounds.reshape(-1, pixels) @ _ones(pixels) / pixels
    shown = in_view.reshape(*in_view.shape[:2], cells).sum(2) / cells
    shown *= area.astype(np.float32).reshape(len(windows), -1)
    shown /= np.maximum(whole, 1e-12)
    return np.minimum(shown, 1.0, out=shown)


def centred_boxes(masks: np.ndarray, area: float | None) -> np.ndarray:
    """Put a box in the centre in place of each mask, of the image's proportions.

    Args:
        masks: (K, h, w) uint8 masks.
        area: Share of the image that each box covers; None for that of the mask's own foreground
            (a mask without one stays without).

    Returns:
        (K, h, w) uint8: 255 inside, 0 outside, and the share that is covered where a border runs
        through a cell.
    """
    count, height, width = masks.shape
    areas = (
        (masks >= THRESHOLD * 255).reshape(count, -1).mean(1)
        if area is None
        else np.full(count, area)
    )
    sides = np.sqrt(areas)[:, None]  # the box's height and width, as shares of the image's
    rows, columns = (
        np.clip(length * (1 + sides) / 2 - _cells(length), 0, 1)
        - np.clip(length * (1 - sides) / 2 - _cells(length), 0, 1)
        for length in (height, width)
    )
    return np.rint(255 * rows[:, :, None] * columns[:, None]).astype(np.uint8)


def choose_object(masks: np.ndarray, draw: float, share: float = 1.0) -> np.ndarray | None:
    """Choose the object that an image's crops are to lie around, all nouns alike.

    Args:
        masks: (K, h, w) uint8 masks.
        draw: A random number in [0, 1).
        share: Probability that the crops lie around an object at all.

    Returns:
        (h, w) uint8, the noun's mask where its foreground is and 0 elsewhere; None if no noun is
        chosen, or none has a foreground.
    """
    if draw >= share:
        return None
    foregrounds = np.where(masks >= THRESHOLD * 255, masks, np.uint8(0))
    found = np.flatnonzero(foregrounds.any((1, 2)))
    if not len(found):
        return None
    return foregrounds[found[int(draw / share * len(found))]]


def object_boxes(boxes: np.ndarray, size: tuple[int, int], weights: np.ndarray) -> np.ndarray:
    """Move crops so that their centres are distributed as an object is.

    No further random number is needed: the place of a random crop among all that are possible, from
    the top and from the left, becomes the same quantile of the object's rows, and of its columns
    within that row. So sizes stay, and whatever is drawn later stays as well. A crop that would
    reach over the edge is moved inside; its centre's point of the object is in it all the same.

    Args:
        boxes: (B, 4) int, random crops: top, left, height and width in pixels.
        size: (height, width) of the pictures.
        weights: (B, h, w) how likely each cell of the picture is to hold a centre, not negative;
            where all are 0 the crop stays.

    Returns:
        (B, 4) int64 boxes.
    """
    boxes = np.asarray(boxes, np.int64)
    free = np.array(size) - boxes[:, 2:]  # by how much each can be moved
    quantiles = (boxes[:, :2] + 0.5) / (free + 1)
    weights = weights.astype(np.float64)
    rows, down = _quantile(weights.sum(2), quantiles[:, 0])
    _, across = _quantile(weights[np.arange(len(boxes)), rows], quantiles[:, 1])
    centres = np.stack([down, across], 1) * size
    corners = np.clip(np.rint(centres - boxes[:, 2:] / 2).astype(np.int64), 0, free)
    chosen = np.asarray(weights.any((1, 2)))
    return np.concatenate([np.where(chosen[:, None], corners, boxes[:, :2]), boxes[:, 2:]], 1)


def _quantile(weights: np.ndarray, quantiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where quantiles (B,) of weights (B, n) over a line lie: the cell, and the place in [0, 1]."""
    ends = weights.cumsum(1)
    wanted = quantiles * ends[:, -1]
    cells = np.minimum((ends <= wanted[:, None]).sum(1), weights.shape[1] - 1)
    each = np.arange(len(weights))
    inside = weights[each, cells]
    before = ends[each, cells] - inside
    return cells, (cells + (wanted - before) / np.maximum(inside, 1e-12)) / weights.shape[1]

"""Where a view lies in its image, and what a mask looks like in that view.

A *window* is four numbers (top, bottom, left, right), fractions of the image's height and width,
that say which part of the image a view shows. A flipped view has its two numbers swapped:
`left > right` is a view flipped from left to right. So any chain of crops, resizes and flips is
one window, and a mask of any resolution is brought to the view's feature grid in one step.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from freeatm_mm.attention.masks import THRESHOLD

WHOLE = (0.0, 1.0, 0.0, 1.0)
"""The window of an image that was neither cropped nor flipped."""


def crop_window(
    window: tuple[float, float, float, float], box: tuple[int, int, int, int], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Window after cutting a box out of what a window shows.

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


def flip_window(
    window: tuple[float, float, float, float], direction: str
) -> tuple[float, float, float, float]:
    """Window after a flip.

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


def _overlaps(start: np.ndarray, stop: np.ndarray, cells: int, length: int) -> np.ndarray:
    """How much of each cell of a mask lies in each cell of a view, along one side.

    Args:
        start: (V, 1, 1) where the views start, as fractions of the mask's side.
        stop: (V, 1, 1) where they stop; before `start` in a flipped view.
        cells: Number of cells of the view along this side, G.
        length: Number of cells of the mask along this side, n.

    Returns:
        (V, G, n) float32: the shares of the mask's cells in a cell of the view; they sum to 1.
    """
    # How far each border of the view reaches into each cell of the mask, in [0, 1]: neighbouring
    # borders differ by the overlap. In a flipped view both difference and length are negative.
    extent = (stop - start) * length
    reach = start * length + extent * _borders(cells) - _cells(length)
    np.minimum(np.maximum(reach, 0.0, out=reach), 1.0, out=reach)
    return ((reach[:, 1:] - reach[:, :-1]) * (cells / extent)).astype(np.float32)


def view_masks(masks: np.ndarray, windows: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Mean of every mask in every cell of every view's grid, by exact area integration.

    A mask is taken as constant within each of its cells. The integral over a cell of the grid is
    separable: one matrix for the rows, one for the columns.

    Args:
        masks: (K, h, w) masks over the whole image.
        windows: (V, 4) one window for each view.
        grid: (height, width) of the grid wanted, for example of the encoder's feature map.

    Returns:
        (V, K, *grid) float32, in the masks' own units.
    """
    top, bottom, left, right = np.asarray(windows, dtype=np.float64).T[:, :, None, None]
    rows = _overlaps(top, bottom, grid[0], masks.shape[1])
    columns = _overlaps(left, right, grid[1], masks.shape[2])
    masks = masks.astype(np.float32, copy=False)
    return rows[:, None] @ masks @ columns.transpose(0, 2, 1)[:, None]


def visible_share(foregrounds: np.ndarray, windows: np.ndarray, in_view: np.ndarray) -> np.ndarray:
    """Share of every instance's foreground that every view shows.

    Args:
        foregrounds: (K, h, w) 1 where the instance is, 0 elsewhere.
        windows: (V, 4) one window for each view.
        in_view: (V, K, gh, gw) `view_masks` of the foregrounds, on any grid.

    Returns:
        (V, K) float32 in [0, 1]; 0 for an instance without any foreground.
    """
    top, bottom, left, right = np.asarray(windows).T[:, :, None]
    area = np.abs((bottom - top) * (right - left))
    # Sums over one flat axis: NumPy's means over several take twice as long on arrays this small.
    whole = foregrounds.reshape(len(foregrounds), -1).sum(1) / foregrounds[0].size
    shown = in_view.reshape(*in_view.shape[:2], -1).sum(2) / in_view[0, 0].size
    return np.minimum(shown * area.astype(np.float32) / np.maximum(whole, 1e-12), 1.0)


def centred_boxes(masks: np.ndarray, area: float | None) -> np.ndarray:
    """A box in the centre in place of each mask, of the image's proportions.

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

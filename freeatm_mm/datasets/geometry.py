"""Where a view lies in its image, and what a mask looks like in that view.

A *window* is four numbers (top, bottom, left, right), fractions of the image's height and width,
that say which part of the image a view shows. A flipped view has its two numbers swapped:
`left > right` is a view flipped from left to right. So any chain of crops, resizes and flips is
one window, and a mask of any resolution is brought to the view's feature grid in one step.
"""
from __future__ import annotations

import numpy as np

WHOLE = (0.0, 1.0, 0.0, 1.0)
"""The window of an image that was neither cropped nor flipped."""


def crop_window(window: tuple[float, float, float, float], box: tuple[int, int, int, int],
                size: tuple[int, int]) -> tuple[float, float, float, float]:
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
    return (top + y * y_scale, top + (y + height) * y_scale,
            left + x * x_scale, left + (x + width) * x_scale)


def flip_window(window: tuple[float, float, float, float],
                direction: str) -> tuple[float, float, float, float]:
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
        raise ValueError(f"Flip direction {direction!r} is unknown: use 'horizontal', 'vertical' "
                         "or 'diagonal'.")
    top, bottom, left, right = window
    if direction != 'horizontal':
        top, bottom = bottom, top
    if direction != 'vertical':
        left, right = right, left
    return top, bottom, left, right


def _reach(start: np.ndarray, stop: np.ndarray, cells: int, length: int) -> np.ndarray:
    """How far each cell border of a view reaches into each cell of a mask.

    Args:
        start: (V,) where the views start, as fractions of the mask's side.
        stop: (V,) where they stop; smaller than `start` in a flipped view.
        cells: Number of cells of the view along this side, G.
        length: Number of cells of the mask along this side, n.

    Returns:
        (V, G + 1, n): for border g and mask cell i the part of the cell that lies before the
        border, in [0, 1].
    """
    steps = np.linspace(0.0, 1.0, cells + 1)
    borders = (start[:, None] + (stop - start)[:, None] * steps) * length
    return np.clip(borders[:, :, None] - np.arange(length), 0.0, 1.0)


def view_masks(masks: np.ndarray, windows: np.ndarray,
               grid: tuple[int, int]) -> np.ndarray:
    """Mean of every mask in every cell of every view's grid, by exact area integration.

    A mask is taken as constant within each of its cells. The integral over a grid cell is
    separable, a matrix for the rows and one for the columns, and flips come out of the sign.

    Args:
        masks: (K, h, w) masks over the whole image, any real type.
        windows: (V, 4) one window for each view.
        grid: (height, width) of the grid wanted, for example of the encoder's feature map.

    Returns:
        (V, K, *grid) float32, in the masks' own units.
    """
    windows = np.asarray(windows, dtype=np.float64)
    top, bottom, left, right = windows.T
    height, width = masks.shape[-2:]
    rows = np.diff(_reach(top, bottom, grid[0], height), axis=1)
    rows *= (grid[0] / (height * (bottom - top)))[:, None, None]
    columns = np.diff(_reach(left, right, grid[1], width), axis=1)
    columns *= (grid[1] / (width * (right - left)))[:, None, None]
    rows, columns = rows.astype(np.float32), columns.astype(np.float32)
    masks = masks.astype(np.float32, copy=False)
    return rows[:, None] @ masks @ columns.transpose(0, 2, 1)[:, None]


def visible_share(foregrounds: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Share of every instance's foreground that every view shows.

    Args:
        foregrounds: (K, h, w) bool, True where the instance is.
        windows: (V, 4) one window for each view.

    Returns:
        (V, K) float32 in [0, 1]; 0 for an instance without any foreground.
    """
    windows = np.asarray(windows, dtype=np.float64)
    top, bottom, left, right = windows.T
    height, width = foregrounds.shape[-2:]
    rows = np.abs(np.diff(_reach(top, bottom, 1, height), axis=1)[:, 0])
    columns = np.abs(np.diff(_reach(left, right, 1, width), axis=1)[:, 0])
    foregrounds = foregrounds.astype(np.float32)
    shown = ((rows.astype(np.float32)[:, None, None] @ foregrounds)[:, :, 0]
             * columns.astype(np.float32)[:, None]).sum(-1)
    total = foregrounds.sum((1, 2))
    return np.minimum(shown / np.maximum(total, 1e-12), 1.0)

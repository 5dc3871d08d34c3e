"""Masks against images: what happens to an image's pixels must happen to its masks."""

import math

import numpy as np
import pytest
from helpers.examples import examples
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.datasets import FreeATMRandomFlip, FreeATMRandomResizedCrop
from freeatm_mm.ops.geometry import (
    WHOLE,
    centred_boxes,
    crop_window,
    flip_window,
    view_masks,
    visible_share,
)

DIRECTIONS = ('horizontal', 'vertical', 'diagonal')


def reference_masks(masks, window, grid):
    """Area integration cell by cell, in plain Python; masks (K, h, w)."""
    top, bottom, left, right = window
    height, width = masks.shape[1:]
    result = np.zeros((len(masks), *grid))
    for row in range(grid[0]):
        for column in range(grid[1]):
            y0, y1 = sorted(top + (bottom - top) * (row + i) / grid[0] for i in (0, 1))
            x0, x1 = sorted(left + (right - left) * (column + i) / grid[1] for i in (0, 1))
            y0, y1, x0, x1 = y0 * height, y1 * height, x0 * width, x1 * width
            for y in range(max(math.floor(y0), 0), min(math.ceil(y1), height)):
                for x in range(max(math.floor(x0), 0), min(math.ceil(x1), width)):
                    overlap = (min(y1, y + 1) - max(y0, y)) * (min(x1, x + 1) - max(x0, x))
                    result[:, row, column] += masks[:, y, x] * overlap
            result[:, row, column] /= (y1 - y0) * (x1 - x0)
    return result


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def windows(draw):
    """A part of an image, flipped or not."""
    ends = st.tuples(st.integers(0, 20), st.integers(0, 20)).filter(lambda pair: pair[0] != pair[1])
    return tuple(number / 20 for pair in (draw(ends), draw(ends)) for number in pair)


@examples(60)
@given(sizes, sizes, st.lists(windows(), min_size=1, max_size=3), st.integers(0, 2**31))
def test_view_masks_equal_plain_integration(size, grid, views, seed):
    masks = np.random.default_rng(seed).uniform(size=(2, *size))
    expected = [reference_masks(masks, window, grid) for window in views]
    np.testing.assert_allclose(view_masks(masks, np.array(views), grid), expected, atol=1e-5)


def test_view_masks_equal_supersampling():
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 256, (3, 6, 8), dtype=np.uint8)
    fine = masks.repeat(40, axis=1).repeat(30, axis=2)  # 240 x 240
    crop = fine[:, 33:213, 21:189][:, :, ::-1]  # flipped from left to right
    expected = crop.reshape(3, 4, 45, 6, 28).mean((2, 4))
    window = (33 / 240, 213 / 240, 189 / 240, 21 / 240)
    np.testing.assert_allclose(view_masks(masks, [window], (4, 6))[0], expected, rtol=1e-5)


@examples(40)
@given(st.integers(8, 30), st.integers(8, 30), st.integers(2, 6), st.integers(0, 2**31))
def test_masks_follow_crop_and_flip_of_an_image(height, width, grid, seed):
    """The mask is the image itself: cropped, shrunk by area and flipped, they must stay equal."""
    np.random.seed(seed)
    image = np.random.uniform(size=(height, width, 3)).astype(np.float32)
    crop = FreeATMRandomResizedCrop(
        grid, crop_ratio_range=(0.9, 1.0), interpolation='area', aspect_ratio_range=(0.9, 1.1)
    )
    flip = FreeATMRandomFlip(prob=0.9, direction=DIRECTIONS[seed % 3])
    results = flip(crop(dict(img=image)))
    masks = view_masks(image.transpose(2, 0, 1), [results['window']], (grid, grid))[0]
    np.testing.assert_allclose(masks, results['img'].transpose(2, 0, 1), atol=1e-4)


@examples(40)
@given(
    st.lists(st.sampled_from(('crop', *DIRECTIONS)), min_size=1, max_size=6), st.integers(0, 2**31)
)
def test_window_of_any_chain_says_where_pixels_come_from(chain, seed):
    """Pixels hold their own position; after any chain the window must predict it."""
    np.random.seed(seed)
    size = 64
    position = (np.arange(size, dtype=np.float32) + 0.5) / size
    image = np.stack(np.broadcast_arrays(position[:, None], position, 0.0), axis=-1)
    results, crops = dict(img=np.ascontiguousarray(image)), 0
    for step in chain:
        if step == 'crop':
            results = FreeATMRandomResizedCrop(size, crop_ratio_range=(0.3, 1.0))(results)
            crops += 1
        else:
            results = FreeATMRandomFlip(prob=1.0, direction=step)(results)
    top, bottom, left, right = results.get('window', WHOLE)
    steps = (np.arange(size) + 0.5) / size
    # Bilinear interpolation keeps a ramp but for half a pixel at the borders of each crop.
    slack = 0.5 * crops / size + 1e-5
    rows, columns = results['img'][:, :, 0], results['img'][:, :, 1]
    np.testing.assert_allclose(
        rows, (top + (bottom - top) * steps)[:, None].repeat(size, 1), atol=slack
    )
    np.testing.assert_allclose(
        columns, (left + (right - left) * steps)[None].repeat(size, 0), atol=slack
    )


@examples(60)
@given(
    st.integers(0, 10),
    st.integers(1, 10),
    st.integers(0, 10),
    st.integers(1, 10),
    st.sampled_from(DIRECTIONS),
)
def test_visible_share_counts_pixels(y, height, x, width, direction):
    rng = np.random.default_rng(y * 31 + x)
    foregrounds = (rng.uniform(size=(3, 20, 20)) > 0.6).astype(np.float32)
    foregrounds[2] = 0
    window = flip_window(crop_window(WHOLE, (y, x, height, width), (20, 20)), direction)
    shares = visible_share(foregrounds, [window], view_masks(foregrounds, [window], (3, 2)))[0]
    inside = foregrounds[:2, y : y + height, x : x + width].sum((1, 2))
    np.testing.assert_allclose(shares[:2], inside / foregrounds[:2].sum((1, 2)), atol=1e-5)
    assert shares[2] == 0


def test_unknown_flip_is_refused():
    with pytest.raises(ValueError, match='upside-down'):
        flip_window(WHOLE, 'upside-down')


@pytest.mark.parametrize('size', [(8, 8), (16, 9), (1, 5), (64, 64)])
@pytest.mark.parametrize('area', [0.04, 0.25, 0.5, 0.9, 1.0])
def test_centred_boxes(size, area):
    """Area, place and proportions, cell by cell."""
    boxes = centred_boxes(np.zeros((2, *size), np.uint8), area)
    assert boxes.shape == (2, *size) and boxes.dtype == np.uint8
    side = math.sqrt(area)
    edges = [np.linspace(0, 1, length + 1) for length in size]
    covered = [
        np.maximum(np.minimum(edge[1:], (1 + side) / 2) - np.maximum(edge[:-1], (1 - side) / 2), 0)
        * length
        for edge, length in zip(edges, size)
    ]
    expected = 255 * np.outer(*covered)
    for box in boxes:
        np.testing.assert_allclose(box, expected, atol=0.5 + 1e-6)
        assert box.mean() / 255 == pytest.approx(area, abs=0.5 / 255)


def test_centred_boxes_of_the_masks_own_area():
    masks = np.zeros((3, 8, 8), np.uint8)
    masks[0, :2, :2] = 115  # foreground begins at 0.45 of 255
    masks[1] = 114
    masks[2, :, 4:] = 255
    boxes = centred_boxes(masks, None)
    np.testing.assert_allclose(boxes.mean((1, 2)) / 255, [4 / 64, 0, 0.5], atol=1 / 255)
    assert (boxes[0][3:5, 3:5] == 255).all() and boxes[0].sum() == 4 * 255

"""Masks on views against plain integration, cell by cell."""

import math

import numpy as np
import pytest
from helpers.examples import examples
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.ops import (
    MASK_VALUES,
    WHOLE,
    centred_boxes,
    choose_object,
    crop_window,
    flip_window,
    masks_on_views,
    object_boxes,
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


def brute_masks(masks, windows, grid, scales, values, min_visible):
    """The masks that stay, one instance and one view at a time."""
    foregrounds = (masks >= 0.45 * 255).astype(float)
    kept, found, shares = [], [], []
    for k in range(len(masks)):
        shown = []
        for top, bottom, left, right in windows:
            window = (top, bottom, left, right)
            area = abs((bottom - top) * (right - left))
            inside = reference_masks(foregrounds[k : k + 1], window, grid).mean() * area
            shown.append(inside / foregrounds[k].mean() if foregrounds[k].any() else 0)
        if min(shown) < min_visible:
            continue
        source = foregrounds[k] if values == 'binary' else masks[k] / 255
        on_grid = np.stack([reference_masks(source[None], window, grid)[0] for window in windows])
        if values == 'attention':
            on_grid = scales[k, 0] + (scales[k, 1] - scales[k, 0]) * on_grid
        kept.append(k), found.append(on_grid), shares.append(shown)
    return kept, found, shares


@pytest.mark.parametrize('values', MASK_VALUES)
@pytest.mark.parametrize('min_visible', [0.05, 0.36])
def test_masks_on_views_equal_plain_integration(values, min_visible):
    rng = np.random.default_rng(3)
    masks = rng.integers(0, 256, (5, 6, 7), dtype=np.uint8)
    masks[1] = 0
    masks[1, :2, :2] = 255  # in a corner that a view cuts away
    masks[3] = 90  # no foreground
    masks[4, :, :3] = 0  # partly cut away
    scales = np.sort(rng.uniform(0, 0.02, (5, 2)), axis=1).astype(np.float32)
    windows = [WHOLE, (0.4, 1.0, 0.95, 0.35)]
    views = masks_on_views(
        masks, windows, (3, 4), scales=scales, values=values, min_visible=min_visible
    )
    kept, expected, shares = brute_masks(masks, windows, (3, 4), scales, values, min_visible)
    assert views.kept.tolist() == kept and kept and 1 not in kept and 3 not in kept
    assert views.values.dtype == views.visible.dtype == np.float32
    np.testing.assert_allclose(views.values.swapaxes(0, 1), expected, atol=1e-6)
    np.testing.assert_allclose(views.visible.T, shares, atol=1e-6)


def test_nothing_left_is_an_empty_result():
    masks = np.zeros((2, 4, 4), np.uint8)
    views = masks_on_views(masks, [WHOLE, WHOLE], (2, 3))
    assert views.values.shape == (2, 0, 2, 3) and views.visible.shape == (2, 0)
    assert views.kept.tolist() == []


def test_wrong_values_are_told():
    masks = np.zeros((1, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="values 'soft' is unknown: use one of attention, "):
        masks_on_views(masks, [WHOLE], (2, 2), values='soft')
    with pytest.raises(ValueError, match='needs the scales'):
        masks_on_views(masks, [WHOLE], (2, 2), values='attention')


def test_all_places_of_a_crop_become_the_places_of_an_object():
    """Every random crop of one pixel, once each: as many centres in each cell as it weighs."""
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 9, (8, 8)) * (rng.random((8, 8)) < 0.5)
    top, left = (part.ravel() for part in np.mgrid[:64, :64])
    boxes = np.stack([top, left, np.ones_like(top), np.ones_like(top)], 1)
    moved = object_boxes(boxes, (64, 64), np.broadcast_to(weights, (4096, 8, 8)))
    counts = np.histogram2d(*moved[:, :2].T, bins=8, range=[(0, 64)] * 2)[0]
    np.testing.assert_allclose(counts / 4096, weights / weights.sum(), atol=0.02)


def test_a_crop_keeps_its_size_stays_inside_and_holds_a_point_of_the_object():
    rng = np.random.default_rng(1)
    size = np.array([30, 50])
    sides = np.stack([rng.integers(1, 31, 400), rng.integers(1, 51, 400)], 1)
    corners = (rng.random((400, 2)) * (size - sides + 1)).astype(int)
    weights = (rng.random((400, 6, 5)) < 0.1) * rng.random((400, 6, 5))
    boxes = np.concatenate([corners, sides], 1)
    moved = object_boxes(boxes, tuple(size), weights)
    assert (moved[:, 2:] == sides).all()
    assert (moved[:, :2] >= 0).all() and (moved[:, :2] + sides <= size).all()
    for (top, left, height, width), weight, box in zip(moved, weights, boxes):
        if not weight.any():
            assert (box == (top, left, height, width)).all()
            continue
        rows, columns = np.nonzero(weight)
        y, x = rows * 5, columns * 10  # cells of 5 x 10 pixels
        held = (y < top + height) & (y + 5 > top) & (x < left + width) & (x + 10 > left)
        assert held.any()


def test_each_noun_with_a_foreground_is_chosen_as_often():
    masks = np.zeros((3, 4, 4), np.uint8)
    masks[0, 0], masks[2, 3, 3] = 200, 255  # the second has none
    draws = np.arange(100) / 100
    chosen = [choose_object(masks, draw, 0.5) for draw in draws]
    rows = [None if part is None else int(part.argmax()) for part in chosen]
    assert [rows.count(value) for value in (0, 15, None)] == [25, 25, 50]
    assert choose_object(masks[1:2], 0.0) is None and choose_object(masks[:0], 0.0) is None

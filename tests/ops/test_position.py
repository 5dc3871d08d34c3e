"""Blocks of objects, and the sentences that say them."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.examples import examples
from helpers.ops_reference import things
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.ops import (
    WHOLE_VIEW,
    PositionPrompts,
    binarize,
    box_in_view,
    box_of,
    cover_in_view,
    crop_matrix,
    flip_matrix,
    minmax,
    object_from_box,
    objects_from_masks,
    pixel_matrix,
    preset_prompts,
)

SIZE = (120, 80)  # width, height


@examples(40)
@given(seed=st.integers(0, 10**6), grid=st.integers(1, 6), base=st.sampled_from([0, 1]))
def test_a_mask_is_where_its_stretched_foreground_is(seed, grid, base):
    rng = np.random.default_rng(seed)
    levels = (rng.random((6, 9)) ** 3 * rng.uniform(30, 255) + rng.uniform(0, 30)).astype(np.uint8)
    box = np.array(box_of(binarize(minmax(levels.astype(np.float32))[0], 0.45)))
    found, share = box_in_view(objects_from_masks(['dog'], levels[None])[0].parts, WHOLE_VIEW)
    np.testing.assert_allclose(found, box)
    assert share == pytest.approx(1)
    column, row = (
        min(int((low + high) / 2 * grid), grid - 1)
        for low, high in ((box[0], box[2]), (box[1], box[3]))
    )
    assert PositionPrompts(grid=grid, index_base=base).block(found) == base + grid * row + column


def test_a_view_shows_part_of_a_mask():
    """Foreground in two corners: each crop names the block of the part that it shows."""
    mask = np.zeros((4, 4), np.uint8)
    mask[0, 0] = mask[3, 3] = 200
    thing = objects_from_masks(['dog'], mask[None])[0]
    prompts = PositionPrompts()
    assert prompts.sentences([thing], WHOLE_VIEW) == ['The dog is in block 4.']
    left = crop_matrix((0, 0, 2, 2), (4, 4))
    assert prompts.sentences([thing], left) == ['The dog is in block 0.']
    assert prompts.sentences([thing], flip_matrix() @ left) == ['The dog is in block 2.']
    assert prompts.sentences([thing], crop_matrix((0, 2, 2, 2), (4, 4))) == []
    assert box_in_view(thing.parts, left)[1] == 0.5
    assert PositionPrompts(min_visible=0.5).sentences([thing], left) == []
    assert PositionPrompts(track=False).sentences([thing], left) == ['The dog is in block 4.']


def test_a_flat_mask_shows_nothing():
    thing = objects_from_masks(['dog'], np.full((1, 4, 4), 7, np.uint8))[0]
    assert PositionPrompts().sentences([thing], WHOLE_VIEW) == []


def test_random_choices_leave_torch_and_numpy_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    preset_prompts('ptp', order='random').sentences(things(), WHOLE_VIEW)
    assert (torch.rand(1), np.random.rand()) == expected


@pytest.mark.parametrize(
    'box, message',
    [
        ((200, 10, 220, 20), r'of \'dog\' is empty or lies outside its image of 120x80'),
        ((10, 10, 10, 20), 'is empty or lies outside'),
        ((0, 0, 10), 'must be four numbers'),
        ((0, 0, float('nan'), 4), 'must be four numbers'),
    ],
)
def test_wrong_boxes_are_told(box, message):
    with pytest.raises(ValueError, match=message):
        object_from_box('dog', box, SIZE)


def test_a_box_that_sticks_out_is_cut():
    assert object_from_box('dog', (-10, 40, 60, 200), SIZE).parts.tolist() == [[0, 0.5, 0.5, 1]]


def test_an_affine_map_of_pixels_is_one_of_places():
    """A shift by a quarter of the width, as OpenCV takes it, and what a turn leaves in place."""
    shift = pixel_matrix(np.array([[1.0, 0, 30], [0, 1, 0]]), SIZE)
    np.testing.assert_allclose(shift @ [0.25, 0.5, 1], [0.5, 0.5, 1])
    half_turn = pixel_matrix(np.array([[-1.0, 0, SIZE[0] - 1], [0, -1, SIZE[1] - 1]]), SIZE)
    np.testing.assert_allclose(half_turn @ [0.25, 0.1, 1], [0.75, 0.9, 1])


def test_blocks_of_others_leave_names_and_length():
    dog, cat = (
        object_from_box(name, box, (90, 90))
        for name, box in (('dog', (1, 1, 20, 20)), ('cat', (62, 62, 88, 88)))
    )
    prompts = PositionPrompts(positions='others')
    assert prompts.sentences([dog], WHOLE_VIEW, [cat]) == ['The dog is in block 8.']
    random.seed(0)
    assert len({prompts.sentences([dog], WHOLE_VIEW)[0] for _ in range(200)}) == 9


@pytest.mark.parametrize('seed', range(5))
def test_the_order_of_blocks_of_others_tells_nothing_of_the_own(seed):
    """Sorted by what is said; of two in one block the one that is given first comes first."""
    corners = [(1, 1), (31, 1), (61, 1), (1, 61), (61, 61)]
    dogs, cats = (
        [
            object_from_box(f'{name} {number}', (x, y, x + 20, y + 20), (90, 90))
            for number, (x, y) in enumerate(corners)
        ]
        for name in ('dog', 'cat')
    )
    prompts = PositionPrompts('[P] [O]', positions='others', order='block')
    random.seed(seed)
    told = prompts.sentences(dogs, WHOLE_VIEW, cats)
    random.seed(seed)
    # The same draws where the objects' own places are others, by which they were sorted.
    moved = [replace(dog, parts=other.parts) for dog, other in zip(dogs, reversed(dogs))]
    assert told == prompts.sentences(moved, WHOLE_VIEW, cats)
    assert told == sorted(told) and len(told) == 5


def test_a_noun_with_brackets_stays_as_it_is():
    thing = object_from_box('[P] 1', (0, 0, 1, 1), (3, 3))
    assert PositionPrompts().join('A', [thing], WHOLE_VIEW) == 'A The [P] 1 is in block 0.'


@pytest.mark.parametrize('grid', [1, 3, 8])
def test_cover_in_view_against_sampled_points(grid):
    random = np.random.default_rng(grid)
    masks = random.random((1, 6, 9)) > 0.6
    (thing,) = objects_from_masks(['dog'], 255 * masks.astype(np.uint8))
    view = flip_matrix() @ crop_matrix((10, 20, 50, 60), (90, 80))
    cover = cover_in_view(thing.parts, view, grid)
    fine = 240
    places = (np.arange(fine) + 0.5) / fine
    points = np.stack([*np.meshgrid(places, places), np.ones((fine, fine))])
    x, y, _ = np.einsum('ij,jkl->ikl', np.linalg.inv(view), points)
    inside = masks[0][(y * 6).astype(int), (x * 9).astype(int)]
    expected = inside.reshape(grid, fine // grid, grid, fine // grid).mean((1, 3))
    np.testing.assert_allclose(cover, expected, atol=0.02)
    assert cover.dtype == np.float32


def test_cover_of_nothing_and_of_overlapping_boxes():
    assert not cover_in_view(np.zeros((0, 4)), WHOLE_VIEW, 2).any()
    box = np.array([[0, 0, 0.5, 1]])
    np.testing.assert_array_equal(cover_in_view(box.repeat(2, 0), WHOLE_VIEW, 2), [[1, 0], [1, 0]])

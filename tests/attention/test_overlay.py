"""Masks over images: what is coloured, and what is not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from freeatm_mm.attention.overlay import NOUN_COLOURS, contact_sheet, noun_panels, overlay


def sample(nouns=('leaf', 'bag'), size=(32, 32), caption='a leaf and a bag'):
    masks = np.zeros((len(nouns), 8, 8), np.uint8)
    for number in range(len(nouns)):
        masks[number, :, :4] = 255
    return SimpleNamespace(
        key='000000',
        caption=caption,
        image=Image.new('RGB', size, (90, 90, 90)),
        masks=masks,
        nouns=[
            SimpleNamespace(text=noun, start=caption.find(noun), end=caption.find(noun) + len(noun))
            for noun in nouns
        ],
    )


def test_colour_follows_the_mask():
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    pixels = np.asarray(
        overlay(
            Image.new('RGB', (32, 32), (100, 100, 100)),
            mask,
            (200, 0, 0),
            size=64,
            opacity=0.5,
            contour=None,
        )
    )
    assert pixels.shape == (64, 64, 3)
    assert (pixels[:, -20:] == 100).all()  # outside: the image in grey
    assert (pixels[:, :20] == [150, 50, 50]).all()  # inside: half image, half colour
    half = pixels[:, 30:34].mean((0, 1))
    assert 100 < half[0] < 150 and 50 < half[1] < 100  # soft in between


def test_real_valued_masks_and_8_bit_masks_look_alike():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    levels = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    assert np.array_equal(overlay(image, levels), overlay(image, levels / 255))


def test_contour_runs_where_the_mask_passes_the_threshold():
    mask = np.zeros((8, 8), np.float32)
    mask[2:6, 2:6] = 1
    image = Image.new('RGB', (64, 64))
    pixels = np.asarray(overlay(image, mask, size=64, contour=0.5))
    white = (pixels == 255).all(axis=2)
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (16, 47, 16, 47)
    assert not white[24:40, 24:40].any()
    full = np.asarray(overlay(image, np.ones((8, 8)), size=64))
    assert not (full == 255).all(axis=2).any()  # the image's border is no outline


@pytest.mark.parametrize(
    'mask, message',
    [
        (np.zeros((2, 4, 4)), r'shape \(2, 4, 4\)'),
        (np.full((4, 4), 1.5), r'\[0, 1\]'),
        (np.full((4, 4), np.nan), r'\[0, 1\]'),
        (np.zeros((0, 4)), r'\[0, 1\]'),
    ],
)
def test_bad_masks_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        overlay(Image.new('RGB', (8, 8)), mask)


def test_panels_are_the_image_and_each_noun_in_its_own_colour():
    panels = noun_panels(sample(size=(32, 16)), size=80)
    assert [label for label, _ in panels] == ['', 'leaf', 'bag']
    assert all(panel.size == (80, 40) and panel.mode == 'RGB' for _, panel in panels)
    for colour, (_, panel) in zip(NOUN_COLOURS, panels[1:]):
        expected = 0.3 * 90 + 0.7 * np.array(colour)
        np.testing.assert_allclose(np.asarray(panel)[20, 10], expected, atol=1)
    assert len(noun_panels(sample(nouns=()))) == 1


def test_more_nouns_than_colours():
    words = [f'noun{number}' for number in range(len(NOUN_COLOURS) + 1)]
    assert len(noun_panels(sample(words))) == len(words) + 1


def test_contact_sheet_holds_every_panel():
    sheet = np.asarray(contact_sheet([sample(), sample(('leaf',)), sample()], columns=2, size=64))
    grey = (sheet == 90).all(axis=2)
    # the three images, and the halves of the five masks that are not coloured
    assert grey.sum() >= 3 * 64 * 64 + 5 * 64 * 28
    assert (sheet[-1] == 255).all()
    with pytest.raises(ValueError, match='no sample'):
        contact_sheet([])

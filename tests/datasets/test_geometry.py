"""Masks against images: what happens to an image's pixels must happen to its masks."""

import numpy as np
from helpers.examples import examples
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.datasets import FreeATMRandomFlip, FreeATMRandomResizedCrop
from freeatm_mm.ops.geometry import (
    WHOLE,
    view_masks,
)

DIRECTIONS = ('horizontal', 'vertical', 'diagonal')


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

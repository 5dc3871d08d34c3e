"""Every transform in the pretraining configs, at its own settings, keeps masks on their pixels."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.examples import examples
from hypothesis import given
from hypothesis import strategies as st
from mmcv.transforms import Compose
from mmengine.config import Config
from torch.nn.functional import adaptive_avg_pool2d

from freeatm_mm.datasets.transforms import PHOTOMETRIC
from freeatm_mm.ops.geometry import WHOLE

CONFIGS = Path(__file__).parents[2] / 'configs'
NAMES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for folder in (CONFIGS, CONFIGS / 'miniature')
    for path in folder.glob('*_freeatm.py')
)
SIDE = 256  # so that a byte holds a position


@cache
def pipeline(name):
    """A config's transforms after loading: as they are, and flat."""
    steps = Config.fromfile(CONFIGS / name).train_dataloader.dataset.pipeline[1:]
    views = steps[0].transforms[0] if steps[0].type == 'FreeATMMultiView' else steps[:-1]
    return steps, views


def colours(view):
    """The transforms of a view that change colours, out of their `RandomApply`."""
    inner = [
        step
        for entry in view
        for step in (entry.transforms if entry.type == 'RandomApply' else [entry])
    ]
    return [step for step in inner if step.type in PHOTOMETRIC]


def without_colours(steps):
    steps = [step.copy() for step in steps if not colours([step])]
    for step in steps:
        if step.type == 'FreeATMMultiView':
            step.transforms = [without_colours(view) for view in step.transforms]
    return steps


def positions():
    """An image whose pixels hold their row and column, and masks cut from it, 4 pixels a cell."""
    image = np.full((SIDE, SIDE, 3), 128, np.uint8)
    image[..., 0], image[..., 1] = np.arange(SIDE)[:, None], np.arange(SIDE)
    cells = image[..., :2].reshape(SIDE // 4, 4, SIDE // 4, 4, 2).mean((1, 3))
    return image, cells.transpose(2, 0, 1).astype(np.uint8)


@pytest.mark.parametrize('name', NAMES)
def test_masks_stay_on_the_pixels_they_were_cut_from(name):
    """A packed mask must be what its view shows, averaged over the cells of the encoder's grid."""
    transform = Compose(without_colours(pipeline(name)[0]))
    flips = set()

    @examples(12)
    @given(st.integers(0, 2**32 - 1))
    def check(seed):
        np.random.seed(seed)
        image, masks = positions()
        packed = transform(
            dict(
                img=image,
                img_shape=image.shape[:2],
                window=WHOLE,
                stored_masks=masks,
                mask_scales=np.float32([[0, 1]] * 2),
                noun_ids=np.arange(2),
                sample_idx=0,
                img_path='positions',
            )
        )
        views, sample = packed['inputs'], packed['data_samples']
        for number, view in enumerate(views if isinstance(views, list) else [views]):
            for mask, noun in zip(
                sample.get('instance_masks', torch.zeros(2, 0))[number], sample.get('noun_ids', ())
            ):
                shown = adaptive_avg_pool2d(view[None].float() / 255, mask.shape)[0, noun]
                # Half a cell of the masks; a cell of the grid is seldom less than 5 times that.
                np.testing.assert_allclose(mask, shown, atol=2 / SIDE)
                flips.add(bool(mask[0, 0] > mask[0, -1]))

    check()
    assert flips == {True, False}


@pytest.mark.parametrize('name', NAMES)
def test_colours_change_no_place(name):
    """A bright spot is where it was."""
    steps = colours(pipeline(name)[1])
    assert bool(steps) == ('mae' not in name)
    for step in steps:
        step = step.copy()
        if 'prob' in step:
            step.prob = 1.0
        transform = Compose([step])
        for seed in range(4):
            np.random.seed(seed)
            row, column = np.random.randint(16, 48, 2)
            image = np.full((64, 64, 3), (60, 80, 40), np.uint8)
            image[row - 2 : row + 3, column - 2 : column + 3] = (150, 220, 180)
            out = transform(dict(img=image.copy()))['img'].astype(float)
            change = np.abs(out - np.median(out, axis=(0, 1))).sum(2)
            places = (change[..., None] * np.moveaxis(np.mgrid[:64, :64], 0, -1)).sum((0, 1))
            np.testing.assert_allclose(places / change.sum(), [row, column], atol=0.1)

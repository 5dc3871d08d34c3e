"""Masks per noun of what other readers make of a shard, however they decode it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from helpers.store_samples import varied_sample
from PIL import Image

from freeatm_mm.store import Store, StoreError, masks_per_noun, write_store


@pytest.fixture
def path(tmp_path):
    """Samples with masks of all levels; the last one has no nouns."""
    write_store(tmp_path / 'store', map(varied_sample, range(7)), 7)
    return tmp_path / 'store'


@pytest.fixture
def example(path):
    """A sample as it is read, not decoded."""
    raw = next(raw for raw in map(Store(path).read, range(7)) if len(raw.info['nouns']) > 1)
    info = {**raw.info, 'meta': '{}'}
    return {'__key__': raw.key, 'json': info, 'masks.png': raw.masks_bytes}


@pytest.mark.parametrize(
    'spec',
    [None, 'l', 'l8', 'rgb', 'rgb8', 'rgba', 'rgba8', 'torch', 'torchl', 'torchl8', 'torchrgb']
    + ['torchrgb8', 'torchrgba', 'torchrgba8', 'pil', 'pill', 'pilrgb', 'pilrgba'],
)
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_the_webdataset_package_gives_the_same_masks_however_it_decodes(path, spec):
    webdataset = pytest.importorskip('webdataset')
    found = webdataset.WebDataset(str(path / 'shard-000000.tar'), shardshuffle=False)
    if spec is not None:
        found = found.decode(spec)
    found = list(found.map(masks_per_noun))
    store = Store(path)
    assert [example['key'] for example in found] == [sample.key for sample in store]
    for example, sample in zip(found, store):
        assert example['masks'].dtype == np.uint8
        np.testing.assert_array_equal(example['masks'], sample.masks)
    assert max(example['masks'].max(initial=0) for example in found) == 255


def test_every_level_survives_in_every_type_and_layout(example):
    whole = masks_per_noun(example)['masks']
    count, height, width = whole.shape
    levels = np.resize(np.arange(256, dtype=np.uint8), (count * height, width))
    colours = np.repeat(levels[..., None], 3, 2)
    alpha = np.concatenate([colours, np.full_like(levels, 255)[..., None]], 2)
    as_float = [
        (array.astype(np.float32) / 255).astype(kind)
        for array in (levels, colours, alpha)
        for kind in (np.float16, np.float32, np.float64)
    ]
    arrays = [levels, levels[..., None], levels[None], colours, alpha, *as_float]
    arrays += [array.transpose(2, 0, 1) for array in arrays if array.shape[-1] in (3, 4)]
    pictures = [Image.fromarray(array) for array in (levels, colours, alpha)]
    for picture in [*arrays, *map(torch.from_numpy, map(np.ascontiguousarray, arrays)), *pictures]:
        found = masks_per_noun(example | {'masks.png': picture})['masks']
        np.testing.assert_array_equal(found.reshape(levels.shape), levels)


def test_what_is_no_picture_of_masks_any_more_is_refused(example):
    levels = np.asarray(Image.open(io.BytesIO(example['masks.png'])))
    as_float = levels.astype(np.float32) / 255
    broken = as_float.copy()
    broken[0, 0] = np.nan
    colours = np.repeat(levels[..., None], 3, 2)
    coloured = colours.copy()
    coloured[0, 0] = 1, 2, 3
    for picture, message in (
        (levels.astype(np.int64), 'is int64, neither uint8 nor float'),
        (torch.from_numpy(levels.copy()).bfloat16(), 'no array that can be used'),
        (2 * as_float - 1, 'float32 from -0.9.* to .* and floats go from 0 to 1'),
        (broken, 'not grey, or not a number'),
        (coloured, 'not grey'),
        (levels[:-1], r'of the masks is \(\d+, \d+\), and \d masks of .* resized'),
        (levels[None, None], 'resized'),
        (np.repeat(levels[..., None], 2, 2), 'resized'),
        (Image.fromarray(as_float), 'not 8-bit grey but F'),
        ('masks.png', 'neither uint8 nor float'),
    ):
        with pytest.raises(StoreError, match=f'sample {example["__key__"]!r}: .*{message}'):
            masks_per_noun(example | {'masks.png': picture})

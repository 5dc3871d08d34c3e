"""The transforms against mmpretrain's and mmcv's own, and what they pack."""

import copy
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from helpers.tiny_stores import make_store, make_store_of_spellings
from mmcv.transforms import RandomFlip, RandomGrayscale
from mmengine.dataset import default_collate
from mmpretrain.datasets.transforms import ColorJitter, MultiView, PackInputs, RandomResizedCrop
from mmpretrain.models.utils import SelfSupDataPreprocessor
from mmpretrain.structures import DataSample

from freeatm_mm.datasets import (
    FreeATMDataset,
    FreeATMMultiView,
    FreeATMRandomFlip,
    FreeATMRandomResizedCrop,
    LoadFromStore,
    PackFreeATMInputs,
)
from freeatm_mm.datasets.transforms import FASTER
from freeatm_mm.ops import WHOLE, noun_id
from freeatm_mm.store import StoreError

JITTER = dict(
    type='RandomApply',
    prob=0.8,
    transforms=[dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)],
)
GREY = dict(type='RandomGrayscale', keep_channels=True, channel_weights=(0.114, 0.587, 0.2989))
BLUR = dict(type='GaussianBlur', magnitude_range=(0.1, 2.0), magnitude_std='inf', prob=0.5)


def image(seed, size=(37, 53)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize(
    'kwargs',
    [
        dict(scale=24),
        dict(scale=(16, 30), backend='pillow'),
        dict(scale=20, interpolation='bicubic'),
        dict(scale=20, crop_ratio_range=(1.9, 2.0)),
    ],
)
def test_crop_equals_mmpretrains(seed, kwargs):
    images = []
    for cls in (RandomResizedCrop, FreeATMRandomResizedCrop):
        np.random.seed(seed)
        results = cls(**kwargs)(dict(img=image(seed)))
        images.append((results['img'], results['img_shape'], np.random.randint(1 << 30)))
    np.testing.assert_array_equal(images[0][0], images[1][0])
    assert images[0][1:] == images[1][1:]  # and it drew as many numbers


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize(
    'kwargs',
    [
        dict(prob=0.5),
        dict(prob=0.7, direction='vertical'),
        dict(prob=[0.3, 0.3, 0.3], direction=['horizontal', 'vertical', 'diagonal']),
    ],
)
def test_flip_equals_mmcvs(seed, kwargs):
    images = []
    for cls in (RandomFlip, FreeATMRandomFlip):
        np.random.seed(seed)
        images.append((cls(**kwargs)(dict(img=image(seed)))['img'], np.random.randint(1 << 30)))
    np.testing.assert_array_equal(images[0][0], images[1][0])
    assert images[0][1] == images[1][1]


@pytest.mark.parametrize('seed', range(4))
def test_views_equal_mmpretrains(seed):
    """The whole of MoCo v2's views, several kinds of them."""
    outputs = []
    for view, prefix in ((MultiView, ''), (FreeATMMultiView, 'FreeATM')):
        first = [
            dict(type=f'{prefix}RandomResizedCrop', scale=24, backend='pillow'),
            JITTER,
            dict(GREY, prob=0.5),
            BLUR,
            dict(type=f'{prefix}RandomFlip', prob=0.5),
        ]
        second = [dict(type=f'{prefix}RandomResizedCrop', scale=16)]
        random.seed(seed)
        np.random.seed(seed)
        results = dict(img=image(seed), window=WHOLE, meta=[1])
        outputs.append(view(transforms=[first, second], num_views=[2, 1])(results)['img'])
    for stock, ours in zip(*outputs):
        np.testing.assert_array_equal(stock, ours)


PICTURES = {
    'contiguous': image(3),
    'flipped': image(3)[:, ::-1],
    'grey': image(3)[..., 0],
    'float': image(3).astype(np.float32),
}


@pytest.mark.parametrize(
    'step, kind',
    [
        *((JITTER['transforms'][0], kind) for kind in ('contiguous', 'flipped')),
        *((dict(JITTER['transforms'][0], backend='cv2'), kind) for kind in ('flipped', 'float')),
        *((dict(GREY, prob=1), kind) for kind in PICTURES),
        (dict(GREY, prob=1, keep_channels=False), 'contiguous'),
        (dict(GREY, prob=0.0), 'flipped'),
        (dict(GREY, prob=1, color_format='hsv'), 'contiguous'),
    ],
)
def test_faster_transforms_give_the_same(step, kind):
    arguments = {key: value for key, value in step.items() if key != 'type'}
    (pair,) = [pair for pair in FASTER.items() if pair[0].__name__ == step['type']]
    images = []
    for cls in pair:
        np.random.seed(5)
        random.seed(5)
        found = cls(**arguments)(dict(img=PICTURES[kind].copy()))['img']
        images.append((found, np.random.randint(1 << 30), random.random()))
    np.testing.assert_array_equal(images[0][0], images[1][0])
    assert images[0][0].dtype == images[1][0].dtype and images[0][1:] == images[1][1:]


def test_views_take_the_faster_transforms():
    view = FreeATMMultiView(transforms=[[JITTER, dict(GREY, prob=0.2)]], num_views=2)
    apply, grey = view.pipelines[0].transforms
    assert type(grey) is FASTER[RandomGrayscale]
    assert type(apply.transforms.transforms[0]) is FASTER[ColorJitter]


def test_views_leave_the_original_alone():
    def spoil(results):
        results['img'][:] = 0
        results['notes'].append('spoilt')
        results['window'] = WHOLE
        return results

    original = image(0)
    view = FreeATMMultiView(transforms=[[spoil]], num_views=2, photometric=['function'])
    results = view(dict(img=original, notes=[]))
    assert original.any() and results['notes'] == [] and len(results['windows']) == 2


@pytest.mark.parametrize(
    'transform, hint',
    [
        (dict(type='RandomFlip', prob=0.5), 'use FreeATMRandomFlip'),
        (dict(type='RandomResizedCrop', scale=8), 'use FreeATMRandomResizedCrop'),
        (dict(type='CenterCrop', crop_size=8), 'photometric'),
        (
            dict(type='RandomApply', prob=0.5, transforms=[dict(type='RandomFlip', prob=0.5)]),
            'use FreeATMRandomFlip',
        ),
    ],
)
def test_untracked_transforms_are_refused(transform, hint):
    with pytest.raises(ValueError, match=hint):
        FreeATMMultiView(transforms=[[transform]], num_views=2)


def packed(masks, windows, **kwargs):
    """What is packed for uint8 masks (K, h, w) and windows."""
    count = len(masks)
    results = dict(
        img=[image(0)] * len(windows),
        windows=windows,
        stored_masks=masks,
        mask_scales=np.array([[0.1 * k, 0.1 * k + 0.05] for k in range(count)], np.float32),
        noun_ids=np.arange(count),
        sample_idx=7,
        img_path='key',
    )
    return PackFreeATMInputs(**dict(dict(grid_size=4), **kwargs))(results)['data_samples']


def corner_masks():
    """Three 8x8 masks: top left, bottom right, flat."""
    masks = np.zeros((3, 8, 8), np.uint8)
    masks[0, :4, :4] = 255
    masks[1, 4:, 4:] = 255
    masks[1, 0, 0] = 114  # just below the foreground's 0.45
    return masks


def test_mask_values():
    masks = corner_masks()[:2]
    whole = [WHOLE, WHOLE]
    coarse = masks.reshape(2, 4, 2, 4, 2).mean((2, 4)) / 255
    low = np.array([0.0, 0.1])[:, None, None]
    for values, expected in (
        ('normalized', coarse),
        ('attention', low + 0.05 * coarse),
        ('binary', (masks >= 115).reshape(2, 4, 2, 4, 2).mean((2, 4))),
    ):
        sample = packed(masks, whole, mask_values=values)
        assert sample.instance_masks.dtype == torch.float32 and sample.instance_masks.shape == (
            2,
            2,
            4,
            4,
        )
        np.testing.assert_allclose(sample.instance_masks[0], expected, atol=1e-6)
        np.testing.assert_array_equal(sample.instance_masks[0], sample.instance_masks[1])


def test_instances_cut_away_in_one_view_are_left_out_in_both():
    upper, lower = (0.0, 0.5, 0.0, 1.0), (0.5, 1.0, 0.0, 1.0)
    sample = packed(corner_masks(), [WHOLE, lower])
    assert sample.noun_ids.tolist() == [1] and sample.num_nouns == 3
    np.testing.assert_allclose(sample.visible, [[1], [1]])
    assert 'instance_masks' not in packed(corner_masks(), [upper, lower])
    assert packed(corner_masks(), [upper, lower]).num_nouns == 3


def test_min_visible():
    three_quarters = [(0.125, 1.0, 0.0, 1.0)] * 2  # cuts the upper quarter off the first
    assert packed(corner_masks(), three_quarters, min_visible=0.74).noun_ids.tolist() == [0, 1]
    assert packed(corner_masks(), three_quarters, min_visible=0.76).noun_ids.tolist() == [1]


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(grid_size=0), 'grid_size'),
        (dict(grid_size=1), 'grid_size 1 leaves nothing'),
        (dict(grid_size=(1, 2, 3)), 'grid_size'),
        (dict(grid_size=4.0), 'grid_size'),
        (dict(grid_size=(4, 4.5)), 'grid_size'),
        (dict(grid_size=7, mask_values='soft'), 'soft'),
        (dict(grid_size=7, min_visible=0), 'visible'),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PackFreeATMInputs(**kwargs)


def test_without_masks_it_packs_what_mmpretrain_packs():
    results = dict(img=[image(0), image(1)], windows=[WHOLE] * 2, sample_idx=3, img_path='key')
    ours = PackFreeATMInputs(grid_size=4)(copy.deepcopy(results))
    stock = PackInputs(meta_keys=('sample_idx', 'img_path'))(results)
    assert list(ours) == list(stock) == ['inputs', 'data_samples']
    assert all(torch.equal(a, b) for a, b in zip(ours['inputs'], stock['inputs']))
    assert list(ours['data_samples'].keys()) == []
    assert ours['data_samples'].metainfo == stock['data_samples'].metainfo


def test_single_view():
    results = dict(
        img=image(0),
        window=(0.5, 1.0, 0.0, 1.0),
        stored_masks=corner_masks(),
        mask_scales=np.ones((3, 2), np.float32),
        noun_ids=np.arange(3),
    )
    sample = PackFreeATMInputs(grid_size=2)(results)['data_samples']
    assert sample.instance_masks.shape == (1, 1, 2, 2) and sample.noun_ids.tolist() == [1]


def test_batch_goes_through_workers_and_preprocessor(tmp_path):
    """Any number of instances, collated, pickled by workers, normalised by mmpretrain."""
    store = make_store(tmp_path / 'store', count=8)
    view = [FreeATMRandomResizedCrop(16), FreeATMRandomFlip(prob=0.5)]
    dataset = FreeATMDataset(
        store,
        pipeline=[LoadFromStore(), FreeATMMultiView([view], 2), PackFreeATMInputs(grid_size=4)],
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # fork in a process with threads
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=8,
            num_workers=1,
            collate_fn=default_collate,
            sampler=[(number, number) for number in range(8)],
        )
        batch = next(iter(loader))
    direct = default_collate([dataset[(number, number)] for number in range(8)])
    for one, other in zip(batch['inputs'], direct['inputs']):
        assert torch.equal(one, other)
    counts = set()
    for one, other in zip(batch['data_samples'], direct['data_samples']):
        # Sets: mmengine keeps the names in one, whose order another process may not share.
        assert set(one.keys()) == set(other.keys())
        assert one.metainfo.keys() == other.metainfo.keys()
        if 'instance_masks' in one:
            assert torch.equal(one.instance_masks, other.instance_masks) and torch.equal(
                one.noun_ids, other.noun_ids
            )
            counts.add(one.instance_masks.shape[1])
    assert len(counts) > 1
    data = SelfSupDataPreprocessor(mean=[1.0, 2, 3], std=[1.0, 1, 1], to_rgb=True)(batch, True)
    assert len(data['inputs']) == 2 and data['inputs'][0].dtype == torch.float32


def test_nouns_without_any_place_are_labels_of_whole_views(tmp_path):
    """Every noun of the prompt, or one of them drawn anew; all cells of all views weigh alike."""
    crop = dict(type='FreeATMRandomResizedCrop', scale=20, crop_ratio_range=(0.1, 0.5))
    store = make_store(tmp_path / 'store', count=8)

    def drawn(one_noun):
        steps = [
            dict(type='LoadFromStore', centred_box=1.0),
            dict(type='FreeATMMultiView', num_views=2, transforms=[[crop]]),
            dict(type='PackFreeATMInputs', grid_size=5, one_noun=one_noun),
        ]
        np.random.seed(0)
        dataset = FreeATMDataset(store, pipeline=steps)
        return [[dataset[number]['data_samples'] for _ in range(20)] for number in range(8)]

    several = 0
    for all_nouns, one in zip(drawn(False), drawn(True)):
        for sample in [*all_nouns, *one]:
            if 'noun_ids' in sample:
                masks = sample.instance_masks.flatten(2)
                assert (masks - masks[..., :1]).abs().max() < 1e-6 and masks.min() > 0
        if 'noun_ids' not in all_nouns[0]:
            continue
        nouns = all_nouns[0].noun_ids.tolist()
        assert all(sample.noun_ids.tolist() == nouns for sample in all_nouns)
        assert all(len(sample.noun_ids) == 1 == sample.num_nouns for sample in one)
        assert {int(sample.noun_ids) for sample in one} == set(nouns)
        several += len(nouns) > 1
    assert several > 1
    with pytest.raises(ValueError, match='one_noun of PackFreeATMInputs needs masks=True'):
        FreeATMDataset(
            store,
            masks=False,
            pipeline=[
                dict(type='LoadFromStore'),
                dict(type='PackFreeATMInputs', grid_size=5, one_noun=True),
            ],
        )


def test_transforms_have_readable_names():
    assert 'grid_size=(7, 7)' in repr(PackFreeATMInputs(grid_size=7))
    assert 'cv2' in repr(LoadFromStore())
    assert pickle.loads(pickle.dumps(LoadFromStore())).color_type == 'color'


def test_spellings_of_one_noun_have_one_number(tmp_path):
    path, names = make_store_of_spellings(tmp_path / 'store')
    dataset = FreeATMDataset(path, pipeline=[LoadFromStore()])
    assert dataset[0]['noun_ids'].tolist() == [noun_id(name) for name in names]
    assert dataset.get_cat_ids(0) == dataset[0]['noun_ids'].tolist()


def test_the_fields_of_a_data_sample_do_not_shadow_mmpretrains():
    taken = {name for name in dir(DataSample()) if not name.startswith('_')}
    sample = packed(corner_masks(), [WHOLE, WHOLE])
    assert not {*sample.keys(), 'visible', 'num_nouns'} & taken
    assert not {'mask', 'masks'} & {*sample.keys(), *sample.metainfo_keys()}


def object_views(seed, object_crops, masks, **crop):
    """Two views of an image whose pixels are their row and column; and what is drawn later."""
    image = np.zeros((96, 128, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(96)[:, None], np.arange(128)
    steps = [
        dict(type='FreeATMRandomResizedCrop', scale=32, interpolation='nearest', **crop),
        dict(type='FreeATMRandomFlip', prob=0.5),
    ]
    view = FreeATMMultiView(transforms=[steps], num_views=2, object_crops=object_crops)
    np.random.seed(seed)
    results = view(dict(img=image, window=WHOLE, stored_masks=masks))
    assert 'object_weights' not in results
    return results['img'], np.array(results['windows']), np.random.randint(1 << 30)


def test_both_views_show_the_object_that_they_are_cropped_around():
    """Where, by the pixels themselves; sizes, flips and later draws are those of other crops."""
    masks = np.random.default_rng(0).integers(0, 80, (2, 12, 16), dtype=np.uint8)
    masks[0, 1, 2] = masks[1, 9:11, 13] = 255  # the nouns, at (8, 16) and (72, 104) and below
    places = (8, 16, 16, 24), (72, 88, 104, 112)
    counts = [0, 0]
    for seed in range(60):
        crop = dict(crop_ratio_range=(0.05, 0.4))
        images, windows, later = object_views(seed, 1.0, masks, **crop)
        _, others, later_without = object_views(seed, 0.0, masks, **crop)
        assert later == later_without
        np.testing.assert_allclose(
            windows[:, 1::2] - windows[:, ::2], others[:, 1::2] - others[:, ::2], atol=1e-12
        )
        shown = []
        for picture, (top, bottom, left, right) in zip(images, windows):
            left, right = sorted((left, right))
            assert abs(picture[..., 0].min() - top * 96) <= 2
            assert abs(picture[..., 0].max() + 1 - bottom * 96) <= 2
            assert abs(picture[..., 1].min() - left * 128) <= 2
            assert abs(picture[..., 1].max() + 1 - right * 128) <= 2
            shown.append(
                [
                    y0 < bottom * 96 and y1 > top * 96 and x0 < right * 128 and x1 > left * 128
                    for y0, y1, x0, x1 in places
                ]
            )
        both = np.all(shown, axis=0)
        assert both.any()
        counts = [count + bool(one and not both.all()) for count, one in zip(counts, both)]
    assert min(counts) > 15  # now the one noun, now the other


def test_a_second_crop_lies_where_it_would_without_an_object():
    """What says where the object is is of the whole image, not of what the first crop left."""
    masks = np.zeros((1, 12, 16), np.uint8)
    masks[0, 1, 2] = 255
    crop = dict(type='FreeATMRandomResizedCrop', scale=32, crop_ratio_range=(0.05, 0.4))

    def window(seed, steps, object_crops):
        view = FreeATMMultiView(transforms=[steps], num_views=1, object_crops=object_crops)
        np.random.seed(seed)
        image = np.zeros((96, 128, 3), np.uint8)
        return np.array(view(dict(img=image, stored_masks=masks))['windows'][0])

    for seed in range(20):
        within = []
        for share in (0.0, 1.0):
            first, both = (window(seed, [crop] * count, share) for count in (1, 2))
            sides = np.repeat(first[1::2] - first[::2], 2)
            within.append((both - np.repeat(first[::2], 2)) / sides)
        np.testing.assert_allclose(*within, atol=1e-9)


@pytest.mark.parametrize('before', [FreeATMRandomFlip, FreeATMRandomResizedCrop])
def test_object_crops_are_of_the_whole_image(before):
    """What moved the image before its views would have moved the object, too."""
    masks = np.zeros((1, 12, 16), np.uint8)
    masks[0, 1, 2] = 255
    crop = dict(type='FreeATMRandomResizedCrop', scale=32)
    first = before(**(dict(prob=1.0) if before is FreeATMRandomFlip else dict(scale=48)))
    sample = first(dict(img=np.zeros((96, 128, 3), np.uint8), stored_masks=masks))
    FreeATMMultiView(transforms=[[crop]], num_views=1)(dict(sample))
    with pytest.raises(ValueError, match='object_crops crops around objects of the whole image'):
        FreeATMMultiView(transforms=[[crop]], num_views=1, object_crops=1.0)(sample)


def test_object_crops_may_be_a_share_and_need_something_to_crop_around():
    masks = np.zeros((1, 8, 8), np.uint8)
    masks[0, 1, 1] = 255
    moved = [
        not np.array_equal(object_views(seed, 0.3, masks)[1], object_views(seed, 0.0, masks)[1])
        for seed in range(100)
    ]
    assert 0.15 < np.mean(moved) < 0.45
    for nothing in (masks[:0], np.zeros_like(masks)):
        windows = [object_views(3, share, nothing)[1] for share in (0.0, 1.0)]
        np.testing.assert_array_equal(*windows)
    with pytest.raises(ValueError, match='object_crops 1.5 must be a share'):
        object_views(0, 1.5, masks)
    with pytest.raises(ValueError, match='begin with FreeATMRandomResizedCrop'):
        FreeATMMultiView([[dict(type='FreeATMRandomFlip', prob=0.5)]], 2, object_crops=0.5)


def test_object_crops_need_masks(tmp_path):
    view = [dict(type='FreeATMRandomResizedCrop', scale=16)]
    steps = [
        dict(type='LoadFromStore'),
        dict(type='FreeATMMultiView', num_views=2, transforms=[view], object_crops=1.0),
        dict(type='PackFreeATMInputs', grid_size=4),
    ]
    store = make_store(tmp_path / 'store', 4)
    assert FreeATMDataset(store, pipeline=steps)[1]['inputs'][0].shape == (3, 16, 16)
    with pytest.raises(ValueError, match='object_crops of FreeATMMultiView needs masks=True'):
        FreeATMDataset(store, pipeline=steps, masks=False)


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_postscript_named_as_a_picture_is_not_run(tmp_path, monkeypatch, backend):
    """Pillow hands it to Ghostscript."""
    text = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n'
    (tmp_path / 'a.png').write_bytes(text)
    called = []
    monkeypatch.setattr('PIL.EpsImagePlugin.Ghostscript', lambda *args, **_: called.append(args))
    pipeline = [dict(type='LoadFromStore', imdecode_backend=backend)]
    with pytest.raises(StoreError, match="'a.png' can't be decoded"):
        FreeATMDataset(tmp_path, masks=False, pipeline=pipeline)[0]
    assert not called

"""Batches made at once against the transforms of one picture, fed the same random choices."""

import numpy as np
import pytest
import torch
from helpers.tiny_models import GRID
from helpers.tiny_runs import config, different, train
from helpers.tiny_stores import make_store
from mmengine.dataset import default_collate
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

from freeatm_mm.datasets import FreeATMDataset, FreeATMRandomResizedCrop, batches, transforms
from freeatm_mm.datasets.samplers import seeded_uniforms

JITTER = dict(
    type='RandomApply',
    prob=0.8,
    transforms=[dict(type='ColorJitter', brightness=0.3, saturation=0.3, backend='cv2')],
)
CROP = dict(type='FreeATMRandomResizedCrop', scale=(18, 20), crop_ratio_range=(0.2, 1.0))
FLIP = dict(type='FreeATMRandomFlip', prob=0.5)
PACK = dict(type='PackFreeATMInputs', grid_size=5)


def pipeline(*steps, views=2, pack=None, trust=True, **options):
    middle = list(steps)
    if views:
        middle = [dict(type='FreeATMMultiView', num_views=views, transforms=[middle], **options)]
    return [dict(type='LoadFromStore', trust=trust), *middle, dict(PACK, **(pack or {}))]


def repeat_choices(monkeypatch, dataset, batched, place):
    """Let the transforms of one picture choose what a batch chose for its sample at a place."""
    boxes, flips, colours = batched
    middle = dataset.pipeline.transforms[1:-1]
    several = hasattr(middle[0], 'pipelines')
    crop, *rest = middle[0].pipelines[0].transforms if several else middle
    order = {'box': iter(boxes), 'flip': iter(flips), 'colour': iter(colours)}
    monkeypatch.setattr(
        crop, 'rand_crop_params', lambda _: tuple(map(int, next(order['box'])[place]))
    )
    for step in rest:
        if hasattr(step, 'transforms'):
            monkeypatch.setattr(step, 'random_apply', lambda: True)
            (step,) = step.transforms.transforms
        if hasattr(step, 'saturation'):

            def params():
                brightness, saturation, first = (part[place] for part in next(order['colour']))
                return (0, 1, 2, 3) if first else (2, 1, 0, 3), brightness, None, saturation, None

            monkeypatch.setattr(step, '_rand_params', params)
        else:
            monkeypatch.setattr(
                step,
                '_choose_direction',
                lambda: 'horizontal' if next(order['flip'])[place] else None,
            )


@pytest.mark.parametrize(
    'steps',
    [
        pipeline(CROP, JITTER, FLIP),
        pipeline(CROP, FLIP, JITTER),
        pipeline(CROP, FLIP, views=0),
        pipeline(CROP, FLIP, object_crops=0.7),
        pipeline(CROP, FLIP, object_crops=0.7, trust=False, pack=dict(with_masks=False)),
        pipeline(CROP, FLIP, pack=dict(one_noun=True)),
        pipeline(dict(CROP, crop_ratio_range=(0.9, 3.0), scale=30), JITTER['transforms'][0]),
    ],
    ids=[
        'mocov2',
        'simclr',
        'mae',
        'object crops',
        'object crops alone',
        'one noun',
        'often whole',
    ],
)
@pytest.mark.parametrize('values', ['attention', 'binary'])
def test_a_batch_is_what_single_pictures_give(steps, values, tmp_path, monkeypatch):
    """Pixels up to rounding, masks and all that goes with them exactly."""
    store = make_store(tmp_path / 'store', count=12, size=(24, 32))
    steps = [*steps[:-1], dict(steps[-1], mask_values=values)]
    chosen = [], [], []
    for into, name in ((chosen[0], 'crop_boxes'), (chosen[2], '_factors')):
        original = getattr(batches, name)

        def spy(*args, original=original, into=into):
            into.append(original(*args))
            return into[-1]

        monkeypatch.setattr(batches, name, spy)
    view = batches.BatchPipeline._view

    def spy_view(*args):
        made = view(*args)
        chosen[1].append(made[1][:, 2] > made[1][:, 3])
        return made

    monkeypatch.setattr(batches.BatchPipeline, '_view', spy_view)
    draws = [(number % 12, 1000 + number) for number in range(30)]
    found = FreeATMDataset(store, pipeline=steps, in_memory=True).draw_batch(draws)
    reference = FreeATMDataset(store, pipeline=steps)
    kept = 0
    for place, (number, seed) in enumerate(draws):
        number_apart = batches._APART + steps[-1].get('one_noun', False)
        apart = seeded_uniforms(np.array([seed], np.uint64), 1, number_apart)[0, 0]
        with monkeypatch.context() as context:
            repeat_choices(context, reference, chosen, place)
            context.setattr(transforms, '_draw_apart', lambda apart=apart: apart)
            wanted = reference[number]
        ours, theirs = (
            item['inputs'] if isinstance(item['inputs'], list) else [item['inputs']]
            for item in (found[place], wanted)
        )
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            assert a.dtype == b.dtype and a.shape == b.shape
            off = (a.int() - b.int()).abs()
            assert off.max() <= 3 and off.float().mean() < 0.3
        ours, theirs = found[place]['data_samples'], wanted['data_samples']
        assert set(ours.all_keys()) == set(theirs.all_keys())
        for key in theirs.all_keys():
            a, b = (np.asarray(sample.get(key)) for sample in (ours, theirs))
            assert a.dtype == b.dtype
            if a.dtype.kind == 'f':
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
            else:
                np.testing.assert_array_equal(a, b)
        kept += len(theirs.get('noun_ids', ()))
    assert kept > 10 if steps[-1].get('with_masks', True) else not kept


def test_crops_are_distributed_as_mmpretrains():
    """Among those of pictures that are not square, where some crops fit at a later try only."""
    crop = FreeATMRandomResizedCrop(scale=20, crop_ratio_range=(0.3, 1.5))
    seeds = np.arange(4000, dtype=np.uint64)
    ours = batches.crop_boxes(crop, (40, 64), seeded_uniforms(seeds, 4 * crop.max_attempts))
    np.random.seed(0)
    image = np.empty((40, 64, 3), np.uint8)
    theirs = np.array([crop.rand_crop_params(image) for _ in range(4000)])
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= (40, 64)).all()
    for a, b in zip([*ours.T, ours[:, 2] * ours[:, 3]], [*theirs.T, theirs[:, 2] * theirs[:, 3]]):
        assert stats.ks_2samp(a, b).pvalue > 0.01


@pytest.mark.parametrize('options', [{}, {'object_crops': 1.0}], ids=['crops', 'object crops'])
def test_views_are_made_where_the_pictures_are(options, tmp_path):
    """Fake CUDA tensors refuse to meet the CPU's."""
    from mmengine.dataset import Compose

    store = make_store(tmp_path / 'store', count=4, size=(24, 32))
    dataset = FreeATMDataset(store, pipeline=pipeline(CROP, JITTER, FLIP, **options))
    steps = Compose(dataset.pipeline.transforms).transforms
    samples = [steps[0](dataset.get_data_info(number)) for number in range(4)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        made = batches.BatchPipeline(steps, samples, 4, 'cuda')([0, 3, 1], [5, 6, 7])
        batch = default_collate(made)
        assert [view.device.type for view in batch['inputs']] == ['cuda', 'cuda']
        assert {view.shape for view in batch['inputs']} == {(3, 3, 18, 20)}
        with pytest.raises(RuntimeError):  # so a mistake would show
            batch['inputs'][0] + torch.ones(1, 3, 1, 1)


@pytest.mark.parametrize('pixels, wanted', [(64, 40), (20, 33), (1, 4)])
def test_resampling_weighs_all_pixels_by_their_distance(pixels, wanted):
    """Though two of them alone are looked at."""
    random = np.random.default_rng(0)
    length = random.integers(1, pixels + 1, 300)
    start = (random.random(300) * (pixels - length + 1)).astype(int)
    places = (np.arange(wanted) + 0.5) * (length[:, None] / wanted) - 0.5
    places = start[:, None] + np.clip(places, 0, length[:, None] - 1)
    every = np.maximum(1 - np.abs(places[..., None] - np.arange(pixels)), 0)
    found = batches._resampling(start, length, pixels, wanted)
    np.testing.assert_array_equal(found, every.astype(np.float32))


def test_choices_have_their_probabilities():
    jitter = pipeline(JITTER, views=1)[1]['transforms'][0][0]['transforms'][0]
    from mmpretrain.datasets.transforms import ColorJitter

    transform = ColorJitter(**{key: value for key, value in jitter.items() if key != 'type'})
    draws = batches._Draws(np.arange(5000, dtype=np.uint64))
    chosen = draws()[:, 0] < 0.8
    brightness, saturation, first = batches._factors(transform, chosen, draws(3))
    assert abs(chosen.mean() - 0.8) < 0.02 and abs(first.mean() - 0.5) < 0.03
    for factor in (brightness, saturation):
        assert (factor[~chosen] == 1).all()
        assert stats.kstest(factor[chosen], stats.uniform(0.7, 0.6).cdf).pvalue > 0.01
    assert abs(stats.pearsonr(brightness, saturation).statistic) < 0.05


def test_many_seeds_have_independent_uniform_numbers():
    seeds = np.arange(20000, dtype=np.uint64)
    numbers = seeded_uniforms(seeds, 3)
    assert stats.kstest(numbers.ravel(), 'uniform').pvalue > 0.01
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.02
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.02
    np.testing.assert_array_equal(seeded_uniforms(seeds[5:6], 2, 1), numbers[5:6, 1:])


def test_a_sample_does_not_depend_on_its_batch(tmp_path):
    store = make_store(tmp_path / 'store')
    dataset = FreeATMDataset(store, pipeline=pipeline(CROP, JITTER, FLIP), in_memory=True)
    together = dataset.draw_batch([(3, 7), (5, 8), (3, 9)])
    (alone,) = dataset.draw_batch([(3, 9)])
    for a, b in zip(together[2]['inputs'], alone['inputs']):
        torch.testing.assert_close(a.int(), b.int(), atol=1, rtol=0)
    assert any(not torch.equal(a, b) for a, b in zip(together[0]['inputs'], together[2]['inputs']))


@pytest.mark.parametrize('how', ['left out', 'none there', 'some there'])
def test_samples_without_masks(how, tmp_path):
    nouns = {'left out': (1, 2), 'none there': (0,), 'some there': (0, 2)}[how]
    dataset = FreeATMDataset(
        make_store(tmp_path / 'store', nouns=nouns),
        masks=how != 'left out',
        pipeline=pipeline(CROP, FLIP, trust=how != 'left out'),
        in_memory=True,
    )
    for draws in ([(0, 1), (2, 2)], [(0, 1), (1, 2)]):  # with and without any mask in the batch
        items = dataset.draw_batch(draws)
        assert [len(item['inputs']) for item in items] == [2, 2]
        found = ['num_nouns' in item['data_samples'] for item in items]
        assert found == [False, how == 'some there' and draws[1][0] == 1]


def test_a_training_in_memory_is_repeatable(tmp_path):
    store, states = make_store(tmp_path / 'store', count=10), []
    for name, in_memory in (('once', True), ('again', True), ('without', False)):
        cfg = config(store, tmp_path / name)
        steps = [*pipeline(dict(CROP, scale=32), FLIP)[:-1], dict(PACK, grid_size=GRID)]
        cfg.train_dataloader.dataset.update(pipeline=steps, in_memory=in_memory)
        states.append(train(cfg, f'memory-{name}'))
    assert different(*states[:2]) == []
    assert different(*states[1:]) != []  # the same distributions, other random numbers


@pytest.mark.parametrize(
    ('steps', 'message'),
    [
        (pipeline(FLIP), 'begin with a bilinear'),
        (pipeline(dict(CROP, interpolation='bicubic')), 'begin with a bilinear'),
        (pipeline(dict(CROP, backend='pillow')), "as backend='cv2' .*, not as 'pillow'"),
        (pipeline(CROP, dict(type='RandomGrayscale', prob=0.5)), 'RandomGrayscale'),
        (pipeline(CROP, dict(FLIP, direction='vertical')), 'RandomFlip'),
        (
            pipeline(CROP, dict(type='ColorJitter', hue=0.1, backend='cv2')),
            'ColorJitter',
        ),
        ([dict(type='LoadFromStore'), CROP], 'PackFreeATMInputs'),
    ],
    ids=['no crop', 'bicubic', 'pillow', 'grey', 'vertical', 'hue', 'not packed'],
)
def test_what_cannot_be_done_at_once_is_told(steps, message, tmp_path):
    dataset = FreeATMDataset(make_store(tmp_path / 'store'), pipeline=steps, in_memory=True)
    with pytest.raises(ValueError, match=message):
        dataset.draw_batch([(0, 1)])


def test_other_misuse_is_told(tmp_path, monkeypatch):
    store = make_store(tmp_path / 'store')
    steps = pipeline(CROP)
    with pytest.raises(ValueError, match='SeededSampler'):
        FreeATMDataset(store, pipeline=steps, in_memory=True)[0]
    with pytest.raises(ValueError, match='max_unreadable'):
        FreeATMDataset(store, pipeline=steps, in_memory=True, max_unreadable=0.1)
    with pytest.raises(ValueError, match='in_memory=True'):
        FreeATMDataset(store, pipeline=steps, device='cuda')
    other = make_store(tmp_path / 'other', size=(20, 20))
    with pytest.raises(ValueError, match='one size'):
        FreeATMDataset([store, other], pipeline=steps, in_memory=True).draw_batch([(0, 1)])
    monkeypatch.setattr(batches, 'MOST_BYTES', 1000)
    with pytest.raises(ValueError, match='GiB'):
        FreeATMDataset(store, pipeline=steps, in_memory=True).draw_batch([(0, 1)])

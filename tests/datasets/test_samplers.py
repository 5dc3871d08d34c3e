"""Draws with seeds of their own."""

import copy
import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from helpers.tiny_stores import make_store
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmpretrain.registry import DATASETS

from freeatm_mm.datasets import FreeATMDataset, LoadFromStore, SeededInfiniteSampler, SeededSampler
from freeatm_mm.datasets.samplers import mix_seed
from freeatm_mm.store import Store


def test_order_is_mmengines_and_seeds_change_with_the_epoch():
    dataset = range(50)
    ours, stock = SeededSampler(dataset, seed=3), DefaultSampler(dataset, seed=3)
    seeds = []
    for epoch in (0, 1):
        ours.set_epoch(epoch)
        stock.set_epoch(epoch)
        draws = list(ours)
        assert [number for number, _ in draws] == list(stock)
        seeds.append(dict(draws))
    again = SeededSampler(dataset, seed=3)
    again.set_epoch(1)
    assert dict(again) == seeds[1]
    assert len({*seeds[0].values(), *seeds[1].values()}) == 100
    assert len(ours) == 50


def test_infinite_draws():
    dataset = range(20)
    draws = list(itertools.islice(SeededInfiniteSampler(dataset, seed=3), 60))
    stock = list(itertools.islice(InfiniteSampler(dataset, seed=3), 60))
    assert [number for number, _ in draws] == stock
    assert len({seed for _, seed in draws}) == 60


def test_mixed_seeds():
    seeds = {mix_seed(a, b) for a in range(300) for b in range(300)}
    assert len(seeds) > 89990  # 90000 draws of 2**32 coincide about once
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert mix_seed(1, 2) != mix_seed(2, 1)
    high = sum(seed >> 31 for seed in seeds)
    assert abs(high / len(seeds) - 0.5) < 0.01


def draw(results):
    """What a pipeline's random choices come from, all three."""
    return dict(
        key=results['img_path'], drawn=(random.random(), np.random.uniform(), torch.rand(1).item())
    )


PIPELINE = [LoadFromStore(), draw]


def wrapped(name, store):
    """12 samples of a store in a wrapper."""
    inner = dict(
        type='FreeATMDataset', data_root=str(store), pipeline=PIPELINE, photometric=['function']
    )
    if name == 'Subset':
        return torch.utils.data.Subset(DATASETS.build(inner), [3, 1, 4, 1])
    if name == 'torch.ConcatDataset':
        return torch.utils.data.ConcatDataset([DATASETS.build(inner), DATASETS.build(inner)])
    if name == 'ConcatDataset':
        return DATASETS.build(dict(type=name, datasets=[inner, dict(inner, masks=False)]))
    arguments = {
        'RepeatDataset': dict(times=3),
        'ClassBalancedDataset': dict(oversample_thr=0.5),
        'KFoldDataset': dict(num_splits=4, seed=0),
        'FreeATMDataset': inner,
    }[name]
    if name == 'FreeATMDataset':
        return DATASETS.build(inner)
    return DATASETS.build(dict(type=name, dataset=dict(inner, lazy_init=False), **arguments))


LENGTHS = {
    'FreeATMDataset': 12,
    'RepeatDataset': 36,
    'ConcatDataset': 24,
    'Subset': 4,
    'torch.ConcatDataset': 24,
    'KFoldDataset': 9,
    'ClassBalancedDataset': None,
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('name', LENGTHS)
def test_wrappers_hand_on_the_seeds(name, workers, tmp_path):
    """Those of mmengine, mmpretrain and torch: any number of workers, the same choices."""
    dataset = wrapped(name, make_store(tmp_path / 'store'))
    sampler = SeededSampler(dataset, seed=3)
    sampler.set_epoch(2)
    random.seed()
    np.random.seed(None)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=5, num_workers=workers, sampler=sampler, collate_fn=list
    )
    found = [item for batch in loader for item in batch]
    assert len(found) == len(dataset) and LENGTHS[name] in (None, len(dataset))
    expected = []
    for number, seed in sampler:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        expected.append(dataset[number])
    assert found == expected
    assert len({item['drawn'] for item in found}) == len(found)  # repeats differ


def test_a_wrapped_dataset_can_still_be_copied_and_asked_otherwise(tmp_path):
    dataset = wrapped('RepeatDataset', make_store(tmp_path / 'store'))
    dataset.dataset.pipeline.transforms = PIPELINE[:1]
    SeededInfiniteSampler(dataset, seed=3)
    for twin in (dataset, copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        loader = torch.utils.data.DataLoader(twin, batch_size=36, collate_fn=list)
        assert [item['img_path'] for item in next(iter(loader))] == 3 * [
            f'{number:06d}' for number in range(12)
        ]


def test_class_balance_counts_nouns(tmp_path, monkeypatch):
    """The rarer a noun, the more often its images are drawn; images without one once."""
    dataset = FreeATMDataset(
        make_store(tmp_path / 'store'), pipeline=PIPELINE, photometric=['function']
    )
    for number in range(12):
        nouns = dataset.sources[0][number].nouns
        assert len(dataset.get_cat_ids(number)) == len(nouns) == number % 4
    monkeypatch.delattr(Store, 'read')  # of each sample its JSON alone
    counts = torch.tensor(
        [
            dataset.get_cat_ids(number).count(cat)
            for number in range(12)
            for cat in dataset.get_cat_ids(number)
        ]
    )
    assert counts.eq(1).all()
    balanced = wrapped('ClassBalancedDataset', tmp_path / 'store')
    assert balanced.repeat_indices.count(0) == 1 and len(balanced) > 12

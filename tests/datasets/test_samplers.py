"""Draws with seeds of their own."""
import itertools

from mmengine.dataset import DefaultSampler, InfiniteSampler

from freeatm_mm.datasets import SeededInfiniteSampler, SeededSampler
from freeatm_mm.datasets.samplers import mix_seed


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

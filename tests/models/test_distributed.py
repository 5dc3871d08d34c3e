"""Two gloo processes against one, with unequal numbers of instances and a process with none."""

import pytest
import torch
from helpers import tiny_training
from helpers.two_processes import in_two_processes


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """What one process gives, and each of two."""
    return [
        tiny_training.all_runs(),
        *in_two_processes(tiny_training.all_runs, tmp_path_factory.mktemp('results')),
    ]


@pytest.mark.filterwarnings('ignore')
def test_moco_in_two_processes_equals_one(results):
    """Gradients, queue, its nouns and pointer, after each step."""
    whole, first, second = (result[0] for result in results)
    assert len(whole) == len(tiny_training.STEPS)
    for step in range(len(whole)):
        for one, two, expected in zip(first[step], second[step], whole[step]):
            assert torch.equal(one, two)
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('run, factor', [(0, 1), (1, 2), (2, 1), (3, 2)])
def test_simclr_in_two_processes_equals_one(results, run, factor):
    """Exact gradients are one process's; mmpretrain's own are half of it, ours by default, too."""
    whole, first, second = (result[1][run] for result in results)
    for one, two, expected in zip(first, second, whole):
        for a, b, c in zip(one, two, expected):
            assert torch.equal(a, b)
            torch.testing.assert_close(a * factor, c, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings('ignore')
def test_keys_are_shuffled_over_processes_as_in_mmpretrain(results):
    """Shuffle-BN keeps its meaning: images go round, feature maps come back, pooling is local."""
    for process in (1, 2):
        stock, without, whole = results[process][2]
        assert len(stock) == len(without) == len(whole) > 10
        assert all(torch.equal(a, b) for a, b in zip(stock, without))
        for a, b in zip(stock, whole):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    # And the statistics are those of halves: in one process the keys are others.
    assert not torch.allclose(results[0][2][0][1], results[1][2][0][1], atol=1e-3)


@pytest.mark.filterwarnings('ignore')
def test_dino_in_two_processes_equals_one(results):
    """Gradients, teacher and centre, whatever instances each process has."""
    whole, first, second = (result[3] for result in results)
    for step in range(len(whole)):
        for one, two, expected in zip(first[step], second[step], whole[step]):
            assert torch.equal(one, two)
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-6)

"""Losses over the instances of two processes: values and gradients are those of one process."""

from __future__ import annotations

import pytest
import torch
from helpers.gathered_losses import CASES, NUMBERS, all_instances, losses_of, run
from helpers.two_processes import in_two_processes


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    return in_two_processes(run, tmp_path_factory.mktemp('gathered'))


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('numbers', NUMBERS)
def test_two_processes_are_as_one(results, case, numbers):
    first, second = (result[f'{case} {numbers}'] for result in results)
    expected = losses_of(case, all_instances(sum(numbers)), gather=False)
    # As DistributedDataParallel averages them.
    torch.testing.assert_close((first['loss'] + second['loss']) / 2, expected['loss'])
    gradient = torch.cat([first['gradient'], second['gradient']]) / 2
    torch.testing.assert_close(gradient, expected['gradient'])
    for name, state in expected.items():
        if name not in ('loss', 'gradient'):
            assert torch.equal(first[name], second[name])
            torch.testing.assert_close(first[name], state)


def test_one_process_alone_gathers_nothing():
    for case in CASES:
        own, gathered = (losses_of(case, all_instances(5), gather) for gather in (False, True))
        assert own.keys() == gathered.keys()
        assert all(torch.equal(own[name], gathered[name]) for name in own)

"""Two gloo processes against one, with unequal numbers of instances and a process with none."""
import pytest
import torch

import tiny_training
from two_processes import in_two_processes


@pytest.mark.filterwarnings('ignore')
def test_moco_in_two_processes_equals_one(tmp_path):
    """Gradients, queue, its nouns and pointer, after each step."""
    whole = tiny_training.moco_steps()
    first, second = in_two_processes(tiny_training.moco_steps, tmp_path)
    assert len(whole) == len(tiny_training.STEPS)
    for step in range(len(whole)):
        for one, two, expected in zip(first[step], second[step], whole[step]):
            assert torch.equal(one, two)
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-6)

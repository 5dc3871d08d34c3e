"""Slot attention, and its tool."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.tools import load_tool

from freeatm_mm.errors import InputError
from freeatm_mm.miniature.slots import SlotAttention, slot_regions, train_slots

torch.set_num_threads(1)


def test_slots_compete_and_are_interchangeable():
    torch.manual_seed(0)
    network = SlotAttention(3, width=4, size=8).eval()
    images, start = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 8)
    order = [2, 0, 1]
    with torch.no_grad():
        drawn, shares = network(images, start)
        again, other = network(images, start[:, order])
    assert drawn.shape == (2, 3, 32, 32) and shares.shape == (2, 3, 32, 32)
    assert torch.allclose(shares.sum(1), torch.ones(2, 32, 32))
    assert torch.allclose(again, drawn, atol=1e-5)
    assert torch.allclose(other, shares[:, order], atol=1e-5)
    assert not torch.allclose(shares[:, 0], shares[:, 1], atol=1e-3)


def test_an_iteration_is_that_of_the_paper():
    """Softmax over slots, mean over cells, a gated update, a residual layer."""
    torch.manual_seed(0)
    network = SlotAttention(2, width=4, size=8, iterations=1).double()
    cells, start = torch.randn(1, 5, 4).double(), torch.randn(1, 2, 8).double()
    with torch.no_grad():
        slots = (network.mean + network.spread.exp() * start)[0]
        inputs = network.inputs(cells[0])
        keys, values = network.keys(inputs), network.values(inputs)
        queries = network.queries(slots)
        attention = torch.exp(keys @ queries.T / 8**0.5)
        attention = attention / attention.sum(1, keepdim=True) + 1e-8
        updates = torch.stack([(attention[:, k : k + 1] * values).sum(0) for k in range(2)])
        updates = updates / attention.sum(0)[:, None]
        slots = network.update(updates, slots)
        expected = slots + network.refine(slots)
        assert torch.allclose(network.compete(cells, start)[0], expected)


def test_training_draws_the_pictures_better_and_regions_follow():
    images = np.zeros((4, 64, 64, 3), np.uint8)
    images[:, :, 32:] = 255
    torch.manual_seed(0)
    network = SlotAttention(2, width=8, size=8)
    losses = train_slots(network, images, 40, batch_size=2, lr=1e-2)
    assert np.median(losses[-10:]) < 0.6 * losses[0]
    segment = slot_regions(network)
    labels = segment([images[0], images[1][:48]], ['a', 'b'])
    assert [each.shape for each in labels] == [(64, 64), (48, 64)]
    assert set(np.unique(labels[0])) <= {0, 1}
    again = slot_regions(network)([images[0]], ['c'])[0]
    assert (again == labels[0]).all()


def test_a_device_that_is_not_there_is_one_sentence():
    with pytest.raises(InputError, match="the network can't be moved to the device cuda:99: ."):
        train_slots(
            SlotAttention(2, width=4, size=8), np.zeros((1, 8, 8, 3), np.uint8), 1, device='cuda:99'
        )


def test_the_tool_says_how_short_the_training_was(known_sources, tmp_path, capsys):
    options = {'steps': 1, 'width': 4, 'scenes': 3, 'train-scenes': 4, 'batch-size': 2}
    tool = load_tool('miniature/slot_attention')
    argv = [word for key, value in options.items() for word in (f'--{key}', str(value))]
    assert tool.main([*argv, '--sources', str(known_sources), '--out', str(tmp_path)]) == 0
    results = json.loads((tmp_path / 'slot-attention.json').read_text())
    assert [row['method'] for row in results['rows']] == [
        'slots without training',
        'slot attention',
        'k-means of colours and places',
    ]
    assert all(0 <= row['iou'] <= 1 for row in results['rows'])
    report = (tmp_path / 'slot-attention.md').read_text()
    assert '1 step of 2' in report and '500,000 are published, so' in report
    assert str(known_sources) not in report and report in capsys.readouterr().out

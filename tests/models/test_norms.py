"""Batch normalisation by parts: against torch's own, part by part, and within MoCo."""

import pytest
import torch
from helpers.tiny_models import BACKBONE, moco, samples, views
from mmpretrain.registry import MODELS
from torch import nn

from freeatm_mm.models import SplitBatchNorm2d


def norms(num_splits, channels=3):
    """Torch's norm and ours, with the same weights."""
    torch.manual_seed(0)
    stock, ours = nn.BatchNorm2d(channels), SplitBatchNorm2d(channels, num_splits)
    nn.init.normal_(stock.weight)
    nn.init.normal_(stock.bias)
    ours.load_state_dict(stock.state_dict())
    return stock, ours


@pytest.mark.parametrize('momentum', [0.1, None])
def test_one_part_is_batch_norm_bit_for_bit(momentum):
    stock, ours = norms(1)
    stock.momentum = ours.momentum = momentum
    for seed in range(3):
        batch = views(6, seed=seed)[0]
        assert torch.equal(stock(batch), ours(batch))
    states = stock.state_dict(), ours.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert torch.equal(stock.eval()(batch), ours.eval()(batch))


def test_each_part_is_normalised_by_its_own_statistics():
    stock, ours = norms(3)
    batch = views(7, seed=1)[0].requires_grad_()  # parts of 3, 2 and 2 images
    expected = torch.cat([stock(part) for part in batch.split([3, 2, 2])])
    assert torch.equal(ours(batch), expected)
    gradients = [torch.autograd.grad((y**2).sum(), batch)[0] for y in (ours(batch), expected)]
    assert torch.allclose(*gradients, atol=1e-6)


def test_equal_parts_move_the_running_statistics_as_one_batch_does():
    stock, ours = norms(4)
    part = views(3, seed=2)[0]
    stock(part), ours(part.repeat(4, 1, 1, 1))
    for name in ('running_mean', 'running_var'):
        assert torch.allclose(getattr(ours, name), getattr(stock, name), atol=1e-6)
    assert ours.momentum == stock.momentum


def test_fewer_images_than_parts_are_an_error_in_training_alone():
    ours = SplitBatchNorm2d(3, 8)
    with pytest.raises(ValueError, match='a batch of 5 cannot be split into 8 parts'):
        ours(views(5)[0])
    assert ours.eval()(views(5)[0]).shape == views(5)[0].shape
    with pytest.raises(ValueError, match='num_splits must be 1 or more, got 0'):
        SplitBatchNorm2d(3, 0)


def test_a_backbone_with_it_has_the_same_checkpoint_and_the_same_features():
    backbones = [
        MODELS.build({**BACKBONE, 'norm_cfg': norm})
        for norm in (dict(type='BN'), dict(type='SplitBN', num_splits=2))
    ]
    backbones[1].load_state_dict(backbones[0].state_dict())
    split = [module for module in backbones[1].modules() if isinstance(module, SplitBatchNorm2d)]
    assert split
    images = views(4)[0]
    for backbone in backbones:
        backbone.eval()
    with torch.no_grad():
        features = [backbone(images)[-1] for backbone in backbones]
    assert torch.equal(*features)


@pytest.mark.parametrize('split', [False, True])
def test_in_moco_a_key_no_longer_depends_on_the_batch_of_its_query(split):
    """Queries and keys of the first part of a batch, with the rest of the batch exchanged."""
    norm = dict(type='SplitBN', num_splits=2) if split else dict(type='BN')
    model = moco(backbone={**BACKBONE, 'norm_cfg': norm})
    batch, other = views(8, seed=3)[0], views(8, seed=4)[0]
    mixed = torch.cat([batch[:4], other[4:]])
    with torch.no_grad():
        features = [model.backbone(images)[-1][:4] for images in (batch, mixed)]
    assert torch.equal(*features) == split
    loss = model.loss([batch, other], samples([1, 2, 1, 1, 0, 1, 2, 1]))['loss']
    assert torch.isfinite(loss)

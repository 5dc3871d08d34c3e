"""mmpretrain's two-view methods by the neck alone: stock without masks, instances with them."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.tiny_models import BACKBONE, GRID, samples, views
from mmengine.logging import MessageHub
from mmpretrain.registry import MODELS

from freeatm_mm.models.instances import collect_instances
from freeatm_mm.ops import pool_instances

COUNTS = [2, None, 3, 0, 1]
MLP = dict(in_channels=8, hid_channels=8, out_channels=6)
NONLINEAR = dict(
    type='NonLinearNeck', **MLP, num_layers=2, norm_cfg=dict(type='BN1d'), with_last_bn=False
)
PREDICTOR = dict(NONLINEAR, in_channels=6, with_avg_pool=False, with_last_bias=True)
ENTROPY = dict(type='CrossEntropyLoss')
METHODS = {
    'BYOL': dict(
        neck=NONLINEAR,
        head=dict(type='LatentPredictHead', loss=dict(type='CosineSimilarityLoss'))
        | dict(predictor=PREDICTOR),
    ),
    'BarlowTwins': dict(
        neck=NONLINEAR,
        head=dict(
            type='LatentCrossCorrelationHead',
            in_channels=6,
            loss=dict(type='CrossCorrelationLoss'),
        ),
    ),
    'DenseCL': dict(
        neck=dict(type='DenseCLNeck', **MLP, num_grid=None),
        head=dict(type='ContrastiveHead', loss=ENTROPY, temperature=0.2),
        queue_len=20,
        feat_dim=6,
    ),
    'SwAV': dict(
        neck=dict(type='SwAVNeck', **MLP, norm_cfg=dict(type='BN1d')),
        head=dict(
            type='SwAVHead',
            loss=dict(type='SwAVLoss', feat_dim=6, num_prototypes=4, num_crops=[2]),
        ),
    ),
}


def build(name, stock=False):
    torch.manual_seed(0)
    config = copy.deepcopy(METHODS[name])
    if not stock:
        name = f'FreeATM{name}'
        config['neck']['type'] = f'FreeATM{config["neck"]["type"]}'
    model = MODELS.build(dict(config, type=name, backbone=BACKBONE))
    MessageHub.get_current_instance().update_info('max_iters', 10)  # BYOL's momentum asks
    return model.train()


def total(losses):
    return sum(value for name, value in losses.items() if 'loss' in name)


@pytest.mark.parametrize('name', METHODS)
def test_without_masks_it_is_mmpretrains_bit_for_bit(name):
    results = []
    for model in (build(name, stock=True), build(name)):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(2):
            losses = model.loss(views(5, seed=step), samples([None] * 5))
            optimizer.zero_grad()
            total(losses).backward()
            optimizer.step()
        results.append((losses, model.state_dict()))
    (stock_losses, stock), (losses, state) = results
    assert list(losses) == list(stock_losses)
    assert all(torch.equal(losses[key], stock_losses[key]) for key in losses)
    assert state.keys() == stock.keys()
    assert all(torch.equal(state[key], stock[key]) for key in state)


def pool_before_the_neck(backbone, data):
    """Let a backbone give each instance a map of its own, one pixel: what the neck would pool."""
    calls = 0

    def pool(module, inputs, outputs):
        nonlocal calls
        instances = collect_instances(data, [inputs[0][:5]] * 2)
        rows = []
        for part in outputs[0].split(5):
            rows.append(pool_instances(part, instances.masks[calls % 2], instances.places))
            calls += 1
        return (torch.cat(rows)[:, :, None, None],)

    backbone.register_forward_hook(pool)


@pytest.mark.parametrize('name', ['BYOL', 'BarlowTwins', 'SwAV'])
def test_with_masks_it_is_the_stock_method_on_instances(name):
    """A batch of instances, each an image of one pixel: mmpretrain's own code is the reference."""
    data, ours, stock = samples(COUNTS), build(name), build(name, stock=True)
    if name == 'SwAV':  # the backbone sees both views at once, its normalisation with them
        ours.backbone.eval(), stock.backbone.eval()
    losses = ours.loss(views(5), data)
    pool_before_the_neck(stock.backbone, data)
    if name == 'BYOL':
        pool_before_the_neck(stock.target_net.module[0], data)
    expected = stock.loss(views(5), data)
    torch.testing.assert_close(losses['loss'], expected['loss'])
    assert losses['instances_per_image'].item() == pytest.approx(6 / 5)
    assert losses['pooled_whole'].item() == pytest.approx(2 / 5)


def test_densecl_contrasts_instances_and_stays_dense():
    data, model, plain = samples(COUNTS), build('DenseCL'), build('DenseCL')
    losses = model.loss(views(5), data)
    without = plain.loss(views(5), None)
    torch.testing.assert_close(losses['loss_dense'], without['loss_dense'])
    assert losses['loss_single'] != without['loss_single']
    assert model.queue_ptr.item() == 8 and plain.queue_ptr.item() == 5  # six, and two whole
    assert model.queue2_ptr.item() == 5
    for _ in range(3):
        losses = model.loss(views(5), data)
    assert model.queue_ptr.item() == 32 % 20 and torch.isfinite(total(losses))


def test_densecl_pools_each_view_under_its_own_masks():
    """Queries of the first view, keys of the second by the momentum copies."""
    data, model, inputs = samples(COUNTS), build('DenseCL'), views(5)
    instances = collect_instances(data, inputs)
    embedded = []
    for view, (backbone, neck) in enumerate(
        [(model.backbone, model.neck), copy.deepcopy(model.encoder_k).module]
    ):
        pooled = pool_instances(backbone(inputs[view])[0], instances.masks[view], instances.places)
        embedded.append(torch.nn.functional.normalize(neck.mlp(pooled), dim=1))
    queries, keys = embedded
    positive = (queries * keys).sum(1, keepdim=True)
    expected = model.head.loss(positive, queries @ model.queue) * (1 - model.loss_lambda)
    torch.testing.assert_close(model.loss(inputs, data)['loss_single'], expected)
    torch.testing.assert_close(model.queue[:, : len(keys)], keys.T)


@pytest.mark.parametrize('name', METHODS)
def test_every_view_is_pooled_under_its_own_masks(name, monkeypatch):
    """The order in which a method's necks take turns: views and masks tell their number."""
    data, inputs, pairs = samples(COUNTS), views(5), []
    for sample in data:
        masks = sample.get('instance_masks')
        if masks is not None:
            masks.copy_(torch.tensor([1.0, 2.0])[:, None, None, None])

    def spy(features, masks, places=None):
        pairs.append((features.mean().item(), masks.max().item()))
        return pool_instances(features, masks, places)

    for module in ('two_view', 'necks'):
        monkeypatch.setattr(f'freeatm_mm.models.{module}.pool_instances', spy)
    model = build(name)
    number = torch.ones(5, 8, GRID, GRID)

    def show(module, images, outputs):
        shown = [1.0 + torch.equal(view, inputs[1]) for view in images[0].split(5)]
        return (torch.cat([number * value for value in shown]),)

    for module in model.modules():
        if type(module).__name__ == 'ResNet':
            module.register_forward_hook(show)
    model.loss(inputs, data)
    assert len(pairs) == (4 if name == 'BYOL' else 2)
    assert {view for view, _ in pairs} == {1, 2} and all(view == mask for view, mask in pairs)


def test_densecls_queue_takes_batches_without_a_noun_wherever_its_pointer_is():
    model = build('DenseCL')
    for step in range(20):
        counts = [None] * 5 if step % 2 else COUNTS
        losses = model.loss(views(5, seed=step), samples(counts))
        assert torch.isfinite(total(losses))
    assert model.queue_ptr.item() == 10 * (8 + 5) % 20
    assert model.queue2_ptr.item() == 0


@pytest.mark.parametrize('name', METHODS)
def test_gradients_reach_the_encoder_and_no_mask_stays(name):
    model = build(name)
    total(model.loss(views(5), samples(COUNTS))).backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    assert all(getattr(module, 'handed', None) is None for module in model.modules())


@pytest.mark.parametrize('name', ['BarlowTwins', 'DenseCL', 'SwAV'])
def test_on_several_processes_it_says_what_it_needs(name, monkeypatch):
    monkeypatch.setattr('freeatm_mm.models.two_view.get_world_size', lambda: 2)
    with pytest.raises(ValueError, match=f'FreeATM{name} trains with masks on one process'):
        build(name).loss(views(5), samples(COUNTS))


def test_a_neck_that_cannot_pool_is_refused():
    config = dict(METHODS['BYOL'], neck=dict(type='LinearNeck', in_channels=8, out_channels=6))
    with pytest.raises(TypeError, match="FreeATMBYOL: the neck LinearNeck can't pool"):
        MODELS.build(dict(config, type='FreeATMBYOL', backbone=BACKBONE))

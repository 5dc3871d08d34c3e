"""The pooling neck against plain numpy, and against the neck that it extends."""

import copy

import pytest
import torch
from helpers.tiny_models import BACKBONE, dino, moco, samples, simclr, simsiam
from mmengine.logging import MessageHub
from mmpretrain.registry import MODELS

from freeatm_mm.errors import InputError
from freeatm_mm.models import InstancePooling
from freeatm_mm.ops import pool_instances

NECKS = {
    'MoCoV2Neck': dict(in_channels=6, hid_channels=5, out_channels=4),
    'NonLinearNeck': dict(
        in_channels=6, hid_channels=5, out_channels=4, num_layers=2, norm_cfg=dict(type='BN1d')
    ),
}


def both(name):
    """The stock neck and ours with the same weights."""
    torch.manual_seed(0)
    stock = MODELS.build(dict(type=name, **NECKS[name]))
    ours = MODELS.build(dict(type=f'FreeATM{name}', **NECKS[name]))
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock, ours


@pytest.mark.parametrize('name', NECKS)
def test_without_masks_it_is_the_stock_neck(name):
    stock, ours = both(name)
    assert isinstance(ours, InstancePooling) and isinstance(ours, type(stock))
    assert list(ours.state_dict()) == list(stock.state_dict())
    features = torch.randn(4, 6, 3, 3, requires_grad=True)
    results = []
    for neck in (stock, ours):
        output = neck((features,))[0]
        gradients = torch.autograd.grad(output.square().sum(), [features, *neck.parameters()])
        results.append((output, *gradients))
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize('name', NECKS)
def test_with_masks_the_rest_of_the_neck_follows(name):
    stock, ours = both(name)
    features, masks = torch.randn(4, 6, 3, 3), torch.rand(4, 2, 3, 3)
    places = torch.tensor([0, 1, 2, 5, 6])
    pooled = pool_instances(features, masks, places)
    expected = stock((pooled[:, :, None, None],))[0]
    assert torch.equal(ours((features,), masks, places)[0], expected)


def test_neck_can_be_copied():
    _, ours = both('MoCoV2Neck')
    twin = copy.deepcopy(ours)
    features, masks = torch.randn(2, 6, 3, 3), torch.rand(2, 1, 3, 3)
    assert torch.equal(twin((features,), masks)[0], ours((features,), masks)[0])
    assert twin.mlp[0].weight is not ours.mlp[0].weight


def test_initialisation_is_the_stock_necks():
    weights = []
    for config in (dict(type='NonLinearNeck'), dict(type='FreeATMNonLinearNeck')):
        torch.manual_seed(0)
        neck = MODELS.build(dict(config, **NECKS['NonLinearNeck']))
        neck.init_weights()
        weights.append(neck.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize('name', NECKS)
def test_the_older_spelling_builds_the_same(name):
    ours = MODELS.build(dict(type='InstancePoolNeck', neck=name, **NECKS[name]))
    assert type(ours) is type(both(name)[1])


def test_unknown_neck():
    with pytest.raises(ValueError, match='there is no FreeATMNoSuchNeck'):
        MODELS.build(dict(type='InstancePoolNeck', neck='NoSuchNeck'))


@pytest.mark.parametrize('name', NECKS)
def test_a_neck_without_pooling_is_refused(name):
    with pytest.raises(ValueError, match=f'FreeATM{name}: with_avg_pool=False'):
        MODELS.build(dict(type=f'FreeATM{name}', with_avg_pool=False, **NECKS[name]))


@pytest.mark.parametrize('pack', [tuple, list, lambda outputs: outputs[0]])
def test_a_tuple_a_list_or_a_tensor(pack):
    _, ours = both('MoCoV2Neck')
    features, masks = torch.randn(2, 6, 3, 3), torch.rand(2, 1, 3, 3)
    for given in (None, masks):
        assert torch.equal(ours(pack([features]), given)[0], ours((features,), given)[0])


@pytest.mark.parametrize(
    'outputs, message',
    [
        ([torch.zeros(2, 6, 6, 6), torch.zeros(2, 6, 3, 3)], 'gave 2: set its out_indices'),
        ((), 'gave 0'),
        ((torch.zeros(2, 6),), r'\(2, 6\): set out_type'),
        (torch.zeros(2, 9, 6), r'\(2, 9, 6\)'),
        (torch.zeros(2, 7, 3, 3), r'FreeATMNonLinearNeck: .*set in_channels=7 \(not 6\)'),
        ({'res4': torch.zeros(2, 6, 3, 3)}, 'gave a dict'),
    ],
)
def test_what_is_no_feature_map_is_told(outputs, message):
    """With masks and without: the baseline mustn't train where the other arm can't."""
    _, ours = both('NonLinearNeck')
    for masks in (None, torch.rand(2, 1, 3, 3)):
        with pytest.raises(ValueError, match=message):
            ours(outputs, masks)


NECK_CONFIGS = {
    moco: dict(type='FreeATMMoCoV2Neck', hid_channels=8, out_channels=6),
    simclr: dict(
        type='FreeATMNonLinearNeck', hid_channels=8, out_channels=6, norm_cfg=dict(type='BN1d')
    ),
}
NECK_CONFIGS[simsiam] = NECK_CONFIGS[simclr]
NECK_CONFIGS[dino] = dict(type='FreeATMDINONeck', hid_channels=8, out_channels=12)
SMALL = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
STAGE = dict(num_modules=1, num_branches=2, block='BASIC', num_blocks=(1, 1), num_channels=(8, 16))
HRNET = dict(
    type='HRNet',
    norm_cfg=dict(type='BN'),
    multiscale_output=False,
    extra=dict(
        stage1=dict(
            num_modules=1, num_branches=1, block='BASIC', num_blocks=(1,), num_channels=(8,)
        ),
        stage2=STAGE,
        stage3=dict(STAGE, num_branches=3, num_blocks=(1, 1, 1), num_channels=(8, 16, 32)),
        stage4=dict(STAGE, num_branches=4, num_blocks=(1, 1, 1, 1), num_channels=(8, 16, 32, 64)),
    ),
)
BACKBONES = {
    'convnext': (
        dict(
            type='ConvNeXt',
            arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 16, 16]),
            gap_before_final_norm=False,
        ),
        2,
        16,
    ),
    'swin': (
        dict(
            type='SwinTransformer',
            arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]),
            img_size=64,
            window_size=2,
        ),
        2,
        64,
    ),
    'vit': (
        dict(type='VisionTransformer', arch=SMALL, img_size=64, patch_size=16, out_type='featmap'),
        4,
        16,
    ),
    'hrnet': (HRNET, 16, 8),
}


def test_a_single_feature_is_not_normalised_by_its_batch():
    """One image without masks, or one instance, in one view: said in our words, not in torch's."""
    _, neck = both('NonLinearNeck')
    one, masks = torch.rand(1, 6, 3, 3), torch.rand(1, 2, 3, 3)
    for places in (None, torch.tensor([1])):
        with pytest.raises(InputError, match='this batch has one: set train_dataloader.drop_last'):
            neck((one,), None if places is None else masks, places)
    assert neck((one,), masks)[0].shape == (2, 4)
    assert neck.eval()((one,))[0].shape == (1, 4)
    assert both('MoCoV2Neck')[1].train()((one,))[0].shape == (1, 4)


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('method', [moco, simclr, simsiam, dino])
def test_other_backbones(name, method):
    """Any that gives one feature map, as their own options make them."""
    backbone, grid, channels = BACKBONES[name]
    neck = dict(NECK_CONFIGS[method], in_channels=channels)
    model = method(backbone=copy.deepcopy(backbone), neck=neck)
    images = [torch.randn(4, 3, 64, 64) for _ in range(2)]
    MessageHub.get_current_instance().update_info('max_iters', 10)  # DINO's momentum asks
    for data in (samples([2, 1, None, 0], grid=grid), None):
        model.zero_grad()
        loss = model.loss(images, data)['loss']
        loss.backward()
        assert loss.isfinite()
        assert all(
            p.grad.isfinite().all() for p in model.backbone.parameters() if p.grad is not None
        )
    assert any(p.grad.abs().sum() > 0 for p in model.backbone.parameters())


@pytest.mark.parametrize(
    'backbone, message',
    [
        (dict(BACKBONE, out_indices=(0, 1)), 'gave 2: set its out_indices'),
        (dict(BACKBONES['convnext'][0], gap_before_final_norm=True), 'gap_before_final_norm=False'),
        (dict(BACKBONES['vit'][0], out_type='cls_token'), "out_type='featmap'"),
        (dict(BACKBONES['vit'][0], out_type='raw'), "out_type='featmap'"),
        (dict(HRNET, multiscale_output=True), 'gave 4: .*multiscale_output=False'),
    ],
)
def test_a_backbone_of_several_or_pooled_outputs_is_told(backbone, message):
    images = [torch.randn(2, 3, 64, 64) for _ in range(2)]
    for data in (samples([2, 1]), None):
        with pytest.raises(ValueError, match=message):
            moco(backbone=copy.deepcopy(backbone)).loss(images, data)

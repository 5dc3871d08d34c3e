"""Small models and batches."""

from __future__ import annotations

import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import freeatm_mm.openmmlab  # noqa: F401

init_default_scope('mmpretrain')

BACKBONE = dict(
    type='ResNet',
    depth=18,
    num_stages=2,
    stem_channels=4,
    base_channels=4,
    strides=(1, 2),
    dilations=(1, 1),
    out_indices=(1,),
    norm_cfg=dict(type='BN'),
    zero_init_residual=False,
)
GRID = 4  # of the backbone above on 32 x 32 pixels
DINO = dict(
    type='FreeATMDINO',
    backbone=BACKBONE,
    neck=dict(
        type='FreeATMDINONeck',
        in_channels=8,
        hid_channels=8,
        bottleneck_channels=6,
        out_channels=12,
    ),
    base_momentum=0.1,
)
MAE = dict(
    type='FreeATMMAE',
    backbone=dict(
        type='FreeATMMAEViT',
        img_size=32,
        patch_size=8,
        mask_ratio=0.75,
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
    ),
    neck=dict(
        type='MAEPretrainDecoder',
        num_patches=16,
        patch_size=8,
        embed_dim=16,
        decoder_embed_dim=16,
        decoder_depth=1,
        decoder_num_heads=2,
    ),
    head=dict(
        type='MAEPretrainHead',
        norm_pix=True,
        patch_size=8,
        loss=dict(type='PixelReconstructionLoss', criterion='L2'),
    ),
)


def moco(stock=False, seed=0, **kwargs):
    """A small MoCo, mmpretrain's own or ours, with weights by seed."""
    torch.manual_seed(seed)
    neck = dict(in_channels=8, hid_channels=8, out_channels=6)
    config = dict(
        backbone=BACKBONE,
        queue_len=24,
        feat_dim=6,
        momentum=0.1,
        head=dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.2),
    )
    prefix = '' if stock else 'FreeATM'
    config.update(type=f'{prefix}MoCo', neck=dict(type=f'{prefix}MoCoV2Neck', **neck))
    return _ready(config, kwargs)


def simclr(stock=False, seed=0, **kwargs):
    """A small SimCLR, mmpretrain's own or ours, with weights by seed."""
    torch.manual_seed(seed)
    neck = dict(
        in_channels=8, hid_channels=8, out_channels=6, num_layers=2, norm_cfg=dict(type='BN1d')
    )
    config = dict(
        backbone=BACKBONE,
        head=dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.1),
    )
    prefix = '' if stock else 'FreeATM'
    config.update(type=f'{prefix}SimCLR', neck=dict(type=f'{prefix}NonLinearNeck', **neck))
    return _ready(config, kwargs)


def mae(stock=False, seed=0, **kwargs):
    """A small MAE of 4x4 patches on 32x32 pixels, mmpretrain's own or ours, weights by seed."""
    torch.manual_seed(seed)
    prefix = '' if stock else 'FreeATM'
    backbone = dict(MAE['backbone'], type=f'{prefix}MAEViT')
    config = dict(MAE, type=f'{prefix}MAE', backbone=backbone)
    return _ready(config, kwargs)


def simsiam(stock=False, seed=0, **kwargs):
    """A small SimSiam, mmpretrain's own or ours, with weights by seed."""
    torch.manual_seed(seed)
    neck = dict(
        in_channels=8,
        hid_channels=8,
        out_channels=6,
        num_layers=2,
        with_last_bn_affine=False,
        norm_cfg=dict(type='BN1d'),
    )
    config = dict(
        backbone=BACKBONE,
        head=dict(
            type='LatentPredictHead',
            loss=dict(type='CosineSimilarityLoss'),
            predictor=dict(
                type='NonLinearNeck',
                in_channels=6,
                hid_channels=4,
                out_channels=6,
                with_avg_pool=False,
                with_last_bn=False,
                with_last_bias=True,
                norm_cfg=dict(type='BN1d'),
            ),
        ),
    )
    prefix = '' if stock else 'FreeATM'
    config.update(type=f'{prefix}SimSiam', neck=dict(type=f'{prefix}NonLinearNeck', **neck))
    return _ready(config, kwargs)


def dino(seed=0, **kwargs):
    """A small DINO with weights by seed; mmpretrain has none."""
    torch.manual_seed(seed)
    return _ready(DINO, kwargs)


def _ready(config, changes):
    model = MODELS.build(dict(config, **changes))
    model.init_weights()
    model.train()
    return model


def views(batch, seed=1, number=2):
    """Random views, each (batch, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3, 32, 32, generator=generator) for _ in range(number)]


def samples(counts, seed=2, grid=GRID, number=2):
    """Data samples with so many instances each; None stands for a sample without masks."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for image, count in enumerate(counts):
        sample = DataSample()
        if count is not None:
            sample.instance_masks = torch.rand(number, count, grid, grid, generator=generator)
            sample.noun_ids = torch.arange(image, image + count) % 4
            sample.set_field(count + 1, 'num_nouns', field_type='metainfo')
        result.append(sample)
    return result


def assert_trains_as(stock, ours, inputs, data, optimizer=torch.optim.SGD, lr=0.1):
    """Train two models alike for three steps: losses, gradients and weights are the same bits.

    Args:
        stock: mmpretrain's.
        ours: This package's.
        inputs: ``step -> inputs``.
        data: The batch's data samples.
        optimizer: Class of the optimizer.
        lr: Its rate.
    """
    results = []
    for model in (stock, ours):
        stepper = optimizer(model.parameters(), lr)
        torch.manual_seed(4)  # what a model draws
        for step in range(3):
            losses = model.loss(inputs(step), data)
            stepper.zero_grad()
            losses['loss'].backward()
            stepper.step()
        results.append((losses, [p.grad for p in model.parameters()], model.state_dict()))
    (stock_losses, stock_gradients, stock_state), (losses, gradients, state) = results
    assert list(losses) == list(stock_losses) == ['loss']
    assert torch.equal(losses['loss'], stock_losses['loss'])
    for one, other in zip(gradients, stock_gradients, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert state.keys() == stock_state.keys()
    assert all(torch.equal(state[key], stock_state[key]) for key in state)

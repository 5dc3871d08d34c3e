"""MAE: stock parity without masks; exact counts, schedules and scores with masks."""

import numpy as np
import pytest
import torch
from helpers.ops_reference import hidden_patches
from helpers.tiny_models import assert_trains_as, mae, samples, views
from helpers.tiny_runs import config, different, train
from helpers.tiny_stores import make_store
from mmengine.logging import MessageHub

from freeatm_mm.models import AttentionGuidedMaskGenerator
from freeatm_mm.ops import foreground_masked


@pytest.fixture
def hub():
    """The running state as mmengine's runner keeps it."""
    hub = MessageHub.get_instance('test_mae')
    MessageHub._instance_dict.move_to_end('test_mae')
    yield hub
    MessageHub._instance_dict.pop('test_mae')


def at(hub, iteration, last=100):
    hub.update_info('iter', iteration)
    hub.update_info('max_iters', last + 1)


@pytest.mark.parametrize('data', [None, samples([None] * 4), samples([0] * 4, number=1)])
def test_without_masks_it_is_mmpretrains_mae_bit_for_bit(data):
    assert_trains_as(
        mae(stock=True),
        mae(),
        lambda step: views(4, seed=step)[0],
        data,
        torch.optim.AdamW,
        lr=1e-3,
    )
    features = [model.extract_feat(views(2)[0])[0] for model in (mae(stock=True), mae())]
    assert torch.equal(*features)


def maes_hidden_patches(shape, masked, seed=0):
    """The same of mmpretrain's own `random_masking`."""
    torch.manual_seed(seed)
    backbone, tokens = mae(stock=True, seed=seed).backbone, torch.zeros(*shape, 1)
    torch.manual_seed(seed)
    return backbone.random_masking(tokens, masked / shape[1])[1].bool()


@pytest.mark.parametrize('length, masked', [(196, 147), (16, 12), (64, 48)])
def test_chance_is_the_draw_of_maes_own_masking(length, masked):
    """At beta 0 all is as in the baseline; above, what chance decides follows the same draw."""
    scores = torch.rand(64, length).argsort(dim=1) / length
    expected = maes_hidden_patches(scores.shape, masked)
    assert torch.equal(hidden_patches(scores, masked, 0.0), expected)
    assert torch.equal(hidden_patches(torch.full_like(scores, 0.3), masked, 0.8), expected)
    guided = hidden_patches(scores, masked, 0.5)
    chosen = scores >= scores.sort(dim=1, descending=True).values[:, masked // 2 - 1 : masked // 2]
    assert chosen.sum(1).eq(masked // 2).all() and guided[chosen].all()
    torch.manual_seed(0)
    noise = torch.rand(scores.shape).masked_fill(chosen, 2.0)
    assert torch.equal(
        guided, noise >= noise.sort(dim=1, descending=True).values[:, masked - 1 : masked]
    )


def test_at_beta_0_a_training_step_is_the_baselines_bit_for_bit(hub):
    """Loss, gradients, hidden patches, with masks in the batch; and what is drawn later."""
    at(hub, 0)
    results = []
    for data in (samples([2, None, 1, 0], number=1), None):
        model = mae(seed=1)
        torch.manual_seed(5)
        loss = model.loss(views(4)[0], data)['loss']
        loss.backward()
        results.append(
            [loss, *(p.grad for p in model.parameters() if p.requires_grad), torch.rand(2)]
        )
    assert all(torch.equal(one, other) for one, other in zip(*results))


def test_with_a_ceiling_of_0_a_whole_training_is_the_baselines(tmp_path):
    store = make_store(tmp_path / 'store', count=20)
    states = []
    for name, changes in (
        ('guided', {'model.mask_generator': dict(type='AttentionGuidedMaskGenerator', ceiling=0)}),
        ('baseline', {'train_dataloader.dataset.masks': False}),
    ):
        states.append(train(config(store, tmp_path / name, 'mae', **changes), f'paired-{name}'))
    assert different(*states) == []


def test_a_range_of_rounding_errors_is_none():
    """Masks that add up to the same everywhere, but for rounding: as without a mask."""
    scores = 1 + (torch.rand(64, 196) - 0.5) * 2e-7
    assert len(scores.unique()) > 1
    assert torch.equal(hidden_patches(scores, 147, 0.8), maes_hidden_patches((64, 196), 147))


@pytest.mark.parametrize(
    'schedule, expected',
    [
        ('linear', [0, 0.2, 0.4, 0.8]),
        ('constant', [0.8] * 4),
        ('reverse', [0.8, 0.6, 0.4, 0]),
        ('cosine', [0, 0.8 * (1 - np.cos(np.pi / 4)) / 2, 0.4, 0.8]),
    ],
)
def test_schedules_follow_the_running_state(hub, schedule, expected):
    generator = AttentionGuidedMaskGenerator(schedule=schedule)
    for iteration, beta in zip((0, 25, 50, 100), expected):
        at(hub, iteration)
        assert generator.beta() == pytest.approx(beta)
        assert generator.beta(iteration / 100) == pytest.approx(beta)


def test_counts_over_a_whole_training(hub):
    """The foreground's share among the hidden patches follows beta."""
    torch.manual_seed(0)
    generator = AttentionGuidedMaskGenerator()
    scores = torch.zeros(200, 64)
    scores[:, :16] = 1 + torch.rand(200, 16)  # a quarter is foreground
    shares = []
    for iteration in range(0, 101, 10):
        at(hub, iteration)
        order = generator(scores, 48)
        mask = torch.zeros(200, 64).scatter_(1, order[:, -48:], 1.0)
        chosen = min(int(generator.beta() * 48 + 1e-9), 16)
        rest = (
            (16 - chosen)
            * (48 - int(generator.beta() * 48 + 1e-9))
            / (64 - int(generator.beta() * 48 + 1e-9))
        )
        shares.append(foreground_masked(scores, mask).item())
        assert shares[-1] == pytest.approx((chosen + rest) / 16, abs=0.03)
    assert shares[0] < 0.8 and shares[-1] == 1 and shares == sorted(shares)


@pytest.mark.parametrize('combine', ['sum', 'max'])
def test_masked_patches_are_the_scores_highest(hub, combine):
    at(hub, 100)
    model = mae(
        combine=combine, mask_generator=dict(type='AttentionGuidedMaskGenerator', ceiling=1.0)
    )
    data = samples([2, None, 1, 0], number=1)
    seen = {}
    loss = model.head.loss
    model.head.loss = lambda pred, target, mask: seen.update(mask=mask) or loss(pred, target, mask)
    losses = model.loss(views(4)[0], data)
    assert losses['loss'].isfinite() and losses['beta'].item() == pytest.approx(1.0)
    assert seen['mask'].sum(1).eq(12).all()
    for image in (0, 2):
        masks = data[image].instance_masks[0].flatten(1)
        scores = masks.sum(0) if combine == 'sum' else masks.amax(0)
        assert seen['mask'][image].bool().nonzero().flatten().tolist() == sorted(
            scores.argsort(descending=True)[:12].tolist()
        )


def test_order_keeps_maes_contract():
    """Visible features, mask and ids_restore fit each other as MAE's own do."""
    backbone = mae().backbone
    tokens = torch.arange(2 * 16.0).reshape(2, 16, 1).expand(-1, -1, 16)
    backbone._order = torch.stack([torch.randperm(16) for _ in range(2)])
    visible, mask, restore = backbone.random_masking(tokens, 0.75)
    backbone._order = None
    assert visible.shape == (2, 4, 16) and mask.dtype == torch.float32
    padded = torch.cat([visible, torch.full((2, 12, 16), -1.0)], dim=1)
    restored = padded.gather(1, restore[:, :, None].expand(-1, -1, 16))
    assert torch.equal(restored[mask == 0], tokens[mask == 0])
    assert restored[mask == 1].eq(-1).all()


def test_gradients_flow(hub):
    at(hub, 50)
    model = mae()
    model.loss(views(4)[0], samples([1, 2, None, 1], number=1))['loss'].backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in model.parameters()
        if parameter.requires_grad
    )


def test_outside_of_a_training_beta_is_that_of_its_start(hub):
    """Nobody has told the running state of iterations: evaluation, a model tried by hand."""
    assert hub.get_info('iter') is None
    assert AttentionGuidedMaskGenerator().beta() == 0
    assert AttentionGuidedMaskGenerator(schedule='reverse').beta() == 0.8
    at(hub, 0, last=0)  # a training of one iteration
    assert AttentionGuidedMaskGenerator().beta() == 0


def test_longer_than_planned_beta_stays_at_its_ceiling(hub):
    at(hub, 150)
    assert AttentionGuidedMaskGenerator().beta() == 0.8


def test_a_share_of_the_foreground_is_the_generators(hub):
    scores = torch.zeros(1, 16)
    scores[0, :4] = torch.tensor([4.0, 3.0, 3.5, 2.5])
    at(hub, 100)
    generator = AttentionGuidedMaskGenerator(1.0, 'constant', 'foreground')
    assert set(range(4)) <= set(generator(scores, 12)[0, 4:].tolist())
    assert {0, 2} <= set(generator(scores, 12, 0.5)[0, 4:].tolist())


def test_bad_arguments():
    with pytest.raises(ValueError, match='ceiling 1.2'):
        AttentionGuidedMaskGenerator(ceiling=1.2)
    with pytest.raises(ValueError, match="schedule 'steps'"):
        AttentionGuidedMaskGenerator(schedule='steps')
    with pytest.raises(ValueError, match="AttentionGuidedMaskGenerator: share_of 'image'"):
        AttentionGuidedMaskGenerator(share_of='image')
    with pytest.raises(ValueError, match="combine 'first'"):
        mae(combine='first')
    with pytest.raises(TypeError, match="type='FreeATMMAEViT'"):
        mae(backbone=dict(type='MAEViT', img_size=32, patch_size=8))
    with pytest.raises(ValueError, match=r'5x5.*4x4.*grid_size'):
        mae().loss(views(1)[0], samples([1], grid=5, number=1))
    wide = samples([1], number=1)
    wide[0].instance_masks = wide[0].instance_masks.reshape(
        1, 1, 2, 8
    )  # as many cells as there are patches
    with pytest.raises(ValueError, match=r'2x8.*4x4.*grid_size'):
        mae().loss(views(1)[0], wide)


ARCH = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48)


def other_mae(size, patch, neck=None, head=None, arch=ARCH):
    """A MAE of another size, with entries of neck and head that fit unless given."""
    return mae(
        backbone=dict(type='FreeATMMAEViT', img_size=size, patch_size=patch, arch=arch),
        neck=dict(
            dict(
                type='MAEPretrainDecoder',
                num_patches=(size // patch) ** 2,
                patch_size=patch,
                embed_dim=24,
                decoder_embed_dim=16,
                decoder_depth=1,
                decoder_num_heads=2,
            ),
            **neck or {},
        ),
        head=dict(
            dict(
                type='MAEPretrainHead',
                norm_pix=True,
                patch_size=patch,
                loss=dict(type='PixelReconstructionLoss', criterion='L2'),
            ),
            **head or {},
        ),
    )


def test_several_views_are_told():
    with pytest.raises(
        ValueError, match='one view of each image, got 2: leave FreeATMMultiView out'
    ):
        mae().loss([torch.zeros(2, 3, 32, 32)] * 2, None)


def test_masks_that_are_no_numbers_are_told():
    data = samples([2, None], number=1)
    data[0].instance_masks[0, 1, 2, 2] = float('nan')
    with pytest.raises(ValueError, match='masks are NaN or infinite'):
        mae().loss(torch.zeros(2, 3, 32, 32), data)


@pytest.mark.parametrize('size, patch', [(48, 8), (64, 16), (30, 5)])
def test_other_sizes(hub, size, patch):
    at(hub, 50)
    grid = size // patch
    losses = other_mae(size, patch).loss(
        torch.randn(4, 3, size, size), samples([2, None, 1, 0], grid=grid, number=1)
    )
    assert losses['loss'].isfinite() and losses['beta'] > 0


@pytest.mark.parametrize(
    'neck, head, message',
    [
        (dict(num_patches=196), None, r'set neck.num_patches=36 \(not 196\)'),
        (dict(embed_dim=768), None, r'neck.embed_dim=24 \(not 768\)'),
        (dict(patch_size=16), None, r'neck.patch_size=8 \(not 16\)'),
        (None, dict(patch_size=16), r'head.patch_size=8 \(not 16\)'),
        (
            dict(num_patches=196, embed_dim=768, patch_size=16),
            dict(patch_size=16),
            'num_patches=36.*embed_dim=24.*head.patch_size=8.*neck.patch_size=8.*grid_size=6',
        ),
    ],
)
def test_entries_that_contradict_each_other_are_named(neck, head, message):
    with pytest.raises(ValueError, match=message):
        other_mae(48, 8, neck, head)


def test_sizes_that_mae_cannot_have_are_told():
    for size, patch in (((32, 48), 8), (36, 8)):
        with pytest.raises(ValueError, match='square and a multiple'):
            mae(backbone=dict(type='FreeATMMAEViT', img_size=size, patch_size=patch, arch=ARCH))
    for data in (None, samples([1, 1], grid=4, number=1)):
        with pytest.raises(ValueError, match='48x48.*img_size is 32x32: set scale'):
            mae().loss(torch.randn(2, 3, 48, 48), data)

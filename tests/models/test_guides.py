"""What guides MAE without masks: its own attention, a predictor of losses; paired with MAE's."""

import copy

import pytest
import torch
from helpers.tiny_models import mae, samples, views
from helpers.tiny_runs import config, different, train
from helpers.tiny_stores import make_store
from mmengine.logging import MessageHub

from freeatm_mm.ops import relative_order_loss

GUIDES = {'own_attention': dict(type='OwnAttentionGuide'),
          'loss': dict(type='LossGuide', channels=16, heads=2, momentum=0.25)}  # fmt: skip


@pytest.fixture
def at_the_end():
    """The running state of a training's last iteration, where beta is at its ceiling."""
    hub = MessageHub.get_instance('test_guides')
    MessageHub._instance_dict.move_to_end('test_guides')
    hub.update_info('iter', 100)
    hub.update_info('max_iters', 101)
    yield
    MessageHub._instance_dict.pop('test_guides')


def masked_by(model, images, data=None):
    """Which patches a model hides, and its losses."""
    seen = {}
    loss = model.head.loss
    model.head.loss = lambda pred, target, mask: seen.update(mask=mask) or loss(pred, target, mask)
    losses = model.loss(images, data)
    model.head.loss = loss
    return seen['mask'], losses


@pytest.mark.parametrize('guide', GUIDES.values(), ids=GUIDES)
def test_at_beta_0_it_is_mmpretrains_mae_bit_for_bit(guide):
    """Initial weights, hidden patches, loss, and what is drawn later."""
    results = []
    for model in (mae(stock=True, seed=1), mae(seed=1, guide=guide)):
        torch.manual_seed(5)
        images = views(4)[0]
        mask, losses = masked_by(model, images)
        results.append((mask, losses['loss'], torch.rand(2)))
        own = {key: value for key, value in model.state_dict().items() if 'guide' not in key}
        results[-1] += tuple(own.values())
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize('guide', GUIDES.values(), ids=GUIDES)
def test_the_patches_with_the_highest_scores_are_hidden(at_the_end, guide):
    model = mae(guide=guide, mask_generator=dict(type='AttentionGuidedMaskGenerator', ceiling=1.0))
    images = views(4)[0]
    teacher = copy.deepcopy(model)
    scores = teacher.guide.scores(teacher.backbone, images, None)
    mask, losses = masked_by(model, images, samples([2, None, 1, 0], number=1))
    assert losses['beta'] == 1 and 0 < losses['foreground_masked'] <= 1  # of the nouns
    for row, wanted in zip(mask, scores):
        assert set(row.nonzero().flatten().tolist()) == set(wanted.argsort()[-12:].tolist())
    _, without = masked_by(model, images)
    assert 'foreground_masked' not in without


def test_own_attention_is_that_of_the_last_layers_class_token():
    """Against the whole network, written out; and training goes on as before."""
    model = mae(guide=GUIDES['own_attention'])
    images = views(3)[0]
    backbone, tokens = model.backbone, []
    found = model.guide.scores(backbone, images, None)
    assert backbone.training and not found.requires_grad
    assert not backbone.layers[-1].attn._forward_pre_hooks
    with torch.no_grad():
        tokens = backbone.patch_embed(images)[0] + backbone.pos_embed[:, 1:]
        first = (backbone.cls_token + backbone.pos_embed[:, :1]).expand(3, -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        for layer in backbone.layers[:-1]:
            tokens = layer(tokens)
        attention = backbone.layers[-1].attn
        size = attention.embed_dims
        parts = attention.qkv(backbone.layers[-1].ln1(tokens)).split(size, dim=2)
        maps, width = [], size // attention.num_heads
        for head in range(attention.num_heads):
            query, key = (part[..., head * width : (head + 1) * width] for part in parts[:2])
            maps.append((query @ key.transpose(1, 2) / width**0.5).softmax(2)[:, 0, 1:])
    torch.testing.assert_close(found, torch.stack(maps).mean(0))


def test_the_teacher_is_an_average_that_sees_whole_images():
    model = mae(guide=GUIDES['loss'])
    guide, images = model.guide, views(3)[0]
    scores = []
    before = [
        p.detach().clone() for p in (*model.backbone.parameters(), *guide.predictor.parameters())
    ]
    for _ in range(2):
        scores.append(guide.scores(model.backbone, images, None))
        with torch.no_grad():
            for parameter in (*model.backbone.parameters(), *guide.predictor.parameters()):
                parameter.add_(0.01)
    teacher = guide.teacher.module
    for average, first in zip(teacher.parameters(), before):
        torch.testing.assert_close(average, first + 0.25 * 0.01)
        assert not average.requires_grad
    assert not teacher.training and guide.predictor.training
    whole = teacher['backbone'](images, mask=None)[-1]
    assert whole.shape[1] == 1 + 16
    order = torch.arange(16).expand(3, -1)
    torch.testing.assert_close(scores[1], teacher['predictor'](whole, order)[..., 0])
    model.eval()
    guide.scores(model.backbone, images, None)
    assert guide.teacher.steps == 2  # only training moves it


def test_the_predictors_loss_is_that_of_the_hidden_patches_own_losses():
    model = mae(guide=GUIDES['loss'])
    images = views(4)[0]
    seen = {}
    plain = model.guide.loss
    model.guide.loss = lambda *given: seen.update(given=given) or plain(*given)
    mask, losses = masked_by(model, images)
    latent, restore, each, mask_given = seen['given']
    assert torch.equal(mask, mask_given) and not each.requires_grad
    torch.testing.assert_close((each * mask).sum() / mask.sum(), losses['loss'].detach())
    predicted = model.guide.predictor(latent, restore)[..., 0]
    rows = [
        relative_order_loss(predicted[n : n + 1, hidden], each[n : n + 1, hidden])
        for n, hidden in enumerate(mask.bool())
    ]
    torch.testing.assert_close(losses['loss_predictor'], torch.stack(rows).mean())
    losses['loss_predictor'].backward()
    assert all(p.grad is not None for p in model.guide.predictor.parameters() if p.requires_grad)
    assert model.backbone.patch_embed.projection.weight.grad.abs().sum() > 0


def test_the_predictor_learns_where_it_is_hard():
    """Noise in the lower half of every image can't be reconstructed, an even grey can."""
    model = mae(guide=GUIDES['loss'], head=dict(
        type='MAEPretrainHead', norm_pix=False, patch_size=8,
        loss=dict(type='PixelReconstructionLoss', criterion='L2')))  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    torch.manual_seed(0)
    for _ in range(40):
        images = torch.zeros(16, 3, 32, 32)
        images[:, :, 16:] = torch.randn(16, 3, 16, 32)
        losses = model.loss(images, None)
        optimizer.zero_grad()
        (losses['loss'] + losses['loss_predictor']).backward()
        optimizer.step()
    scores = model.guide.scores(model.backbone, images, None)
    assert (scores[:, :8].mean(1) < scores[:, 8:].mean(1)).all()


def test_a_whole_training_at_ceiling_0_is_the_baselines(tmp_path):
    """With drop path, whose draws come after the masks'."""
    changes = {'model.guide': GUIDES['own_attention']}
    store = make_store(tmp_path / 'store', count=20)
    changes['model.mask_generator'] = dict(type='AttentionGuidedMaskGenerator', ceiling=0)
    states = [
        train(config(store, tmp_path / name, 'mae', **extra), f'guides-{name}')
        for name, extra in (
            ('guided', changes),
            ('baseline', {'train_dataloader.dataset.masks': False}),
        )
    ]
    assert different(*states) == []


def test_green_noise_needs_no_masks():
    mask, losses = masked_by(
        mae(mask_generator=dict(type='AttentionGuidedMaskGenerator', ceiling=0, noise='green')),
        views(4)[0],
    )
    plain, _ = masked_by(mae(stock=True), views(4)[0])
    assert losses['beta'] == 0 and mask.sum(1).eq(12).all() and not torch.equal(mask, plain)
    for wrong, said in ((dict(noise='red'), "noise 'red'"), (dict(band=(2, 1)), 'smaller first')):
        with pytest.raises(ValueError, match=f'AttentionGuidedMaskGenerator: .*{said}'):
            mae(mask_generator=dict(type='AttentionGuidedMaskGenerator', **wrong))


def test_a_stopped_training_with_a_teacher_ends_as_if_it_had_not_stopped(tmp_path):
    store = make_store(tmp_path / 'store', count=20)
    changes = {'model.guide': GUIDES['loss']}
    whole = train(config(store, tmp_path / 'whole', 'mae', **changes), 'guides-whole')
    train(config(store, tmp_path / 'part', 'mae', **changes), 'guides-part', killed_at=4)
    rest = train(config(store, tmp_path / 'part', 'mae', resume=True, **changes), 'guides-rest')
    assert different(whole, rest) == []

"""What mmpretrain's own tests ask of these models, asked of ours with masks and without.

Written anew: a training batch through the real preprocessor gives one loss, features need no masks,
shapes and frozen embeddings are as documented, wrong modes are refused.
"""

import pytest
import torch
from helpers.tiny_models import dino, mae, moco, samples, simclr, simsiam, views
from mmpretrain.models.utils import SelfSupDataPreprocessor

MODELS = dict(moco=moco, simclr=simclr, simsiam=simsiam, mae=mae, dino=dino)
COUNTS = [2, None, 1, 0]


def batch(name, counts):
    """Images as a loader gives them, of 0 to 255, after mmpretrain's preprocessor."""
    number = 1 if name == 'mae' else 2
    images = [(view * 50 + 128).clamp(0, 255).byte() for view in views(4, number=number)]
    preprocessor = SelfSupDataPreprocessor(mean=[128.0] * 3, std=[64.0] * 3, to_rgb=True)
    return preprocessor(
        dict(
            inputs=images[0] if name == 'mae' else images,
            data_samples=samples(counts, number=number),
        ),
        True,
    )


@pytest.mark.parametrize('counts', [COUNTS, [None] * 4])
@pytest.mark.parametrize('name', MODELS)
def test_loss_mode(name, counts):
    torch.manual_seed(0)
    losses = MODELS[name]()(**batch(name, counts), mode='loss')
    loss = losses['loss']
    assert loss.dim() == 0 and loss.dtype == torch.float32 and loss.isfinite()
    assert loss > -1 if name == 'simsiam' else loss > 0
    # mmengine adds up whatever has "loss" in its name, and logs the rest.
    assert [key for key in losses if 'loss' in key] == ['loss']
    assert not any(value.requires_grad for key, value in losses.items() if key != 'loss')


@pytest.mark.parametrize('name', [name for name in MODELS if name != 'dino'])  # it has none
def test_tensor_mode_gives_mmpretrains_features(name):
    ours, stock = (MODELS[name](stock=stock).eval() for stock in (False, True))
    features, expected = (model(views(2)[0], mode='tensor') for model in (ours, stock))
    assert len(features) == len(expected) == 1 and torch.equal(features[0], expected[0])
    assert features[0].shape == ((2, 17, 16) if name == 'mae' else (2, 8, 4, 4))


@pytest.mark.parametrize('name', MODELS)
def test_other_modes_are_refused(name):
    with pytest.raises(RuntimeError, match='predict'):
        MODELS[name]()(views(2)[0], mode='predict')


def test_vit_hides_and_restores():
    """Shapes of what the encoder returns; without `mask` the features of the whole image."""
    backbone, image = mae().backbone, views(2)[0]
    for order in (None, torch.stack([torch.randperm(16) for _ in range(2)])):
        latent, mask, restore = backbone(image, order=order)
        assert latent.shape == (2, 5, 16)  # the class token and a quarter of 16 patches
        assert mask.shape == restore.shape == (2, 16) and mask.sum(1).eq(12).all()
        assert restore.sort(dim=1).values.equal(torch.arange(16).expand(2, -1))
    assert backbone(image, mask=None)[0].shape == (2, 17, 16)


def test_only_the_position_embeddings_of_mae_are_frozen():
    model = mae()
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ['backbone.pos_embed', 'neck.decoder_pos_embed']
    assert model.backbone.pos_embed.abs().sum() > 0  # sines and cosines


@pytest.mark.parametrize('counts', [COUNTS, [None] * 4])
def test_the_momentum_encoder_starts_as_a_copy_and_is_not_trained(counts):
    model = moco()
    model(**batch('moco', counts), mode='loss')['loss'].backward()
    online = [*model.backbone.parameters(), *model.neck.parameters()]
    momentum = list(model.encoder_k.module.parameters())
    assert len(online) == len(momentum)
    assert all(torch.equal(one, other) for one, other in zip(online, momentum))
    assert all(one.grad is not None and other.grad is None for one, other in zip(online, momentum))
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(24))


@pytest.mark.parametrize('name', MODELS)
def test_what_is_drawn_later_is_the_same_with_masks_and_without(name):
    """So arms of the same seed stay paired, whatever a model draws."""
    states = []
    for counts in (COUNTS, [None] * 4):
        model = MODELS[name]()
        torch.manual_seed(0)
        model(**batch(name, counts), mode='loss')
        states.append(torch.get_rng_state())
    assert torch.equal(*states)

"""MoCo: stock parity without masks; with masks the loss and the queue against plain numpy."""

import copy

import numpy as np
import pytest
import torch
from helpers.ops_reference import info_nce, queue_reference, several_positives
from helpers.tiny_models import moco, samples, views
from torch import nn

from freeatm_mm.models.instances import Instances
from freeatm_mm.ops import UNKNOWN_NOUN


def train_step(model, inputs, data_samples, optimizer):
    torch.manual_seed(5)  # the shuffle of the keys' images
    losses = model.loss(inputs, data_samples)
    optimizer.zero_grad()
    losses['loss'].backward()
    gradients = [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]
    optimizer.step()
    return losses, gradients


@pytest.mark.parametrize('data', [None, samples([None] * 6), samples([0] * 6)])
def test_without_masks_it_is_mmpretrains_moco_bit_for_bit(data):
    """Losses, gradients, weights, momentum encoder, queue and pointer, over several steps."""
    models = [moco(stock=True), moco()]
    optimizers = [torch.optim.SGD(model.parameters(), 0.1, momentum=0.9) for model in models]
    for step in range(5):  # the queue of 24 keys wraps round
        results = [
            train_step(model, views(6, seed=step), data, optimizer)
            for model, optimizer in zip(models, optimizers)
        ]
        assert list(results[0][0]) == list(results[1][0]) == ['loss']
        assert torch.equal(results[0][0]['loss'], results[1][0]['loss'])
        assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1]))
    states = [model.state_dict() for model in models]
    assert set(states[1]) - set(states[0]) == {'queue_nouns'}
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def numpy_forward(model, inputs, data):
    """Queries and keys of a batch, from feature maps, one instance at a time."""

    def embed(backbone, neck, images, view):
        with torch.no_grad():
            features = backbone(images)[0].double().numpy()
        first, second = neck.mlp[0], neck.mlp[2]
        rows = []
        for image, sample in enumerate(data):
            masks = sample.get('instance_masks')
            masks = (
                np.ones((1, *features.shape[2:]))
                if masks is None or not masks.shape[1]
                else masks[view].double().numpy()
            )
            for mask in masks:
                pooled = (features[image] * mask).sum((1, 2)) / mask.sum()
                hidden = np.maximum(
                    first.weight.detach().double().numpy() @ pooled
                    + first.bias.detach().double().numpy(),
                    0,
                )
                row = (
                    second.weight.detach().double().numpy() @ hidden
                    + second.bias.detach().double().numpy()
                )
                rows.append(row / np.linalg.norm(row))
        return np.array(rows)

    # At the first step the momentum encoder is a copy; statistics of a batch, as in training.
    twin = copy.deepcopy(model)
    queries = embed(twin.backbone, twin.neck, inputs[0], 0)
    keys = embed(copy.deepcopy(model).backbone, twin.neck, inputs[1], 1)
    return queries, keys


COUNTS = [2, None, 3, 0, 1]


@pytest.mark.parametrize('negatives', ['all', 'other_nouns'])
def test_loss_accuracy_and_shares_equal_plain_numpy(negatives):
    model, inputs, data = moco(negatives=negatives), views(5), samples(COUNTS)
    model.queue_nouns[:] = torch.arange(24) % 6
    model.queue_nouns[20:] = UNKNOWN_NOUN
    queue, queue_nouns = model.queue.double().numpy().copy(), model.queue_nouns.numpy().copy()
    queries, keys = numpy_forward(model, inputs, data)
    nouns = np.array([0, 1, UNKNOWN_NOUN, 2, 3, 0, UNKNOWN_NOUN, 0])
    same = (nouns[:, None] == queue_nouns) & (nouns[:, None] != UNKNOWN_NOUN)

    losses = model.loss(inputs, data)
    expected = info_nce(queries, keys, queue, same if negatives == 'other_nouns' else None)
    np.testing.assert_allclose(losses['loss'].item(), expected, rtol=1e-4)
    allowed = np.where(same & (negatives == 'other_nouns'), -np.inf, queries @ queue)
    nearest = (queries * keys).sum(1) > allowed.max(1)
    assert losses['accuracy'].item() == pytest.approx(nearest.mean())
    assert losses['same_noun_negatives'].item() == pytest.approx(same[nouns != UNKNOWN_NOUN].mean())
    assert losses['instances_per_image'].item() == pytest.approx(6 / 5)
    assert losses['pooled_whole'].item() == pytest.approx(2 / 5)

    np.testing.assert_allclose(model.queue[:, :8].T.numpy(), keys, atol=1e-5)
    np.testing.assert_array_equal(model.queue[:, 8:].numpy(), queue[:, 8:].astype(np.float32))
    assert model.queue_nouns[:8].tolist() == nouns.tolist() and int(model.queue_ptr) == 8


def test_positives_of_the_same_noun_equal_plain_numpy():
    model, inputs, data = moco(positives='same_noun'), views(5), samples(COUNTS)
    model.queue_nouns[:] = torch.arange(24) % 6
    model.queue_nouns[20:] = UNKNOWN_NOUN
    queue, queue_nouns = model.queue.T.double().numpy().copy(), model.queue_nouns.numpy().copy()
    queries, keys = numpy_forward(model, inputs, data)
    nouns = np.array([0, 1, UNKNOWN_NOUN, 2, 3, 0, UNKNOWN_NOUN, 0])
    same = (nouns[:, None] == queue_nouns) & (nouns[:, None] != UNKNOWN_NOUN)
    loss = model.loss(inputs, data)['loss']
    wanted = np.pad(same, ((0, 0), (1, 0)), constant_values=True)
    expected = several_positives(
        queries, [[key, *queue] for key in keys], wanted, model.head.temperature
    )
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-4)
    with pytest.raises(ValueError, match='FreeATMMoCo: positives'):
        moco(positives='all')


@pytest.mark.parametrize('positives', ['own', 'same_noun'])
def test_trust_weighs_the_instances(positives):
    """Against the losses of single instances; whole images count as one."""
    data = samples(COUNTS)
    trust = [
        torch.tensor([0.2, 0.9]),
        None,
        torch.tensor([0.5, 0.0, 0.3]),
        None,
        torch.tensor([0.7]),
    ]
    for sample, each in zip(data, trust):
        if each is not None:
            sample.trust = each
    model = moco(positives=positives)
    model.queue_nouns[:] = torch.arange(24) % 6
    queue, queue_nouns = model.queue.T.double().numpy().copy(), model.queue_nouns.numpy().copy()
    queries, keys = numpy_forward(model, views(5), data)
    nouns = np.array([0, 1, UNKNOWN_NOUN, 2, 3, 0, UNKNOWN_NOUN, 0])
    weights = np.array([0.2, 0.9, 1, 0.5, 0, 0.3, 1, 0.7])
    each = []
    for query, key, noun in zip(queries, keys, nouns):
        wanted = (queue_nouns == noun) & (positives == 'same_noun') & (noun != UNKNOWN_NOUN)
        each.append(
            several_positives([query], [[key, *queue]], [[True, *wanted]], model.head.temperature)
        )
    losses = model.loss(views(5), data)
    expected = (np.array(each) * weights).sum() / weights.sum()
    np.testing.assert_allclose(losses['loss'].item(), expected, rtol=1e-4)
    assert losses['trust'].item() == pytest.approx(weights.mean())


def test_gradients_reach_queries_and_not_keys():
    model = moco()
    model.loss(views(5), samples(COUNTS))['loss'].backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for module in (model.backbone, model.neck)
        for parameter in module.parameters()
    )
    assert all(parameter.grad is None for parameter in model.encoder_k.parameters())
    assert not model.queue.requires_grad


def test_whole_masks_give_the_stock_loss():
    """One all-ones mask an image is image-level MoCo, up to rounding."""
    data = samples([1] * 6)
    for sample in data:
        sample.instance_masks = torch.ones_like(sample.instance_masks)
    losses = []
    for model, batch in ((moco(stock=True), None), (moco(), data)):
        torch.manual_seed(5)
        losses.append(model.loss(views(6), batch)['loss'].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_momentum_encoder_follows():
    model, data = moco(), samples(COUNTS)
    model.loss(views(5), data)
    before = copy.deepcopy(model.encoder_k.module.state_dict())
    with torch.no_grad():
        for parameter in model.neck.parameters():
            parameter.add_(1.0)
    model.loss(views(5), data)
    after = model.encoder_k.module.state_dict()
    torch.testing.assert_close(
        after['1.mlp.0.weight'] - before['1.mlp.0.weight'],
        torch.full_like(after['1.mlp.0.weight'], 0.1),
    )


def test_queue_takes_any_number_of_keys():
    model = moco(queue_len=11)
    rng = np.random.default_rng(0)
    queue, nouns, pointer = list(model.queue.T.numpy().copy()), [UNKNOWN_NOUN] * 11, 0
    for count in (3, 7, 4, 1, 11, 30, 2, 23, 9, 22):
        keys = rng.normal(size=(count, 6)).astype(np.float32)
        ids = rng.integers(0, 5, count)
        model._dequeue_and_enqueue(
            torch.from_numpy(keys), Instances(None, None, torch.from_numpy(ids), 0, 0, [count])
        )
        nouns, _ = queue_reference(nouns, pointer, ids)
        queue, pointer = queue_reference(queue, pointer, keys)
        np.testing.assert_array_equal(model.queue.T.numpy(), queue)
        assert model.queue_nouns.tolist() == nouns and int(model.queue_ptr) == pointer


def test_batches_with_and_without_masks_alternate():
    """A batch without masks takes the stock path, also where the stock queue would not fit."""
    model = moco(queue_len=13)
    for step, counts in enumerate((COUNTS, [None] * 5, [None] * 5, COUNTS)):
        assert torch.isfinite(model.loss(views(5, seed=step), samples(counts))['loss'])
    assert int(model.queue_ptr) == (8 + 5 + 5 + 8) % 13
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(13))


def test_other_nouns_with_a_queue_of_the_same_noun_only():
    model, data = moco(negatives='other_nouns'), samples([1])
    model.queue_nouns[:] = data[0].noun_ids[0]
    losses = model.loss(views(1), data)
    assert losses['loss'].item() == pytest.approx(0, abs=1e-6)
    assert losses['same_noun_negatives'].item() == 1


def test_bad_arguments():
    with pytest.raises(ValueError, match="negatives 'some'"):
        moco(negatives='some')
    with pytest.raises(TypeError, match="type='FreeATMMoCoV2Neck'"):
        moco(neck=dict(type='MoCoV2Neck', in_channels=8, hid_channels=8, out_channels=6))


def test_masks_on_another_grid_are_named():
    with pytest.raises(ValueError, match='7x7.*4x4'):
        moco().loss(views(2), samples([1, 2], grid=7))


def test_features_for_evaluation_need_no_masks():
    model = moco()
    assert model.extract_feat(views(2)[0])[0].shape == (2, 8, 4, 4)
    assert isinstance(model.neck, nn.Module)

"""SimCLR: stock parity without masks; both losses against plain numpy with masks."""

import numpy as np
import pytest
import torch
from helpers.ops_reference import equation3, equation3_of_nouns, nt_xent, nt_xent_of_nouns
from helpers.tiny_models import assert_trains_as, samples, simclr, views

COUNTS = [2, None, 3, 0, 1]
NOUNS = np.array([0, 1, -1, 2, 3, 0, -1, 0])


@pytest.mark.parametrize('data', [None, samples([None] * 5), samples([0] * 5)])
def test_without_masks_it_is_mmpretrains_simclr_bit_for_bit(data):
    assert_trains_as(simclr(stock=True), simclr(), lambda step: views(5, seed=step), data)


def embeddings(model, inputs, data):
    """(M, 2, D) of the model's instances, the neck's batch norm and pooling in plain numpy."""
    with torch.no_grad():
        features = model.backbone(torch.stack(inputs, 1).flatten(0, 1))[0].double().numpy()
    rows = []
    for image, sample in enumerate(data):
        masks = sample.get('instance_masks')
        if masks is None or not masks.shape[1]:
            masks = torch.ones(2, 1, 4, 4)
        for mask in masks.double().numpy().transpose(1, 0, 2, 3):
            rows.extend(
                (features[2 * image + v] * mask[v]).sum((1, 2)) / mask[v].sum() for v in (0, 1)
            )
    x = np.array(rows)
    for fc, bn in (('fc0', 'bn0'), ('fc1', 'bn1')):
        fc, bn = getattr(model.neck, fc), getattr(model.neck, bn)
        x = np.maximum(x, 0) if bn is model.neck.bn1 else x
        x = x @ fc.weight.detach().double().numpy().T
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + bn.eps)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).reshape(-1, 2, x.shape[1])


@pytest.mark.parametrize('data', [None, samples([None] * 5), samples([0] * 5)])
@pytest.mark.parametrize('exact', [False, True])
def test_equation_3_is_the_loss_without_masks_too(data, exact):
    """Of whole images, so that a baseline differs from Free-ATM by the masks alone."""
    inputs = views(5)
    expected, hits = equation3(
        embeddings(simclr(), inputs, samples([0] * 5)), ~np.eye(5, dtype=bool)
    )
    losses = simclr(loss='equation3', exact_gradients=exact).loss(inputs, data)
    assert losses['loss'].item() == pytest.approx(expected, rel=1e-4)
    assert losses['accuracy'].item() == pytest.approx(hits)
    assert losses['pooled_whole'] == 1 and losses['instances_per_image'] == 0
    whole = samples([1] * 5)
    for sample in whole:
        sample.instance_masks = torch.ones_like(sample.instance_masks)
    with_masks = simclr(loss='equation3').loss(inputs, whole)['loss'].item()
    assert with_masks == pytest.approx(losses['loss'].item(), rel=1e-5)


@pytest.mark.parametrize('negatives', ['all', 'other_nouns'])
@pytest.mark.parametrize('form, reference', [('nt_xent', nt_xent), ('equation3', equation3)])
def test_losses_equal_plain_numpy(form, reference, negatives):
    inputs, data = views(5), samples(COUNTS)
    z = embeddings(simclr(), inputs, data)
    same = (NOUNS[:, None] == NOUNS) & (NOUNS[:, None] != -1)
    allowed = ~np.eye(8, dtype=bool)
    if negatives == 'other_nouns':
        allowed &= ~same
    loss, hits = reference(z, allowed)
    losses = simclr(loss=form, negatives=negatives).loss(inputs, data)
    assert losses['loss'].item() == pytest.approx(loss, rel=1e-4)
    assert losses['accuracy'].item() == pytest.approx(hits)
    share = ((same.sum(1) - 1) / 7)[NOUNS != -1].mean()
    assert losses['same_noun_negatives'].item() == pytest.approx(share)


@pytest.mark.parametrize(
    'form, reference', [('nt_xent', nt_xent_of_nouns), ('equation3', equation3_of_nouns)]
)
def test_positives_of_the_same_noun_equal_plain_numpy(form, reference):
    inputs, data = views(5), samples(COUNTS)
    z = embeddings(simclr(), inputs, data)
    same = (NOUNS[:, None] == NOUNS) & (NOUNS[:, None] != -1)
    model = simclr(loss=form, positives='same_noun')
    temperature = 1.0 if form == 'equation3' else model.head.temperature
    loss = model.loss(inputs, data)['loss'].item()
    assert loss == pytest.approx(reference(z, same, temperature), rel=1e-4)
    with pytest.raises(ValueError, match='FreeATMSimCLR: positives'):
        simclr(positives='same_noun', negatives='other_nouns')


@pytest.mark.parametrize('form', ['nt_xent', 'equation3'])
def test_trust_of_one_kind_is_none_and_of_another_weighs(form):
    """Equal weights change nothing; an instance of weight 0 pulls at nobody as an anchor."""
    inputs, losses = views(5), []
    for trust in (None, 0.5, 0.0):
        data = samples([2, 1, 3, 1, 1])
        for number, sample in enumerate(data):
            if trust is not None:
                sample.trust = torch.full_like(sample.noun_ids, 0.5, dtype=torch.float)
                if not trust and number == 2:
                    sample.trust[:] = 0
        losses.append(simclr(loss=form).loss(inputs, data)['loss'].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_whole_masks_give_the_stock_loss():
    data = samples([1] * 5)
    for sample in data:
        sample.instance_masks = torch.ones_like(sample.instance_masks)
    stock = simclr(stock=True).loss(views(5), None)['loss'].item()
    assert simclr().loss(views(5), data)['loss'].item() == pytest.approx(stock, rel=1e-5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="loss 'triplet'"):
        simclr(loss='triplet')
    with pytest.raises(ValueError, match="negatives 'some'"):
        simclr(negatives='some')
    with pytest.raises(TypeError, match="the neck LinearNeck can't pool"):
        simclr(neck=dict(type='LinearNeck', in_channels=8, out_channels=6))

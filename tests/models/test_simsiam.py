"""The pooling neck in another two-view method: stock parity without masks, numpy with masks."""

import numpy as np
import pytest
import torch
from helpers.tiny_models import assert_trains_as, samples, simsiam, views

COUNTS = [2, None, 3, 0, 1]


@pytest.mark.parametrize('data', [None, samples([None] * 5), samples([0] * 5)])
def test_without_masks_it_is_mmpretrains_simsiam_bit_for_bit(data):
    assert_trains_as(simsiam(stock=True), simsiam(), lambda step: views(5, seed=step), data)


def pooled(features, data, view):
    """(M, C): equation 2 written out, images without an instance whole."""
    rows = []
    for feature, sample in zip(features.double().numpy(), data):
        masks = sample.get('instance_masks')
        masks = (
            np.ones((1, *feature.shape[1:]))
            if masks is None or not masks.shape[1]
            else masks[view].double().numpy()
        )
        rows.extend((feature * mask).sum((1, 2)) / mask.sum() for mask in masks)
    return np.array(rows)


def test_loss_equals_plain_numpy():
    """Minus the mean cosine of each instance's prediction and its other view's projection."""
    inputs, data = views(5), samples(COUNTS)
    reference = simsiam()
    projections, predictions = [], []
    for view in (0, 1):
        with torch.no_grad():
            rows = pooled(reference.backbone(inputs[view])[0], data, view)
            rows = torch.from_numpy(rows).float()[:, :, None, None]
            projections.append(reference.neck((rows,))[0])
    for projection in projections:
        with torch.no_grad():
            predictions.append(reference.head.predictor([projection])[0].double().numpy())
    projections = [projection.double().numpy() for projection in projections]
    cosines = [
        (p * z).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(z, axis=1)
        for p, z in zip(predictions, reversed(projections))
    ]
    losses = simsiam().loss(inputs, data)
    assert losses['loss'].item() == pytest.approx(-np.mean(cosines), rel=1e-4)
    assert losses['instances_per_image'].item() == pytest.approx(6 / 5)
    assert losses['pooled_whole'].item() == pytest.approx(2 / 5)


def test_gradients_reach_the_encoder_through_the_instances():
    model = simsiam()
    model.loss(views(5), samples(COUNTS))['loss'].backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in model.backbone.parameters()
    )


def test_a_neck_that_cannot_pool_is_refused():
    with pytest.raises(TypeError, match="FreeATMSimSiam: the neck LinearNeck can't pool"):
        simsiam(neck=dict(type='LinearNeck', in_channels=8, out_channels=6))

"""Collecting the instances of a batch."""

import pytest
import torch
from helpers.tiny_models import dino, mae, moco, samples, simclr, simsiam, views

from freeatm_mm.models.instances import collect_instances
from freeatm_mm.ops import UNKNOWN_NOUN


def test_instances_stand_image_by_image():
    data = samples([2, 0, None, 3])
    instances = collect_instances(data, views(4)[0])
    assert instances.masks.shape == (2, 4, 3, 4, 4)
    assert instances.places.tolist() == [0, 1, 3, 6, 9, 10, 11]
    assert torch.equal(instances.masks[:, 0, :2], data[0].instance_masks)
    assert instances.masks[:, 0, 2].eq(0).all()
    assert instances.masks[:, 1, 0].eq(1).all() and instances.masks[:, 2, 0].eq(1).all()
    assert torch.equal(instances.masks[:, 3], data[3].instance_masks)
    assert instances.nouns.tolist() == [0, 1, UNKNOWN_NOUN, UNKNOWN_NOUN, 3, 0, 1]
    assert instances.num_whole == 2 and instances.counts == [7] and instances.loss_weight == 1
    # Each image with `num_nouns` named one noun more than it has instances.
    assert instances.num_cut == 3
    statistics = {key: float(value) for key, value in instances.statistics().items()}
    assert statistics == dict(instances_per_image=1.25, pooled_whole=0.5, cut_away=0.375)


@pytest.mark.parametrize('data', [None, [], samples([None, None]), samples([0, None])])
def test_without_any_instance(data):
    assert collect_instances(data, views(2)[0]) is None


@pytest.mark.parametrize('data', [None, samples([None, None]), samples([0, None])])
def test_whole_images_alone_are_instances_if_asked(data):
    instances = collect_instances(data, views(2)[0], always=True)
    assert instances.masks.shape == (2, 2, 1, 1, 1) and instances.masks.eq(1).all()
    assert instances.places.tolist() == [0, 1] and instances.nouns.eq(UNKNOWN_NOUN).all()
    assert instances.num_whole == 2 and instances.counts == [2] and instances.loss_weight == 1


def test_samples_without_nouns_are_accepted():
    data = samples([2, 1])
    for sample in data:
        del sample.noun_ids
    assert collect_instances(data, views(2)[0]).nouns.tolist() == [UNKNOWN_NOUN] * 3


def test_different_grids_are_refused():
    data = samples([1]) + samples([1], grid=5)
    with pytest.raises(ValueError, match=r'\(2, 4, 4\), \(2, 5, 5\)'):
        collect_instances(data, views(2)[0])


def test_methods_that_cannot_weigh_refuse_trust():
    for model, inputs in ((simsiam(), views(2)), (mae(), views(2)[0])):
        data = samples([1, 1], number=2 if isinstance(inputs, list) else 1)
        for sample in data:
            sample.trust = torch.ones(1)
        with pytest.raises(ValueError, match='trust=False'):
            model.loss(inputs, data)


@pytest.mark.parametrize('build', [simclr, moco, dino])
def test_instances_of_no_weight_at_all_give_no_loss(build):
    """Nor a division by the sum of their weights."""
    data = samples([1, 2, 1])
    for sample in data:
        sample.trust = torch.zeros(len(sample.noun_ids))
    loss = build().loss(views(3), data)['loss']
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize('number', [1, 3])
@pytest.mark.parametrize('build', [simclr, moco, simsiam, dino])
@pytest.mark.parametrize('counts', [[2, 1], [None, None]])
def test_other_numbers_of_views_are_refused(build, number, counts):
    """SimCLR would mix the views of different images, others leave the third out."""
    if (build, number) == (dino, 3):
        return  # which takes them all
    model = build()
    with pytest.raises(ValueError, match=f'takes two views.*, got {number}: set num_views'):
        model.loss(views(2, number=number), samples(counts, number=number))
    if number == 1:  # no FreeATMMultiView
        with pytest.raises(ValueError, match='takes two views.*, got 1: set num_views'):
            model.loss(views(2)[0], samples(counts, number=1))


@pytest.mark.parametrize('build', [simclr, moco, simsiam, dino])
def test_masks_of_other_views_are_refused(build):
    with pytest.raises(ValueError, match='got 2 views of each image and masks of 3'):
        build().loss(views(2), samples([2, 1], number=3))

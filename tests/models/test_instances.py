"""Collecting the instances of a batch."""

import pytest
import torch
from helpers.tiny_models import dino, mae, moco, samples, simclr, simsiam, views

from freeatm_mm.models.instances import collect_instances
from freeatm_mm.ops import UNKNOWN_NOUN


def test_instances_stand_image_by_image():
    data = samples([2, 0, None, 3])
    instances = collect_instances(data, views(4))
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
    assert collect_instances(data, views(2)) is None


@pytest.mark.parametrize('data', [None, samples([None, None]), samples([0, None])])
def test_whole_images_alone_are_instances_if_asked(data):
    instances = collect_instances(data, views(2), always=True)
    assert instances.masks.shape == (2, 2, 1, 1, 1) and instances.masks.eq(1).all()
    assert instances.places.tolist() == [0, 1] and instances.nouns.eq(UNKNOWN_NOUN).all()
    assert instances.num_whole == 2 and instances.counts == [2] and instances.loss_weight == 1


def test_whole_images_have_all_views_where_another_process_has_nouns(monkeypatch):
    """No mask of this process tells their number."""
    data, model = samples([None] * 3), dino()
    expected = model.loss(views(3, number=4), data)['loss']
    monkeypatch.setattr('freeatm_mm.models.instances.get_world_size', lambda: 2)
    monkeypatch.setattr(
        'freeatm_mm.models.instances.all_gather', lambda told: [told, torch.tensor([5.0, 1, 5])]
    )
    assert collect_instances(data, views(3, number=4)).masks.shape == (4, 3, 1, 1, 1)
    found = dino().loss(views(3, number=4), data)
    torch.testing.assert_close(found['loss'], expected * (3 * 2 / 8))
    assert found['pooled_whole'] == 1


@pytest.mark.parametrize(
    'build, options',
    [
        (simclr, {'positives': 'same_noun'}),
        (simclr, {'loss': 'equation3'}),
        (simclr, {'loss': 'equation3', 'positives': 'same_noun'}),
        (simclr, {}),
        (moco, {'positives': 'same_noun'}),
        (moco, {}),
    ],
)
@pytest.mark.parametrize('trust', [False, True])
def test_the_weight_of_the_heads_loss_counts(build, options, trust):
    data, losses = samples([2, 1, 3]), []
    for sample in data:
        if trust:
            sample.trust = torch.linspace(0.2, 1, len(sample.noun_ids))
    for weight in (1.0, 0.25):
        loss = dict(type='CrossEntropyLoss', loss_weight=weight)
        head = dict(type='ContrastiveHead', loss=loss, temperature=0.1)
        losses.append(build(head=head, **options).loss(views(3), data)['loss'])
    torch.testing.assert_close(losses[1], losses[0] / 4)


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=2),
        dict(type='CrossEntropyLoss', use_soft=True),
        dict(type='CrossEntropyLoss', use_sigmoid=True),
        dict(type='CrossEntropyLoss', reduction='sum'),
        dict(type='CrossEntropyLoss', class_weight=[1.0, 2.0]),
    ],
)
def test_a_loss_that_would_not_be_the_heads_is_refused(loss):
    head = dict(type='ContrastiveHead', loss=loss, temperature=0.1)
    model = simclr(head=head, positives='same_noun')
    with pytest.raises(ValueError, match="set loss=dict\\(type='CrossEntropyLoss'\\) of the head"):
        model.loss(views(3), samples([2, 1, 3]))


def test_a_head_that_has_no_effect_is_refused():
    with pytest.raises(ValueError, match='FreeATMDINO has a loss of its own and no use for a head'):
        dino(head=dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss')))


def test_samples_without_nouns_are_accepted():
    data = samples([2, 1])
    for sample in data:
        del sample.noun_ids
    assert collect_instances(data, views(2)).nouns.tolist() == [UNKNOWN_NOUN] * 3


def test_different_grids_are_refused():
    data = samples([1]) + samples([1], grid=5)
    with pytest.raises(ValueError, match=r'\(2, 4, 4\), \(2, 5, 5\)'):
        collect_instances(data, views(2))


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

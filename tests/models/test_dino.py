"""DINO: written out again from its equations, against lightly's loss, with masks against numpy."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_models import dino, samples, views
from helpers.tiny_runs import config, different, run, state, train
from helpers.tiny_stores import make_store
from lightly.loss import DINOLoss
from mmengine.logging import MessageHub

COUNTS = [2, None, 3, 0, 1]
SCHEDULE = dict(
    warmup_teacher_temperature=0.02, teacher_temperature=0.08, warmup=0.5, freeze_prototypes=0.2
)


@pytest.fixture
def training():
    """A running training of 11 iterations; call it to be at one of them."""
    hub = MessageHub.get_current_instance()
    before = {key: hub.get_info(key) for key in ('iter', 'max_iters')}
    hub.update_info('max_iters', 11)
    yield lambda iteration: hub.update_info('iter', iteration)
    for key, value in before.items():
        hub.runtime_info.pop(key, None) if value is None else hub.update_info(key, value)


class Reference:
    """Plain DINO for two views, from equations 1 to 4 of its paper and nothing of this package."""

    def __init__(self, model):
        self.backbone, self.neck = copy.deepcopy(model.backbone), copy.deepcopy(model.neck)
        self.teacher = None
        self.center = torch.zeros(1, 12)

    def parameters(self):
        return [*self.backbone.parameters(), *self.neck.parameters()]

    @staticmethod
    def head(neck, features, frozen=False):
        rows = F.normalize(neck.mlp(features.mean((2, 3))), dim=1)
        vectors = F.normalize(neck.prototypes, dim=1)
        return F.linear(rows, vectors.detach() if frozen else vectors)

    def loss(self, inputs, iteration):
        frozen = iteration / 10 < 0.2
        warm = min(iteration / 10 / 0.5, 1.0)
        temperature = 0.08 if warm == 1.0 else 0.02 + (0.08 - 0.02) * (iteration / 10) / 0.5
        if self.teacher is None:
            self.teacher = copy.deepcopy((self.backbone, self.neck))
        else:
            angle = math.pi * torch.tensor(iteration) / 11  # mmpretrain's is a float32
            momentum = 0.1 * (math.cos(angle) + 1) / 2
            for net, own in zip(self.teacher, (self.backbone, self.neck)):
                for old, new in zip(net.parameters(), own.parameters()):
                    old.data.mul_(1 - momentum).add_(new.data, alpha=momentum)
        both = torch.cat(inputs)
        student = self.head(self.neck, self.backbone(both)[0], frozen).chunk(2)
        with torch.no_grad():
            teacher = self.head(self.teacher[1], self.teacher[0](both)[0]).chunk(2)
        self.outputs = student, teacher
        targets = [((part - self.center) / temperature).softmax(1) for part in teacher]
        guesses = [(part / 0.1).log_softmax(1) for part in student]
        losses = [
            -(targets[0] * guesses[1]).sum(1).mean(),
            -(targets[1] * guesses[0]).sum(1).mean(),
        ]
        mean = torch.cat(teacher).sum(0, keepdim=True) / (2 * len(teacher[0]))
        self.center = self.center * 0.9 + mean * (1 - 0.9)
        return torch.stack(losses).mean(), temperature


@pytest.mark.parametrize('data', [None, samples([None] * 5), samples([0] * 5)])
def test_without_masks_it_is_plain_dino_bit_for_bit(training, data):
    model = dino(**SCHEDULE)
    reference = Reference(model)
    lightly = DINOLoss(12, center_momentum=0.9)
    optimizers = [torch.optim.SGD(part.parameters(), 0.1) for part in (model, reference)]
    for iteration in range(6):
        training(iteration)
        inputs = views(5, seed=iteration)
        losses = model.loss(inputs, data)
        expected, temperature = reference.loss(inputs, iteration)
        assert torch.equal(losses['loss'], expected)
        assert losses['teacher_temperature'].item() == pytest.approx(temperature)
        assert torch.equal(model.center, reference.center)
        student, teacher = reference.outputs
        other = lightly(list(teacher), [part.detach() for part in student], temperature)
        torch.testing.assert_close(losses['loss'].detach(), other)
        for optimizer, loss in zip(optimizers, (losses['loss'], expected)):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        moved = (model.neck.prototypes != dino(**SCHEDULE).neck.prototypes).any()
        assert moved == (iteration >= 2)
    for ours, own in zip(
        [*model.backbone.parameters(), *model.neck.parameters()], reference.parameters()
    ):
        assert torch.equal(ours, own)
    for ours, own in zip(model.teacher.module, reference.teacher):
        assert not different(dict(ours.named_parameters()), dict(own.named_parameters()))


def test_with_masks_targets_are_instances():
    """Equation 2 and the loss written out in numpy over all instances."""
    inputs, data, model = views(5), samples(COUNTS), dino()
    with torch.no_grad():
        features = model.backbone(torch.cat(inputs))[0].double().numpy().reshape(2, 5, 8, 4, 4)
    outputs = []
    for view in (0, 1):
        rows = []
        for feature, sample in zip(features[view], data):
            masks = sample.get('instance_masks')
            masks = (
                np.ones((1, 4, 4))
                if masks is None or not masks.shape[1]
                else masks[view].double().numpy()
            )
            rows.extend((feature * mask).sum((1, 2)) / mask.sum() for mask in masks)
        pooled = torch.from_numpy(np.array(rows)).float()
        with torch.no_grad():
            outputs.append(Reference.head(model.neck, pooled[:, :, None, None]).double().numpy())

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    pairs = [(0, 1), (1, 0)]
    expected = [
        -(softmax(outputs[t] / 0.04) * np.log(softmax(outputs[s] / 0.1))).sum(1).mean()
        for t, s in pairs
    ]
    losses = model.loss(inputs, data)
    assert len(outputs[0]) == 8
    assert losses['loss'].item() == pytest.approx(np.mean(expected), rel=1e-4)
    np.testing.assert_allclose(model.center[0], 0.1 * np.concatenate(outputs).mean(0), atol=1e-6)
    assert losses['instances_per_image'].item() == pytest.approx(6 / 5)
    assert losses['pooled_whole'].item() == pytest.approx(2 / 5)
    assert 0 < losses['teacher_entropy'].item() <= 1 + 1e-6


def test_trust_weighs_instances():
    data, others = samples([2, 1]), samples([2, 1])
    for sample, trust in zip(data, ([1.0, 0.0], [1.0])):
        sample.trust = torch.tensor(trust)
    for sample in others:
        sample.instance_masks = sample.instance_masks[:, :1]
        sample.noun_ids = sample.noun_ids[:1]
    model, fewer = dino(), dino()
    losses = [
        part.loss(views(2), batch)['loss'] for part, batch in ((model, data), (fewer, others))
    ]
    torch.testing.assert_close(*losses)


def test_more_views_are_the_students_alone():
    model = dino()
    loss = model.loss(views(3, number=3), samples([1, 2, None], number=3))['loss']
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in model.backbone.parameters())
    assert all(p.grad is None for p in model.teacher.parameters())


def test_the_teacher_drops_nothing():
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    backbone = dict(type='VisionTransformer', arch=arch, img_size=32, patch_size=8)
    backbone.update(out_type='featmap', drop_path_rate=0.9, drop_rate=0.5)
    neck = dict(type='FreeATMDINONeck', in_channels=16, hid_channels=8, out_channels=12)
    model = dino(backbone=backbone, neck=neck)
    with torch.no_grad():
        student, teacher = (
            [net(views(2)[0])[0] for _ in range(2)]
            for net in (model.backbone, model.teacher.module[0])
        )
    assert not torch.equal(*student) and torch.equal(*teacher)
    assert model.loss(views(2), samples([1, None]))['loss'].isfinite()


@pytest.mark.parametrize(
    'options, said',
    [
        (dict(teacher_temperature=0.2), 'teacher_temperature must be above 0 and at most'),
        (dict(warmup_teacher_temperature=0.0), 'warmup_teacher_temperature must be above 0'),
        (dict(warmup=2), r'warmup must be in \[0, 1\]'),
        (dict(center_momentum=1), 'center_momentum must be in'),
    ],
)
def test_settings_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        dino(**options)


def test_a_neck_that_cannot_pool_is_refused():
    with pytest.raises(TypeError, match="FreeATMDINO: the neck LinearNeck can't pool"):
        dino(neck=dict(type='LinearNeck', in_channels=8, out_channels=6))


@pytest.mark.filterwarnings('ignore')
def test_stopped_and_resumed_equals_never_stopped(tmp_path):
    """Teacher, its number of steps, centre and the schedules."""
    store = make_store(tmp_path / 'store', count=20)
    runner, watch = run(config(store, tmp_path / 'whole', 'dino'), 'dino_whole')
    part = config(store, tmp_path / 'part', 'dino')
    train(part, 'dino_part', 3)
    part.resume = True
    resumed_runner, resumed = run(part, 'dino_resumed')
    assert not different(state(runner), state(resumed_runner))
    assert resumed.outputs == watch.outputs[-len(resumed.outputs) :]
    assert int(runner.model.teacher.steps) == 6 and runner.model.center.abs().sum() > 0
    temperatures = [output['teacher_temperature'] for output in watch.outputs]
    np.testing.assert_allclose(temperatures, [0.02, 0.05, 0.08, 0.08, 0.08, 0.08], rtol=1e-6)

"""The programs in examples/: two steps of each on a tiny store, and short enough to be read."""

from __future__ import annotations

import importlib.util
import math
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_stores import make_store
from helpers.tools import ROOT

EXAMPLES = sorted((ROOT / 'examples').glob('*.py'))
OPTIONS = dict(size=64, batch_size=4, epochs=1, steps=2, workers=0, seed=0, lr=1e-3)


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'examples' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp('examples') / 'store', count=8, size=(80, 96))


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_they_are_short(path):
    assert len(path.read_text().splitlines()) < 120


@pytest.mark.parametrize(
    'backbone, positives',
    [('resnet10t', 'own'), ('vit_tiny_patch16_224', 'own'), ('resnet10t', 'same_noun')],
)
def test_simclr_with_a_backbone_of_timm(store, tmp_path, backbone, positives):
    pytest.importorskip('timm')
    out = tmp_path / 'backbone.pth'
    own = dict(store=store, backbone=backbone, positives=positives, out=out)
    losses = load('simclr_timm').train(SimpleNamespace(**OPTIONS, **own))
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert torch.load(out, weights_only=True)


def test_moco_in_lightly(store, tmp_path):
    losses = load('moco_lightly').train(
        SimpleNamespace(**OPTIONS, store=store, backbone='resnet18', bank=64, out=tmp_path / 'x')
    )
    assert torch.load(tmp_path / 'x', weights_only=True)
    assert len(losses) == 2 and all(map(math.isfinite, losses))


def test_dino_in_lightly(store, tmp_path):
    out = tmp_path / 'backbone.pth'
    options = OPTIONS | dict(steps=None)  # one epoch: two steps, and what is saved
    losses = load('dino_lightly').train(
        SimpleNamespace(**options, store=store, backbone='resnet18', prototypes=32, out=out)
    )
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert torch.load(out, weights_only=True)


def test_mae_in_transformers(store, tmp_path):
    transformers = pytest.importorskip('transformers')
    losses = load('mae_transformers').train(
        SimpleNamespace(**OPTIONS, store=store, patch=16, width=64, depth=1, out=tmp_path / 'mae')
    )
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert transformers.ViTMAEModel.from_pretrained(tmp_path / 'mae').config.hidden_size == 64


PROGRAMS = {
    'simclr_timm': ('timm', dict(backbone='resnet10t', positives='own')),
    'moco_lightly': ('lightly', dict(backbone='resnet18', bank=64)),
    'dino_lightly': ('lightly', dict(backbone='resnet18', prototypes=32)),
    'mae_transformers': ('transformers', dict(patch=16, width=64, depth=1)),
}


@pytest.mark.parametrize('name', PROGRAMS)
def test_what_would_train_nothing_or_nan_ends_with_a_sentence(store, tmp_path, name):
    package, own = PROGRAMS[name]
    pytest.importorskip(package)
    options = {**OPTIONS, **own, 'store': store, 'out': tmp_path / 'out'}
    with pytest.raises(SystemExit, match='fewer images than a batch of 9'):
        load(name).train(SimpleNamespace(**{**options, 'batch_size': 9}))
    with pytest.raises(SystemExit, match='step [23]: the loss is nan'):
        load(name).train(SimpleNamespace(**{**options, 'lr': 1e30, 'steps': 9, 'epochs': 9}))
    assert not (tmp_path / 'out').exists()

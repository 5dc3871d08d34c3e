"""What long jobs read of a config without running it is what mmengine makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from freeatm_mm.errors import InputError
from freeatm_mm.miniature import layout
from freeatm_mm.miniature.layout import config_of, miniature_methods, read_layout, read_settings

ROOT = Path(__file__).resolve().parents[2]


def test_the_methods_of_the_miniature():
    assert set(miniature_methods()) == {'simclr', 'mocov2', 'mae', 'dino'}


@pytest.mark.parametrize('method', miniature_methods())
def test_it_is_what_mmengine_makes_of_it(method):
    config = pytest.importorskip('mmengine.config')
    cfg, found = config.Config.fromfile(ROOT / config_of(method)), read_layout(method)
    pipeline = cfg.train_dataloader.dataset.pipeline
    cosine = cfg.param_scheduler[found.cosine]
    assert (cosine.type, cosine.begin) == ('CosineAnnealingLR', found.begin)
    assert pipeline[found.loading].type == 'LoadFromStore'
    assert pipeline[found.packing].type == 'PackFreeATMInputs'
    assert found.views == sum(part.get('num_views', 0) for part in pipeline) or found.views == 1
    assert found.epochs(24) == (48 if method == 'mae' else 24)
    assert (
        found.says('model.negatives')
        == ('negatives' in cfg.model)
        == (method in ('simclr', 'mocov2'))
    )
    assert found.says('model.mask_generator.ceiling') == (method == 'mae')
    assert not found.says('model.nothing.of.it')


@pytest.mark.parametrize('method', miniature_methods())
def test_a_job_needs_one_config_of_a_method(method):
    """The others in `configs/miniature` are that one with the options that jobs give it."""
    config = pytest.importorskip('mmengine.config')

    def training(name, **changes):
        cfg = config.Config.fromfile(ROOT / f'configs/miniature/{name}.py')
        cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
        for key in ('store', 'data_root'):  # where a user's images are
            cfg.train_dataloader.dataset.pop(key, None)
        return cfg.to_dict()

    masks = dict(train_dataloader__dataset__masks=False)
    half = dict(train_dataloader__dataset__share=0.5, model__pretrained='half.pth')
    assert training(f'baselines/{method}') == training(f'{method}_freeatm', **masks)
    if method == 'dino':  # beyond the paper: synthetic only
        return
    assert training(f'real/{method}') == training(f'{method}_freeatm', **masks)
    assert training(f'mixed/{method}_freeatm', model__pretrained='half.pth') == training(
        f'{method}_freeatm', **half
    )
    assert training(f'mixed/baselines/{method}', model__pretrained='half.pth') == training(
        f'{method}_freeatm', **masks, **half
    )


def test_inherited_and_replaced_values(tmp_path):
    (tmp_path / 'base.py').write_text(
        'steps = 4\na = dict(x=1, y=dict(z=steps, w=2))\nb = dict(x=1)\nc = [*steps]\n'
    )
    (tmp_path / 'own.py').write_text(
        "_base_ = ['./base.py', 'mmpretrain::some/config.py']\n"
        'a = dict(y=dict(z=steps * 2))\nb = dict(_delete_=True, y=_base_.steps)\n'
    )
    found = read_settings(tmp_path / 'own.py')
    assert found['a'] == {'x': 1, 'y': {'z': None, 'w': 2}} and 'x' not in found['b']
    assert found['c'] is None and found['steps'] == found['b']['y'] == 4


@pytest.mark.parametrize(
    'text, told',
    [
        (None, 'cannot be read as a config'),
        ('a = (', 'cannot be read as a config'),
        ('param_scheduler = [dict(type="StepLR")]', 'has no CosineAnnealingLR that can be found'),
        (
            'begin = 1 + 1\nparam_scheduler = [dict(type="CosineAnnealingLR", begin=begin)]\n'
            'pipeline = [dict(type="LoadFromStore"), dict(type="PackFreeATMInputs")]\n'
            'train_dataloader = dict(dataset=dict(pipeline=pipeline))',
            'must be written out as numbers',
        ),
        (
            'param_scheduler = dict(type="CosineAnnealingLR")\n'
            'train_dataloader = dict(dataset=dict(pipeline=[dict(type="LoadFromStore")]))',
            'has no PackFreeATMInputs',
        ),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, monkeypatch, text, told):
    monkeypatch.setattr(layout, 'CONFIGS', tmp_path)
    if text is not None:
        (tmp_path / 'new_freeatm.py').write_text(text)
    with pytest.raises(InputError, match=told):
        read_layout('new')

"""Every pretraining config: it loads, inherits what it says, and builds."""
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmpretrain.registry import DATASETS, MODELS

from tiny_stores import make_store

CONFIGS = Path(__file__).parents[2] / 'configs'
PRETRAINING = sorted(path.relative_to(CONFIGS).as_posix() for folder in
                     ('.', 'baselines', 'miniature', 'miniature/baselines')
                     for path in (CONFIGS / folder).glob('*.py'))


def load(name):
    return Config.fromfile(CONFIGS / name)


def strip(value):
    """A config without mmengine's `_scope_`."""
    if isinstance(value, dict):
        return {key: strip(entry) for key, entry in value.items() if key != '_scope_'}
    if isinstance(value, (list, tuple)):
        return [strip(entry) for entry in value]
    return value


@pytest.mark.parametrize('name', PRETRAINING)
def test_header_gives_the_command(name):
    header = (CONFIGS / name).read_text().split('"""')[1]
    assert f'tools/train.py configs/{name}' in header
    assert load(name).custom_imports['imports'] == ['freeatm_mm']


@pytest.mark.parametrize('name', [name for name in PRETRAINING if name.startswith('miniature')])
def test_miniatures_train_one_batch(name, tmp_path):
    """The grid of the masks fits the encoder, channels fit each other, the loss has gradients."""
    cfg = load(name)
    cfg.train_dataloader.dataset.store = str(make_store(tmp_path / 'store', 6, size=(64, 64),
                                                        mask_size=(16, 16)))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    model = MODELS.build(cfg.model)
    data = model.data_preprocessor(default_collate([dataset[(n, n)] for n in range(6)]), True)
    losses = model(**data, mode='loss')
    losses['loss'].backward()
    assert losses['loss'].isfinite()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters()
               if parameter.requires_grad)


@pytest.mark.parametrize('name', [name for name in PRETRAINING if 'baselines' in name])
def test_baselines_differ_by_the_masks_alone(name):
    method = Path(name).stem
    ours = strip(load(name.replace(f'baselines/{method}', f'{method}_freeatm')).to_dict())
    baseline = strip(load(name).to_dict())
    assert ours['train_dataloader']['dataset'].pop('masks') is True
    assert baseline['train_dataloader']['dataset'].pop('masks') is False
    assert ours == baseline


def load_stock(name, folder):
    """A config of mmpretrain's own."""
    path = folder / 'stock.py'
    path.write_text(f"_base_ = 'mmpretrain::{name}'")
    return strip(Config.fromfile(path).to_dict())


def test_mocov2_is_mmpretrains_but_for_the_masks(tmp_path):
    stock = load_stock('mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py', tmp_path)
    ours = strip(load('mocov2_freeatm.py').to_dict())
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'data_preprocessor',
                'auto_scale_lr', 'default_hooks'):
        assert ours[key] == stock[key]
    ours['model'].pop('negatives')
    assert ours['model'].pop('type') == 'FreeATM' + stock['model'].pop('type')
    assert ours['model']['neck'].pop('type') == 'InstancePoolNeck'
    ours['model']['neck']['type'] = ours['model']['neck'].pop('neck')
    assert ours['model'] == stock['model']
    for key in ('batch_size', 'drop_last', 'num_workers', 'collate_fn'):
        assert ours['train_dataloader'][key] == stock['train_dataloader'][key]
    views = [cfg['train_dataloader']['dataset']['pipeline'][1]['transforms'][0]
             for cfg in (ours, stock)]
    for transform in views[0]:
        transform['type'] = transform['type'].replace('FreeATM', '')
    assert views[0] == views[1]
    assert ours['train_dataloader']['dataset']['pipeline'][2]['grid_size'] * 32 == \
        views[1][0]['scale']

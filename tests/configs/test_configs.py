"""Every pretraining config: it loads, inherits what it says, and builds."""

import copy
from functools import cache
from pathlib import Path

import pytest
from helpers.tiny_runs import run
from helpers.tiny_stores import make_store
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import DATASETS, MODELS

CONFIGS = Path(__file__).parents[2] / 'configs'
REGIMES = ('.', 'peers', 'baselines', 'real', 'mixed', 'mixed/baselines', 'mixed/real_masks')
PRETRAINING = sorted(
    (folder / path.name).as_posix()
    for scale in ('.', 'miniature')
    for folder in (Path(scale, regime) for regime in REGIMES)
    for path in (CONFIGS / folder).glob('*.py')
)
METHODS = ('simclr', 'mocov2', 'mae')
ON_ONE_PROCESS = ('barlowtwins', 'densecl', 'swav')


@cache
def parse(name):
    return Config.fromfile(CONFIGS / name)


def load(name):
    return copy.deepcopy(parse(name))


def strip(value):
    """A config without mmengine's `_scope_`."""
    if isinstance(value, dict):
        return {key: strip(entry) for key, entry in value.items() if key != '_scope_'}
    if isinstance(value, (list, tuple)):
        return [strip(entry) for entry in value]
    return value


def test_every_method_has_every_regime_at_both_scales():
    for method in METHODS:
        for scale in ('', 'miniature/'):
            assert {
                f'{scale}{method}_freeatm.py',
                f'{scale}baselines/{method}.py',
                f'{scale}real/{method}.py',
                f'{scale}real/{method}_freeatm.py',
                f'{scale}mixed/{method}_freeatm.py',
                f'{scale}mixed/baselines/{method}.py',
                f'{scale}mixed/real_masks/{method}_freeatm.py',
            } <= set(PRETRAINING)


@pytest.mark.parametrize('name', PRETRAINING)
def test_header_gives_the_command(name):
    header = (CONFIGS / name).read_text().split('"""')[1]
    assert f'tools/train.py configs/{name}' in header
    assert load(name).custom_imports['imports'] == ['freeatm_mm.openmmlab']


@pytest.mark.parametrize('name', PRETRAINING)
def test_learning_rates_are_meant_for_the_batch_of_the_config(name):
    """What `--auto-scale-lr` scales from; and no run goes on from what it finds unasked."""
    cfg = load(name)
    on_one = name.startswith('miniature') or any(method in name for method in ON_ONE_PROCESS)
    processes = 1 if on_one else 16 if 'simclr' in name or 'byol' in name else 8
    assert cfg.auto_scale_lr.base_batch_size == cfg.train_dataloader.batch_size * processes
    assert not cfg.get('resume')


@pytest.mark.parametrize('name', [name for name in PRETRAINING if name.startswith('miniature')])
def test_miniatures_train_one_batch(name, tmp_path):
    """The grid of the masks fits the encoder, channels fit each other, the loss has gradients."""
    cfg = load(name)
    cfg.train_dataloader.dataset.data_root = str(
        make_store(tmp_path / 'store', 12, size=(64, 64), mask_size=(16, 16))
    )
    cfg.model.pretrained = None
    MessageHub.get_current_instance().update_info('max_iters', 10)  # for moving averages
    train_one_batch(cfg)


def train_one_batch(cfg):
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    # Without processes to share statistics with, SyncBN is plain batch normalisation.
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    data = model.data_preprocessor(default_collate([dataset[(n, n)] for n in range(6)]), True)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    losses = model(**data, mode='loss')
    before = sum(value for name, value in losses.items() if 'loss' in name)
    optimizer.update_params(before)
    after = model(**data, mode='loss')
    after = sum(value for name, value in after.items() if 'loss' in name)
    assert before.isfinite() and after.isfinite() and after != before


@pytest.mark.parametrize('name', [name for name in PRETRAINING if 'baselines' in name])
def test_baselines_differ_by_the_masks_alone(name):
    method = Path(name).stem
    ours = strip(load(name.replace(f'baselines/{method}', f'{method}_freeatm')).to_dict())
    baseline = strip(load(name).to_dict())
    assert ours['train_dataloader']['dataset'].pop('masks') is True
    assert baseline['train_dataloader']['dataset'].pop('masks') is False
    assert ours == baseline


@pytest.mark.parametrize('name', [name for name in PRETRAINING if 'peers' in name])
def test_peers_differ_by_their_masks_alone(name):
    """Same images, schedule and networks: what hides the patches is another, and needs no masks."""
    base = str(Path(name).parent.parent / 'mae_freeatm.py')
    ours, peer = (strip(load(path).to_dict()) for path in (base, name))
    assert ours['train_dataloader']['dataset'].pop('masks') is True
    assert peer['train_dataloader']['dataset'].pop('masks') is False
    assert ours['model'] != peer['model']
    for cfg in (ours, peer):
        del cfg['model']['guide'], cfg['model']['mask_generator']
    assert ours == peer


@pytest.mark.parametrize('scale', ['', 'miniature/'])
@pytest.mark.parametrize('method', METHODS)
def test_regimes_differ_by_the_images_alone(method, scale):
    """Equal steps on equally many images: all of one kind, or half of each."""
    synthetic = strip(load(f'{scale}baselines/{method}.py').to_dict())
    real = strip(load(f'{scale}real/{method}.py').to_dict())
    mixed = strip(load(f'{scale}mixed/baselines/{method}.py').to_dict())
    stage_1 = Path(mixed['model'].pop('pretrained'))
    assert stage_1 == Path(
        f'work_dirs/{scale}mixed/{method}_real', f'epoch_{real["train_cfg"]["max_epochs"]}.pth'
    )
    assert mixed['train_dataloader']['dataset'].pop('share') == 0.5
    roots = [
        cfg['train_dataloader']['dataset'].pop('data_root') for cfg in (synthetic, real, mixed)
    ]
    assert roots[1] != roots[0] == roots[2]
    assert synthetic == real == mixed
    header = (CONFIGS / f'{scale}mixed/{method}_freeatm.py').read_text().split('"""')[1]
    assert f'configs/{scale}real/{method}.py' in header
    assert f'--work-dir {stage_1.parent}' in header and 'dataset.share=0.5' in header


@pytest.mark.parametrize('scale', ['', 'miniature/'])
@pytest.mark.parametrize('method', METHODS)
def test_masks_on_the_real_half_change_its_store_and_checkpoint_alone(method, scale):
    synthetic = strip(load(f'{scale}{method}_freeatm.py').to_dict())
    real = strip(load(f'{scale}real/{method}_freeatm.py').to_dict())
    mixed = strip(load(f'{scale}mixed/{method}_freeatm.py').to_dict())
    masked = strip(load(f'{scale}mixed/real_masks/{method}_freeatm.py').to_dict())
    stage_1 = Path(masked['model'].pop('pretrained'))
    assert mixed['model'].pop('pretrained') != str(stage_1)
    assert mixed == masked
    roots = [cfg['train_dataloader']['dataset'].pop('data_root') for cfg in (synthetic, real)]
    assert roots[0] != roots[1] and synthetic == real
    assert stage_1.name == f'epoch_{real["train_cfg"]["max_epochs"]}.pth'
    header = (CONFIGS / f'{scale}mixed/real_masks/{method}_freeatm.py').read_text()
    assert f'configs/{scale}real/{method}_freeatm.py' in header
    assert f'--work-dir {stage_1.parent}' in header and 'dataset.share=0.5' in header


def load_stock(name, folder):
    """A config of mmpretrain's own."""
    path = folder / 'stock.py'
    path.write_text(f"_base_ = 'mmpretrain::{name}'")
    return strip(Config.fromfile(path).to_dict())


def same_loading(ours, stock):
    loaders = [
        {
            key: value
            for key, value in cfg['train_dataloader'].items()
            if key not in ('dataset', 'sampler')
        }
        for cfg in (ours, stock)
    ]
    assert loaders[0] == loaders[1]


@pytest.mark.parametrize(
    'name, stock_name',
    [
        ('mocov2_freeatm.py', 'mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py'),
        ('simclr_freeatm.py', 'simclr/simclr_resnet50_16xb256-coslr-200e_in1k.py'),
        ('simsiam_freeatm.py', 'simsiam/simsiam_resnet50_8xb32-coslr-100e_in1k.py'),
    ],
)
def test_contrastive_configs_are_mmpretrains_but_for_the_masks(tmp_path, name, stock_name):
    stock, ours = load_stock(stock_name, tmp_path), strip(load(name).to_dict())
    if 'auto_scale_lr' not in stock:  # SimCLR's and SimSiam's don't say
        ours.pop('auto_scale_lr')
    for key in (
        'optim_wrapper',
        'param_scheduler',
        'train_cfg',
        'data_preprocessor',
        'auto_scale_lr',
        'default_hooks',
    ):
        assert ours.get(key) == stock.get(key)
    assert ours['custom_hooks'] == [
        *stock.get('custom_hooks', []),
        dict(type='SeedEachIterationHook'),
        dict(type='CheckTrainingHook'),
    ]
    assert ours['model'].pop('positives', 'own') == 'own'
    assert ours['model'].pop('negatives', 'all') == 'all'
    assert ours['model'].pop('loss', 'nt_xent') == 'nt_xent'
    assert ours['model'].pop('type') == 'FreeATM' + stock['model'].pop('type')
    assert ours['model']['neck'].pop('type') == 'FreeATM' + stock['model']['neck'].pop('type')
    assert ours['model'] == stock['model']
    same_loading(ours, stock)
    views = [
        cfg['train_dataloader']['dataset']['pipeline'][1]['transforms'][0] for cfg in (ours, stock)
    ]
    for transform in views[0]:
        transform['type'] = transform['type'].replace('FreeATM', '')
    assert views[0] == views[1]
    assert (
        ours['train_dataloader']['dataset']['pipeline'][2]['grid_size'] * 32 == views[1][0]['scale']
    )


# Channels of the small networks below.
SMALL_HEADS = {
    'simsiam': dict(predictor=dict(in_channels=32, hid_channels=8, out_channels=32)),
    'byol': dict(predictor=dict(in_channels=32, hid_channels=8, out_channels=32)),
    'barlowtwins': dict(in_channels=32),
    'densecl': {},
    'swav': dict(loss=dict(feat_dim=32, num_prototypes=8)),
    'dino': None,
}


@pytest.mark.parametrize('method', SMALL_HEADS)
def test_methods_beyond_the_paper_train_one_batch(tmp_path, method):
    """At their own config but for the scale."""
    cfg = load(f'{method}_freeatm.py')
    neck = dict(in_channels=64, hid_channels=32, out_channels=32)
    head = SMALL_HEADS[method]
    changes = dict(backbone=dict(depth=18, base_channels=8, stem_channels=8), neck=neck)
    if head is not None:
        changes['head'] = head
    if method == 'densecl':
        changes.update(feat_dim=32, queue_len=60)
    MessageHub.get_current_instance().update_info('max_iters', 10)  # for moving averages
    cfg.merge_from_dict(dict(model=changes))
    cfg.train_dataloader.dataset.data_root = str(make_store(tmp_path / 'store', 6, size=(64, 64)))
    train_one_batch(cfg)


@pytest.mark.parametrize('method', ['byol', *ON_ONE_PROCESS])
def test_two_view_configs_are_mmpretrains_but_for_the_masks(tmp_path, method):
    ours = strip(load(f'{method}_freeatm.py').to_dict())
    text = (CONFIGS / f'{method}_freeatm.py').read_text()
    base = text.split("'mmpretrain::")[1].split("'")[0]
    stock = load_stock(base, tmp_path)
    for model, prefix in ((ours['model'], 'FreeATM'), (stock['model'], '')):
        for part in (model, model['neck']):
            part['type'] = part['type'].removeprefix(prefix)
    if method == 'swav':
        assert ours['model']['head']['loss'].pop('num_crops') == [2]
        stock['model']['head']['loss'].pop('num_crops')
    assert ours['model'] == stock['model'] and ours['train_cfg'] == stock['train_cfg']
    if method == 'barlowtwins':
        assert ours['optim_wrapper']['optimizer'].pop('lr') == pytest.approx(1.6 / 8)
        stock['optim_wrapper']['optimizer'].pop('lr')
    else:
        assert ours['param_scheduler'] == stock['param_scheduler']
    assert ours['optim_wrapper'] == stock['optim_wrapper']
    views = [
        cfg['train_dataloader']['dataset']['pipeline'][1]['transforms'][0] for cfg in (ours, stock)
    ]
    for transform in views[0]:
        transform['type'] = transform['type'].replace('FreeATM', '')
    assert views[0] == views[1]


def test_mae_is_mmpretrains_but_for_the_masks(tmp_path):
    stock = load_stock('mae/mae_vit-base-p16_8xb512-amp-coslr-1600e_in1k.py', tmp_path)
    ours = strip(load('mae_freeatm.py').to_dict())
    for key in (
        'optim_wrapper',
        'param_scheduler',
        'train_cfg',
        'data_preprocessor',
        'auto_scale_lr',
        'default_hooks',
    ):
        assert ours[key] == stock[key]
    assert ours['model'].pop('mask_generator') == dict(
        type='AttentionGuidedMaskGenerator',
        ceiling=0.8,
        schedule='linear',
        share_of='hidden',
        noise='white',
    )
    assert ours['model'].pop('guide') == dict(type='NounGuide')
    assert ours['model'].pop('combine') == 'sum'
    for part in (ours['model'], ours['model']['backbone']):
        part['type'] = part['type'].replace('FreeATM', '')
    assert ours['model'] == stock['model']
    same_loading(ours, stock)
    pipelines = [cfg['train_dataloader']['dataset']['pipeline'] for cfg in (ours, stock)]
    for transform in pipelines[0]:
        transform['type'] = transform['type'].replace('FreeATM', '')
    assert pipelines[0][1:3] == pipelines[1][1:3]
    assert pipelines[0][3]['grid_size'] * ours['model']['neck']['patch_size'] == 224


def test_the_documented_iteration_based_config(tmp_path):
    """`docs/pretraining.md`'s snippet, on the miniature: it loads, trains and saves as it says."""
    text = (CONFIGS.parent / 'docs/pretraining.md').read_text()
    snippet = text.split('```python')[1].split('```')[0]
    base_in_docs = "'freeatm_mm::mocov2_freeatm.py'"
    assert f'_base_ = {base_in_docs}' in snippet
    base = CONFIGS / 'miniature/mocov2_freeatm.py'
    path = tmp_path / 'iterations.py'
    path.write_text(
        snippet.replace(base_in_docs, repr(str(base)))
        .replace('100_000', '3')
        .replace('interval=5000', 'interval=2')
    )
    cfg = Config.fromfile(path)
    store = make_store(tmp_path / 'store', 8, size=(64, 64), mask_size=(16, 16))
    cfg.merge_from_dict(
        {
            'train_dataloader.dataset.data_root': str(store),
            'train_dataloader.num_workers': 0,
            'train_dataloader.batch_size': 4,
            'train_dataloader.persistent_workers': False,
            'model.queue_len': 16,
            'default_hooks.checkpoint.max_keep_ckpts': 3,
        }
    )
    cfg.work_dir = str(tmp_path / 'run')
    runner, watch = run(cfg, 'documented_iterations')
    assert runner.iter == 3 and len(watch.outputs) == 3
    assert (tmp_path / 'run/iter_2.pth').exists() and not list(tmp_path.glob('run/epoch*'))
    assert runner.param_schedulers[0].by_epoch is False

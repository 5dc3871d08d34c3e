"""Our configs in the frameworks' own tools, as these are installed: they train and evaluate."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from helpers.warm import run_warm
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
PAPER = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / 'configs/downstream/mmseg').glob('*.py')
)
SMALL = {'mmseg': 'fcn_resnet', 'mmdet': 'faster-rcnn_resnet', 'mmpretrain': 'linear_resnet'}


@pytest.mark.parametrize('name', PAPER)
def test_mmseg_configs_open_without_help(name):
    """mmengine looks for a distribution called mmsegmentation; the fork has another name."""
    pytest.importorskip('mmseg')
    from importlib import metadata
    from unittest import mock

    real = metadata.version

    def version(distribution):
        if distribution == 'mmsegmentation':
            raise metadata.PackageNotFoundError(distribution)
        return real(distribution)

    with mock.patch('importlib.metadata.version', version):
        cfg = Config.fromfile(ROOT / name)
    assert cfg.default_scope == 'mmseg' and cfg.model.backbone.type in ('ResNet', 'MAE')
    assert cfg.custom_hooks[0].type == 'InitialWeightsHook'


@pytest.mark.parametrize('framework', SMALL)
def test_the_frameworks_own_tools_train_and_evaluate(framework, tmp_path):
    pytest.importorskip('mmcv.ops')
    pytest.importorskip(framework)
    from helpers.tiny_downstream import make_tiny_world

    world = make_tiny_world(tmp_path / 'world', images=4)
    config = ROOT / f'configs/miniature/downstream/{SMALL[framework]}.py'
    cfg, options = Config.fromfile(config), {'init': 'random'}
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        options |= {
            f'{loader}.num_workers': 0,
            f'{loader}.persistent_workers': False,
            f'{loader}.batch_size': 2,
            f'{loader}.dataset.data_root': f'{world}/',
            f'{loader}.dataset.indices': 4,
        }
    for evaluator in ('val_evaluator', 'test_evaluator'):
        if 'ann_file' in cfg[evaluator]:
            options[f'{evaluator}.ann_file'] = str(world / 'test/coco.json')
    length = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    options |= {
        f'train_cfg.{length}': 1,
        'train_cfg.val_interval': 1,
        'default_hooks.checkpoint.interval': 1,
    }
    tools = Path(importlib.util.find_spec(framework).origin).parent / '.mim/tools'

    def run(tool, *arguments):
        changes = [f'{key}={value}' for key, value in options.items()]
        done = run_warm(tools / tool, config, *arguments, '--cfg-options', *changes, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    said = run('train.py', '--work-dir', tmp_path / 'run')
    assert 'The backbone starts from random weights.' in said
    (checkpoint,) = (tmp_path / 'run').glob('*_1.pth')
    run('test.py', checkpoint, '--work-dir', tmp_path / 'test')


def test_mmpretrains_own_tool_pretrains_and_refuses_what_would_train_nothing(tmp_path):
    """What this project's tool looks at is looked at in the config's hooks."""
    pytest.importorskip('mmpretrain')
    from helpers.tiny_stores import make_store

    tool = Path(importlib.util.find_spec('mmpretrain').origin).parent / '.mim/tools/train.py'
    config = ROOT / 'configs/miniature/mocov2_freeatm.py'
    options = ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=4']
    options += ['train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']

    def train(count):
        store = make_store(tmp_path / f'store{count}', count=count)
        words = [config, '--work-dir', tmp_path / 'run', '--cfg-options', *options]
        return run_warm(tool, *words, f'train_dataloader.dataset.data_root={store}', cwd=tmp_path)

    done = train(8)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'run/epoch_1.pth').is_file()
    done = train(3)
    assert done.returncode != 0
    assert 'the data set holds 3 samples, and a batch is 4' in done.stderr.splitlines()[-1]


def test_a_missing_framework_is_told_in_one_sentence(tmp_path, monkeypatch):
    from freeatm_mm.configs import open_config

    config = tmp_path / 'x.py'
    for text in (
        "_base_ = __import__('nowhere_mm').__path__[0] + '/x.py'",
        "_base_ = 'mmrotate::x/y.py'",
        "custom_imports = dict(imports=['nowhere_mm'], allow_failed_imports=False)",
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match='x.py needs a package that is missing or broken'):
            open_config(config)

"""The yaml files: all of them make a config, and the arms differ where they should."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('lavis')

from lavis.common.config import Config  # noqa: E402
from lavis.common.registry import registry  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from freeatm_mm.errors import InputError  # noqa: E402
from freeatm_mm.lavis_ext.launch import load_config, read_yaml  # noqa: E402
from freeatm_mm.lavis_ext.settings import check_processors  # noqa: E402

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs/lavis'
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob('*.yaml'))


def changes(first, second, path=''):
    """Entries in which two configs differ."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return set() if first == second else {path}
    return set().union(
        *(
            changes(first.get(key), second.get(key), f'{path}.{key}'.strip('.'))
            for key in first.keys() | second.keys()
        )
    )


def plain(name):
    return OmegaConf.to_container(load_config(CONFIGS / name).config)


@pytest.mark.parametrize('name', FILES)
def test_every_file_makes_a_config_with_known_processors(name):
    file, cfg = name, load_config(CONFIGS / name)
    assert cfg.run_cfg.runner == 'freeatm_runner'
    assert cfg.run_cfg.evaluate == name.endswith('zeroshot.yaml')
    for name, data in cfg.datasets_cfg.items():
        builder = registry.get_builder_class(name)(data)
        check_processors(builder.config, builder.KINDS, name)
        builder.build_processors()
        for kinds in (builder.vis_processors, builder.text_processors):
            assert kinds['train'] is not None
    if 'pretrain' in cfg.model_cfg.arch:
        assert cfg.model_cfg.max_txt_len == (35 if 'miniature' in file else 80)


def test_arms_differ_in_nothing_else():
    ours, data = plain('blip_pretrain_freeatm.yaml'), 'datasets.freeatm_pretrain'
    assert changes(ours, plain('baselines/blip_pretrain.yaml')) == {
        f'{data}.text_processor.train.preset',
        'run.output_dir',
    }
    assert changes(ours, plain('baselines/blip_pretrain_ptp.yaml')) == {
        f'{data}.text_processor.train.preset',
        f'{data}.vis_processor.train.hflip',
        f'{data}.build_info.detections',
        'run.output_dir',
    }
    # One at a time, of what PTP's changes at once.
    assert changes(ours, plain('baselines/blip_pretrain_boxes.yaml')) == {
        f'{data}.build_info.detections',
        'run.output_dir',
    }
    assert changes(ours, plain('baselines/blip_pretrain_shuffled.yaml')) == {
        f'{data}.text_processor.train.positions',
        'run.output_dir',
    }
    assert changes(ours, plain('mixed/blip_pretrain_freeatm.yaml')) == {
        'model.pretrained',
        f'{data}.build_info.share',
        'run.warmup_steps',
        'run.output_dir',
    }
    for name in ('mixed/blip_pretrain_freeatm.yaml', 'mixed/blip_pretrain_real.yaml'):
        mixed = plain(name)  # LAVIS warms up in the first epoch alone
        steps = 300_000 * mixed['datasets']['freeatm_pretrain']['build_info']['share'] // (8 * 75)
        assert mixed['run']['warmup_steps'] <= steps


def test_options_reach_everything():
    cfg = load_config(
        CONFIGS / 'miniature/blip_pretrain_freeatm.yaml',
        [
            'run.max_epoch=3',
            'model.bert.hidden_size=12',
            'datasets.freeatm_pretrain.text_processor.train.grid=4',
        ],
    )
    assert cfg.run_cfg.max_epoch == 3 and cfg.model_cfg.bert.hidden_size == 12
    assert cfg.model_cfg.bert.num_hidden_layers == 3  # inherited beside it
    assert cfg.datasets_cfg.freeatm_pretrain.text_processor.train.grid == 4


@pytest.mark.parametrize(
    'text, message',
    [
        (
            '_base_: nowhere.yaml\n',
            r"lost.yaml inherits by _base_, which LAVIS's Config doesn't read",
        ),
        ('', 'lost.yaml has no part'),
        ('- model\n', 'must have the parts'),
        ('{', 'is no yaml'),
        ('model: 3\nrun: {}\ndatasets: {}\n', 'model must hold names and values, got 3'),
        ('modle: {}\n', r'has no modle; did you mean model\?'),
        (
            'model: {arch: "${nowhere}"}\nrun: {}\ndatasets: {}\n',
            'lost.yaml: .*nowhere.*leads nowhere',
        ),
    ],
)
def test_what_is_no_yaml_of_lavis_is_one_sentence(tmp_path, text, message):
    (tmp_path / 'lost.yaml').write_text(text)
    with pytest.raises(InputError, match=message) as told:
        read_yaml(tmp_path / 'lost.yaml')
    assert '\n' not in str(told.value)


@pytest.mark.parametrize('name', FILES)
def test_lavis_itself_reads_every_file(name):
    """LAVIS's `Config`, and all that its runner asks for without a default."""
    cfg = Config(argparse.Namespace(cfg_path=str(CONFIGS / name), options=None))
    assert cfg.to_dict() == {
        **cfg.to_dict(),
        **{part: content for part, content in plain(name).items() if part != 'run'},
    }
    for entry in (
        'evaluate',
        'device',
        'seed',
        'dist_url',
        'task',
        'lr_sched',
        'init_lr',
        'min_lr',
        'weight_decay',
        'max_epoch',
        'batch_size_train',
        'batch_size_eval',
        'num_workers',
        'output_dir',
    ):
        assert cfg.run_cfg[entry] is not None
    cfg.pretty_print()


def test_it_needs_neither_openmmlab_nor_diffusers():
    program = (
        'import sys, freeatm_mm.lavis_ext.launch\n'
        'print({"mmengine", "mmcv", "mmpretrain", "diffusers"} & set(sys.modules))'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == 'set()', done.stderr

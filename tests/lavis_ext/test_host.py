"""LAVIS's own train code: its `Config`, tasks and loop take what we register, and our yamls."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('lavis')

import torch  # noqa: E402
from helpers.tiny_blip import PRETRAIN, make_parts, pretrain_options  # noqa: E402
from lavis.common.registry import registry  # noqa: E402
from lavis.tasks import setup_task  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

import freeatm_mm.lavis_ext  # noqa: E402, F401

ROOT = Path(__file__).parents[2]

#: What LAVIS's train.py does, in its order.
TRAIN = """
import argparse, sys
import torch
import lavis.tasks as tasks
from lavis.common.config import Config
from lavis.common.dist_utils import init_distributed_mode
from lavis.common.registry import registry
import freeatm_mm.lavis_ext
cfg = Config(argparse.Namespace(cfg_path=sys.argv[1], options=sys.argv[2:]))
init_distributed_mode(cfg.run_cfg)
torch.manual_seed(cfg.run_cfg.seed)
cfg.pretty_print()
task = tasks.setup_task(cfg)
datasets = task.build_datasets(cfg)
model = task.build_model(cfg)
runner = registry.get_runner_class(cfg.run_cfg.get('runner', 'runner_base'))
runner(cfg=cfg, job_id='20260101', task=task, model=model, datasets=datasets).train()
assert 'freeatm_mm.lavis_ext.launch' not in sys.modules
"""


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    return make_parts(tmp_path_factory.mktemp('parts'))


def test_lavis_trains_our_yaml_without_our_tools(parts, tmp_path):
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ('RANK', 'WORLD_SIZE', 'SLURM_PROCID')
    }
    done = subprocess.run(
        [
            sys.executable,
            '-W',
            'ignore',
            '-c',
            TRAIN,
            str(PRETRAIN),
            *pretrain_options(*parts, tmp_path),
            'run.max_epoch=1',
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**environment, 'PYTHONPATH': str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / '20260101' / 'checkpoint_0.pth').is_file()


def test_lavis_own_loop_trains_our_model_on_our_data(parts, tmp_path):
    """Its task's `train_epoch`, as its own runner calls it, on a plain loader."""
    from freeatm_mm.lavis_ext.launch import load_config

    cfg = load_config(PRETRAIN, pretrain_options(*parts, tmp_path))
    task = setup_task(cfg)
    model = task.build_model(cfg).train()
    dataset = task.build_datasets(cfg)['freeatm_pretrain']['train']
    before = model.vision_proj.weight.clone()
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad])
    schedule = registry.get_lr_scheduler_class('linear_warmup_cosine_lr')(
        optimizer, max_epoch=1, min_lr=0, init_lr=1e-3
    )
    stats = task.train_epoch(
        0, model, DataLoader(dataset, 4, collate_fn=dataset.collater), optimizer, schedule
    )
    assert float(stats['loss']) > 0 and not torch.equal(before, model.vision_proj.weight)


@pytest.mark.parametrize(
    'name, info',
    [
        ('freeatm_pretrain', lambda parts: {'store': str(parts[0])}),
        (
            'freeatm_retrieval',
            lambda parts: {
                'annotations': {'test': str(parts[0] / 'test.json')},
                'images': str(parts[0].parent),
            },
        ),
    ],
)
def test_builders_need_no_more_than_their_documented_keys(parts, name, info):
    """As LAVIS's own: from the whole configuration, from a part of it, and from the defaults."""
    from PIL import Image

    Image.new('RGB', (20, 20)).save(parts[0].parent / 'x.png')
    (parts[0] / 'test.json').write_text('[{"image": "x.png", "caption": ["a dog"]}]')
    builder = registry.get_builder_class(name)
    for cfg in (OmegaConf.create({'build_info': info(parts)}), {'build_info': info(parts)}):
        dataset = next(iter(builder(cfg).build_datasets().values()))
        assert dataset[0]['image'].shape[0] == 3
    default = builder()
    assert default.config.data_type == 'images'
    default.config.build_info = info(parts)
    assert len(default.build_datasets()) == 1

"""The training tool: what it says about wrong paths, and one real run with resume."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers.hostile_checkpoints import reduced
from helpers.tiny_stores import make_store
from helpers.tools import load_tool
from mmengine.runner import CheckpointLoader

from freeatm_mm.miniature.processes import can_share_imports, run_with_imports

ROOT = Path(__file__).parents[2]
CONFIG = 'configs/miniature/mocov2_freeatm.py'


tool = load_tool('train')


@pytest.mark.parametrize(
    'config, store, message',
    [
        ('configs/no_such.py', 'anywhere', 'there is no config configs/no_such.py'),
        (ROOT / CONFIG, 'no/such/store', 'no/such/store: no such folder'),
        (ROOT / CONFIG, '', 'is empty'),
    ],
)
def test_wrong_paths_are_told_in_one_sentence(tmp_path, capsys, config, store, message):
    store = store or tmp_path
    with pytest.raises(SystemExit) as done:
        tool.main([str(config), '--data-root', str(store)])
    assert done.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_leaving_out_an_evaluation_that_there_is_none_of_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.main([str(ROOT / CONFIG), '--data-root', str(tmp_path), '--no-validate'])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert '--no-validate has no effect on a config that evaluates nothing' in last


def test_second_stage_without_the_first_is_told(capsys):
    with pytest.raises(SystemExit):
        tool.main([str(ROOT / 'configs/mixed/mae_freeatm.py')])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'work_dirs/mixed/mae_real/epoch_1600.pth' in last and 'model.pretrained=' in last


def test_second_stage_on_another_models_checkpoint_is_refused(tmp_path, capsys):
    torch.save({'state_dict': {'backbone.conv1.weight': torch.zeros(3)}}, tmp_path / 'other.pth')
    with pytest.raises(SystemExit):
        tool.main(
            [
                str(ROOT / 'configs/miniature/mixed/mocov2_freeatm.py'),
                '--work-dir',
                str(tmp_path / 'work'),
                '--data-root',
                str(make_store(tmp_path / 'store', 4)),
                '--cfg-options',
                f'model.pretrained={tmp_path / "other.pth"}',
                'train_dataloader.batch_size=2',
            ]
        )
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'model.pretrained' in last and 'is not of this config' in last


HOSTILE = 'it holds more than tensors and plain values, namely'


@pytest.mark.parametrize(
    'way, message',
    [
        ('resume', HOSTILE),
        ('auto', HOSTILE),
        ('load_from', HOSTILE),
        ('pretrained', HOSTILE),
        ('weights', "can't be resumed from: it holds weights, but not how far a training was"),
        ('empty', 'it is empty'),
        ('pipe', 'is a pipe'),
        ('folder', 'is a folder'),
        ('none', 'there is no checkpoint'),
    ],
)
def test_no_checkpoint_runs_code_whatever_it_comes_by(tmp_path, capsys, way, message):
    path, marker = tmp_path / 'run/epoch_1.pth', tmp_path / 'marker'
    path.parent.mkdir()
    arguments, options = ['--resume', str(path)], []
    if way == 'pipe':
        os.mkfifo(path)
    elif way == 'folder':
        path.mkdir()
    elif way == 'empty':
        path.touch()
    elif way == 'weights':
        torch.save({'state_dict': {'w': torch.ones(1)}}, path)
    elif way != 'none':
        path.write_bytes(reduced(marker))
    if way == 'auto':
        (tmp_path / 'run/last_checkpoint').write_text(str(path))
        arguments = ['--resume']
    if way in ('load_from', 'pretrained'):
        arguments, options = [], [f'{"model." * (way == "pretrained")}{way}={path}']
    with pytest.raises((SystemExit, ValueError)) as done:
        tool.main(
            [
                str(ROOT / CONFIG),
                '--work-dir',
                str(tmp_path / 'run'),
                *arguments,
                '--data-root',
                str(store_of(tmp_path)),
                '--cfg-options',
                'train_dataloader.batch_size=2',
                'train_dataloader.num_workers=0',
                *options,
            ]
        )
    assert not marker.exists()
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert done.type is SystemExit and done.value.code == 2, done.value
    assert message in last and 'Traceback' not in last


def store_of(folder):
    return make_store(folder / 'store', 4)


def test_config_whose_base_points_nowhere(tmp_path, capsys):
    config = tmp_path / 'lost.py'
    config.write_text("_base_ = './missing_base.py'\n")
    with pytest.raises(SystemExit):
        tool.main([str(config)])
    assert 'missing_base.py' in capsys.readouterr().err.strip().splitlines()[-1]


def test_scaling_a_learning_rate_that_is_meant_for_no_batch(tmp_path, capsys):
    config = tmp_path / 'plain.py'
    config.write_text("model = dict(type='FreeATMMAE')\ntrain_dataloader = dict()\n")
    with pytest.raises(SystemExit) as done:
        tool.main([str(config), '--auto-scale-lr'])
    assert done.value.code == 2
    assert 'for which batch' in capsys.readouterr().err.strip().splitlines()[-1]


def torchrun(*arguments):
    return subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc-per-node',
            '2',
            'tools/train.py',
            *map(str, arguments),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


#: Runs the words behind the first, which is a variable of the environment to each word.
RANKED = """
import os, runpy, sys
os.environ.update(pair.split('=') for pair in sys.argv[1].split())
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def as_torchrun(folder, *arguments):
    """What `torchrun` starts, in two processes that share their imports; their exit codes."""
    (folder / 'ranked.py').write_text(RANKED)
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        shared = f'WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT={server.getsockname()[1]}'

    def run(rank):
        words = [f'RANK={rank} LOCAL_RANK={rank} {shared}', 'tools/train.py', *map(str, arguments)]
        return run_with_imports(str(folder / 'ranked.py'), words, f'{rank}')

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


@pytest.mark.skipif(not can_share_imports(), reason='processes can be forked on Linux alone')
def test_two_processes_train_and_resume(tmp_path, single_threaded_at_root):
    """As of torchrun, then by it: processes agree, --resume goes on, options arrive."""
    store = make_store(tmp_path / 'store', count=24, size=(64, 64), mask_size=(16, 16))
    # As configs were written before: they still train, here.
    old = tmp_path / 'old.py'
    old.write_text(
        f"_base_ = {str(ROOT / CONFIG)!r}\ncustom_imports = dict(imports=['freeatm_mm'])\n"
        f'train_dataloader = dict(dataset=dict(data_root={str(store)!r}))\n'
    )
    options = [
        '--launcher',
        'pytorch',
        '--work-dir',
        tmp_path / 'run',
        '--seed',
        7,
        '--cfg-options',
        'train_dataloader.batch_size=6',
        'train_dataloader.num_workers=0',
        'model.queue_len=32',
        'default_hooks.checkpoint.max_keep_ckpts=3',
    ]
    assert as_torchrun(tmp_path, old, *options, 'train_cfg.max_epochs=1') == [0, 0]
    done = torchrun(CONFIG, '--resume', '--data-root', store, *options, 'train_cfg.max_epochs=2')
    assert done.returncode == 0, done.stderr
    first, second = (
        CheckpointLoader.load_checkpoint(str(tmp_path / 'run' / f'epoch_{epoch}.pth'))
        for epoch in (1, 2)
    )
    assert first['meta']['iter'] == 2 and second['meta']['iter'] == 4
    assert second['meta']['seed'] == 7
    assert int(second['state_dict']['encoder_k.steps']) == 4
    assert 'instances_per_image' in done.stderr + done.stdout

"""One checkpoint through benchmarks: commands, resuming, SLURM, the row; and one real run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tools import load_tool, run_tool
from mmengine.config import Config

from freeatm_mm import compat
from freeatm_mm.downstream import runs as downstream
from freeatm_mm.downstream.runs import BENCHMARKS, DownstreamRun, read_metrics
from freeatm_mm.errors import InputError
from freeatm_mm.results import read_results

ROOT = Path(__file__).parents[2]


tool = load_tool('downstream')
compat.accept_mmseg_fork()
DATA = str(ROOT / 'tests')  # any folder that is there
COCO = {'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_50': 0.5, 'coco/segm_mAP': 0.125}


@pytest.fixture(autouse=True)
def stay_here(monkeypatch):
    monkeypatch.chdir(ROOT)  # and back, where the tool goes itself


@pytest.fixture
def calls(monkeypatch):
    """Commands are noted instead of run; an evaluation leaves metrics behind, as configured."""
    done = []
    metrics = {'mask-rcnn': COCO, 'fcn': {'mIoU': 30.0}, 'upernet': {'mIoU': 20.0}}

    real = subprocess.run

    def run(command, **kwargs):
        if sys.executable not in command:  # Python's `platform` asks the system what it runs on
            return real(command, **kwargs)
        done.append(command)
        if 'tools/test.py' in command:
            kind = next(name for name in metrics if any(name in part for part in command))
            Path(command[command.index('--out') + 1]).write_text(json.dumps(metrics[kind]))
        return subprocess.CompletedProcess(command, run.code, '', '')

    run.code = 0
    monkeypatch.setattr(downstream.subprocess, 'run', run)
    return done, run


def checkpoint(path, value=1, **content):
    torch.save({'state_dict': {'backbone.conv1.weight': torch.full((1,), value)}, **content}, path)
    return str(path)


NAMED = ('--method', 'mocov2', '--regime', 'real', '--masks', 'false')


def arguments(out, *more):
    return [
        'random',
        '--benchmarks',
        'mini-coco',
        'mini-cityscapes',
        '--data',
        DATA,
        '--out',
        str(out),
        *more,
    ]


def test_a_row_from_benchmarks_in_turn(calls, tmp_path, capsys):
    done, _ = calls
    tool.main(arguments(tmp_path, '--seed', '3', '--gpus', '2', '--cfg-options', 'model.b=1'))
    assert len(done) == 4
    train = done[0]
    assert 'configs/miniature/downstream/mask-rcnn_resnet.py' in train and '--resume' in train
    assert train[train.index('--seed') + 1] == '3'
    assert train[train.index('--cfg-options') + 1 :] == [
        'init=random',
        'train_dataloader.batch_size=8',
        'model.b=1',
    ]
    assert train[train.index('--nproc-per-node') + 1] == '2'
    assert train[train.index('--launcher') + 1] == 'pytorch'
    assert Path(train[train.index('--data-root') + 1]) == Path(DATA)
    (row,) = read_results(tmp_path / 'row.json')['rows']
    assert row['metrics'] == {'box_ap': 0.25, 'box_ap50': 0.5, 'mask_ap': 0.125, 'miou': 0.3}
    assert (row['method'], row['seed'], row['regime']) == ('random', 3, 'real')
    assert row['scale'] == 'miniature'
    assert '| Random weights | 25.0 | 12.5 | 50.0 | 30.0 |' in capsys.readouterr().out
    # What is done isn't done again.
    tool.main(arguments(tmp_path, '--seed', '3', '--gpus', '2', '--cfg-options', 'model.b=1'))
    assert len(done) == 4


def test_a_failure_stops_and_is_gone_on_from(calls, tmp_path, capsys):
    done, run = calls
    run.code = 5
    with pytest.raises(SystemExit):
        tool.main(arguments(tmp_path))
    told = capsys.readouterr().err
    assert 'mini-coco failed (exit code 5)' in told and 'goes on from here' in told
    assert len(done) == 1
    run.code = 0
    tool.main(arguments(tmp_path))
    assert len(done) == 5 and (tmp_path / 'row.md').exists()


def test_another_checkpoint_is_not_mixed_in(calls, tmp_path, capsys):
    checkpoint(tmp_path / 'a.pth')
    options = ['--benchmarks', 'mini-coco', '--out', str(tmp_path / 'out'), *NAMED, '--data', DATA]
    tool.main([str(tmp_path / 'a.pth'), *options])
    checkpoint(tmp_path / 'a.pth', 2)  # the same name, other weights
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path / 'a.pth'), *options])
    assert 'holds a run with another init: choose another --out' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path / 'none.pth'), *options])
    assert 'there is no checkpoint' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path / 'a.pth'), '--suite', 'resnet'])
    assert (
        'a.pth does not say its method and regime and masks: say --method --regime --masks, to '
        'name the row'
    ) in capsys.readouterr().err


def test_other_data_are_not_mixed_in(calls, tmp_path, capsys):
    done, _ = calls
    for name in ('tiny', 'whole'):
        (tmp_path / name).mkdir()
    options = ['random', '--out', str(tmp_path / 'out'), '--benchmarks']
    tool.main([*options, 'mini-coco', '--data', str(tmp_path / 'tiny')])
    with pytest.raises(SystemExit):
        tool.main([*options, 'mini-coco', '--data', str(tmp_path / 'whole')])
    told = capsys.readouterr().err
    assert 'holds a run with another data: choose another --out' in told and 'been moved' in told
    # Data sets may lie in several folders: the row of another benchmark keeps it.
    tool.main([*options, 'mini-cityscapes', '--data', str(tmp_path / 'whole')])
    (row,) = read_results(tmp_path / 'out/row.json')['rows']
    assert row['metrics'] == {'box_ap': 0.25, 'box_ap50': 0.5, 'mask_ap': 0.125, 'miou': 0.3}
    assert len(done) == 4
    # A note that doesn't say is taken for this one's.
    note = tmp_path / 'out/mini-coco/run.json'
    note.write_text(
        json.dumps(
            {key: value for key, value in json.loads(note.read_text()).items() if key != 'data'}
        )
    )
    tool.main([*options, 'mini-coco', '--data', str(tmp_path / 'tiny')])
    assert len(done) == 4


def test_weights_are_called_what_they_are(calls, tmp_path, capsys):
    options = arguments(tmp_path / 'out')
    with pytest.raises(SystemExit):
        tool.main([*options, '--method', 'mocov2', '--masks', 'true'])
    assert 'random weights are no mocov2: leave --method out' in capsys.readouterr().err
    options[0] = checkpoint(tmp_path / 'a.pth')
    tool.main([*options, *NAMED])
    with pytest.raises(SystemExit):
        tool.main([*options, '--method', 'mocov2', '--masks', 'true', '--regime', 'mixed'])
    assert 'row.json is of regime real, masks False, generator : choose' in capsys.readouterr().err


PRETRAINED = dict(
    meta={
        'epoch': 200,
        'iter': 1000,
        'cfg': (
            "model = dict(type='FreeATMMoCo', backbone=dict(type='ResNet', depth=50))\n"
            'train_cfg = dict(max_epochs=200)\n'
            'train_dataloader = dict(dataset='
            "dict(type='FreeATMDataset', data_root='gone', masks=True))"
        ),
    },
    message_hub={
        'runtime_info': {
            'pretraining': {
                'method': 'mocov2',
                'regime': 'synthetic',
                'masks': True,
                'generator': 'sdxl',
                'scale': 'paper',
            }
        }
    },
)


def test_a_row_is_called_what_its_checkpoint_says(calls, tmp_path, capsys):
    init = checkpoint(tmp_path / 'a.pth', **PRETRAINED)
    options = [init, '--benchmarks', 'mini-coco', '--data', DATA, '--out', str(tmp_path / 'out')]
    tool.main(options)
    (row,) = read_results(tmp_path / 'out/row.json')['rows']
    assert {
        key: row[key] for key in ('method', 'regime', 'masks', 'generator', 'epochs', 'scale')
    } == {
        'method': 'mocov2',
        'regime': 'synthetic',
        'masks': True,
        'generator': 'sdxl',
        'epochs': 200,
        'scale': 'miniature',
    }  # the benchmark's
    for flags, told in [
        (['--method', 'simclr'], "its method is 'mocov2', not 'simclr'"),
        (['--regime', 'real'], "its regime is 'synthetic', not 'real'"),
        (['--masks', 'false'], 'its masks is True, not False'),
        (['--epochs', '40'], 'its epochs is 200, not 40'),
        (['--generator', 'sd15'], "its generator is 'sdxl', not 'sd15'"),
    ]:
        with pytest.raises(SystemExit):
            tool.main([*options, *flags])
        assert told in capsys.readouterr().err
    tool.main([*options[:-1], str(tmp_path / 'variant'), '--masks', 'exact'])
    (row,) = read_results(tmp_path / 'variant/row.json')['rows']
    assert row['masks'] == 'exact'


@pytest.mark.parametrize(
    'content, told',
    [
        (dict(meta={'iter': 0, 'epoch': 40}), 'a training without a single step'),
        (
            dict(state_dict={'backbone.conv1.weight': torch.tensor([float('nan')])}),
            'NaN or infinite',
        ),
    ],
)
def test_weights_that_are_no_result_get_no_row(calls, tmp_path, capsys, content, told):
    init = checkpoint(tmp_path / 'a.pth', **content)
    with pytest.raises(SystemExit):
        tool.main(
            [
                init,
                '--benchmarks',
                'mini-coco',
                '--data',
                DATA,
                '--out',
                str(tmp_path / 'o'),
                *NAMED,
            ]
        )
    assert told in capsys.readouterr().err and not calls[0]


def test_options_for_one_of_the_benchmarks(calls, tmp_path, capsys):
    done, _ = calls
    tool.main(
        arguments(
            tmp_path,
            '--cfg-options',
            'train_dataloader.num_workers=1',
            'mini-coco:model.c=2',
            'mini-cityscapes:init=x=y',
        )
    )
    shared = 'train_dataloader.num_workers=1'
    assert done[0][-2:] == [shared, 'model.c=2'] and done[2][-2:] == [shared, 'init=x=y']
    assert done[1][-2:] == [shared, 'model.c=2']
    # The row says what its figures were measured with; how data were loaded changes none.
    (row,) = read_results(tmp_path / 'row.json')['rows']
    assert row['options'] == {
        **dict.fromkeys(('box_ap', 'box_ap50', 'mask_ap'), ['model.c=2']),
        'miou': ['init=x=y'],
    }
    text = (tmp_path / 'row.md').read_text()
    assert 'Not as configured: Detection (box AP) and Detection (mask AP) and Detection' in text
    assert text.strip() in capsys.readouterr().out
    for wrong in ('coco-mini:a=1', 'a', '=1'):
        with pytest.raises(SystemExit):
            tool.main(arguments(tmp_path, '--cfg-options', wrong))
        assert 'KEY=VALUE or BENCHMARK:KEY=VALUE is wanted' in capsys.readouterr().err


def test_options_that_nothing_reads_are_told_before_a_folder_is_claimed(calls, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.main(arguments(tmp_path / 'out', '--cfg-options', 'mini-coco:max_epochs=1'))
    assert '--cfg-options max_epochs: nothing reads max_epochs' in capsys.readouterr().err
    assert not calls[0] and not (tmp_path / 'out').exists()


def test_a_smoke_run_is_no_result(calls, tmp_path, capsys):
    done, _ = calls
    tool.main(arguments(tmp_path, '--smoke'))
    assert all('--smoke' in command for command in done)
    assert read_results(tmp_path / 'row.json')['rows'][0]['scale'] == 'smoke'
    with pytest.raises(SystemExit):  # nor gone on from
        tool.main(arguments(tmp_path))
    assert 'holds a run with another smoke' in capsys.readouterr().err


def test_all_is_checked_before_the_first_is_run(calls, tmp_path, capsys):
    done, _ = calls
    with pytest.raises(SystemExit):  # 8 images of Cityscapes, 16 of VOC and COCO
        tool.main(
            [
                'random',
                '--suite',
                'resnet',
                '--gpus',
                '16',
                '--out',
                str(tmp_path),
                '--data',
                str(made(tmp_path, 'VOCdevkit', 'coco', 'cityscapes', 'imagenet')),
            ]
        )
    assert "cityscapes: the batch of 8 can't be shared by 16 GPUs" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main(
            [
                'random',
                '--suite',
                'vit',
                '--out',
                str(tmp_path / 'vit'),
                '--data',
                str(made(tmp_path / 'some', 'coco', 'imagenet')),
            ]
        )
    told = capsys.readouterr().err
    assert 'ade20k: there is no folder' in told and 'ADEChallengeData2016: say with --data' in told
    assert not done


def made(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
    return folder


def test_a_row_holds_what_other_calls_have_done(calls, tmp_path, capsys):
    done, _ = calls
    for name in ('mini-coco', 'mini-cityscapes'):
        tool.main(['random', '--benchmarks', name, '--out', str(tmp_path), '--data', DATA])
    (row,) = read_results(tmp_path / 'row.json')['rows']
    assert row['metrics'] == {'box_ap': 0.25, 'box_ap50': 0.5, 'mask_ap': 0.125, 'miou': 0.3}
    assert len(done) == 4
    # Of another seed: not this row's, which isn't overwritten either.
    other = [
        'random',
        '--benchmarks',
        'mini-ade20k',
        '--out',
        str(tmp_path),
        '--data',
        DATA,
        '--seed',
        '1',
    ]
    with pytest.raises(SystemExit):
        tool.main(other)
    assert 'row.json is of seed 0: choose another --out' in capsys.readouterr().err
    (tmp_path / 'row.json').unlink()
    tool.main(other)
    (row,) = read_results(tmp_path / 'row.json')['rows']
    assert row['metrics'] == {'miou': 0.2} and row['seed'] == 1


def test_a_row_keeps_benchmarks_of_other_options(calls, tmp_path):
    options = ['random', '--out', str(tmp_path), '--data', DATA, '--benchmarks']
    tool.main([*options, 'mini-coco', '--amp'])
    tool.main([*options, 'mini-cityscapes', '--cfg-options', 'train_cfg.max_epochs=1'])
    (row,) = read_results(tmp_path / 'row.json')['rows']
    assert row['metrics'] == {'box_ap': 0.25, 'box_ap50': 0.5, 'mask_ap': 0.125, 'miou': 0.3}
    assert row['options'] == {
        **dict.fromkeys(('box_ap', 'box_ap50', 'mask_ap'), ['--amp']),
        'miou': ['train_cfg.max_epochs=1'],
    }


def test_a_row_loses_no_figures(calls, tmp_path, capsys):
    done, _ = calls
    options = ['random', '--out', str(tmp_path), '--data', DATA, '--benchmarks']
    tool.main([*options, 'mini-coco', '--smoke'])
    with pytest.raises(SystemExit):
        tool.main([*options, 'mini-cityscapes'])
    assert (
        'row.json would lose Detection (box AP), Detection (box AP50), Detection (mask AP), of '
        'mini-coco (another smoke): choose another --out, or delete that file'
    ) in capsys.readouterr().err
    assert len(done) == 2 and not (tmp_path / 'mini-cityscapes').exists()
    (tmp_path / 'row.json').unlink()
    for _ in range(2):  # what is left out is told each time
        tool.main([*options, 'mini-cityscapes'])
        assert 'left out of the row: mini-coco (another smoke)' in capsys.readouterr().out
    (row,) = read_results(tmp_path / 'row.json')['rows']
    assert row['metrics'] == {'miou': 0.3} and row['scale'] == 'miniature'


def test_figures_of_one_name_do_not_share_a_row(calls, tmp_path, capsys):
    done, _ = calls
    with pytest.raises(SystemExit):
        tool.main(
            [
                'random',
                '--out',
                str(tmp_path),
                '--data',
                DATA,
                '--benchmarks',
                'mini-coco',
                'mini-cityscapes',
                'mini-ade20k',
            ]
        )
    assert 'mini-cityscapes and mini-ade20k both give Segmentor (mIoU)' in capsys.readouterr().err
    assert not done
    options = ['random', '--out', str(tmp_path), '--data', DATA, '--benchmarks']
    tool.main([*options, 'mini-cityscapes'])
    with pytest.raises(SystemExit):  # nor by two calls
        tool.main([*options, 'mini-ade20k'])
    assert 'mini-cityscapes and mini-ade20k both give Segmentor (mIoU)' in capsys.readouterr().err


def test_mixed_precision_is_part_of_what_a_run_is(calls, tmp_path, capsys):
    done, _ = calls
    options = ['random', '--out', str(tmp_path), '--benchmarks', 'mini-coco', '--data', DATA]
    tool.main([*options, '--amp'])
    assert '--amp' in done[0] and '--amp' not in done[1]
    with pytest.raises(SystemExit):
        tool.main(options)
    assert 'holds a run with another amp' in capsys.readouterr().err


def test_a_comma_in_the_path_is_told(tmp_path):
    from freeatm_mm.configs import check_init

    with pytest.raises(ValueError, match='a list of one with commas'):
        check_init({'init': ['runs/lr0.1', 'bs256/epoch_1.pth']})


def test_a_file_that_is_there_keeps_its_name_in_options(tmp_path, monkeypatch):
    """mmengine's parser drops the space, and cuts at commas."""
    import argparse

    from freeatm_mm.configs import ChangesAction

    monkeypatch.chdir(tmp_path)
    for name in ('my runs', "lr0.1,bs256's"):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'x.pth').touch()
    (tmp_path / '3').touch()
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=ChangesAction)
    options = [
        'init=my runs/x.pth',
        f"model.pretrained={tmp_path}/lr0.1,bs256's/x.pth",
        'no=there is, none',
        'list=[1, 2]',
        'number=3',
    ]
    assert parser.parse_args(['--cfg-options', *options]).cfg_options == {
        'init': 'my runs/x.pth',
        'model.pretrained': f"{tmp_path}/lr0.1,bs256's/x.pth",
        'no': ['thereis', 'none'],
        'list': [1, 2],
        'number': 3,
    }
    with pytest.raises(InputError, match="--cfg-options wants KEY=VALUE, got 'model.queue_len'"):
        parser.parse_args(['--cfg-options', 'a=1', 'model.queue_len'])


def test_slurm(tmp_path, monkeypatch, capsys):
    """With stand-ins for sbatch and squeue that keep what they are given."""
    programs = tmp_path / 'bin'
    programs.mkdir()
    note = f'printf "%s\\n" "$@" >> {tmp_path}/submitted'
    for name, text in (
        ('sbatch', f'{note}; echo "41;cluster"'),
        ('squeue', f'test -e {tmp_path}/running && echo "$@"; true'),
    ):
        (programs / name).write_text(f'#!/bin/sh\n{text}\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{programs}{os.pathsep}{os.environ["PATH"]}')
    options = arguments(
        tmp_path / 'out', '--slurm', 'gpu', '--gpus', '16', '--slurm-options', 'time=1:00'
    )
    tool.main(options)
    assert 'mini-coco: job 41 submitted' in capsys.readouterr().out
    submitted = (tmp_path / 'submitted').read_text()
    for wanted in (
        '--partition=gpu',
        '--ntasks=16',
        '--ntasks-per-node=8',
        '--gres=gpu:8',
        '--cpus-per-task=6',
        '--time=1:00',
        '--launcher slurm',
        f'srun --kill-on-bad-exit=1 {sys.executable} tools/train.py configs/miniature',
        f'&& srun --kill-on-bad-exit=1 {sys.executable} tools/test.py',
    ):
        assert wanted in submitted
    # Jobs on one node meet at ports of their own.
    script = submitted.split('--wrap=')[1].split('; ')[0]
    ports = {
        subprocess.run(
            ['bash', '-c', f'{script}; echo $MASTER_PORT'],
            text=True,
            check=True,
            capture_output=True,
            env={'SLURM_JOB_ID': number},
        ).stdout.strip()
        for number in ('41', '42', '39999')
    }
    assert ports == {'20041', '20042', '39999'}
    (tmp_path / 'running').touch()
    tool.main(options)
    assert 'mini-cityscapes: job 41 is still under way' in capsys.readouterr().out
    assert (tmp_path / 'submitted').read_text() == submitted
    # Started without --slurm, nothing is trained beside the job.
    with pytest.raises(SystemExit):
        tool.main(arguments(tmp_path / 'out', '--gpus', '16'))
    assert 'mini-coco: job 41 still works in' in capsys.readouterr().err
    # Ended, and nothing came of it: said, and submitted again.
    (tmp_path / 'running').unlink()
    tool.main(options)
    told = capsys.readouterr().out
    assert 'mini-coco: job 41 ended without metrics; what it printed is in' in told
    assert 'mini-coco/slurm-41.out' in told and 'mini-coco: job 41 submitted' in told
    assert (tmp_path / 'submitted').read_text() == 2 * submitted
    for name, metrics in (('mini-coco', COCO), ('mini-cityscapes', {'mIoU': 30.0})):
        (tmp_path / 'out' / name / 'metrics.json').write_text(json.dumps(metrics))
    tool.main(options)
    assert (tmp_path / 'out/row.json').exists()


def test_what_slurm_does_not_say_is_not_guessed(tmp_path, monkeypatch, capsys):
    programs = made(tmp_path, 'bin') / 'bin'
    for name, text in (('sbatch', 'echo 41'), ('squeue', 'echo "Socket timed out" >&2; exit 1')):
        (programs / name).write_text(f'#!/bin/sh\n{text}\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{programs}{os.pathsep}{os.environ["PATH"]}')
    options = arguments(tmp_path / 'out', '--slurm', 'gpu')
    tool.main(options)
    with pytest.raises(SystemExit):
        tool.main(options)
    told = 'mini-coco: squeue does not say whether job 41 has ended (Socket timed out)'
    assert told in capsys.readouterr().err
    (programs / 'squeue').write_text('#!/bin/sh\necho "Invalid job id specified" >&2; exit 1\n')
    run = DownstreamRun('mini-coco', 'random', tmp_path / 'out/mini-coco')
    assert run.last_job() == '41' and run.pending() is None  # forgotten: it has ended
    (programs / 'squeue').unlink()
    with pytest.raises(RuntimeError, match='no squeue here to ask whether it has ended'):
        run.pending()
    (programs / 'sbatch').unlink()
    with pytest.raises(RuntimeError, match='there is no sbatch here'):
        run.submit('gpu')


def test_a_refusal_of_sbatch_is_told(tmp_path, monkeypatch, capsys):
    programs = tmp_path / 'bin'
    programs.mkdir()
    (programs / 'sbatch').write_text('#!/bin/sh\necho "invalid partition" >&2; exit 1\n')
    (programs / 'sbatch').chmod(0o755)
    monkeypatch.setenv('PATH', f'{programs}{os.pathsep}{os.environ["PATH"]}')
    with pytest.raises(SystemExit):
        tool.main(arguments(tmp_path / 'out', '--slurm', 'none'))
    assert 'sbatch refused mini-coco: invalid partition' in capsys.readouterr().err


@pytest.mark.parametrize('name', BENCHMARKS)
def test_the_whole_batch_is_the_same_on_any_number_of_gpus(name, tmp_path):
    """Rates and iterations are made for it; a config's size is one process's of so many."""
    header = (ROOT / 'configs' / BENCHMARKS[name].config).read_text().split('"""')[1]
    processes = re.search(r'--nproc-per-node (\d+)', header)
    loader = Config.fromfile(ROOT / 'configs' / BENCHMARKS[name].config).train_dataloader
    for gpus in (0, 1, 4, 8):
        train, _ = DownstreamRun(name, 'random', tmp_path, gpus=gpus).commands()
        (size,) = (
            part.split('=')[1] for part in train if part.startswith('train_dataloader.batch')
        )
        assert int(size) * max(gpus, 1) == loader.batch_size * int(processes[1] if processes else 1)


def test_a_batch_that_cannot_be_shared_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.main(
            [
                'random',
                '--benchmarks',
                'mini-coco',
                '--out',
                str(tmp_path),
                '--gpus',
                '3',
                '--data',
                DATA,
            ]
        )
    assert "mini-coco: the batch of 16 can't be shared by 3 GPUs" in capsys.readouterr().err


def test_rows_of_both_architectures_have_folders_of_their_own():
    """The ViT's random weights would overwrite the ResNet's row."""
    outs = {
        tool.parse_args([init, '--suite', suite]).out
        for init in ('random', 'supervised')
        for suite in ('mini-resnet', 'mini-vit')
    }
    assert len(outs) == 4
    args = tool.parse_args(['runs/mocov2/epoch_9.pth', '--suite', 'resnet'])
    assert args.out == Path('work_dirs/downstream/mocov2/epoch_9/seed_0')


@pytest.mark.parametrize(
    'init, name',
    [
        ('/moco.pth', 'moco'),
        ('../epoch_1.pth', 'epoch_1'),
        ('../../a/../epoch_1.pth', 'epoch_1'),
        ('file:///runs/mocov2/epoch_1.pth', 'mocov2/epoch_1'),
    ],
)
def test_rows_of_any_path_stay_in_their_folder(init, name):
    args = tool.parse_args([init, '--suite', 'resnet'])
    assert args.out == Path('work_dirs/downstream', name, 'seed_0')


def test_addresses_name_themselves():
    assert downstream.identify('torchvision://resnet50') == 'torchvision://resnet50'


def test_files_are_told_apart_by_their_bytes_however_they_are_named(tmp_path):
    checkpoint(tmp_path / 'a.pth')
    found = downstream.identify(str(tmp_path / 'a.pth'))
    assert found.startswith('sha256:')
    assert downstream.identify((tmp_path / 'a.pth').as_uri()) == found


def test_metrics(tmp_path):
    path = tmp_path / 'metrics.json'

    def read(found, name='mini-coco'):
        path.write_text(json.dumps(found))
        return read_metrics(path, BENCHMARKS[name])

    assert read({}) == {'box_ap': 0, 'box_ap50': 0, 'mask_ap': 0}  # mmdet: nothing detected
    assert read({'accuracy/top1': 75.0, 'accuracy/top5': 90.0}, 'linear') == {'linear_top1': 0.75}
    with pytest.raises(ValueError, match='lacks mIoU; it holds aAcc'):
        read({'aAcc': 1.0}, 'ade20k')
    with pytest.raises(ValueError, match='coco/segm_mAP could not be computed'):
        read({**COCO, 'coco/segm_mAP': -1.0})
    with pytest.raises(ValueError, match='mIoU could not be computed'):
        read({'mIoU': float('nan')}, 'ade20k')


def test_one_for_real(tmp_path, single_threaded_at_root, capfd):
    """A tiny linear probe through the tools themselves, trained, evaluated, kept."""
    pytest.importorskip('mmpretrain')
    pytest.importorskip('pycocotools')
    from helpers.tiny_downstream import make_tiny_world

    world = make_tiny_world(tmp_path / 'world', images=2)
    options = (
        'train_cfg.max_epochs=1',
        'train_dataloader.num_workers=0',
        'test_dataloader.num_workers=0',
        'train_dataloader.batch_size=21',
    )
    words = ['random', '--benchmarks', 'mini-linear', '--data', world, '--out', tmp_path / 'out']
    assert run_tool('downstream', *words, '--cfg-options', *options) == 0
    done = capfd.readouterr()
    (row,) = read_results(tmp_path / 'out/row.json')['rows']
    assert 0 <= row['metrics']['linear_top1'] <= 1
    assert 'starts from random weights' in done.out + done.err
    assert not DownstreamRun(
        'mini-linear',
        'random',
        tmp_path / 'out/mini-linear',
        world,
        options=options,
    ).prepare()

"""The main job in miniature: its plan is complete, its options are real ones, its rows meet."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

import pytest
from helpers.tools import exit_code, load_tool, planned
from mmengine.config import Config

from freeatm_mm.results import add_row, new_results, summarise_rows, write_results

tool = load_tool('miniature/run')
plan = partial(planned, tool)
pytestmark = pytest.mark.usefixtures('single_threaded_at_root')


def test_the_quick_run(capsys):
    commands = plan(capsys)
    assert [command[0] for command in commands] == [
        'tools/miniature/make_world.py',
        'tools/generate.py',
        'tools/evaluate.py',
        *['tools/train.py', 'tools/evaluate.py'] * 2,
    ]
    assert [command[1] for command in commands if command[0] == 'tools/train.py'] == [
        'configs/miniature/baselines/mocov2.py',
        'configs/miniature/mocov2_freeatm.py',
    ]


def test_all_arms(capsys, tmp_path):
    commands = plan(
        capsys,
        '--methods',
        'mocov2',
        'simclr',
        'mae',
        '--arms',
        *tool.ARMS,
        '--exact',
        '--seeds',
        '2',
        '--evaluate-every',
        '8',
        '--out',
        str(tmp_path),
    )
    assert len(commands) == len({shlex.join(command) for command in commands})
    trained = [command for command in commands if command[0] == 'tools/train.py']
    # generated: four arms of the contrastive methods, three of MAE; composed: two of each
    assert len(trained) == 2 * (4 + 4 + 3 + 3 * 2)
    made = {
        f'{command[command.index("--work-dir") + 1]}/epoch_{epoch}.pth'
        for command in trained
        for epoch in ((16, 32, 48) if 'mae' in command[1] else (8, 16, 24))
        if epoch in (24, 48) or 'max_keep_ckpts=-1' in command[-1]
    }
    assert {path.parts[-2].split('-')[2] for path in map(Path, made) if path.stem == 'epoch_8'} == {
        'baseline',
        'freeatm',
    }
    judged = [command for command in commands if command[0] == 'tools/evaluate.py']
    assert {command[2] for command in judged} == made | {'--random'}
    # each row has a file of its own, so that nothing is lost where two are made at once
    files = [command[command.index('--out') + 1] for command in judged]
    assert len(set(files)) == len(files)
    fine_tuned = [command for command in commands if command[0] == 'tools/downstream.py']
    assert len(fine_tuned) == 2 * (1 + 3 + 2)
    assert {f'{command[command.index("--out") + 1]}.json' for command in fine_tuned} <= {
        f'{Path(file).with_suffix("")}-finetune.json' for file in files
    }


def test_options_change_what_they_name(capsys, tmp_path):
    """Each key is there before it is changed, so that none is misspelt."""
    for command in plan(
        capsys,
        '--methods',
        'mocov2',
        'simclr',
        'mae',
        '--arms',
        *tool.ARMS,
        '--epochs',
        '9',
        '--evaluate-every',
        '3',
        '--out',
        str(tmp_path),
    ):
        if command[0] != 'tools/train.py':
            continue
        cfg = Config.fromfile(command[1])
        options = dict(
            option.split('=', 1) for option in command[command.index('--cfg-options') + 1 :]
        )
        for key in options:
            value = cfg
            *path, last = key.split('.')
            for part in path:
                value = value[int(part)] if part.isdigit() else value[part]
            if last == 'mask_values':
                assert value.type == 'PackFreeATMInputs'
            else:
                assert last in value
        assert int(options['train_cfg.max_epochs']) == (18 if 'mae' in command[1] else 9)
        cosine = next(part for part in cfg.param_scheduler if part.type == 'CosineAnnealingLR')
        index = cfg.param_scheduler.index(cosine)
        assert int(options[f'param_scheduler.{index}.T_max']) + cosine.begin == int(
            options['train_cfg.max_epochs']
        )


def test_rows_are_gathered_and_fine_tuning_joins_its_own(tmp_path):
    def keep(path, method, metrics, **extra):
        results = new_results('x', 'python x')
        add_row(
            results,
            {
                'method': method,
                'regime': 'synthetic',
                'masks': False,
                'seed': 0,
                'epochs': 4,
                'metrics': metrics,
                **extra,
            },
        )
        write_results(path, results)

    rows = tmp_path / 'rows'
    keep(rows / 'a-0.json', 'mae', {'linear': 0.2})
    keep(rows / 'a-0-finetune/row.json', 'mae', {'finetune_top1': 0.6}, generator='miniature')
    keep(rows / 'b-0.json', 'random-vit', {'linear': 0.1})
    random, mae = summarise_rows(tool.gather(tool.parse_args(['--out', str(tmp_path)])))
    assert (mae.mean('linear'), mae.mean('finetune_top1')) == (0.2, 0.6)
    assert random.method == 'random-vit' and 'finetune_top1' not in random.values


def test_too_few_epochs_are_refused(capsys):
    assert exit_code(tool, ['--dry-run', '--epochs', '2']) == 2
    assert './run miniature: --epochs must be 3 or more' in capsys.readouterr().err

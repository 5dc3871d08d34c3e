"""The paper's tables in miniature: the plan is complete and its options are real ones."""

from __future__ import annotations

import json
import shlex
from functools import partial

import pytest
from helpers.tiny_stores import make_store
from helpers.tools import exit_code, load_tool, planned
from mmengine.config import Config

from freeatm_mm.miniature.job import Step
from freeatm_mm.results import add_row, new_results, read_results, write_results

tool = load_tool('miniature/tables')
plan = partial(planned, tool)
pytestmark = pytest.mark.usefixtures('single_threaded_at_root')


def test_every_arm_of_the_paper_is_in_the_plan(capsys, tmp_path):
    commands = plan(capsys, '--out', str(tmp_path), '--seeds', '2')
    # World and images; for each seed two suites of references, and 6 stages and 5 arms a method.
    assert len(commands) == len({shlex.join(command) for command in commands})
    assert len(commands) == 2 + 2 * (2 * 3 + 3 * 11)
    judged = {
        (
            command[command.index('--method') + 1],
            command[command.index('--regime') + 1],
            command[command.index('--masks') + 1],
            command[command.index('--suite') + 1],
        )
        for command in commands
        if command[0] == 'tools/downstream.py'
    }
    assert judged == {
        *(
            (method, 'real', 'false', suite)
            for method in ('random', 'supervised')
            for suite in ('mini-resnet', 'mini-vit')
        ),
        *(
            (method, regime, masks, suite)
            for method, suite in (
                ('simclr', 'mini-resnet'),
                ('mocov2', 'mini-resnet'),
                ('mae', 'mini-vit'),
            )
            for regime, masks in (
                ('real', 'false'),
                ('synthetic', 'false'),
                ('synthetic', 'true'),
                ('mixed', 'false'),
                ('mixed', 'true'),
            )
        ),
    }


def test_regimes_alone(capsys, tmp_path):
    options = ['--methods', 'simclr', '--garments', '--out', str(tmp_path), '--seeds', '1']
    commands = plan(capsys, *options, '--regimes', 'mixed', 'real')
    evaluated = [
        (command[command.index('--regime') + 1], command[command.index('--masks') + 1])
        for command in commands
        if command[0] == 'tools/evaluate.py'
    ]
    assert evaluated == [('real', 'false'), ('mixed', 'false'), ('mixed', 'true')]
    assert len([command for command in commands if command[0] == 'tools/train.py']) == 4


def test_real_images_alone_need_no_generated_ones(capsys, tmp_path, monkeypatch):
    options = ['--methods', 'simclr', '--garments', '--out', str(tmp_path), '--regimes', 'real']
    tools = {command[0] for command in plan(capsys, *options)}
    assert tools == {'tools/miniature/make_world.py', 'tools/train.py', 'tools/evaluate.py'}
    assert exit_code(tool, [*options, '--steps', '4']) == 2
    assert '--steps' in (told := capsys.readouterr().err) and 'with --regimes real' in told
    # The folder can have them later.
    store = make_store(tmp_path / 'store', 20)
    monkeypatch.setattr(tool.Job, 'run', lambda *_, **__: None)
    assert exit_code(tool, options) == 0
    more = [*options, 'synthetic', '--synthetic', str(store)]
    assert exit_code(tool, more) == 0


def test_a_folder_holds_to_what_its_pretrainings_share(tmp_path, monkeypatch, capsys):
    """Also one of an earlier version, which kept nothing but its commands."""
    store, twin = (make_store(tmp_path / f'store{seed}', 20, seed=seed) for seed in range(2))
    for number, name in enumerate(('world', 'elsewhere')):
        make_store(tmp_path / name / 'exact', 20, seed=number)
    monkeypatch.setattr(tool.Job, 'run', lambda *_, **__: None)
    out, world = tmp_path / 'out', tmp_path / 'world'
    fixed = ['--garments', '--methods', 'simclr', '--seeds', '1', '--out', str(out)]
    options = [*fixed, '--synthetic', str(store), '--world', str(world)]
    lines = [shlex.join(['python', *command]) for command in plan(capsys, *options)]
    for earlier in (False, True):
        if earlier:
            (out / 'settings.json').unlink()
            (out / 'steps.json').write_text(json.dumps(dict.fromkeys(lines, 1.0)))
        else:
            assert exit_code(tool, options) == 0
        for changed, message in (
            ([*options, '--fast'], 'was begun without --fast, not with --fast'),
            ([*options, '--synthetic', twin], 'was begun with --synthetic of sha256 '),
            ([*options, '--world', tmp_path / 'elsewhere'], 'was begun with --world of sha256 '),
            ([*fixed, '--synthetic', store], 'not without --world: choose another --out'),
        ):
            assert exit_code(tool, changed) == 2
            assert message in capsys.readouterr().err
        assert exit_code(tool, [*options, '--seeds', '2', '--methods', 'mae']) == 0


def test_fast_runs(capsys, tmp_path):
    options = ['--methods', 'simclr', '--garments', '--out', str(tmp_path), '--seeds', '1']
    for more, fast in (([], False), (['--fast'], True)):
        trainings = [c for c in plan(capsys, *options, *more) if c[0] == 'tools/train.py']
        assert len(trainings) == 6
        for command in trainings:
            assert ('train_dataloader.dataset.in_memory=True' in command) == fast
            assert ('train_dataloader.num_workers=0' in command) == fast


def test_what_is_judged_was_trained_before(capsys, tmp_path):
    made = set()
    for command in plan(capsys, '--out', str(tmp_path), '--seeds', '1'):
        if command[0] == 'tools/train.py':
            for option in command:
                if option.startswith('model.pretrained='):
                    assert option.split('=')[1] in made
            epochs = next(
                (
                    int(option.split('=')[1])
                    for option in command
                    if option.startswith('train_cfg.max_epochs=')
                ),
                Config.fromfile(command[1]).train_cfg.max_epochs,
            )
            made.add(f'{command[command.index("--work-dir") + 1]}/epoch_{epochs}.pth')
        elif command[0] == 'tools/downstream.py' and command[1] != 'random':
            assert command[1] in made


def test_options_change_what_they_name(capsys, tmp_path):
    """Each key is there before it is changed, so that none is misspelt; schedules end in time."""
    commands = [
        command
        for command in plan(capsys, '--out', str(tmp_path), '--seeds', '1', '--epochs', '9')
        if command[0] == 'tools/train.py' and '--cfg-options' in command
    ]
    assert len(commands) == 18
    for command in commands:
        cfg = Config.fromfile(command[1])
        options = dict(
            option.split('=', 1) for option in command[command.index('--cfg-options') + 1 :]
        )
        for key in options:
            value = cfg
            for part in key.split('.')[:-1]:
                value = value[int(part)] if part.isdigit() else value[part]
            last = key.split('.')[-1]
            assert last in value or last in ('share', 'pretrained')
        epochs = int(options['train_cfg.max_epochs'])
        assert epochs == (18 if 'mae' in command[1] else 9)
        cosine = next(part for part in cfg.param_scheduler if part.type == 'CosineAnnealingLR')
        index = cfg.param_scheduler.index(cosine)
        assert int(options[f'param_scheduler.{index}.end']) == epochs
        assert int(options[f'param_scheduler.{index}.T_max']) == epochs - cosine.begin


def test_rows_become_tables(tmp_path, capsys):
    for name, method, masks, metrics in (
        ('a', 'simclr', True, {'linear_top1': 0.8}),
        ('e', 'simclr', 'other_nouns', {'linear_top1': 0.9}),
        ('b', 'simclr', False, {'linear_top1': 0.7}),
        ('c', 'random', False, {'linear_top1': 0.5, 'box_ap': 0.1}),
        ('d', 'random', False, {'finetune_top1': 0.6}),
    ):
        results = new_results(name, 'python x')
        add_row(
            results,
            {
                'method': method,
                'regime': 'real',
                'masks': masks,
                'seed': 0,
                'epochs': 0,
                'generator': '',
                'metrics': metrics,
            },
        )
        write_results(tmp_path / f'tables/{name}/row.json', results)
    job = tool.Job(tmp_path)
    job.steps.append(Step('one', 'python x', 3600.0))
    tool.write_tables(tool.parse_args(['--out', str(tmp_path)]), job)
    first = read_results(tmp_path / 'miniature-table1.json')['rows']
    assert [(row['method'], row['masks'], row['seed']) for row in first] == [
        ('random', False, 0),
        ('simclr', False, 0),
        ('simclr', True, 0),  # as in the paper
        ('simclr', 'other_nouns', 0),
    ]
    assert first[0]['metrics'] == {'linear_top1': 0.5, 'box_ap': 0.1}
    assert first[0]['command'] == 'python x' and first[0]['date']  # the row's own
    second = read_results(tmp_path / 'miniature-table2.json')['rows']
    assert [row['metrics'] for row in second] == [{'finetune_top1': 0.6}]
    text = (tmp_path / 'miniature-tables.md').read_text()
    assert '| Random weights | 1 | 10.0 | 50.0 |' in text
    for plot in ('miniature-table1.svg', 'miniature-table2.svg'):
        assert f'({plot})' in text and (tmp_path / plot).read_text().rstrip().endswith('</svg>')
    assert '1.0 hours by the clock in 1 command, ' in text
    assert text.strip() in capsys.readouterr().out


def test_what_the_main_job_has_made_is_used(capsys):
    """In one folder both make the same world, images and pretrainings by the same commands."""
    main = planned(
        load_tool('miniature/run'),
        capsys,
        '--exact',
        '--methods',
        'mocov2',
        'simclr',
        'mae',
        '--out',
        'work_dirs/x',
    )
    tables = [command for command in plan(capsys, '--out', 'work_dirs/x', '--seeds', '1')]
    shared = [command for command in tables if command in main]
    assert [command[0] for command in shared[:2]] == [
        'tools/miniature/make_world.py',
        'tools/generate.py',
    ]
    assert {command[command.index('--work-dir') + 1].split('/')[-1] for command in shared[2:]} == {
        f'{arm}-0'
        for method in ('mocov2', 'simclr', 'mae')
        for arm in (
            f'real-{method}-baseline',
            f'synthetic-{method}-baseline',
            f'synthetic-{method}-freeatm',
        )
    }


def test_on_garments_the_pretrainings_alone_are_evaluated(capsys, tmp_path):
    commands = plan(capsys, '--out', str(tmp_path), '--methods', 'mocov2', '--garments')
    assert '--garments' in commands[0] and len(commands) == 2 + 3 * (6 + 5)
    evaluated = [command for command in commands if command[0] == 'tools/evaluate.py']
    parse_args = load_tool('evaluate').parse_args
    rows = [parse_args(command[1:]) for command in evaluated]
    assert {(row.regime, row.masks) for row in rows} == {
        ('real', False),
        *((regime, masks) for regime in ('synthetic', 'mixed') for masks in (True, False)),
    }
    assert len({row.out for row in rows}) == len(rows) == 15
    assert all(row.on == ['garments'] for row in rows)

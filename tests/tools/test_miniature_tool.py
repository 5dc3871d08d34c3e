"""The main job in miniature: its plan is complete, its options are real ones, its rows meet."""

from __future__ import annotations

import json
import shlex
import shutil
from functools import partial
from pathlib import Path

import pytest
from helpers.tiny_stores import make_store
from helpers.tools import exit_code, load_tool, planned, run_tool
from mmcv.transforms import Compose
from mmengine.config import Config, DictAction

from freeatm_mm.datasets.batches import BatchPipeline
from freeatm_mm.errors import InputError
from freeatm_mm.miniature.arms import ARMS
from freeatm_mm.miniature.job import check_same_pictures, chosen_ids, keep_settings
from freeatm_mm.miniature.layout import read_layout
from freeatm_mm.miniature.scenes import sample_prompt
from freeatm_mm.prompts import PromptRecord, read_prompts, write_prompts
from freeatm_mm.results import add_row, new_results, summarise_rows, write_results
from freeatm_mm.store import Store, write_store

CHANGED = ('model', 'train_dataloader', 'train_pipeline')
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
        'configs/miniature/mocov2_freeatm.py'
    ] * 2
    baseline, ours = (command for command in commands if command[0] == 'tools/train.py')
    assert [part for part in baseline if 'freeatm-0' not in part and part not in ours][1:] == [
        'train_dataloader.dataset.masks=False'
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
    # generated: 20 arms of the contrastive methods, 14 of MAE; composed: two of each
    assert len(trained) == 2 * (20 + 20 + 14 + 3 * 2)
    made = {
        f'{command[command.index("--work-dir") + 1]}/epoch_{epoch}.pth'
        for command in trained
        for epoch in ((16, 32, 48) if 'mae' in command[1] else (8, 16, 24))
        if epoch in (48 if 'mae' in command[1] else 24,)
        or 'default_hooks.checkpoint.max_keep_ckpts=-1' in command
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
    assert len(fine_tuned) == 2 * (1 + 14 + 2)
    assert {f'{command[command.index("--out") + 1]}.json' for command in fine_tuned} <= {
        f'{Path(file).with_suffix("")}-finetune.json' for file in files
    }


def test_masks_from_elsewhere_are_made_of_the_same_samples(capsys, tmp_path):
    """And those that take the baseline's features are made once it has them."""
    options = ('--arms', 'baseline', 'kmeans', 'felzenszwalb', '--pool', 'POOL', '--images', '10')
    commands = plan(capsys, *options, '--out', str(tmp_path))
    edits = {command[5]: command for command in commands if command[0] == 'tools/store/edit.py'}
    assert list(edits) == ['felzenszwalb', 'kmeans']
    trained = [command for command in commands if command[0] == 'tools/train.py']
    roots = {}
    for command in trained:
        arm = Path(command[command.index('--work-dir') + 1]).name.split('-')[2]
        roots[arm] = command[command.index('--data-root') + 1]
        chosen = f'train_dataloader.dataset.indices={tmp_path}/samples/10-seed0.json' in command
        assert chosen == (arm == 'baseline')
    for arm, command in edits.items():
        assert command[1:4] == ['regions', 'POOL', roots[arm]]
        assert command[-2:] == ['--samples', f'{tmp_path}/samples/10-seed0.json']
    assert roots['baseline'] == 'POOL'
    checkpoint = edits['kmeans'][edits['kmeans'].index('--checkpoint') + 1]
    assert checkpoint == f'{tmp_path}/synthetic-mocov2-baseline-0/epoch_24.pth'
    evaluated = next(place for place, command in enumerate(commands) if checkpoint in command)
    assert commands.index(edits['kmeans']) > evaluated
    assert exit_code(tool, ['--arms', 'kmeans', '--dry-run']) == 2
    assert 'name both' in capsys.readouterr().err


@pytest.mark.parametrize('benchmarks, times', [([], 1), (['--benchmarks'], 0)])
def test_fine_tuning_is_left_out_on_demand(capsys, tmp_path, benchmarks, times):
    commands = plan(
        capsys, '--methods', 'mae', '--arms', 'freeatm', '--out', f'{tmp_path}', *benchmarks
    )
    heads = [command for command in commands if command[:2] != ['tools/downstream.py', 'random']]
    assert sum(command[0] == 'tools/downstream.py' for command in heads) == times


@pytest.mark.parametrize('scale', ['', 'miniature/'])
@pytest.mark.parametrize(
    'method, arm', [('mocov2', 'plus'), ('simclr', 'plus'), ('mae', 'inside_first')]
)
def test_the_configs_beyond_the_paper_are_an_arms_options(method, arm, scale):
    """So that an arm's figures are those of the config."""
    options = ARMS[arm].changes(read_layout(method), seed=0)
    cfg = Config.fromfile(f'configs/{scale}{method}_freeatm.py')
    cfg.merge_from_dict(
        {
            key: DictAction._parse_int_float_bool(value)
            for key, value in (option.split('=', 1) for option in options)
        }
    )
    assert cfg.train_pipeline != cfg.train_dataloader.dataset.pipeline
    plus = Config.fromfile(f'configs/{scale}{method}_freeatm_plus.py')
    for part in ('model', 'train_dataloader'):
        assert cfg[part] == plus[part]
    assert {**cfg, **dict.fromkeys(CHANGED)} == {**plus, **dict.fromkeys(CHANGED)}


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
            if last in ('mask_values', 'with_masks', 'one_noun'):
                assert value.type == 'PackFreeATMInputs'
            elif last in ('centred_box', 'trust'):
                assert value.type == 'LoadFromStore'
            elif last == 'object_crops':
                assert value.type == 'FreeATMMultiView'
            elif last in ('mask_source', 'mask_source_seed'):
                assert value.type == 'FreeATMDataset'
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


def test_each_seed_takes_its_samples_of_a_pool(capsys, tmp_path, monkeypatch):
    pool, out = make_store(tmp_path / 'pool', count=20), tmp_path / 'out'
    options = ['--pool', str(pool), '--images', '6', '--seeds', '2', '--out', str(out)]
    commands = plan(capsys, *options)
    assert not [command for command in commands if command[0] == 'tools/generate.py']
    lists = [part.split('=')[1] for command in commands for part in command if '.indices=' in part]
    assert sorted(set(lists)) == [f'{out}/samples/6-seed{seed}.json' for seed in (0, 1)]
    assert len(lists) == 4  # both arms of a seed
    args = tool.parse_args(options)
    for seed in (0, 1):
        for masks in (False, True):
            results = new_results('x', 'python x')
            row = {'method': 'mocov2', 'regime': 'synthetic', 'masks': masks, 'seed': seed}
            add_row(results, {**row, 'epochs': 24, 'metrics': {'linear': 0.1}})
            write_results(out / f'rows/{masks}-{seed}.json', results)
    rows = tool.gather(args)['rows']
    assert all(row['pool']['samples'] == 6 and row['pool']['disjoint'] for row in rows)
    assert len({row['pool']['list_sha256'] for row in rows}) == 2
    assert [group.seeds for group in summarise_rows({'rows': rows})] == [[0, 1]] * 2


def test_controls_have_rows_of_their_own(capsys, tmp_path):
    commands = plan(
        capsys,
        '--methods',
        'mocov2',
        'mae',
        '--arms',
        'other_masks',
        'box',
        'ceiling_0',
        '--out',
        str(tmp_path),
    )
    trained = [command for command in commands if command[0] == 'tools/train.py']
    changes = [[part for part in command if '=' in part][3:] for command in trained]
    assert changes == [
        [
            'train_dataloader.dataset.mask_source=other',
            'train_dataloader.dataset.mask_source_seed=0',
        ],
        ['train_dataloader.dataset.pipeline.0.centred_box=own'],
    ] * 2 + [['model.mask_generator.ceiling=0']]
    judged = [command for command in commands if command[0] == 'tools/evaluate.py']
    names = [c[c.index('--masks') + 1] for c in judged if '--masks' in c]
    assert names == ['other_masks', 'box', 'other_masks', 'box', 'ceiling_0']


def test_fast_runs_and_single_garments(capsys, tmp_path):
    commands = plan(
        capsys,
        '--fast',
        '--device',
        'cuda',
        '--on',
        'garments',
        '--out',
        str(tmp_path),
    )
    trainings = [command for command in commands if command[0] == 'tools/train.py']
    assert len(trainings) == 2
    for command in trainings:
        assert 'train_dataloader.dataset.in_memory=True' in command
        assert 'train_dataloader.dataset.device=cuda' in command
        assert 'train_dataloader.num_workers=0' in command
    evaluations = [command for command in commands if command[0] == 'tools/evaluate.py']
    assert len(evaluations) == 3
    for command in evaluations:
        assert command[command.index('--on') + 1] == 'garments'
        assert command[command.index('--device') + 1] == 'cuda'
    assert '--garments' in commands[0]


def test_bfloat16_is_of_the_pretrainings_alone(capsys, tmp_path):
    commands = plan(capsys, '--bf16', '--out', str(tmp_path))
    assert {command[0] for command in commands if '--bf16' in command} == {'tools/train.py'}
    plain = plan(capsys, '--out', str(tmp_path))
    assert [[word for word in command if word != '--bf16'] for command in commands] == plain


def test_a_config_may_be_changed_for_all_arms_alike(capsys, tmp_path, monkeypatch):
    """In all pretrainings; rows say so, and no other config goes on in the same folder."""
    changed = ['model.queue_len=1024', 'model.head.temperature=0.1']
    options = ['--out', str(tmp_path), '--arms', 'baseline', 'same_noun', '--cfg-options', *changed]
    commands = plan(capsys, *options)
    trained = [command for command in commands if command[0] == 'tools/train.py']
    assert len(trained) == 2
    assert all(set(changed) <= {*command[command.index('--cfg-options') :]} for command in trained)
    for method in ('mocov2', 'random'):
        results = new_results('x', 'python x')
        row = {'method': method, 'regime': 'synthetic', 'masks': False, 'seed': 0, 'epochs': 4}
        add_row(results, {**row, 'metrics': {'linear': 0.1}})
        write_results(tmp_path / f'rows/{method}-0.json', results)
    random, ours = tool.gather(tool.parse_args(options))['rows']
    assert ours['cfg_options'] == changed and 'cfg_options' not in random
    assert exit_code(tool, [*options, 'model.positives=own', '--dry-run']) == 2
    assert 'model.positives is what --arms same_noun changes' in capsys.readouterr().err
    assert exit_code(tool, [*options, 'train_cfg.max_epochs=3', '--dry-run']) == 2
    assert 'beginning with model. or optim_wrapper.' in capsys.readouterr().err


def test_a_folder_holds_to_what_its_pretrainings_share(tmp_path, monkeypatch, capsys):
    """Resumed with another pool, precision or config, rows would have the figures of the first."""
    pool, twin, other = (make_store(tmp_path / f'pool{seed}', 20, seed=seed) for seed in range(3))
    prompts = tmp_path / 'prompts.jsonl'
    write_prompts(prompts, (PromptRecord(key, 'a dog') for key in Store(pool).sample_keys()))
    started = []
    monkeypatch.setattr(tool.Job, 'run', lambda *words, **_: started.append(words))
    monkeypatch.setattr(tool, 'report', lambda *_: None)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    options = ['--out', tmp_path / 'out', '--images', '6', '--cfg-options', 'model.queue_len=64']
    both = ['--pool', pool, '--pools', f'plain={other}']
    assert exit_code(tool, [*options, *both]) == 0
    more = [*both, f'second={twin}', '--seeds', '2', '--arms', 'box', '--on', 'garments']
    assert exit_code(tool, [*options, *more]) == 0
    capsys.readouterr()
    begun = len(started)
    for changed, message in (
        ([*more, '--bf16'], 'was begun without --bf16, not with --bf16: choose another --out'),
        ([*more, '--fast'], 'without --fast, not with --fast'),
        ([*more, '--images', '7'], 'with --images 6, not with --images 7'),
        ([*more, '--cfg-options', 'model.queue_len=8'], 'len=64, not with --cfg-options model.'),
        (['--pool', twin, *more[2:]], 'with --pool of sha256 '),
        ([*both[:2], '--pools', f'plain={twin}'], 'with the store plain of sha256 '),
        ([*more, '--pool-prompts', prompts], 'without --pool-prompts, not with --pool-prompts of'),
        ([], 'not without --pool: choose another --out'),
    ):
        assert exit_code(tool, [*options, *changed]) == 2
        assert message in capsys.readouterr().err
    assert len(started) == begun


def test_a_folder_of_an_earlier_version_holds_to_what_it_tells(capsys, tmp_path):
    """Of its commands, and of the config's options that it kept; what it doesn't tell is taken."""
    pool, twin, gone = (make_store(tmp_path / f'pool{seed}', 20, seed=seed) for seed in range(3))
    options = ['--images', '6', '--arms', 'freeatm', 'felzenszwalb', '--fast']

    def begin(name, *words):
        out = tmp_path / name
        words = [*options, *map(str, words), '--out', str(out)]
        lines = [shlex.join(['python', *command]) for command in plan(capsys, *words)]
        out.mkdir()
        steps = {line.replace(str(out), '{out}'): 1.0 for line in lines}
        (out / 'steps.json').write_text(json.dumps(steps))
        return out, words

    def keep(out, *words):
        given = tool.settings(tool.parse_args(list(map(str, words))))
        keep_settings(out, given, tool.data_setting)
        assert json.loads((out / 'settings.json').read_text()) == given

    for name, words in (('with', ['--pool', pool, '--pools', f'plain={twin}']), ('without', [])):
        out, words = begin(name, *words)
        other = ['--pool', twin], ['--bf16'], ['--images', '7'], ['--cfg-options', 'model.a=1']
        for more in (*other, *([['--pools', f'plain={pool}']] if name == 'with' else [])):
            with pytest.raises(InputError, match='was begun with.*: choose another --out'):
                keep(out, *words, *more)
        assert not (out / 'settings.json').exists()
        keep(out, *words)
    out, words = begin('gone', '--pool', gone)
    shutil.rmtree(gone)
    keep(out, *words, '--pool', pool)
    out = tmp_path / 'note'
    out.mkdir()
    (out / 'cfg-options.json').write_text('["model.b=2", "model.a=1"]')
    with pytest.raises(InputError, match='with --cfg-options model.a=1 model.b=2, not without'):
        keep(out)
    keep(out, '--cfg-options', 'model.a=1', 'model.b=2')


def test_the_configs_are_made_for_batches_in_memory():
    """So that --fast refuses no method."""
    for method in tool.miniature_methods():
        cfg = Config.fromfile(tool.config_of(method))
        pipeline = cfg.train_dataloader.dataset.pipeline
        BatchPipeline(Compose(pipeline).transforms, (), 0)


def test_masks_are_added_to_the_composed_scenes_if_asked(capsys, tmp_path):
    commands = plan(capsys, '--add-masks', '--out', str(tmp_path))
    (added,) = [command for command in commands if command[0] == 'tools/add_masks.py']
    assert added[1] == f'{tmp_path}/world/exact'
    evaluated = [' '.join(command) for command in commands if command[0] == 'tools/evaluate.py']
    assert sum('--regime real --masks added' in line for line in evaluated) == 1
    assert sum('--regime real --masks False' in line for line in evaluated) == 1
    trained = [command for command in commands if command[0] == 'tools/train.py']
    assert sum(added[3] in command for command in trained) == 2
    both = plan(capsys, '--add-masks', '--exact', '--out', str(tmp_path))
    lines = [' '.join(command) for command in both if command[0] == 'tools/evaluate.py']
    for masks in ('added', 'exact', 'False'):
        assert sum(f'--regime real --masks {masks}' in line for line in lines) == 1


def test_heads_are_trained_with_seeds_of_their_own_and_joined(capsys, tmp_path):
    options = ['--benchmarks', 'mini-coco', 'mini-finetune', '--heads', '2', '--out', str(tmp_path)]
    commands = plan(capsys, *options)
    heads = [command for command in commands if command[0] == 'tools/downstream.py']
    assert [command[command.index('--seed') + 1] for command in heads] == ['0', '1000'] * 2
    assert all(command[2:5] == ['--benchmarks', 'mini-coco', '--data'] for command in heads)
    assert len({command[command.index('--out') + 1] for command in heads}) == 4
    for name, figure in (('', None), ('-finetune', 0.2), ('-finetune1', 0.4)):
        path = tmp_path / f'rows/a-0{name}{"/row" if name else ""}.json'
        row = {'method': 'mocov2', 'regime': 'synthetic', 'masks': True, 'seed': 0, 'epochs': 24}
        results = new_results('x', 'python x')
        add_row(results, {**row, 'metrics': {'box_ap': figure} if figure else {'linear': 0.1}})
        write_results(path, results)
    (row,) = tool.gather(tool.parse_args(options))['rows']
    assert row['metrics'] == {'linear': 0.1, 'box_ap': pytest.approx(0.3)}
    assert row['details']['heads'] == {'box_ap': [0.2, 0.4]}


def test_arms_of_other_stores(capsys, tmp_path):
    pool = make_store(tmp_path / 'pool', count=20)
    same, other = make_store(tmp_path / 'same', 20), make_store(tmp_path / 'other', 20, seed=1)
    options = ['--pool', str(pool), '--images', '6', '--arms', 'freeatm', '--out', str(tmp_path)]
    stores = ['--masks-of', f'down={same}', '--pools', f'plain={other}']
    trained = [c for c in plan(capsys, *options, *stores) if c[0] == 'tools/train.py']
    assert [command[command.index('--data-root') + 1] for command in trained] == [
        str(path) for path in (pool, same, other)
    ]
    lists = [part.split('=')[1] for command in trained for part in command if '.indices=' in part]
    assert lists == [f'{tmp_path}/samples{name}/6-seed0.json' for name in ('', '/down', '/plain')]
    assert not any('masks=False' in part for command in trained for part in command)
    check_same_pictures(pool, same)
    for store in (other, make_store(tmp_path / 'short', 19)):
        with pytest.raises(InputError, match='must hold the same pictures'):
            check_same_pictures(pool, store)
    for wrong, message in (
        (['--masks-of', f'down={same}'], 'need --pool'),
        ([*options, '--pools', f'box={other}'], 'none of the arms'),
        ([*options, *stores, '--pools', f'down={other}'], 'two arms have one name'),
        ([*options, '--same-ids'], 'without --masks-of or --pools'),
        (['--pool-prompts', 'prompts.jsonl'], 'without --pool'),
    ):
        assert exit_code(tool, ['--dry-run', *wrong]) == 2
        assert message in capsys.readouterr().err


def test_rows_of_a_store_that_is_not_named_again(tmp_path):
    """Which samples such rows are of, nothing would say: the pool's own were noted before."""
    pool, other = make_store(tmp_path / 'pool', 20), make_store(tmp_path / 'other', 20, seed=1)
    (tmp_path / 'rows').mkdir()
    results = new_results('x', 'python x')
    row = {'method': 'mocov2', 'regime': 'synthetic', 'masks': 'plain', 'seed': 0, 'epochs': 24}
    add_row(results, {**row, 'metrics': {'linear': 0.1}})
    write_results(tmp_path / 'rows/a-0.json', results)
    options = ['--pool', str(pool), '--images', '6', '--arms', 'freeatm', '--out', str(tmp_path)]
    with pytest.raises(InputError, match=r'rows of other stores \(plain\)'):
        tool.check_stores_named(tool.parse_args(options))
    named = tool.parse_args([*options, '--pools', f'plain={other}', '--same-ids'])
    tool.check_stores_named(named)
    (gathered,) = tool.gather(named)['rows']
    assert gathered['pool']['store'] == 'other' and gathered['pool']['ids_of'] == 'pool'


@pytest.mark.parametrize('same_ids', [False, True])
def test_a_part_of_the_pool_with_the_prompts_of_the_whole(same_ids, tmp_path):
    """Its own samples and those of --masks-of are the whole pool's; another pool's only on wish."""
    whole = make_store(tmp_path / 'whole', 20)
    prompts = tmp_path / 'prompts.jsonl'
    write_prompts(prompts, (PromptRecord(key, 'a dog') for key in Store(whole).sample_keys()))
    ids = chosen_ids(prompts, 6, 1)
    part = tmp_path / 'part'
    write_store(part, [sample for sample in Store(whole) if sample.key in set(ids)])
    args = tool.parse_args(
        [
            *('--pool', str(part), '--pool-prompts', str(prompts), '--images', '6'),
            *('--masks-of', f'down={part}', '--pools', f'plain={whole}'),
            *('--arms', 'freeatm', '--out', str(tmp_path), *(['--same-ids'] if same_ids else [])),
        ]
    )
    for name, store in (('', part), ('down', part), ('plain', whole)):
        noted = tool.samples_of(args, 0, name)
        places = json.loads(tool.sample_list(args, 0, name).read_text())
        assert ([Store(store)[place].key for place in places] == ids) or not noted.get('ids_of')
        assert ('ids_of' in noted) == (same_ids or name != 'plain')


def test_prompts_of_what_seeds_take(capsys, tmp_path):
    pool = make_store(tmp_path / 'pool', 20)
    prompts, out = tmp_path / 'prompts.jsonl', tmp_path / 'chosen.jsonl'
    write_prompts(prompts, (sample_prompt(f'{number:06d}', 0) for number in range(20)))
    chosen = [pool, prompts, out, '--images', 3, '--seeds', 2]
    assert run_tool('miniature/chosen_prompts', *chosen) == 0
    records = list(read_prompts(out))
    ids = chosen_ids(pool, 3, 2)
    assert [record.id for record in records] == ids and len(records) == 6
    assert records == [record for record in read_prompts(prompts) if record in records]
    assert run_tool('miniature/chosen_prompts', prompts, *chosen[1:]) == 0  # no pool needed
    assert list(read_prompts(out)) == records
    write_prompts(prompts, records[1:])
    assert run_tool('miniature/chosen_prompts', *chosen) == 2
    assert 'lacks 1 of the 6 ids that 2 seeds of 3 samples take' in capsys.readouterr().err

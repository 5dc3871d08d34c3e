"""The LAVIS tools: pretraining, fine-tuning and evaluating a tiny BLIP; LAVIS missing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tools import load_tool
from PIL import Image

pytest.importorskip('lavis')

from helpers.tiny_blip import (  # noqa: E402
    FINETUNE,
    PRETRAIN,
    ZEROSHOT,
    evaluate_as_process,
    make_parts,
    model_options,
    pretrain_options,
)
from helpers.two_processes import in_two_processes  # noqa: E402

from freeatm_mm.results import read_results  # noqa: E402
from freeatm_mm.results.paper_tables import TABLES, gather_rows  # noqa: E402

ROOT = Path(__file__).parents[2]
TITLES = ['TR@1', 'TR@5', 'TR@10', 'IR@1', 'IR@5', 'IR@10']


train, evaluate = load_tool('lavis_train'), load_tool('lavis_evaluate')
look = load_tool('lavis_point')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """Store, tokenizer, retrieval set of eight pictures, and a pretraining made by the tool."""
    folder = tmp_path_factory.mktemp('world')
    store, tokenizer = make_parts(folder)
    random = np.random.default_rng(0)
    names, rows = ['dog', 'bird', 'shoe', 'lamp'], []
    for number in range(8):
        picture = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f'{number}.png')
        rows.append(
            {
                'image': f'{number}.png',
                'image_id': number,
                'caption': f'a photo of a {names[number // 2]} in {number}',
            }
        )
    (folder / 'train.json').write_text(json.dumps(rows))
    (folder / 'test.json').write_text(
        json.dumps(
            [
                {**row, 'caption': [row['caption'], f'{row["image_id"]} is the {row["caption"]}']}
                for row in rows
            ]
        )
    )
    train.main(
        [
            str(PRETRAIN),
            '--seed',
            '3',
            '--options',
            *pretrain_options(store, tokenizer, folder / 'run'),
        ]
    )
    return folder


def retrieval_options(world, out):
    data = 'datasets.freeatm_retrieval'
    return [
        *model_options(world / 'tokenizer'),
        f'run.output_dir={out}',
        'run.num_workers=0',
        'run.batch_size_train=4',
        'run.device=cpu',
        f'{data}.build_info.images={world}',
        f'{data}.build_info.annotations.test={world}/test.json',
        *(f'{data}.vis_processor.{kind}.image_size=16' for kind in ('train', 'eval')),
    ]


def figures(text):
    """Split -> figure -> value, of what the tool printed."""
    line = next(line for line in text.splitlines() if line.startswith('test: '))
    words = line.removeprefix('test: ').split()
    return dict(zip(words[::2], map(float, words[1::2])))


def test_zero_shot_and_fine_tuned(world, tmp_path, capsys):
    """The whole path; figures against ranks counted by hand from the scores."""
    checkpoint = world / 'run' / 'checkpoint_1.pth'
    options = retrieval_options(world, tmp_path / 'zeroshot')
    out = tmp_path / 'results.json'
    # The store doesn't say what made its images; the rest the checkpoint knows.
    said = ['--regime', 'synthetic', '--generator', 'tiny']
    evaluate.main(
        [
            str(ZEROSHOT),
            '--out',
            str(out),
            *said,
            '--options',
            *options,
            f'model.pretrained={checkpoint}',
        ]
    )
    zero_shot = figures(capsys.readouterr().out)
    assert list(zero_shot) == TITLES
    finetune = [
        *retrieval_options(world, tmp_path / 'finetune'),
        'run.max_epoch=2',
        f'datasets.freeatm_retrieval.build_info.annotations.train={world}/train.json',
        f'datasets.freeatm_retrieval.build_info.annotations.val={world}/test.json',
        f'model.pretrained={checkpoint}',
    ]
    train.main([str(FINETUNE), '--options', *finetune])
    assert {path.name for path in (tmp_path / 'finetune').glob('*.pth')} == {
        'checkpoint_1.pth',
        'checkpoint_best.pth',
    }
    evaluate.main(
        [
            str(ZEROSHOT),
            '--out',
            str(out),
            '--what',
            'finetuned',
            *said,
            '--options',
            *options,
            'model.load_finetuned=True',
            f'model.finetuned={tmp_path / "finetune" / "checkpoint_best.pth"}',
        ]
    )
    fine_tuned = figures(capsys.readouterr().out)
    (row,) = read_results(out)['rows']
    assert (row['method'], row['masks'], row['seed']) == ('blip', True, 3)
    assert (row['epochs'], row['generator'], row['scale']) == (2, 'tiny', 'miniature')
    for what, found in (('zeroshot', zero_shot), ('finetuned', fine_tuned)):
        for title, value in found.items():
            assert row['metrics'][f'{what}_{title}'] == pytest.approx(value / 100, abs=1e-4)
    # The row finds its place in the paper's Table 3.
    (group,) = gather_rows([read_results(out)], 3).values()
    assert group.mean('finetuned_IR@1') == pytest.approx(fine_tuned['IR@1'] / 100, abs=1e-4)
    assert group.mean('zeroshot_TR@1') == pytest.approx(zero_shot['TR@1'] / 100, abs=1e-4)
    columns = [title for title in row['metrics'] if title in TABLES[3].metrics]
    assert sorted(columns) == sorted(TABLES[3].metrics)
    # Evaluating is repeatable, and does what the figures' names say.
    from freeatm_mm.lavis_ext import launch

    cfg = launch.load_config(ZEROSHOT, [*options, f'model.pretrained={checkpoint}'])
    runner = launch.build_runner(cfg)
    model, loader = runner.model.eval(), runner.dataloaders['test']
    with torch.no_grad():
        by_image, by_text = model.compute_sim_matrix(loader, cfg.run_cfg)
    for most in (1, 5):  # of eight pictures ten aren't ranked
        best = np.argsort(-by_image, 1)[:, :most]
        right = np.mean([bool({2 * image, 2 * image + 1} & set(best[image])) for image in range(8)])
        assert zero_shot[f'TR@{most}'] == pytest.approx(100 * right, abs=0.01)
        best = np.argsort(-by_text, 1)[:, :most]
        right = np.mean([text // 2 in best[text] for text in range(16)])
        assert zero_shot[f'IR@{most}'] == pytest.approx(100 * right, abs=0.01)


def test_pointing_is_told_layer_by_layer_and_kept(world, tmp_path, capsys):
    checkpoint, out = world / 'run' / 'checkpoint_1.pth', tmp_path / 'results.json'
    options = [*model_options(world / 'tokenizer'), f'model.pretrained={checkpoint}']
    said = ['--regime', 'synthetic', '--generator', 'tiny', '--out', str(out)]
    look.main([str(PRETRAIN), str(world / 'store'), *said, '--options', *options])
    told = capsys.readouterr().out.splitlines()
    assert told[0] == '17 nouns (without 1 too small for a patch)'
    (row,) = read_results(out)['rows']
    assert row['seed'] == 3 and row['masks'] is True
    for line, name in zip(told[1:], ['pointing_0', 'pointing_centre', 'pointing_random']):
        assert float(line.split()[-1]) == pytest.approx(100 * row['metrics'][name], abs=0.01)
    assert row['metrics']['pointing'] == row['metrics']['pointing_0']
    look.main([str(PRETRAIN), str(world / 'store'), *said, '--limit=3', '--options', *options])
    (row,) = read_results(out)['rows']
    assert row['options']['pointing'][:2] == ['store=store', '--limit=3']
    # Figures of another store stand beside them.
    shutil.copytree(world / 'store', tmp_path / 'other')
    more = [*said, '--what=pointing_other', '--options', *options]
    look.main([str(PRETRAIN), f'{tmp_path}/other/', *more])
    (row,) = read_results(out)['rows']
    assert row['options']['pointing_0'][:2] == ['store=store', '--limit=3']
    assert row['options']['pointing_other_centre'][0] == 'store=other'
    assert row['metrics']['pointing_other'] == row['metrics']['pointing_other_0']
    capsys.readouterr()
    data = 'datasets.freeatm_pretrain.vis_processor'
    with pytest.raises(SystemExit):
        look.main([str(PRETRAIN), 'S', '--options', *options, f'{data}.train.mean=[1,2]'])
    assert f'{data}.train.mean must be a list of three numbers' in capsys.readouterr().err
    look.main([str(PRETRAIN), str(world / 'store'), '--options', *options, f'{data}=null'])
    assert capsys.readouterr().out.splitlines() == told  # as where nothing is said of views


def test_rows_that_others_add_meanwhile_stay(tmp_path):
    from freeatm_mm.cli._blip_rows import BlipRow

    arguments = ['Y', 'S', '--out', str(tmp_path / 'x.json'), '--regime', 'real', '--masks', 'x']
    torch.save({'model': {}}, tmp_path / 'x.pth')  # which says nothing of itself
    both = [
        BlipRow(look.parse_args([*arguments, '--epochs=1', f'--seed={n}']), tmp_path / 'x.pth', {})
        for n in range(2)
    ]
    for row in both:
        row.keep({'pointing': 0.5})
    assert [row['seed'] for row in read_results(tmp_path / 'x.json')['rows']] == [0, 1]


def test_a_row_says_with_which_options_it_was_measured(tmp_path):
    from freeatm_mm.cli._blip_rows import BlipRow

    torch.save({'model': {}}, tmp_path / 'x.pth')
    out, data = tmp_path / 'x.json', 'datasets.freeatm_retrieval.build_info'

    def keep(seed, what, *options, more=()):
        said = ['--regime=real', '--masks=x', '--epochs=1', f'--seed={seed}', '--out', str(out)]
        words = [
            str(ZEROSHOT),
            *said,
            '--what',
            what,
            *(['--options', *options] if options else []),
        ]
        BlipRow(evaluate.parse_args(words), tmp_path / 'x.pth', {}).keep(
            {f'{what}_TR@1': 0.5, f'{what}_IR@1': 0.5}, *more
        )
        return read_results(out)['rows'][-1].get('options')

    # Where files lie, which checkpoint it is and how it is loaded changes no figure.
    alike = ['model.pretrained=x.pth', 'run.num_workers=0', f'{data}.images=elsewhere']
    alike += [f'{data}.annotations.test="else, where/words.json"', 'run.output_dir=x']
    assert keep(0, 'zeroshot', *alike) is None
    assert keep(1, 'zeroshot', 'run.k_test=4', 'model.max_txt_len=9', 'run.k_test=2', *alike) == {
        name: ['model.max_txt_len=9', 'run.k_test=2'] for name in ('zeroshot_TR@1', 'zeroshot_IR@1')
    }
    with pytest.raises(ValueError, match='differ in the options of zeroshot_TR@1, none and model'):
        gather_rows([read_results(out)], 3)
    # Figures of several commands stand in one row, each with its own options.
    told = keep(1, 'finetuned', f'{data}.annotations.test="my data #2/flickr.json"')
    assert told['finetuned_TR@1'] == [f'{data}.annotations.test=flickr.json']
    assert told['zeroshot_IR@1'] == ['model.max_txt_len=9', 'run.k_test=2']
    assert keep(1, 'finetuned', more=[['--limit=3']])['finetuned_TR@1'] == ['--limit=3']
    assert 'finetuned_TR@1' not in keep(1, 'finetuned')
    assert keep(1, 'zeroshot') is None and len(read_results(out)['rows']) == 2


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--masks', 'false'], 'its masks is True, not False'),
        (['--masks', 'PTP'], "its masks is True, not 'PTP'"),
        (['--masks', 'boxes'], "its masks is True, not 'boxes'"),
        (['--seed', '0'], 'its seed is 3, not 0: leave --seed out'),
        (['--epochs', '20'], 'its epochs is 2.0, not 20.0'),
        ([], 'does not say its regime and generator: say --regime --generator'),
        (
            ['--regime', 'synthetic'],
            'checkpoint_1.pth does not say its generator: say --generator',
        ),
    ],
)
def test_a_row_is_called_what_its_checkpoint_is(
    world, tmp_path, monkeypatch, capsys, flags, message
):
    """Refused before anything is evaluated, and nothing is written."""
    from freeatm_mm.lavis_ext import launch

    monkeypatch.setattr(launch, 'evaluate', lambda *_: pytest.fail('it was evaluated'))
    with pytest.raises(SystemExit) as ended:
        evaluate.main(
            [
                str(ZEROSHOT),
                '--out',
                str(tmp_path / 'results.json'),
                *flags,
                '--options',
                *retrieval_options(world, tmp_path),
                f'model.pretrained={world / "run" / "checkpoint_1.pth"}',
            ]
        )
    assert ended.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / 'results.json').exists()


def finetune_options(world, out, *more):
    data = 'datasets.freeatm_retrieval.build_info.annotations'
    return [
        '--work-dir',
        str(out),
        '--seed',
        '5',
        '--options',
        *retrieval_options(world, out),
        f'{data}.train={world}/train.json',
        f'{data}.val={world}/test.json',
        'run.test_splits=[]',
        f'model.pretrained={world / "run" / "checkpoint_1.pth"}',
        'run.max_epoch=2',
        *more,
    ]


def test_an_epoch_is_saved_before_it_is_judged(world, tmp_path, monkeypatch, capsys):
    """Evaluating that fails costs no epoch; resumed, it is made up for, and the end is the same."""
    from freeatm_mm.lavis_ext.models import FreeATMBlipRetrieval

    train.main([str(FINETUNE), *finetune_options(world, tmp_path / 'whole')])

    def fails(self, loader, task_cfg):
        raise OSError('the disk is gone')

    with monkeypatch.context() as patch:
        patch.setattr(FreeATMBlipRetrieval, 'compute_sim_matrix', fails)
        with pytest.raises(SystemExit):
            train.main([str(FINETUNE), *finetune_options(world, tmp_path / 'stopped')])
    assert capsys.readouterr().err.endswith('lavis_train.py: the disk is gone\n')
    assert [path.name for path in (tmp_path / 'stopped').glob('*.pth')] == ['checkpoint_0.pth']
    train.main([str(FINETUNE), '--resume', *finetune_options(world, tmp_path / 'stopped')])
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    for name in ('checkpoint_1.pth', 'checkpoint_best.pth'):
        first, second = (torch.load(run / name, weights_only=True) for run in (whole, stopped))
        assert all(
            torch.equal(value, second['model'][key]) for key, value in first['model'].items()
        )
        assert first.get('best') == second.get('best') and first['epoch'] == second['epoch']
        assert first['pretraining']['masks'] is True and first['pretraining']['epochs'] == 2
    assert (whole / 'validated.json').read_text() == (stopped / 'validated.json').read_text()


def test_going_on_elsewhere_needs_no_best_checkpoint_there(world, tmp_path, caplog):
    train.main([str(FINETUNE), *finetune_options(world, tmp_path / 'first', 'run.max_epoch=1')])
    checkpoint = tmp_path / 'first' / 'checkpoint_0.pth'
    train.main(
        [
            str(FINETUNE),
            *finetune_options(
                world,
                tmp_path / 'second',
                f'run.resume_ckpt_path={checkpoint}',
                'run.test_splits=[test]',
                'run.max_epoch=2',
            ),
        ]
    )
    assert (tmp_path / 'second' / 'checkpoint_best.pth').is_file()


@pytest.mark.parametrize(
    'more, message',
    [
        (['run.valid_splits=[vall]'], 'has no vall; did you mean val?'),
        (['run.test_splits=[tests]'], 'has no tests; did you mean test?'),
        (['run.k_test=null'], 'run lacks k_test'),
        (
            ['datasets.freeatm_retrieval.build_info.annotations.val=VAL'],
            "val.json[1]: there is no picture 'lost.png'",
        ),
        (
            [
                'datasets.freeatm_retrieval.build_info.annotations.test=VAL',
                'run.test_splits=[test]',
            ],
            "val.json[1]: there is no picture 'lost.png'",
        ),
        (
            ['datasets.freeatm_retrieval.vis_processor.eval.image_size=24'],
            'processor of the split val makes views of 24 x 24 pixels',
        ),
        (
            [
                'datasets.freeatm_pretrain.build_info.store=STORE',
                'datasets.freeatm_pretrain.vis_processor.train.image_size=16',
            ],
            'FreeATMBlipRetrieval is trained with image_id, and the data set '
            'FreeATMPretrainDataset gives none',
        ),
        (['run.batch_size_eval=0'], 'run.batch_size_eval must be an integer of at least 1'),
        # What LAVIS would do nothing for, without a word, or fail at after an epoch.
        (
            ['run.task=image_text_pretrain'],
            'nothing can evaluate the split',
        ),
        (['run.use_dist_eval_sampler=True'], 'run.use_dist_eval_sampler=True would show each of '),
        (['run.valid_splits=[train]'], 'the split train is one to train on, and ret'),
        (
            ['run.task=vqa'],
            'the task vqa does not fit the model freeatm_blip_retrieval: set run.ta',
        ),
    ],
)
def test_what_would_end_an_epoch_late_ends_it_before_the_first_step(
    world, tmp_path, monkeypatch, capsys, more, message
):
    from freeatm_mm.lavis_ext.runner import FreeATMRunner

    monkeypatch.setattr(FreeATMRunner, 'train_epoch', lambda *_: pytest.fail('it trains'))
    rows = json.loads((world / 'test.json').read_text())
    rows[1]['image'] = 'lost.png'
    (tmp_path / 'val.json').write_text(json.dumps(rows))
    places = {'VAL': f'{tmp_path}/val.json', 'STORE': f'{world}/store'}
    for name, place in places.items():
        more = [option.replace(name, place) for option in more]
    with pytest.raises(SystemExit) as ended:
        train.main([str(FINETUNE), *finetune_options(world, tmp_path / 'run', *more)])
    assert ended.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_a_batch_of_one_image_is_told(world, tmp_path, capsys):
    """Where LAVIS draws wrong pairs of none, with torch's own words."""
    rows = json.loads((world / 'train.json').read_text())
    (tmp_path / 'train.json').write_text(json.dumps([rows[0]] * 4))
    one = f'datasets.freeatm_retrieval.build_info.annotations.train={tmp_path}/train.json'
    for everywhere in (False, True):
        more = [one, f'model.negative_all_rank={everywhere}']
        with pytest.raises(SystemExit) as ended:
            train.main([str(FINETUNE), *finetune_options(world, tmp_path / 'run', *more)])
        message = capsys.readouterr().err.splitlines()[-1]
        assert ended.value.code == 2 and 'a batch of 4 pairs is of one image, and the m' in message


def test_retrieval_shows_each_process_all_images(world, tmp_path):
    """What LAVIS's default would divide among them, and its scores be wrong."""
    from freeatm_mm.lavis_ext import launch

    options = finetune_options(world, tmp_path / 'run', 'run.use_dist_eval_sampler=null')
    cfg = launch.load_config(FINETUNE, options[options.index('--options') + 1 :])
    assert launch.build_runner(cfg).use_dist_eval_sampler is False


def test_batches_and_sets_of_one_are_judged(world, tmp_path, capsys):
    rows = json.loads((world / 'test.json').read_text())
    (tmp_path / 'one.json').write_text(json.dumps([{**rows[0], 'caption': rows[0]['caption'][:1]}]))
    options = [
        *retrieval_options(world, tmp_path),
        'run.batch_size_eval=1',
        f'model.pretrained={world / "run" / "checkpoint_1.pth"}',
    ]
    one = 'datasets.freeatm_retrieval.build_info.annotations.test=' + str(tmp_path / 'one.json')
    evaluate.main([str(ZEROSHOT), '--options', *options])
    figures(capsys.readouterr().out)
    evaluate.main([str(ZEROSHOT), '--options', *options, one])
    assert set(figures(capsys.readouterr().out).values()) == {100.0}


def test_fine_tuning_resumes_exactly(world, tmp_path):
    """With validation: the best epoch is remembered, and the end is bit-equal."""

    def options(name):
        return finetune_options(world, tmp_path / name)

    train.main([str(FINETUNE), *options('whole')])
    train.main([str(FINETUNE), *options('stopped'), 'run.max_epoch=1'])
    train.main([str(FINETUNE), '--resume', *options('stopped')])
    for name in ('checkpoint_1.pth', 'checkpoint_best.pth'):
        whole, resumed = (
            torch.load(tmp_path / run / name, weights_only=True) for run in ('whole', 'stopped')
        )
        # the schedule's length differs in the first epoch's config alone
        assert all(
            torch.equal(value, resumed['model'][key]) for key, value in whole['model'].items()
        )
        assert whole.get('best') == resumed.get('best') and whole['epoch'] == resumed['epoch']


def test_benchmark_writes_its_rows(world, tmp_path, capsys):
    out = tmp_path / 'benchmark-lavis.json'
    load_tool('benchmarks/blip').main(
        [
            str(PRETRAIN),
            str(world / 'store'),
            str(out),
            '--batch-size',
            '4',
            '--repeats',
            '1',
            '--options',
            *pretrain_options(world / 'store', world / 'tokenizer', tmp_path / 'run'),
        ]
    )
    rows = {row['case']: row for row in read_results(out)['rows']}
    assert list(rows) == ['step-blip', 'step-blip-longer-text', 'loading-blip']
    assert rows['step-blip']['target'] == 1.02
    assert all(row['ratio'] == row['ours'] / row['baseline'] > 0 for row in rows.values())
    assert 'step-blip-longer-text' in capsys.readouterr().out


@pytest.mark.parametrize(
    'tool, arguments, message',
    [
        (train, ['no.yaml'], 'there is no config no.yaml'),
        (
            train,
            [str(PRETRAIN), '--options', 'datasets.freeatm_pretrain.build_info.store=nowhere'],
            'no store at nowhere',
        ),
        (train, [str(PRETRAIN), '--options', 'nonsense'], "'nonsense' must be KEY=VALUE"),
        (evaluate, [str(PRETRAIN)], "the task 'image_text_pretrain'; only retrieval is evaluated"),
        (evaluate, [str(ZEROSHOT)], 'no image folder'),
        (
            evaluate,
            [str(ZEROSHOT), '--out', 'x.json', '--options', 'run.test_splits=[val,test]'],
            '--out keeps the figures of one split, and run.test_splits names val, test',
        ),
        (look, [str(PRETRAIN), 'nowhere'], 'no checkpoint to look at: give --options model.pretr'),
        (
            look,
            [str(PRETRAIN), 'S', '--options', 'model.pretrained=x', 'model.load_pretrained=False'],
            'model.pretrained is not read with model.load_pretrained=False',
        ),
        (look, [str(ZEROSHOT), 'S', '--options', 'model.pretrained=x'], 'must be of a pretraining'),
        (evaluate, [str(ZEROSHOT), '--out', 'x.json'], 'no checkpoint to evaluate: set model.pre'),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(capsys, tool, arguments, message):
    with pytest.raises(SystemExit) as ended:
        tool.main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


WITHOUT_LAVIS = """
import runpy, sys
sys.modules['lavis'] = None
sys.argv = ['lavis_train.py', 'x.yaml']
import freeatm_mm, freeatm_mm.store, freeatm_mm.attention, freeatm_mm.miniature.export
runpy.run_path('tools/lavis_train.py', run_name='__main__')
"""


def test_without_lavis_one_sentence_says_so():
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', WITHOUT_LAVIS],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    pin = re.search('salesforce-lavis==.*', (ROOT / 'requirements/lavis.txt').read_text())[0]
    assert 'needs LAVIS' in line and f'pip install --no-deps {pin}' in line


def test_two_processes_evaluate_as_one(world, tmp_path, capsys):
    """They share the re-ranking; a set of odd size leaves them unequal parts."""
    (tmp_path / 'test.json').write_text(
        json.dumps(
            [
                {**row, 'caption': row['caption'][:1], 'mirrored': mirrored}
                for row, mirrored in zip(
                    json.loads((world / 'test.json').read_text()), (1, 0, 3, 2, 5, 4, 6)
                )
            ]
        )
    )
    options = [
        *retrieval_options(world, tmp_path / 'run'),
        f'model.pretrained={world / "run" / "checkpoint_1.pth"}',
        f'datasets.freeatm_retrieval.build_info.annotations.test={tmp_path}/test.json',
    ]
    evaluate.main([str(ZEROSHOT), '--options', *options])
    alone = figures(capsys.readouterr().out)
    first, second = in_two_processes(partial(evaluate_as_process, options), tmp_path)
    assert not second
    from freeatm_mm.lavis_ext.launch import RETRIEVAL_METRICS

    for name, title in RETRIEVAL_METRICS.items():
        assert first[name] == pytest.approx(alone[title], abs=0.01), title

"""An addition touches the places that `helpers.places` lists, and no other: each is made here."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.places import PLACES
from helpers.tools import ROOT, load_tool, planned

from freeatm_mm.methods import METHODS, Method
from freeatm_mm.miniature import layout
from freeatm_mm.prompts import captions, read_prompts
from freeatm_mm.results import METRICS, Metric, add_row, new_results, read_results, to_markdown
from freeatm_mm.results.paper_tables import gather_rows, row_markdown, table_markdown


@pytest.mark.parametrize(
    'kind, names',
    [
        ('method', {'name': 'simsiam'}),
        ('benchmark', {'framework': 'mmseg', 'name': 'cityscapes_fcn_r50_160e'}),
    ],
)
def test_the_places_are_there(kind, names):
    for path in PLACES[kind]:
        for key, value in names.items():
            path = path.replace(f'<{key}>', value)
        assert (ROOT / path).is_file() or 'miniature' in path, path
    for places in PLACES.values():
        assert all((ROOT / path).is_file() for path in places if '<' not in path)


# --- a method -------------------------------------------------------------------------------------

MODEL = """
from freeatm_mm.models import FreeATMMoCo
from mmpretrain.registry import MODELS


@MODELS.register_module(force=True)
class FreeATMTwin(FreeATMMoCo):
    pass
"""
CONFIG = """
_base_ = './mocov2_freeatm.py'
custom_imports = dict(imports=['twin_model'], allow_failed_imports=False)
model = dict(type='FreeATMTwin')
param_scheduler = [
    dict(type='LinearLR', by_epoch=True, begin=0, end=1),
    dict(type='ConstantLR', factor=1.0, by_epoch=True),
    dict(type='CosineAnnealingLR', T_max=39, by_epoch=True, begin=1, end=40),
]
"""


@pytest.fixture
def twin(tmp_path, monkeypatch):
    """A new method: its model, its config in the miniature, its entry."""
    configs = tmp_path / 'configs/miniature'
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    (configs / 'twin_freeatm.py').write_text(CONFIG)
    (tmp_path / 'twin_model.py').write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(layout, 'CONFIGS', configs)
    monkeypatch.setitem(METHODS, 'twin', Method('Twin', 'Twin', 'resnet'))


def test_a_method(twin, tmp_path, capsys, monkeypatch):
    pytest.importorskip('mmpretrain')
    from helpers.tiny_runs import run
    from helpers.tiny_stores import make_store
    from mmengine.config import Config, DictAction

    from freeatm_mm.checkpoints import read_state
    from freeatm_mm.origins import origin_of

    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.chdir(ROOT)
    tables = planned(load_tool('miniature/tables'), capsys, '--methods', 'twin', '--seeds', '1')
    judged = [command for command in tables if command[0] == 'tools/downstream.py']
    assert {command[command.index('--suite') + 1] for command in judged} == {'mini-resnet'}
    assert sum('twin' in command for command in judged) == 5
    main = planned(
        load_tool('miniature/run'),
        capsys,
        *('--methods', 'twin', '--out', str(tmp_path / 'out')),
        *('--arms', 'freeatm', 'normalized', 'ceiling_0'),
    )
    trained = [command for command in main if command[0] == 'tools/train.py']
    assert len(trained) == 2  # nothing of a MAE's
    assert trained[1][-1] == 'train_dataloader.dataset.pipeline.2.mask_values=normalized'
    # What is planned trains, and what comes out says what it is.
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    options = trained[0][trained[0].index('--cfg-options') :]
    changes = parser.parse_args(options).cfg_options
    assert changes['param_scheduler.2.T_max'] == 23 and changes['param_scheduler.2.end'] == 24
    cfg = Config.fromfile(trained[0][1])
    cfg.merge_from_dict(changes)
    store = make_store(tmp_path / 'store', count=8)
    (key,) = {'store', 'data_root'} & set(cfg.train_dataloader.dataset)
    cfg.train_dataloader.dataset[key] = str(store)
    cfg.merge_from_dict(
        {
            'work_dir': str(tmp_path / 'out'),
            'train_dataloader.batch_size': 4,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'train_cfg.max_epochs': 1,
            'log_level': 'WARNING',
        }
    )
    run(cfg, 'places-twin')
    origin = origin_of(read_state(tmp_path / 'out/epoch_1.pth'))
    assert (origin.method, origin.masks, origin.epochs) == ('twin', True, 1)
    results = new_results('x', 'python x')
    for masks in (False, True):
        row = {'method': 'twin', 'regime': 'real', 'masks': masks, 'seed': 0, 'epochs': 1}
        add_row(results, {**row, 'generator': '', 'metrics': {'linear_top1': 0.5 + masks / 4}})
    assert '| Twin + Free-ATM (real) | 1 | 75.0 |' in table_markdown(
        gather_rows([results], 1), 1, whole=False
    )
    assert '| Twin + Free-ATM | 1 | 1 |' in to_markdown(results)


# --- a benchmark, with a data set and a metric of its own -----------------------------------------


def test_a_benchmark(tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmpretrain')
    pytest.importorskip('pycocotools')
    from helpers.tiny_downstream import make_tiny_world

    from freeatm_mm.downstream import runs, tiny_datasets

    config = tmp_path / 'kinds.py'
    base = os.path.relpath(ROOT / 'configs/miniature/downstream/linear_resnet.py', tmp_path)
    config.write_text(
        f"_base_ = '{base}'\n"
        'train_cfg = dict(max_epochs=1)\n'
        'train_dataloader = dict(num_workers=0, persistent_workers=False)\n'
        'val_dataloader = dict(num_workers=0, persistent_workers=False)\n'
        'test_dataloader = val_dataloader\n'
    )
    monkeypatch.setitem(
        runs.BENCHMARKS,
        'kinds',
        runs.Benchmark(
            os.path.relpath(config, ROOT / 'configs'),
            {'accuracy/top1': ('kinds_top1', 0.01)},
            21,
            'sorts',
            'kinds',
        ),
    )
    monkeypatch.setitem(
        tiny_datasets.LAYOUTS,
        'kinds',
        tiny_datasets.Layout('Kinds-v2', lambda out, count, *_: make_tiny_world(out, count)),
    )
    monkeypatch.setitem(METRICS, 'kinds_top1', Metric('Kinds (acc.)'))
    load_tool('convert/tiny_datasets').main(
        [str(tmp_path / 'data'), '--layouts', 'kinds', '--images', '2']
    )

    real_run = subprocess.run

    def here(command, *args, **kwargs):
        """The tools that it would start, in this process."""
        if not str(command[1]).startswith('tools/'):
            return real_run(command, *args, **kwargs)
        name = Path(command[1]).with_suffix('').relative_to('tools').as_posix()
        return subprocess.CompletedProcess(command, load_tool(name).main(command[2:]) or 0)

    monkeypatch.setattr(runs.subprocess, 'run', here)
    monkeypatch.chdir(ROOT)
    words = ['random', '--suite', 'sorts', '--data', tmp_path / 'data', '--out', tmp_path / 'out']
    load_tool('downstream').main([str(word) for word in words])
    (row,) = read_results(tmp_path / 'out/row.json')['rows']
    assert set(row['metrics']) == {'kinds_top1'} and 0 <= row['metrics']['kinds_top1'] <= 1
    assert row_markdown(row).startswith('| Pretraining | Kinds (acc.) |')
    assert (tmp_path / 'out/row.md').read_text() == row_markdown(row)


# --- a caption source -----------------------------------------------------------------------------


def test_a_caption_source(tmp_path, monkeypatch, capsys):
    def read_pairs(path, name=None):
        for number, (_, text) in enumerate(json.loads(path.read_text())['pairs']):
            yield captions.Caption(f'{name or "pairs"}-{number}', text)

    monkeypatch.setitem(
        captions.READERS,
        'pairs',
        captions.CaptionSource(
            'captions of Pairs', '`pairs.json`, 100 % of it', '`pairs-<number>`', read_pairs
        ),
    )
    path = tmp_path / 'pairs.json'
    path.write_text(
        json.dumps({'pairs': [['a.jpg', 'A dog with a ball.'], ['b.jpg', 'A red kite']]})
    )
    tool = load_tool('make_prompts')
    with pytest.raises(SystemExit):
        tool.main(['pairs', '--help'])
    shown = capsys.readouterr().out
    assert 'captions of Pairs' in shown and 'pairs.json, 100 % of it' in shown
    assert not tool.main(['pairs', str(path), str(tmp_path / 'out.jsonl'), '--quiet'])
    first, second = read_prompts(tmp_path / 'out.jsonl')
    assert (first.id, first.source, [noun.text for noun in first.nouns]) == (
        'pairs-0',
        'pairs',
        ['dog', 'ball'],
    )


def test_the_docs_have_the_rows_of_the_caption_sources():
    text = (ROOT / 'docs/prompts.md').read_text()
    rows = re.findall(r'^\| `(\S+)` \| (.*) \| (.*) \|$', text, re.M)
    assert [row for row in rows if row[0] in captions.READERS] == [
        (name, source.file, source.ids) for name, source in captions.READERS.items()
    ]


# --- an arm ---------------------------------------------------------------------------------------


def test_an_arm(capsys, monkeypatch):
    from freeatm_mm.miniature.arms import ARMS, Arm

    monkeypatch.setitem(
        ARMS, 'wide', Arm('wide', ('{packing}.min_visible=0.2',), 'masks cut less often')
    )
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.chdir(ROOT)
    commands = planned(load_tool('miniature/run'), capsys, '--methods', 'mae', '--arms', 'wide')
    (trained,) = (command for command in commands if command[0] == 'tools/train.py')
    assert trained[-1] == 'train_dataloader.dataset.pipeline.3.min_visible=0.2'
    judged = commands[-2]
    assert judged[judged.index('--masks') + 1] == 'wide'

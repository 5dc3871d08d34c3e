"""The store's tools: what they print, and their exit codes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from helpers.store_samples import folder_bytes, make_sample, varied_sample
from helpers.tools import ROOT, run_tool

from freeatm_mm.prompts import Noun
from freeatm_mm.store import Store, write_store
from freeatm_mm.store.layout import TOTALS, config_digest, dump_manifest


@pytest.fixture
def path(tmp_path):
    write_store(tmp_path / 'store', map(varied_sample, range(7)), 3, {'num_samples': 7})
    return tmp_path / 'store'


def test_a_sound_store_is_said_to_be(path, capsys):
    assert run_tool('store/verify', path) == 0
    assert capsys.readouterr().out == 'sound\n'


def test_problems_are_named_counted_and_repaired_as_far_as_can_be(path, capsys):
    whole = folder_bytes(path)
    content = bytearray(whole['shard-000001.tar'])
    content[700] ^= 1
    (path / 'shard-000001.tar').write_bytes(content)
    (path / 'shard-000002.index.npy').unlink()
    assert run_tool('store/verify', path, '--no-decode') == 1
    out = capsys.readouterr().out
    assert "shard-000001.tar: sample '000003' is corrupt" in out
    assert f'missing: {path}/shard-000002.index.npy' in out
    assert '3 problems: 2 changed, 1 missing' in out
    assert run_tool('store/verify', path, '--repair', '--limit', '1') == 1
    out = capsys.readouterr().out
    assert 'restored byte for byte: shard-000002' in out
    assert 'NOT repaired: shard-000001' in out and 'and 1 more' in out
    (path / 'shard-000001.tar').write_bytes(whole['shard-000001.tar'])
    assert run_tool('store/verify', path) == 0


def test_what_is_no_store_is_a_problem_or_an_error(tmp_path, path, capsys):
    assert run_tool('store/verify', tmp_path / 'nowhere') == 1
    assert 'no such folder' in capsys.readouterr().out
    assert run_tool('store/verify', tmp_path / 'nowhere', '--repair') == 2
    assert capsys.readouterr().err.startswith('verify.py: there is no store')
    assert run_tool('store/verify', path, '--prompts', 'nowhere.jsonl') == 2
    assert "doesn't say from which prompts" in capsys.readouterr().err
    assert run_tool('store/verify', path, '--pipeline', 'x') == 2


def test_stores_are_split_filtered_and_merged(path, tmp_path, capsys):
    assert run_tool('store/edit', 'split', path, f'{tmp_path}/a=0.5', f'{tmp_path}/b=0.5') == 0
    assert run_tool('store/edit', 'merge', tmp_path / 'ab', tmp_path / 'a', tmp_path / 'b') == 0
    assert '7 samples of 2 stores' in capsys.readouterr().out
    assert sorted(sample.key for sample in Store(tmp_path / 'ab')) == [
        f'{number:06d}' for number in range(7)
    ]
    assert (
        run_tool(
            'store/edit',
            'filter',
            path,
            tmp_path / 'c',
            '--where',
            'nouns.#>=2',
            '--where',
            'meta.seed>1',
            '--samples-per-shard',
            '1',
        )
        == 0
    )
    assert [int(sample.key) for sample in Store(tmp_path / 'c')] == [2, 5]


@pytest.mark.parametrize(
    'words, message',
    [
        (['filter', '{path}', '{path}-x', '--where', 'nonsense'], 'is no condition'),
        (['split', '{path}', '{path}-x=0.5', '{path}-y=0.6'], 'add up to 1'),
        (['merge', '{path}-x', '{path}', '{path}'], 'both have a sample'),
        (['merge', '{path}-x', '{path}-nowhere'], 'no such folder'),
    ],
)
def test_what_cannot_be_done_is_one_sentence(path, capsys, words, message):
    assert run_tool('store/edit', *(word.format(path=path) for word in words)) == 2
    err = capsys.readouterr().err
    assert err.startswith('edit.py: ') and message in err and err.count('\n') == 1


@pytest.mark.parametrize(
    'kind, file',
    [('coco', 'coco.json'), ('mmseg', 'classes.txt'), ('folders', 'bird'), ('parquet', 'data')],
)
def test_each_format_is_exported(path, tmp_path, capsys, kind, file):
    if kind == 'parquet':
        pytest.importorskip('pyarrow')
    assert run_tool('store/export', kind, path, tmp_path / 'out') == 0
    assert (tmp_path / 'out' / file).exists()
    written = 6 if kind == 'folders' else 7  # one has no noun
    assert f'{written} images' in capsys.readouterr().out
    assert run_tool('store/export', kind, path, tmp_path / 'out') == 2
    assert 'is there already' in capsys.readouterr().err


@pytest.mark.parametrize('words', [['coco', '--crop'], ['parquet', '--threshold', '0.5']])
def test_options_of_other_formats_are_refused(path, words):
    assert run_tool('store/export', words[0], path, 'out', *words[1:]) == 2


#: Exports every store in a folder by the format in its name, and checks it.
EXPORT_ALL = """
import sys
from pathlib import Path
from helpers.tools import run_tool
for store in sorted(Path(sys.argv[1]).iterdir()):
    kind = store.name.split('-')[1]
    assert run_tool('store/export', kind, store, f'{sys.argv[2]}/{kind}') == 0, kind
    assert run_tool('store/verify', store) == 0, kind
"""


def test_exports_do_not_depend_on_the_locale(tmp_path):
    """Captions, categories and the store's name have characters that the locale lacks."""

    def samples(kind):
        for number, word in enumerate(('bird', 'vögel', '狗')):
            caption = f'a {word}'
            yield replace(
                make_sample(number, 1),
                caption=caption,
                nouns=(Noun(word, 2, len(caption), word if kind != 'folders' else 'bird'),),
            )

    stores, out = tmp_path / 'stores', tmp_path / 'out'
    for kind in ('coco', 'mmseg', 'folders', 'parquet'):
        write_store(stores / f'störe-{kind}', samples(kind), 2, {'name': '狗'})
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(('LC_', 'LANG'))
    } | {
        'LC_ALL': 'C',
        'PYTHONUTF8': '0',
        'PYTHONCOERCECLOCALE': '0',
        'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
    }
    result = subprocess.run(
        [sys.executable, '-c', EXPORT_ALL, stores, out], env=environment, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    content = json.loads((out / 'coco/coco.json').read_text('utf-8'))
    assert [row['name'] for row in content['categories']] == ['bird', 'vögel', '狗']
    classes = (out / 'mmseg/classes.txt').read_text('utf-8')
    assert classes.split()[1:] == ['bird', 'vögel', '狗']
    assert (out / 'folders/bird').is_dir() and (out / 'parquet/data').is_dir()


def test_categories_that_the_locale_cannot_name_are_one_sentence(tmp_path):
    write_store(
        tmp_path / 'store',
        [replace(make_sample(0, 1), caption='a 狗', nouns=(Noun('狗', 2, 3, '狗'),))],
    )
    environment = os.environ | {
        'LC_ALL': 'C',
        'PYTHONUTF8': '0',
        'PYTHONCOERCECLOCALE': '0',
        'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
    }
    result = subprocess.run(
        [
            sys.executable,
            ROOT / 'tools/store/export.py',
            'folders',
            tmp_path / 'store',
            tmp_path / 'out',
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and not (tmp_path / 'out').exists()
    assert "can't be the name of a folder here" in result.stderr and result.stderr.count('\n') == 1


def test_a_finished_store_needs_no_writing(path, tmp_path, monkeypatch, capsys):
    """As on a read-only disk: opened, read, verified, found finished, exported elsewhere."""
    real = os.open

    def refuse(file, flags, *rest, **options):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(file).startswith(str(path)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
        return real(file, flags, *rest, **options)

    def refuse_change(*rest, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(rest[0]))

    monkeypatch.setattr(os, 'open', refuse)
    assert [sample.key for sample in Store(path)] == [f'{number:06d}' for number in range(7)]
    for name in ('replace', 'unlink', 'rename'):
        monkeypatch.setattr(os, name, refuse_change)
    assert run_tool('store/verify', path) == 0 and run_tool('store/verify', path, '--repair') == 0
    assert write_store(path, map(varied_sample, range(7)), 3, {'num_samples': 7}) == 7
    monkeypatch.undo()
    assert 'nothing to repair' in capsys.readouterr().out


def test_a_store_that_cannot_be_written_is_one_sentence(path, monkeypatch, capsys):
    (path / 'shard-000001.index.npy').unlink()

    def refuse(file, flags, *rest, **options):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
        return real(file, flags, *rest, **options)

    real = os.open
    monkeypatch.setattr(os, 'open', refuse)
    assert run_tool('store/verify', path, '--repair') == 2
    err = capsys.readouterr().err
    assert 'its disk is read-only' in err and err.count('\n') == 1


def test_coco_without_pycocotools_is_one_sentence_that_names_the_extra(
    path, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, 'pycocotools', None)
    assert run_tool('store/export', 'coco', path, tmp_path / 'out') == 2
    assert capsys.readouterr().err == (
        "export.py: COCO needs pycocotools: in a clone of freeatm_mm, pip install '.[export]'\n"
    )
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('kind', ['coco', 'mmseg', 'folders'])
def test_a_key_that_is_there_twice_is_not_written_over(tmp_path, capsys, kind):
    write_store(tmp_path / 'store', map(varied_sample, (1, 2, 1)), 2)
    assert run_tool('store/export', kind, tmp_path / 'store', tmp_path / 'out') == 2
    assert 'holds a key twice' in capsys.readouterr().err


def changed(path, change, name='store.json'):
    """Change a manifest and make its checksum fit."""
    manifest = json.loads((path / name).read_bytes())
    change(manifest)
    (path / name).write_bytes(dump_manifest(manifest))


def lose_last_shard(manifest):
    last = manifest['shards'].pop()
    for name in TOTALS:
        manifest[name] -= last[name]


def other_settings(manifest):
    manifest['config']['num_samples'] = 7.0
    manifest['config_sha256'] = config_digest(manifest['config'])


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda m: m['config'].update(num_samples=8),
            'the settings are not those that were written',
        ),
        (other_settings, 'was made with other settings than store.json says'),
        (lambda m: m.update(nouns=99), '99 nouns in all'),
        (lambda m: m.update(samples_per_shard=5), "don't hold 5 samples each"),
        (lose_last_shard, 'lists 6 samples, and its settings say 7'),
        (lambda m: m['shards'][1].update(notes={'batch_size': 2}), 'store.json of notes'),
        (lambda m: m['shards'][1].pop('notes'), 'store.json of notes'),
        (
            lambda m: (
                m['shards'][1].update(nouns=m['shards'][1]['nouns'] + 1),
                m.update(nouns=m['nouns'] + 1),
            ),
            'store.json of nouns',
        ),
        (lambda m: m['shards'][1].update(index_sha256='0' * 64), 'sha256 is not the recorded one'),
    ],
)
def test_what_was_changed_in_store_json_is_not_sound(path, capsys, change, message):
    changed(path, change)
    if change is lose_last_shard:
        for file in path.glob('shard-000002*'):
            file.unlink()
    assert run_tool('store/verify', path) == 1
    assert message in capsys.readouterr().out


def test_a_changed_total_is_repaired_from_the_shards_own_records(path, capsys):
    whole = folder_bytes(path)
    (path / 'store.json').write_bytes(whole['store.json'].replace(b'"samples": 7', b'"samples": 8'))
    assert run_tool('store/verify', path, '--no-decode') == 1
    run_tool('store/verify', path, '--repair')
    assert 'restored byte for byte: store.json' in capsys.readouterr().out
    assert (path / 'store.json').read_bytes() == whole['store.json']
    assert (path / 'store.json.broken').exists()


def test_a_sample_is_shown_in_a_line(path):
    store = Store(path)
    for thing in (store[1], store.read(1), store[4]):
        assert len(repr(thing)) < 250 and '\n' not in repr(thing)
    assert repr(store[1]) == (
        f"Sample('000001', {len(store[1].image_bytes)} bytes of jpg, "
        "'1: bird dress', nouns: 'bird, dress', masks: 2x8x6)"
    )

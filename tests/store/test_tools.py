"""The store's tools: what they print, and their exit codes."""
from __future__ import annotations

import pytest
from store_samples import folder_bytes, varied_sample
from store_tools import run

from freeatm_mm.store import Store, write_store


@pytest.fixture
def path(tmp_path):
    write_store(tmp_path / 'store', map(varied_sample, range(7)), 3, {'num_samples': 7})
    return tmp_path / 'store'


def test_a_sound_store_is_said_to_be(path, capsys):
    assert run('verify_store', path) == 0
    assert capsys.readouterr().out == 'sound\n'


def test_problems_are_named_counted_and_repaired_as_far_as_can_be(path, capsys):
    whole = folder_bytes(path)
    content = bytearray(whole['shard-000001.tar'])
    content[700] ^= 1
    (path / 'shard-000001.tar').write_bytes(content)
    (path / 'shard-000002.index.npy').unlink()
    assert run('verify_store', path, '--no-decode') == 1
    out = capsys.readouterr().out
    assert "shard-000001.tar: sample '000003' is corrupt" in out
    assert f'missing: {path}/shard-000002.index.npy' in out
    assert '3 problems: 2 changed, 1 missing' in out
    assert run('verify_store', path, '--repair', '--limit', '1') == 1
    out = capsys.readouterr().out
    assert 'restored byte for byte: shard-000002' in out
    assert 'NOT repaired: shard-000001' in out and 'and 1 more' in out
    (path / 'shard-000001.tar').write_bytes(whole['shard-000001.tar'])
    assert run('verify_store', path) == 0


def test_what_is_no_store_is_a_problem_or_an_error(tmp_path, path, capsys):
    assert run('verify_store', tmp_path / 'nowhere') == 1
    assert 'no such folder' in capsys.readouterr().out
    assert run('verify_store', tmp_path / 'nowhere', '--repair') == 2
    assert capsys.readouterr().err.startswith('error: there is no store')
    assert run('verify_store', path, '--prompts', 'nowhere.jsonl') == 2
    assert "doesn't say from which prompts" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run('verify_store', path, '--pipeline', 'x')


def test_stores_are_split_filtered_and_merged(path, tmp_path, capsys):
    assert run('edit_store', 'split', path, f'{tmp_path}/a=0.5', f'{tmp_path}/b=0.5') == 0
    assert run('edit_store', 'merge', tmp_path / 'ab', tmp_path / 'a', tmp_path / 'b') == 0
    assert '7 samples of 2 stores' in capsys.readouterr().out
    assert sorted(sample.key for sample in Store(tmp_path / 'ab')) == [
        f'{number:06d}' for number in range(7)]
    assert run('edit_store', 'filter', path, tmp_path / 'c', '--where', 'nouns.#>=2', '--where',
               'meta.seed>1', '--samples-per-shard', '1') == 0
    assert [int(sample.key) for sample in Store(tmp_path / 'c')] == [2, 5]


@pytest.mark.parametrize('words, message', [
    (['filter', '{path}', '{path}-x', '--where', 'nonsense'], 'is no condition'),
    (['split', '{path}', '{path}-x=0.5', '{path}-y=0.6'], 'add up to 1'),
    (['merge', '{path}-x', '{path}', '{path}'], 'both have a sample'),
    (['merge', '{path}-x', '{path}-nowhere'], 'no such folder'),
])
def test_what_cannot_be_done_is_one_sentence(path, capsys, words, message):
    assert run('edit_store', *(word.format(path=path) for word in words)) == 2
    err = capsys.readouterr().err
    assert err.startswith('error: ') and message in err and err.count('\n') == 1


@pytest.mark.parametrize('kind, file', [
    ('coco', 'coco.json'), ('mmseg', 'classes.txt'), ('folders', 'bird'), ('parquet', 'data')])
def test_each_format_is_exported(path, tmp_path, capsys, kind, file):
    if kind == 'parquet':
        pytest.importorskip('pyarrow')
    assert run('export_store', kind, path, tmp_path / 'out') == 0
    assert (tmp_path / 'out' / file).exists()
    assert '7 images' in capsys.readouterr().out
    assert run('export_store', kind, path, tmp_path / 'out') == 2
    assert 'is there already' in capsys.readouterr().err


@pytest.mark.parametrize('words', [['coco', '--crop'], ['parquet', '--threshold', '0.5']])
def test_options_of_other_formats_are_refused(path, words):
    with pytest.raises(SystemExit):
        run('export_store', words[0], path, 'out', *words[1:])

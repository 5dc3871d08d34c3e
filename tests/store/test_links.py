"""Nothing is written through a link or into what is no file, whoever put it there."""

from __future__ import annotations

import os
import re

import pytest
from helpers.store_samples import folder_bytes, varied_sample
from helpers.tools import run_tool

from freeatm_mm.store import StoreError, StoreWriter, repair_store, verify_store, write_store
from freeatm_mm.store.locking import locked_write

TEMPORARIES = ('shard-000001.tar.tmp', 'shard-000001.index.npy.tmp', 'shard-000001.json.tmp')


@pytest.fixture
def path(tmp_path):
    """A store whose second shard has no index and no JSON: both are to be written again."""
    write_store(tmp_path / 'store', map(varied_sample, range(7)), 3, {'num_samples': 7})
    return tmp_path / 'store'


@pytest.fixture
def outside(tmp_path):
    file = tmp_path / 'outside'
    file.write_bytes(b'precious')
    return file


def lose(path, *endings):
    for ending in endings:
        (path / f'shard-000001{ending}').unlink()


def write_again(path):
    """Lose the second shard and write the store once more."""
    lose(path, '.tar', '.index.npy', '.json')
    write_store(path, map(varied_sample, range(7)), 3, {'num_samples': 7})


@pytest.mark.parametrize('name', TEMPORARIES)
def test_a_writer_refuses_a_symbolic_link_as_its_temporary_file(path, outside, name):
    (path / name).symlink_to(outside)
    with pytest.raises(StoreError, match=f'{name} is a symbolic link, which no writer makes'):
        write_again(path)
    assert outside.read_bytes() == b'precious'
    (path / name).unlink()
    write_again_is_sound(path)


def write_again_is_sound(path):
    write_store(path, map(varied_sample, range(7)), 3, {'num_samples': 7})
    assert list(verify_store(path)) == []


@pytest.mark.parametrize('target', ['file', 'nothing', 'loop', 'folder'])
def test_no_kind_of_symbolic_link_is_followed(path, outside, tmp_path, target):
    link = path / 'shard-000001.tar.tmp'
    link.symlink_to(
        {'file': outside, 'nothing': tmp_path / 'nowhere', 'loop': link, 'folder': tmp_path}[target]
    )
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError, match='is a symbolic link'):
        write_again(path)
    assert sorted(tmp_path.iterdir()) == before and outside.read_bytes() == b'precious'


@pytest.mark.parametrize('name', TEMPORARIES)
def test_a_hard_link_is_let_go_and_its_file_left_as_it_is(path, outside, name):
    """A copy of a folder by links (cp -al) makes one of what a killed process left."""
    whole = folder_bytes(path)
    os.link(outside, path / name)
    write_again(path)
    assert outside.read_bytes() == b'precious' and outside.stat().st_nlink == 1
    assert folder_bytes(path) == whole


@pytest.mark.parametrize(
    'make, message',
    [(os.mkfifo, 'is no plain file'), (os.mkdir, 'is a folder')],
    ids=['pipe', 'folder'],
)
@pytest.mark.parametrize('name', TEMPORARIES)
def test_a_pipe_or_folder_as_a_temporary_file_is_refused_and_not_waited_for(
    path, make, message, name
):
    make(path / name)
    with pytest.raises(StoreError, match=f'{re.escape(name)} {message}'):
        write_again(path)


@pytest.mark.parametrize('name', TEMPORARIES[1:])
def test_the_repair_tool_refuses_a_link_in_one_sentence_and_writes_nothing_elsewhere(
    path, outside, capsys, name
):
    lose(path, '.index.npy', '.json')
    (path / name).symlink_to(outside)
    assert run_tool('store/verify', path, '--repair') == 1
    (said,) = (line for line in capsys.readouterr().out.splitlines() if 'NOT repaired' in line)
    assert name in said and 'is a symbolic link' in said
    assert outside.read_bytes() == b'precious'
    (path / name).unlink()
    assert run_tool('store/verify', path, '--repair') == 0
    assert 'restored byte for byte: shard-000001' in capsys.readouterr().out


def test_store_json_is_not_written_through_a_link(path, outside):
    (path / 'store.json').unlink()
    (path / 'store.json.tmp').symlink_to(outside)
    with pytest.raises(StoreError, match='store.json.tmp is a symbolic link'):
        StoreWriter(path, 3, {'num_samples': 7})
    assert outside.read_bytes() == b'precious'


@pytest.mark.parametrize('link', [os.symlink, os.link], ids=['symbolic', 'hard'])
def test_final_names_that_are_links_are_replaced_and_not_written_through(path, outside, link):
    whole = folder_bytes(path)
    for ending in ('.tar', '.index.npy', '.json'):
        (path / f'shard-000001{ending}').unlink()
        link(outside, path / f'shard-000001{ending}')
    write_store(path, map(varied_sample, range(7)), 3, {'num_samples': 7})
    assert outside.read_bytes() == b'precious' and folder_bytes(path) == whole
    assert not (path / 'shard-000001.tar').is_symlink()


def test_a_broken_store_json_that_is_a_link_is_moved_and_not_written_through(path, outside):
    class Source:
        config, samples_per_shard, num_samples = {'num_samples': 7}, 3, 7

        def keys(self, shard):
            return [f'{number:06d}' for number in range(3 * shard, min(3 * shard + 3, 7))]

    for _ in range(2):  # the second time there is one moved away already, which is kept
        (path / 'store.json').unlink()
        (path / 'store.json').symlink_to(outside)
        assert repair_store(path, Source()).restored == ['store.json']
    assert outside.read_bytes() == b'precious' and not (path / 'store.json').is_symlink()
    assert sorted(file.name for file in path.glob('store.json.*')) == [
        'store.json.broken',
        'store.json.broken-2',
    ]


def test_a_folder_in_the_place_of_a_shard_is_one_sentence(path):
    lose(path, '.tar', '.json')
    (path / 'shard-000001.tar').mkdir()
    with pytest.raises(StoreError, match='shard-000001.tar is a folder'):
        write_store(path, map(varied_sample, range(7)), 3, {'num_samples': 7})


def test_a_temporary_file_that_another_process_took_is_not_renamed(tmp_path):
    """Where locks don't reach the other machine, its half file would get the final name."""
    with pytest.raises(StoreError, match='another process is writing file'):
        with locked_write(tmp_path / 'file') as file:
            file.write(b'ours')
            (tmp_path / 'file.tmp').unlink()
            (tmp_path / 'file.tmp').write_bytes(b'theirs, half')
    assert (tmp_path / 'file.tmp').read_bytes() == b'theirs, half'
    assert not (tmp_path / 'file').exists()


@pytest.mark.parametrize(
    'make',
    [
        lambda place, outside: place.symlink_to(outside),
        lambda place, outside: place.symlink_to(outside.parent),
        lambda place, outside: os.mkfifo(place),
    ],
    ids=['link to a file', 'link to a folder', 'pipe'],
)
@pytest.mark.parametrize('kind', ['coco', 'mmseg', 'folders', 'parquet'])
def test_an_export_does_not_work_in_a_folder_elsewhere(path, outside, capsys, make, kind):
    before = sorted(outside.parent.rglob('*'))
    place = outside.parent / '.out.tmp'
    make(place, outside)
    assert run_tool('store/export', kind, path, outside.parent / 'out') == 2
    err = capsys.readouterr().err
    assert '.out.tmp' in err and 'stands in the way' in err and err.count('\n') == 1
    place.unlink()
    assert sorted(outside.parent.rglob('*')) == before and outside.read_bytes() == b'precious'


def test_an_edit_refuses_a_link_as_its_temporary_file(path, outside, capsys):
    out = outside.parent / 'out'
    out.mkdir()
    (out / 'shard-000000.tar.tmp').symlink_to(outside)
    assert run_tool('store/edit', 'merge', out, path) == 2
    assert 'is a symbolic link' in capsys.readouterr().err
    assert outside.read_bytes() == b'precious'

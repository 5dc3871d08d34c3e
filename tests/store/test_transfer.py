"""Stores pushed to addresses and pulled: equal bytes, resumed after any stop, never half."""

from __future__ import annotations

import os
import signal

import pytest
from helpers.servers import serve_s3
from helpers.store_samples import folder_bytes, varied_sample
from helpers.tools import exit_code

from freeatm_mm import addresses, cli
from freeatm_mm.addresses import RemoteFolder
from freeatm_mm.errors import InputError
from freeatm_mm.files import file_sha256
from freeatm_mm.store import (
    Store,
    StoreError,
    StoreWriter,
    pull_store,
    push_store,
    transfer,
    verify_store,
    write_store,
)

fsspec = pytest.importorskip('fsspec')


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(addresses, 'DELAYS', (0.0, 0.0))
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def path(tmp_path):
    """A store of 7 samples in shards of 2."""
    write_store(tmp_path / 'store', map(varied_sample, range(7)), 2, {'steps': 5})
    return tmp_path / 'store'


@pytest.fixture
def address(tmp_path):
    return f'memory://{tmp_path.name}/store'


def there(address):
    """Name and content of every file at an address in memory."""
    found = fsspec.filesystem('memory').find(address)
    return {name.rpartition('/')[2]: fsspec.filesystem('memory').cat_file(name) for name in found}


def test_a_store_goes_there_and_back_byte_for_byte(path, address, tmp_path):
    report = push_store(path, address)
    assert (report.copied, report.there, report.complete) == (13, 0, True)
    assert there(address) == folder_bytes(path)
    assert report.bytes == sum(map(len, folder_bytes(path).values()))
    again = push_store(path, address, jobs=1)
    assert (again.copied, again.there, again.bytes) == (0, 13, 0)
    report = pull_store(address, tmp_path / 'copy')
    assert (report.copied, report.there, report.complete) == (13, 0, True)
    assert folder_bytes(tmp_path / 'copy') == folder_bytes(path)
    assert pull_store(address, tmp_path / 'copy').there == 13


def test_the_manifest_comes_last_and_a_failure_leaves_no_store(path, address, monkeypatch):
    order, put = [], addresses._FileSystem.write

    def write(self, file, place):
        order.append(place.rpartition('/')[2])
        if fail and order[-1] == fail:
            raise OSError('no room')
        put(self, file, place)

    monkeypatch.setattr(addresses._FileSystem, 'write', write)
    for fail in ('shard-000000.tar', 'shard-000002.index.npy', 'shard-000003.json', 'store.json'):
        with pytest.raises(InputError, match=f'{fail} failed'):
            push_store(path, address, jobs=1)
        with pytest.raises(StoreError, match='has no store.json'):
            Store(address)
    order.clear()
    fail = None
    push_store(path, address, jobs=1)
    assert order == ['store.json']  # all that was missing
    assert [
        file for file in there(address) if there(address)[file] != folder_bytes(path)[file]
    ] == []


def test_other_bytes_on_the_way_are_noticed(path, address, monkeypatch):
    put = addresses._FileSystem.write

    def write(self, file, place):
        put(self, file, place)
        if place.endswith('shard-000001.tar'):
            self._fs.pipe_file(place, b'x' + self._fs.cat_file(place)[1:])

    monkeypatch.setattr(addresses._FileSystem, 'write', write)
    with pytest.raises(InputError, match='shard-000001.tar is not what was uploaded'):
        push_store(path, address)
    assert 'store.json' not in there(address)
    monkeypatch.undo()
    assert push_store(path, address).complete and there(address) == folder_bytes(path)


@pytest.mark.parametrize('name', ['shard-000001.tar', 'store.json'])
def test_a_store_that_is_replaced_while_it_is_pushed_is_noticed(
    path, address, tmp_path, monkeypatch, name
):
    write_store(tmp_path / 'other', map(varied_sample, range(1, 8)), 2, {'steps': 5})
    upload = RemoteFolder.upload_many

    def and_replace(self, files):
        upload(self, files)
        if any(file[1] == 'shard-000001.tar' for file in files):
            os.replace(tmp_path / 'other' / name, path / name)

    monkeypatch.setattr(RemoteFolder, 'upload_many', and_replace)
    with pytest.raises(StoreError, match=f'{name} was changed while the store was copied'):
        push_store(path, address, jobs=1)
    assert 'store.json' not in there(address)


def test_two_stores_pushed_to_one_address_at_once_are_noticed(path, address, tmp_path, monkeypatch):
    write_store(tmp_path / 'other', map(varied_sample, range(4)), 2, {'steps': 6})
    upload = RemoteFolder.upload_many

    def then_another(self, files):
        upload(self, files)
        monkeypatch.undo()
        push_store(tmp_path / 'other', address)

    monkeypatch.setattr(RemoteFolder, 'upload_many', then_another)
    with pytest.raises(StoreError, match='was given another store in the meantime'):
        push_store(path, address, jobs=1)
    assert push_store(path, address, replace=True).complete
    assert there(address) == folder_bytes(path)


def test_a_shard_of_another_store_is_not_pushed(path, address, tmp_path):
    write_store(tmp_path / 'other', map(varied_sample, range(7)), 2, {'steps': 6})
    os.replace(tmp_path / 'other' / 'shard-000001.json', path / 'shard-000001.json')
    with pytest.raises(StoreError, match='shard-000001.json says otherwise than store.json'):
        push_store(path, address)
    assert there(address) == {}


def test_only_folders_are_pushed(address):
    with pytest.raises(InputError, match='s3://a/b is an address.*freeatm pull it first'):
        push_store('s3://a/b', address)


def test_damage_on_this_disk_is_not_pushed(path, address):
    tar = path / 'shard-000001.tar'
    data = tar.read_bytes()
    tar.write_bytes(b'x' + data[1:])
    with pytest.raises(StoreError, match='shard-000001.tar is not what was written'):
        push_store(path, address)
    tar.unlink()
    with pytest.raises(StoreError, match='lacks files of shard-000001'):
        push_store(path, address)
    assert 'store.json' not in there(address)
    with pytest.raises(StoreError, match='is not a store'):
        push_store(path / 'none', address)


def test_another_store_is_replaced_only_if_asked(path, address, tmp_path):
    write_store(tmp_path / 'other', map(varied_sample, range(3)), 2, {'steps': 9})
    push_store(path, address)
    with pytest.raises(StoreError, match='holds another store: choose another'):
        push_store(tmp_path / 'other', address)
    assert there(address) == folder_bytes(path)
    push_store(tmp_path / 'other', address, replace=True)
    assert there(address) == folder_bytes(tmp_path / 'other')
    assert list(verify_store(address)) == []


def test_a_store_that_grows_is_pushed_as_far_as_it_is(tmp_path, address, capsys):
    writer = StoreWriter(tmp_path / 'store', 2, {'num_samples': 4})
    writer.write_shard(0, map(varied_sample, range(2)))
    assert exit_code(cli, ['push', tmp_path / 'store', address]) == 1
    assert 'the store is not finished' in capsys.readouterr().out
    assert sorted(there(address)) == [f'shard-000000.{end}' for end in ('index.npy', 'json', 'tar')]
    writer.write_shard(1, map(varied_sample, range(2, 4)))
    writer.finish(4)
    assert exit_code(cli, ['push', tmp_path / 'store', address]) == 0
    assert '4 files copied' in capsys.readouterr().out
    assert exit_code(cli, ['pull', address, tmp_path / 'copy']) == 0
    assert folder_bytes(tmp_path / 'copy') == folder_bytes(tmp_path / 'store')


def test_a_pull_that_fails_is_no_store_and_goes_on(path, address, tmp_path):
    push_store(path, address)
    memory = fsspec.filesystem('memory')
    place = f'{address}/shard-000002.tar'
    data = memory.cat_file(place)
    for damaged in (data[:-1], b'x' + data[1:]):
        memory.pipe_file(place, damaged)
        with pytest.raises(InputError, match='shard-000002.tar (ends at|is not the file)'):
            pull_store(address, tmp_path / 'copy', jobs=1)
        assert not (tmp_path / 'copy' / 'store.json').exists()
        assert not list((tmp_path / 'copy').glob('*.tmp'))
    memory.pipe_file(place, data)
    (tmp_path / 'copy' / 'shard-000003.tar.tmp').write_bytes(b'left by a process that was killed')
    report = pull_store(address, tmp_path / 'copy')
    assert (report.there, report.copied) == (6, 7)
    assert folder_bytes(tmp_path / 'copy') == folder_bytes(path)


@pytest.mark.parametrize('name', ['shard-000001.tar', 'shard-000002.index.npy'])
def test_a_pull_finds_damage_of_the_same_size_and_copies_that_file_again(
    path, address, tmp_path, name, monkeypatch
):
    push_store(path, address)
    copy, whole = tmp_path / 'copy', folder_bytes(path)
    assert pull_store(address, copy).copied == 13
    data = bytearray(whole[name])
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    report = pull_store(address, copy)
    assert (report.copied, report.there, report.bytes) == (1, 12, len(data))
    assert report.complete and folder_bytes(copy) == whole and not list(verify_store(copy))
    (copy / name).unlink()
    (copy / 'shard-000000.json').write_bytes(b'{')
    hashed = []
    monkeypatch.setattr(
        transfer, 'file_sha256', lambda file: hashed.append(file.name) or file_sha256(file)
    )
    assert pull_store(address, copy).copied == 2 and folder_bytes(copy) == whole
    # What was copied was proved on the way, and isn't read again.
    assert len(hashed) == 7 and name not in hashed


def test_a_pull_writes_into_no_other_store(path, address, tmp_path):
    push_store(path, address)
    writer = StoreWriter(tmp_path / 'other', 2, {'steps': 9})
    with pytest.raises(StoreError, match='holds another store'):
        pull_store(address, tmp_path / 'other')
    writer.write_shard(0, [varied_sample(0)])
    (tmp_path / 'other' / 'store.json').unlink()
    with pytest.raises(StoreError, match='holds shard-000000 of another store'):
        pull_store(address, tmp_path / 'other')
    with pytest.raises(StoreError, match='is a file'):
        pull_store(address, path / 'store.json')
    with pytest.raises(StoreError, match='is not a store'):
        pull_store(f'{address}/none', tmp_path / 'none')
    assert not (tmp_path / 'none').exists()
    with pytest.raises(InputError, match="can't be written to directly"):
        pull_store(address, 's3://bucket/copy')


def killed_push(path, address, before):
    """Push in a process that is killed before it writes so many files."""
    put, left = addresses._FileSystem.write, [before]

    def write(self, file, place):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        put(self, file, place)

    child = os.fork()
    if not child:
        addresses._FileSystem.write = write
        push_store(path, address, jobs=2)
        os._exit(0)
    return child


def test_s3_and_kills(path, tmp_path, monkeypatch):
    """Killed between two files, and at any moment; then pushed whole, pulled and compared."""
    address = 's3://bucket/stores/killed'
    with serve_s3(monkeypatch):
        folder = RemoteFolder(address)
        for before in (1, 6):
            assert os.waitpid(killed_push(path, address, before), 0)[1] == signal.SIGKILL
            with pytest.raises(StoreError, match='has no store.json'):
                Store(address)
        child = killed_push(path, address, 99)
        while len(folder.names()) < 13 and not os.waitpid(child, os.WNOHANG)[0]:
            if len(folder.names()) > 11:
                os.kill(child, signal.SIGKILL)
        report = push_store(path, address)
        assert report.complete and report.there >= 10
        assert folder.names() == {name: len(data) for name, data in folder_bytes(path).items()}
        assert folder.holds(path / 'store.json', 'store.json', file_sha256(path / 'store.json'))
        pull_store(address, tmp_path / 'copy')
        assert folder_bytes(tmp_path / 'copy') == folder_bytes(path)

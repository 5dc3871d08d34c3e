"""Stores at addresses: read by range, proved, kept in a cache, and what fails."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
from helpers.servers import serve_files, serve_s3
from helpers.store_samples import assert_same, make_sample, varied_sample
from helpers.tools import exit_code

from freeatm_mm import addresses, cli, origins
from freeatm_mm.addresses import RemoteFolder
from freeatm_mm.files import file_sha256
from freeatm_mm.store import (
    Store,
    StoreError,
    StoreWriter,
    read_manifest,
    reader,
    verify_store,
    write_store,
)
from freeatm_mm.store.edit import filter_store, merge_stores, parse_condition
from freeatm_mm.store.export import export_class_folders
from freeatm_mm.store.layout import dump_manifest
from freeatm_mm.store.remote import RemoteFiles


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(addresses, 'DELAYS', (0.0, 0.0))
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def path(tmp_path):
    """A store of 7 samples in shards of 3; number 4 has no nouns."""
    write_store(tmp_path / 'served' / 'store', map(varied_sample, range(7)), 3, {'steps': 5})
    return tmp_path / 'served' / 'store'


@pytest.fixture
def server(path):
    with serve_files(path.parent) as server:
        yield server


def asked(server, method='GET'):
    return [place.rpartition('/')[2] for found, place, _ in server.asked if found == method]


def test_samples_come_by_range_and_indexes_once(server):
    address = f'{server.address}/store/'
    server.etag = '"1"'
    store = Store(address)
    assert (len(store), store.config) == (7, {'steps': 5})
    assert store.path == address.rstrip('/') and repr(store) == f'Store({store.path!r}, 7 samples)'
    assert asked(server) == ['store.json']
    for number in (6, 0, 3, 5, 1, 4, 2, -1):
        assert_same(store[number], varied_sample(number % 7))
    assert sum(name.endswith('.npy') for name in asked(server)) == 3
    assert asked(server).count('shard-000000.tar') == 3
    assert list(store.sample_keys()) == [f'{number:06d}' for number in range(7)]
    before = len(server.asked)
    again = Store(address)
    assert_same(again[5], varied_sample(5))
    # Whether store.json has changed, and the sample: the rest is in the cache.
    assert asked(server, 'HEAD')[-1:] == ['store.json']
    assert asked(server)[-1:] == ['shard-000001.tar'] and len(server.asked) == before + 2


def test_samples_in_order_are_read_ahead(server):
    store = Store(f'{server.address}/store')
    assert [sample.key for sample in store] == [f'{number:06d}' for number in range(7)]
    assert asked(server).count('shard-000000.tar') == 2  # one alone, then all that follow


def test_a_batch_is_few_requests(server, monkeypatch):
    monkeypatch.setattr('freeatm_mm.store.reader._GAP', 0)
    store = Store(f'{server.address}/store')
    numbers = [6, 0, 2, 0, 1, 5, 3, -4]
    for raw, number in zip(store.read_many(numbers), numbers):
        assert raw == store.read(number) and raw.key == f'{number % 7:06d}'
    assert [name for name in asked(server) if name.endswith('.tar')][:4].count(
        'shard-000001.tar'
    ) <= 2
    with pytest.raises(IndexError):
        store.read_many([0, 7])


def test_a_pickled_store_and_one_in_other_processes(server):
    store = Store(f'{server.address}/store')
    assert_same(store[1], varied_sample(1))
    assert_same(pickle.loads(pickle.dumps(store))[2], varied_sample(2))
    store._lock.acquire()  # as a thread of the parent may hold it
    store._remote._lock.acquire()
    with multiprocessing.get_context('fork').Pool(2) as pool:
        keys = pool.map(store.read, range(7))
    assert [raw.key for raw in keys] == [f'{number:06d}' for number in range(7)]


def test_whole_shards_are_kept_within_a_limit(server, path, tmp_path, monkeypatch):
    sizes = [file.stat().st_size for file in sorted(path.glob('*.tar'))]
    monkeypatch.setenv('FREEATM_SHARD_CACHE', str(sizes[0] + sizes[1]))
    store = Store(f'{server.address}/store', max_open_shards=1)
    for number in (0, 1, 2, 3, 0, 1):
        assert_same(store[number], varied_sample(number))
    tars = [name for name in asked(server) if name.endswith('.tar')]
    assert tars == ['shard-000000.tar', 'shard-000001.tar']
    kept = tmp_path / 'cache' / 'shards'
    assert {file.stat().st_size for file in kept.glob('*.tar')} == set(sizes[:2])
    assert_same(store[6], varied_sample(6))  # the second one was opened longest ago
    assert file_sha256(path / 'shard-000000.tar') in {file.stem for file in kept.glob('*.tar')}
    assert sum(file.stat().st_size for file in kept.glob('*.tar')) <= sizes[0] + sizes[1]
    # What was damaged in the cache is not believed.
    (damaged,) = (f for f in kept.glob('*.tar') if f.stat().st_size == sizes[0])
    damaged.write_bytes(bytes(sizes[0]))
    assert_same(Store(f'{server.address}/store')[0], varied_sample(0))
    for index in (tmp_path / 'cache').glob('*.npy'):
        index.write_bytes(bytes(index.stat().st_size))
    assert_same(Store(f'{server.address}/store')[0], varied_sample(0))


def test_two_threads_that_find_a_cached_shard_damaged_read_it_by_range(
    server, path, tmp_path, monkeypatch
):
    monkeypatch.setenv('FREEATM_SHARD_CACHE', '1GB')
    store = Store(f'{server.address}/store')
    store.read(0)
    kept = tmp_path / 'cache' / 'shards'
    (tar,) = kept.glob('*.tar')
    tar.write_bytes(bytes(tar.stat().st_size))
    damaged, read, found = tar.stat(), reader.read_exactly, []

    def while_another_does(handle, size, offset):
        data = read(handle, size, offset)
        if not found and os.path.samestat(os.fstat(handle), damaged):
            found.append(None)  # the other thread reads the damage, too, and throws it away
            found[0] = store[1]
        return data

    monkeypatch.setattr(reader, 'read_exactly', while_another_does)
    assert_same(store[0], varied_sample(0))
    assert_same(found[0], varied_sample(1))
    assert not list(kept.glob('*.tar'))


def test_a_damaged_shard_in_a_cache_that_is_read_only_is_read_by_range(
    server, path, tmp_path, monkeypatch
):
    monkeypatch.setenv('FREEATM_SHARD_CACHE', '1GB')
    store = Store(f'{server.address}/store')
    store.read(0)
    (tar,) = (tmp_path / 'cache' / 'shards').glob('*.tar')
    tar.write_bytes(bytes(tar.stat().st_size))

    def refuse(*_, **__):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(os, 'unlink', refuse)
    assert_same(store[0], varied_sample(0))
    assert_same(store[1], varied_sample(1))


def test_a_shard_that_another_process_takes_out_of_the_cache_is_read_by_range(
    server, path, tmp_path, monkeypatch
):
    sizes = [file.stat().st_size for file in sorted(path.glob('*.tar'))]
    monkeypatch.setenv('FREEATM_SHARD_CACHE', str(sizes[0] + sizes[1]))
    tar = RemoteFiles.tar

    def then_removed(self, entry):
        kept = tar(self, entry)
        kept.unlink()
        return kept

    monkeypatch.setattr(RemoteFiles, 'tar', then_removed)
    assert_same(Store(f'{server.address}/store')[0], varied_sample(0))
    monkeypatch.setattr(RemoteFiles, 'tar', tar)
    # One that is gone by the time it is looked at, when room is made.
    (tmp_path / 'cache' / 'shards' / 'gone.tar').symlink_to('nowhere')
    assert_same(Store(f'{server.address}/store')[0], varied_sample(0))


def test_the_texts_of_samples_take_small_requests(tmp_path, monkeypatch):
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'cache'))
    samples = [make_sample(number, size=150) for number in range(20)]
    write_store(tmp_path / 'store', samples, 10)
    with serve_files(tmp_path) as server:
        store = Store(f'{server.address}/store')
        texts = store.read_texts(range(20))
        ranges = [asked[2] for asked in server.asked if asked[1].endswith('.tar')]
        assert [text.info for text in texts] == [store.read(n).info for n in range(20)]
    assert not any(text.image_bytes for text in texts)
    assert len(ranges) == 20
    total = sum(file.stat().st_size for file in (tmp_path / 'store').glob('*.tar'))
    spans = [map(int, text.removeprefix('bytes=').split('-')) for text in ranges]
    assert sum(last + 1 - first for first, last in spans) < total / 10


def test_what_was_changed_or_cut_is_found(server, path):
    tar, index = path / 'shard-000000.tar', path / 'shard-000001.index.npy'
    data = tar.read_bytes()
    tar.write_bytes(data[:700] + b'x' + data[701:])
    store = Store(f'{server.address}/store')
    with pytest.raises(StoreError, match=r"store/shard-000000.tar: sample '000000' is corrupt"):
        store[0]
    assert_same(store[1], varied_sample(1))
    tar.write_bytes(data[:2000])
    with pytest.raises(StoreError, match='shard-000000.tar ends at byte') as caught:
        Store(f'{server.address}/store')[2]
    assert str(caught.value).count('shard-000000.tar') == 1
    tar.unlink()
    with pytest.raises(StoreError, match=r'/shard-000000.tar is not there$'):
        Store(f'{server.address}/store')[2]
    index.write_bytes(index.read_bytes().replace(b'000004', b'000009'))
    with pytest.raises(StoreError, match='index.npy is not the file that was written'):
        store[3]
    server.mode = 500
    with pytest.raises(StoreError, match=r'store.json can.t be reached: its server answers 500'):
        Store(f'{server.address}/store')


def test_no_store_or_half_a_store(server, path):
    with pytest.raises(StoreError, match='is not a store: it has no store.json'):
        Store(f'{server.address}/nothing')
    text = json.loads((path / 'store.json').read_text())
    text['shards'][0]['name'] = '../other/shard-000000'
    (path / 'store.json').write_text(json.dumps(text))
    with pytest.raises(StoreError, match=f'{server.address}/store/store.json is corrupt'):
        Store(f'{server.address}/store')
    assert {place for _, place, _ in server.asked} == {'/nothing/store.json', '/store/store.json'}
    (path / 'store.json').unlink()
    StoreWriter(path, 3, {'steps': 5})
    with pytest.raises(StoreError, match='is not finished'):
        Store(f'{server.address}/store')
    with pytest.raises(StoreError, match='no user name, password'):
        Store('https://me:SECRET@host/store')
    with pytest.raises(StoreError, match='give an address as text'):
        Store(Path('s3://bucket/store'))


def test_a_checksum_is_no_way_out_of_the_cache(server, path):
    manifest = read_manifest(path)
    manifest['shards'][0]['index_sha256'] = '../../../etc/passwd'
    (path / 'store.json').write_bytes(dump_manifest(manifest))
    with pytest.raises(StoreError, match='has no sha256 of shard-000000.index.npy'):
        Store(f'{server.address}/store')[0]


def test_no_link_in_the_cache_is_written_through(server, path, tmp_path):
    store = Store(f'{server.address}/store')
    (tmp_path / 'mine').write_text('mine')
    digest = read_manifest(path)['shards'][0]['index_sha256']
    (addresses.cache_folder() / f'.{digest}.npy.lock').symlink_to(tmp_path / 'mine')
    with pytest.raises(StoreError, match='is a symbolic link'):
        store[0]
    assert (tmp_path / 'mine').read_text() == 'mine'


def test_all_that_reads_a_store_reads_an_address(server, path, tmp_path):
    address = f'{server.address}/store'
    assert read_manifest(address) == read_manifest(path)
    assert origins._config(address) == {'steps': 5}
    assert filter_store(address, tmp_path / 'some', [parse_condition('nouns.#>=2')]) == 3
    assert merge_stores([address, tmp_path / 'some'], tmp_path / 'both', prefixes=['a', 'b']) == 10
    report = export_class_folders(address, tmp_path / 'folders')
    assert (report.images, report.left_out) == (6, 1)  # one has no noun
    assert exit_code(cli, ['view', address, '--out', tmp_path / 'page.html']) == 0
    assert 'store: 7 of 7 samples' in (tmp_path / 'page.html').read_text()


def test_nothing_is_written_to_an_address_directly(path):
    address = 's3://bucket/store'
    for write in (
        lambda: write_store(address, [varied_sample(0)]),
        lambda: export_class_folders(path, address),
        lambda: merge_stores([path], address),
    ):
        with pytest.raises(ValueError, match='then: freeatm push FOLDER ADDRESS'):
            write()


def test_a_store_is_verified_where_it_lies(server, path, capsys):
    address = f'{server.address}/store'
    assert list(verify_store(address)) == []
    tar = path / 'shard-000000.tar'
    data = tar.read_bytes()
    tar.write_bytes(data[:700] + b'x' + data[701:])
    (path / 'shard-000001.tar').unlink()
    (path / 'shard-000002.tar').write_bytes((path / 'shard-000002.tar').read_bytes()[:1000])
    found, here = list(verify_store(address)), list(verify_store(path))
    assert [str(problem).replace(address, str(path)) for problem in found] == list(map(str, here))
    assert {problem.kind for problem in found} == {'changed', 'missing', 'cut'}
    assert exit_code(cli, ['verify', address]) == 1
    assert f'changed: {address}/shard-000000.tar' in capsys.readouterr().out
    assert exit_code(cli, ['verify', address, '--repair']) == 2


def test_foreign_files_are_seen_where_a_server_lists(monkeypatch, path, tmp_path):
    with serve_s3(monkeypatch):
        folder = RemoteFolder('s3://bucket/a/store')
        for file in sorted(path.iterdir()):
            folder.upload_many([(file, file.name, file_sha256(file))])
        assert list(verify_store('s3://bucket/a/store')) == []
        assert_same(Store('s3://bucket/a/store')[4], varied_sample(4))
        folder.upload_many(
            [(path / 'store.json', 'shard-000007.tar', file_sha256(path / 'store.json'))]
        )
        folder.upload_many([(path / 'store.json', 'notes.txt', file_sha256(path / 'store.json'))])
        folder.remove('shard-000001.index.npy')
        assert sorted(map(str, verify_store('s3://bucket/a/store', decode=False))) == [
            "foreign: s3://bucket/a/store/notes.txt: doesn't belong to the store",
            'foreign: s3://bucket/a/store/shard-000007.tar: belongs to no shard that is whole',
            'missing: s3://bucket/a/store/shard-000001.index.npy: is missing',
        ]

"""Writing and reading whole stores: bytes, resuming, damage, and readers that are not ours."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
import weakref

import numpy as np
import pytest
from helpers.examples import examples
from helpers.store_samples import assert_same, folder_bytes, make_sample, varied_sample
from helpers.tiny_stores import make_store
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.store import (
    Sample,
    Store,
    StoreError,
    StoreWriter,
    reader,
    verify_store,
    write_store,
)
from freeatm_mm.store.layout import TOTALS, dump_manifest
from freeatm_mm.store.locking import locked_write


@pytest.fixture
def store_path(tmp_path):
    """A store of 7 samples in shards of 3; number 4 has no nouns."""
    path = tmp_path / 'store'
    assert write_store(path, map(varied_sample, range(7)), 3, {'steps': 5}) == 7
    return path


def test_samples_come_back_in_any_order(store_path):
    store = Store(store_path)
    assert len(store) == 7
    for number in (6, 0, 3, 2, 5, 1, 4, np.int64(2)):
        assert_same(store[number], varied_sample(int(number)))
    assert_same(store[-1], varied_sample(6))
    assert [sample.key for sample in store] == [f'{n:06d}' for n in range(7)]
    for number in (7, -8):
        with pytest.raises(IndexError):
            store[number]
    with pytest.raises(TypeError, match='chosen by their number, got '):
        store['0']
    assert store.config == {'steps': 5}


def test_read_gives_the_encoded_parts(store_path):
    raw = Store(store_path).read(5)
    assert raw.image_bytes == varied_sample(5).image_bytes
    assert raw.image_format == 'jpg'
    assert raw.info['meta'] == {'seed': 5}
    assert raw.masks_bytes.startswith(b'\x89PNG')
    assert Store(store_path).read(4).masks_bytes == b''


def test_the_texts_of_samples_are_read_alone(store_path, monkeypatch):
    store = Store(store_path)
    for text, whole in zip(store.read_texts([6, 0, 4]), store.read_many([6, 0, 4])):
        assert text == whole._replace(image_bytes=b'', image_format='', masks_bytes=b'')
    monkeypatch.setattr('freeatm_mm.store.reader._TEXTS_AT_ONCE', 3)
    assert list(store.texts()) == store.read_texts(range(7))
    tar = store_path / 'shard-000000.tar'
    tar.write_bytes(tar.read_bytes().replace(b'"nouns"', b'"novns"', 1))
    with pytest.raises(StoreError, match="shard-000000.tar: sample '000000' is corrupt"):
        Store(store_path).read_texts([0])


def test_relative_folders_stay_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = StoreWriter('store', 1)
    writer.write_shard(0, [make_sample(0)])
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir('elsewhere')
    writer.write_shard(1, [make_sample(1)])
    assert writer.finish(2) == []
    monkeypatch.chdir(tmp_path)
    store = Store('store', max_open_shards=1)
    monkeypatch.chdir('elsewhere')
    assert [store[1].key, pickle.loads(pickle.dumps(store))[0].key] == ['000001', '000000']
    assert not any((tmp_path / 'elsewhere').iterdir())


def test_keys_are_read_from_proved_indexes_and_no_sample_is_touched(store_path):
    store = Store(store_path)
    keys = [store.read(number).key for number in range(7)]
    assert list(Store(store_path).sample_keys()) == list(store.sample_keys()) == keys
    for path in store_path.glob('*.tar'):
        path.write_bytes(bytes(path.stat().st_size))
    assert list(Store(store_path).sample_keys()) == keys
    with pytest.raises(StoreError, match='is corrupt'):
        Store(store_path).read(0)
    path = store_path / 'shard-000001.index.npy'
    path.write_bytes(path.read_bytes().replace(b'000004', b'000009'))
    with pytest.raises(StoreError, match=r"shard-000001.tar: .* its sha256 isn't that"):
        list(Store(store_path).sample_keys())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 5), st.data())
@examples(25)
def test_any_store_comes_back(tmp_path_factory, nouns, samples_per_shard, data):
    path = tmp_path_factory.mktemp('any')
    samples = [
        make_sample(number, count, data.draw(st.sampled_from(['jpg', 'png'])))
        for number, count in enumerate(nouns)
    ]
    write_store(path, samples, samples_per_shard)
    store = Store(path, max_open_shards=1)
    assert len(store) == len(samples)
    for number in data.draw(st.permutations(range(len(samples)))):
        assert_same(store[number], samples[number])
    assert list(verify_store(path)) == []


def test_the_same_samples_give_the_same_bytes(store_path, tmp_path):
    write_store(tmp_path / 'again', map(varied_sample, range(7)), 3, {'steps': 5})
    assert folder_bytes(tmp_path / 'again') == folder_bytes(store_path)


def test_tar_headers_hold_nothing_that_changes(store_path):
    with tarfile.open(store_path / 'shard-000000.tar') as tar:
        for member in tar:
            assert (
                member.mtime,
                member.uid,
                member.gid,
                member.uname,
                member.gname,
                member.mode,
            ) == (0, 0, 0, '', '', 0o644)


def test_plain_tarfile_reads_a_shard(store_path):
    with tarfile.open(store_path / 'shard-000001.tar') as tar:
        assert tar.getnames() == [
            '000003.json',
            '000003.masks.png',
            '000003.jpg',
            '000004.json',
            '000004.masks.png',
            '000004.png',
            '000005.json',
            '000005.masks.png',
            '000005.jpg',
        ]
        info = json.load(tar.extractfile('000003.json'))
        assert tar.extractfile('000003.jpg').read() == varied_sample(3).image_bytes
    assert info['caption'] == varied_sample(3).caption
    assert [noun['text'] for noun in info['nouns']] == ['bird']


def test_webdataset_reads_the_shards_as_they_are(store_path):
    webdataset = pytest.importorskip('webdataset')
    urls = [str(path) for path in sorted(store_path.glob('*.tar'))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode('l8'))
    assert [sample['__key__'] for sample in found] == [f'{n:06d}' for n in range(7)]
    for number, sample in enumerate(found):
        assert sample['json']['caption'] == varied_sample(number).caption
        if number != 4:
            masks = varied_sample(number).masks
            np.testing.assert_array_equal(sample['masks.png'].reshape(masks.shape), masks)


def test_index_is_a_plain_numpy_file_that_points_into_the_tar(store_path):
    rows = np.load(store_path / 'shard-000000.index.npy', allow_pickle=False)
    assert rows['key'].tolist() == [b'000000', b'000001', b'000002']
    content = (store_path / 'shard-000000.tar').read_bytes()
    row = rows[1]
    image = content[row['image_offset'] : row['image_offset'] + row['image_size']]
    assert image == varied_sample(1).image_bytes


def test_opening_reads_no_shard(store_path, monkeypatch):
    opened = []
    real = os.open

    def watched(path, *rest):
        opened.append(str(path))
        return real(path, *rest)

    monkeypatch.setattr(os, 'open', watched)
    store = Store(store_path)
    assert opened == [f'{store_path}/store.json']
    store[0]
    assert [path[-16:] for path in opened if path.endswith('.tar')] == ['shard-000000.tar']


def test_few_files_stay_open(store_path):
    store = Store(store_path, max_open_shards=1)
    before = len(os.listdir('/proc/self/fd'))
    for number in (0, 3, 6, 0, 3, 6):
        store[number]
    assert len(os.listdir('/proc/self/fd')) - before <= 2


def test_a_pickled_store_reads(store_path):
    store = Store(store_path)
    store[0]
    copy = pickle.loads(pickle.dumps(store))
    assert_same(copy[5], varied_sample(5))


def test_a_forked_store_reads_even_when_its_lock_was_held(store_path):
    store = Store(store_path)
    store[0]
    context = multiprocessing.get_context('fork')
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put([store[n].key for n in range(7)]), daemon=True)
    with store._lock:
        child.start()
    child.join(30)
    assert child.exitcode == 0
    assert queue.get() == [f'{n:06d}' for n in range(7)]


def test_threads_that_push_each_other_out_read_right(store_path):
    store = Store(store_path, max_open_shards=1)
    wrong = []

    def work(seed):
        for number in np.random.default_rng(seed).integers(0, 7, 100):
            if store[number].key != f'{number:06d}':
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- writing ---


def test_an_error_in_the_middle_leaves_nothing_and_resuming_gives_equal_bytes(store_path, tmp_path):
    path = tmp_path / 'broken'

    def samples():
        for number in range(7):
            if number == 4:
                raise RuntimeError('out of memory')
            yield varied_sample(number)

    with pytest.raises(RuntimeError, match='out of memory'):
        write_store(path, samples(), 3, {'steps': 5})
    assert sorted(folder_bytes(path)) == [
        'shard-000000.index.npy',
        'shard-000000.json',
        'shard-000000.tar',
        'store.json',
    ]
    with pytest.raises(StoreError, match='not finished'):
        Store(path)
    kept = (path / 'shard-000000.tar').stat().st_ino
    write_store(path, map(varied_sample, range(7)), 3, {'steps': 5})
    assert (path / 'shard-000000.tar').stat().st_ino == kept  # not written again
    assert folder_bytes(path) == folder_bytes(store_path)


def test_a_shard_is_never_in_memory_whole(tmp_path):
    alive: weakref.WeakSet[Sample] = weakref.WeakSet()
    most = []

    def samples():
        for number in range(40):
            sample = varied_sample(number)
            alive.add(sample)
            yield sample
            most.append(len(alive))

    for _ in range(2):  # written, and then counted alone
        assert write_store(tmp_path, samples(), 20) == 40
        assert max(most) < 5
        most.clear()
    assert len(Store(tmp_path)) == 40


@pytest.mark.parametrize('stop_at', [2, 4])
def test_a_killed_writer_resumes_to_equal_bytes(store_path, tmp_path, stop_at):
    path = tmp_path / 'killed'
    code = f"""
import itertools, time
from freeatm_mm.store import StoreWriter
from helpers.store_samples import varied_sample

def samples():
    for number in range(7):
        if number == {stop_at}:
            print('now', flush=True)
            time.sleep(60)
        yield varied_sample(number)

writer = StoreWriter({str(path)!r}, 3, {{'steps': 5}})
remaining = samples()
for shard in range(3):
    writer.write_shard(shard, itertools.islice(remaining, 3))
"""
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout.readline() == b'now\n'
        process.send_signal(signal.SIGKILL)
    unfinished = f'shard-{stop_at // 3:06d}.tar'
    assert (path / f'{unfinished}.tmp').exists() and not (path / unfinished).exists()
    write_store(path, map(varied_sample, range(7)), 3, {'steps': 5})
    assert folder_bytes(path) == folder_bytes(store_path)


def test_every_state_between_the_three_files_is_resumed(store_path):
    """A kill after the tar or after the index leaves a shard that is written again."""
    whole = folder_bytes(store_path)
    for lost in (['.json'], ['.json', '.index.npy'], ['.index.npy'], ['.tar']):
        for ending in lost:
            (store_path / f'shard-000001{ending}').unlink()
        assert not StoreWriter(store_path, 3, {'steps': 5}).is_complete(1)
        write_store(store_path, map(varied_sample, range(7)), 3, {'steps': 5})
        assert folder_bytes(store_path) == whole


def test_workers_share_a_store_and_the_last_one_finishes_it(store_path, tmp_path):
    path = tmp_path / 'shared'
    first, second = (StoreWriter(path, 3, {'steps': 5}) for _ in range(2))
    first.write_shard(2, [varied_sample(6)])
    first.write_shard(0, map(varied_sample, range(3)))
    assert first.finish(7) == [1]
    second.write_shard(1, map(varied_sample, range(3, 6)))
    assert second.finish(7) == []
    assert folder_bytes(path) == folder_bytes(store_path)


def test_another_configuration_is_refused_and_says_what_differs(store_path):
    with pytest.raises(StoreError, match='steps is 5 there and 6 here'):
        StoreWriter(store_path, 3, {'steps': 6})
    with pytest.raises(StoreError, match='samples_per_shard is 3 there and 4 here'):
        StoreWriter(store_path, 4, {'steps': 5})
    assert len(Store(store_path)) == 7


def test_a_shard_of_another_run_is_refused(store_path, tmp_path):
    other = StoreWriter(tmp_path / 'other', 3, {'steps': 6})
    for file in store_path.glob('shard-*'):
        (other.path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(StoreError, match='another configuration'):
        other.is_complete(0)


def test_two_processes_cannot_write_one_shard(tmp_path):
    writer = StoreWriter(tmp_path, 3)
    with locked_write(tmp_path / 'shard-000000.tar'):
        with pytest.raises(StoreError, match='another process is writing shard-000000 in'):
            writer.write_shard(0, [make_sample(0)])


@pytest.mark.parametrize('steps', [5, 6])
def test_what_another_worker_wrote_meanwhile_is_not_begun_anew(tmp_path, monkeypatch, steps):
    check = StoreWriter._check_existing

    def then_another(writer):
        found = check(writer)
        monkeypatch.undo()
        write_store(tmp_path, map(make_sample, range(3)), 3, {'steps': steps})
        return found

    monkeypatch.setattr(StoreWriter, '_check_existing', then_another)
    if steps == 5:
        assert StoreWriter(tmp_path, 3, {'steps': 5}).is_complete(0)
    else:
        with pytest.raises(StoreError, match='steps is 6 there and 5 here'):
            StoreWriter(tmp_path, 3, {'steps': 5})
    assert len(Store(tmp_path)) == 3 and list(verify_store(tmp_path)) == []


def test_a_store_that_was_begun_anew_gets_no_shard_of_the_former_settings(tmp_path):
    former = StoreWriter(tmp_path, 3, {'steps': 5})
    write_store(tmp_path, map(make_sample, range(3)), 3, {'steps': 6})
    before = folder_bytes(tmp_path)
    with pytest.raises(StoreError, match='steps is 6 there and 5 here'):
        former.write_shard(0, iter([]))  # before any is drawn
    with pytest.raises(StoreError, match='steps is 6 there|another configuration'):
        former.finish(3)
    assert folder_bytes(tmp_path) == before


def test_what_a_store_cannot_be_is_told(tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'link').symlink_to('nowhere')
    for name, message in (
        ('file', 'a file, or lies'),
        ('file/x', 'a file, or lies'),
        ('link', 'a link that leads nowhere'),
    ):
        with pytest.raises(StoreError, match=message):
            StoreWriter(tmp_path / name, 3)


def test_a_shard_is_kept_from_others_until_its_json_is_there(tmp_path, monkeypatch):
    """Between tar and JSON it would look missing, and be generated a second time."""
    ours, theirs = StoreWriter(tmp_path, 3), StoreWriter(tmp_path, 3)
    write_index = StoreWriter._write_index

    def meanwhile(self, *args):
        assert (tmp_path / 'shard-000000.tar').exists()
        with pytest.raises(StoreError, match='another process is writing shard-000000'):
            theirs.write_shard(0, [make_sample(0)])
        return write_index(self, *args)

    monkeypatch.setattr(StoreWriter, '_write_index', meanwhile)
    ours.write_shard(0, [make_sample(0)])
    assert theirs.is_complete(0)


@pytest.mark.parametrize(
    'numbers, message',
    [([], 'no samples'), ([0, 1, 2, 3], 'more than its 3'), ([1, 1], "two samples.*'000001'")],
)
def test_shards_that_do_not_fit_are_refused_and_leave_nothing(tmp_path, numbers, message):
    writer = StoreWriter(tmp_path, 3)
    with pytest.raises(StoreError, match=message):
        writer.write_shard(0, map(make_sample, numbers))
    assert sorted(folder_bytes(tmp_path)) == ['store.json']


def test_values_that_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(StoreError, match='not JSON'):
        StoreWriter(tmp_path, 3, {'x': float('nan')})
    sample = make_sample(3)
    sample.meta['x'] = object()
    with pytest.raises(StoreError, match="'000003'.*not JSON"):
        StoreWriter(tmp_path, 3).write_shard(0, [sample])


def test_a_store_that_does_not_follow_its_plan_is_refused(tmp_path):
    writer = StoreWriter(tmp_path, 3)
    writer.write_shard(0, map(make_sample, range(2)))
    with pytest.raises(StoreError, match='holds 2 samples where 3 should be'):
        writer.finish(5)
    writer.write_shard(1, map(make_sample, range(2, 4)))
    with pytest.raises(StoreError, match='more shards'):
        writer.finish(2)
    with pytest.raises(StoreError, match='empty store'):
        writer.finish(0)
    with pytest.raises(StoreError, match='empty store'):
        write_store(tmp_path / 'empty', [])


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', tmp_path / 'file' / 'store'):
        with pytest.raises(StoreError, match='is a file, or lies in one'):
            StoreWriter(path, 3)


# --- damage ---


def problems(path):
    return [str(problem) for problem in verify_store(path)]


def test_a_sound_store_has_no_problems(store_path):
    assert problems(store_path) == []


def test_what_is_no_store_is_refused(tmp_path, store_path):
    with pytest.raises(StoreError, match='no such folder'):
        Store(tmp_path / 'nowhere')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(StoreError, match='is not a store'):
        Store(tmp_path / 'empty')
    with pytest.raises(StoreError, match='not a freeatm-store'):
        (tmp_path / 'empty' / 'store.json').write_text('{}')
        Store(tmp_path / 'empty')
    with pytest.raises(StoreError, match='not JSON'):
        (tmp_path / 'empty' / 'store.json').write_text('{')
        Store(tmp_path / 'empty')


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda m: m.update(version=3), 'format version 3'),
        (lambda m: m.update(version=True), 'format version True'),
        (lambda m: m.update(shards=[], **dict.fromkeys(TOTALS, 0)), 'is empty'),
        (lambda m: m.update(complete=False), 'not finished'),
        (lambda m: m.pop('complete'), "corrupt: the field 'complete' is missing"),
        (lambda m: m['shards'][0].update(name='../shard-000000'), 'corrupt'),
        (lambda m: m['shards'][1].update(samples=2), "don't hold 3 samples each"),
        (lambda m: m['shards'][2].update(samples=2) or m.update(samples=8), 'index has 1 row,'),
        (lambda m: m.update(samples=8), 'says 8 samples in all, and its shards have 7'),
        (lambda m: m.update(samples_per_shard=4), "don't hold 4 samples each"),
        (lambda m: m['shards'].pop(), 'samples in all, and its shards have 6'),
        (lambda m: m['config'].update(steps=6), 'settings are not those'),
        (lambda m: m['shards'][0].pop('index_sha256'), r"shards\[0\]: the field 'index_sha256'"),
        (lambda m: m['shards'][0].update(bytes='1'), r'shards\[0\]: bytes must be an integer'),
        (lambda m: m['shards'][0].update(notes=[]), r'notes must be an object'),
        (lambda m: m['shards'][0].update(index_sha256='0' * 64), 'is not the one that was written'),
    ],
)
def test_a_damaged_manifest_is_refused(store_path, change, message):
    """Even where its checksum was made to fit."""
    file = store_path / 'store.json'
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_bytes(dump_manifest(manifest))
    with pytest.raises(StoreError, match=message):
        list(Store(store_path))


@pytest.mark.parametrize('ending', ['.tar', '.index.npy'])
def test_a_missing_shard_is_named(store_path, ending):
    (store_path / f'shard-000001{ending}').unlink()
    with pytest.raises(StoreError, match=f'lacks shard-000001{ending}'):
        Store(store_path)
    assert f'missing: {store_path}/shard-000001{ending}: is missing' in problems(store_path)[0]


def test_a_truncated_shard_is_named_and_the_others_still_read(store_path):
    with (store_path / 'shard-000001.tar').open('r+b') as file:
        file.truncate(600)
    store = Store(store_path)
    with pytest.raises(StoreError, match='shard-000001.tar: the shard has 600 bytes'):
        store[4]
    assert_same(store[6], varied_sample(6))
    assert any('shard-000001.tar' in problem for problem in problems(store_path))


@pytest.mark.parametrize('field', ['json', 'masks', 'image'])
def test_a_changed_byte_is_found_and_the_sample_named(store_path, field):
    row = np.load(store_path / 'shard-000001.index.npy')[2]
    with (store_path / 'shard-000001.tar').open('r+b') as file:
        file.seek(int(row[f'{field}_offset']) + int(row[f'{field}_size']) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    store = Store(store_path)
    with pytest.raises(StoreError, match="shard-000001.tar: sample '000005' is corrupt"):
        store[5]
    with pytest.raises(StoreError, match="shard-000001.tar: sample '000005' is corrupt"):
        store.read(5)
    assert_same(store[4], varied_sample(4))
    found = problems(store_path)
    assert any('sha256' in problem for problem in found)
    assert any("'000005' is corrupt" in problem for problem in found)


def test_an_index_that_points_elsewhere_is_found(store_path):
    file = store_path / 'shard-000001.index.npy'
    rows = np.load(file)
    rows[[0, 1]] = rows[[1, 0]]
    np.save(file, rows)
    for number in (3, 5):
        with pytest.raises(StoreError, match='index.npy is not the one that was written'):
            Store(store_path)[number]
    assert any('shard-000001.index.npy: its sha256' in problem for problem in problems(store_path))


@pytest.mark.parametrize('content', [b'', b'\x93NUMPY nothing', b'x' * 100])
def test_a_broken_index_is_named(store_path, content):
    (store_path / 'shard-000000.index.npy').write_bytes(content)
    with pytest.raises(StoreError, match='shard-000000.index.npy is corrupt'):
        Store(store_path)[0]


def test_an_index_that_cannot_be_read_is_named(store_path, monkeypatch):
    """A stale handle of a network's file system, for example."""
    store = Store(store_path)
    store.read(0)

    def stale(handle, size, start):
        raise OSError(116, 'Stale file handle')

    monkeypatch.setattr(reader, 'read_exactly', stale)
    with pytest.raises(StoreError, match="its index can't be read: Stale file handle"):
        store.read(1)


def test_an_index_of_objects_or_other_columns_is_refused(store_path):
    file = store_path / 'shard-000000.index.npy'
    np.save(file, np.array([print], object), allow_pickle=True)
    with pytest.raises(StoreError, match='not an index'):
        Store(store_path)[0]
    np.save(file, np.zeros(3))
    with pytest.raises(StoreError, match='not an index'):
        Store(store_path)[0]


def test_equal_keys_in_two_shards_are_found(tmp_path):
    writer = StoreWriter(tmp_path, 1)
    for shard in range(2):
        writer.write_shard(shard, [make_sample(8)])
    writer.finish(2)
    assert any("several samples have the key '000008'" in problem for problem in problems(tmp_path))


def test_a_shard_swapped_for_another_is_found(store_path):
    (store_path / 'shard-000000.tar').write_bytes((store_path / 'shard-000001.tar').read_bytes())
    found = problems(store_path)
    assert any('shard-000000.tar' in problem for problem in found)


def test_names_are_those_of_the_sample_and_nothing_else_is_read(tmp_path):
    path = make_store(tmp_path / 'store', count=7)
    store = Store(path)
    assert [store.names(number) for number in range(7)] == [
        store.read(number).names() for number in range(7)
    ]
    shard = path / 'shard-000000.tar'
    data = bytearray(shard.read_bytes())
    place = data.index(b'000003.json')
    data[place] = ord('9')
    shard.write_bytes(data)
    with pytest.raises(StoreError, match="sample '000003' is corrupt"):
        Store(path).names(3)
    with pytest.raises(IndexError):
        store.names(7)

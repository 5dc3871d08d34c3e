"""Damage of every kind is found and named, and what can be repaired is, byte for byte."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from helpers.store_samples import assert_same, folder_bytes, varied_sample

from freeatm_mm.store import Store, StoreError, repair_store, verify_store, write_store
from freeatm_mm.store.edit import filter_store, merge_stores, parse_condition, split_store
from freeatm_mm.store.layout import dump_manifest
from freeatm_mm.store.regions import colour_clusters, make_regions

CONFIG = {'steps': 5, 'num_samples': 7}
AGAIN = 'what made the store again, with the same settings'


class Source:
    """Stands in for the generator: knows the keys of each shard and generates samples again."""

    config, samples_per_shard, num_samples = CONFIG, 3, 7

    def __init__(self):
        self.generated = []

    def keys(self, shard):
        return [f'{number:06d}' for number in range(3 * shard, min(3 * shard + 3, 7))]

    def generate(self, shard, rows, notes):
        self.generated += [3 * shard + row for row in rows]
        return {row: varied_sample(3 * shard + row) for row in rows}


@pytest.fixture
def path(tmp_path):
    """A store of 7 samples in shards of 3; number 4 has no nouns."""
    write_store(tmp_path / 'store', map(varied_sample, range(7)), 3, CONFIG)
    return tmp_path / 'store'


def cut(path):
    with (path / 'shard-000001.tar').open('r+b') as file:
        file.truncate(np.load(path / 'shard-000001.index.npy')['image_offset'][1] + 10)


def change_byte(path):
    with (path / 'shard-000001.tar').open('r+b') as file:
        file.seek(int(np.load(path / 'shard-000001.index.npy')['image_offset'][1]) + 40)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def append_member(name):
    def append(path):
        with tarfile.open(path / 'shard-000001.tar', 'a', format=tarfile.USTAR_FORMAT) as tar:
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b'{} '))

    return append


def unlink(*names):
    return lambda path: [(path / name).unlink() for name in names]


def write(name, content):
    return lambda path: (path / name).write_bytes(content)


def copy(source, target):
    return lambda path: [
        shutil.copy(path / f'shard-{source:06d}{ending}', path / f'shard-{target:06d}{ending}')
        for ending in ('.tar', '.index.npy', '.json')
    ]


# damage, kind, part of the message, key, samples made again
DAMAGES = {
    'cut shard': (cut, 'cut', 'tar: is cut off: it has', None, [4, 5]),
    'cut sample': (cut, 'cut', "sample '000004'", '000004', [4, 5]),
    'lost sample': (cut, 'cut', "sample '000005'", '000005', [4, 5]),
    'changed shard': (change_byte, 'changed', 'sha256', None, [4]),
    'changed sample': (change_byte, 'changed', "sample '000004' is corrupt", '000004', [4]),
    'missing shard': (
        unlink('shard-000001.tar'),
        'missing',
        "with its 3 samples '000003' to '000005'",
        None,
        [3, 4, 5],
    ),
    'missing all of a shard': (
        unlink('shard-000001.tar', 'shard-000001.index.npy', 'shard-000001.json'),
        'missing',
        'is missing',
        None,
        [3, 4, 5],
    ),
    'missing index': (unlink('shard-000001.index.npy'), 'missing', 'index.npy: is miss', None, []),
    'changed index': (
        write('shard-000001.index.npy', b'x' * 600),
        'changed',
        'index.npy: ',
        None,
        [],
    ),
    'missing json': (unlink('shard-000001.json'), 'missing', 'json: is missing', None, []),
    'changed json': (write('shard-000001.json', b'['), 'changed', 'not what a writer', None, []),
    'missing store.json': (unlink('store.json'), 'missing', 'store.json: is missing', None, []),
    'broken store.json': (write('store.json', b'{'), 'changed', 'not JSON', None, []),
    'unfinished store.json': (
        lambda path: write(
            'store.json',
            dump_manifest(json.loads((path / 'store.json').read_bytes()) | {'complete': False}),
        )(path),
        'missing',
        'not finished',
        None,
        [],
    ),
    'doubled sample': (
        append_member('000003.json'),
        'doubled',
        "'000003' is there twice",
        '000003',
        [],
    ),
    'foreign sample': (
        append_member('abc.json'),
        'foreign',
        "'abc' is not one of its own",
        'abc',
        [],
    ),
    'doubled shard': (copy(0, 1), 'changed', 'sha256', None, [3, 4, 5]),
    'appended bytes': (
        lambda path: (path / 'shard-000001.tar').open('ab').write(b'x' * 512),
        'changed',
        'bytes where',
        None,
        [],
    ),
}


@pytest.mark.parametrize('damage, kind, message, key, _', DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_and_named(path, damage, kind, message, key, _):
    damage(path)
    found = list(verify_store(path))
    assert any(
        problem.kind == kind and message in str(problem) and problem.key == key for problem in found
    ), found


@pytest.mark.parametrize(
    'damage, generated', [(row[0], row[4]) for row in DAMAGES.values()], ids=DAMAGES
)
def test_damage_is_repaired_to_the_same_bytes_and_only_what_is_lost_is_generated(
    path, damage, generated
):
    whole = folder_bytes(path)
    untouched = (path / 'shard-000002.tar').stat().st_ino
    damage(path)
    source = Source()
    report = repair_store(path, source)
    assert report.restored and not report.left and not report.remade
    assert (source.generated, report.generated) == (generated, len(generated))
    found = folder_bytes(path)
    found.pop('store.json.broken', None)
    assert found == whole
    assert (path / 'shard-000002.tar').stat().st_ino == untouched
    assert 'restored byte for byte' in str(report)
    assert str(repair_store(path, source)) == 'nothing to repair'


def test_repair_without_a_source_does_what_it_can_and_says_what_is_left(path):
    whole = folder_bytes(path)
    change_byte(path)
    (path / 'shard-000000.json').unlink()
    broken = (path / 'shard-000001.tar').read_bytes()
    report = repair_store(path)
    assert report.restored == ['shard-000000']
    assert len(report.left) == 1 and "1 of its 3 samples lost ('000004')" in report.left[0]
    assert (path / 'shard-000001.tar').read_bytes() == broken
    assert (path / 'shard-000000.json').read_bytes() == whole['shard-000000.json']
    (path / 'store.json').unlink()
    with pytest.raises(StoreError, match='give the pipeline and the prompts'):
        repair_store(path)
    with pytest.raises(StoreError, match='no such folder'):
        repair_store(path / 'nowhere')


def imported(source, out):
    write_store(out, map(varied_sample, range(7)), 3, {'imported': 'coco'})


def filtered(source, out):
    filter_store(source, out, [parse_condition('nouns.#>=0')])


def merged(source, out):
    merge_stores([source, source], out, prefixes=['a', 'b'])


def divided(source, out):
    split_store(source, {out: 0.6, out.with_name('rest'): 0.4})


def with_regions(source, out):
    make_regions(source, out, colour_clusters(2), {}, min_area=0)


@pytest.mark.parametrize('make', [imported, filtered, merged, divided, with_regions])
def test_a_store_that_nothing_generated_is_made_whole_as_repair_says(path, tmp_path, make):
    out = tmp_path / 'out'
    make(path, out)
    whole = folder_bytes(out)
    data = bytearray((out / 'shard-000000.tar').read_bytes())
    data[700] ^= 1
    (out / 'shard-000000.tar').write_bytes(data)
    (left,) = repair_store(out).left
    assert left.endswith('; remove shard-000000.json and start ' + AGAIN)
    (out / 'shard-000000.json').unlink()
    make(path, out)
    assert folder_bytes(out) == whole
    for file in out.glob('shard-000000.*'):
        file.unlink()
    (left,) = repair_store(out).left
    assert left.endswith('nothing is left of it; start ' + AGAIN)
    make(path, out)
    (out / 'store.json').write_text('{"config"')
    with pytest.raises(StoreError, match='if it was generated, else remove store.json and start'):
        repair_store(out)
    (out / 'store.json').unlink()
    make(path, out)
    assert folder_bytes(out) == whole


@pytest.mark.parametrize('own, said', [({}, 'prompts'), ({'levels': [0.5]}, 'images')])
def test_repair_asks_for_what_a_store_was_generated_from(tmp_path, own, said):
    config = CONFIG | {'prompts_sha256': '0'} | own
    write_store(tmp_path, map(varied_sample, range(7)), 3, config)
    change_byte(tmp_path)
    (left,) = repair_store(tmp_path).left
    assert left.endswith(f'; give the pipeline and the {said}')


def test_samples_that_come_back_otherwise_are_said_to(path):
    class Other(Source):
        def generate(self, shard, rows, notes):
            return {
                row: varied_sample(3 * shard + row + 30).__class__(
                    **vars(varied_sample(3 * shard + row)) | {'meta': {'seed': -1}}
                )
                for row in rows
            }

    change_byte(path)
    report = repair_store(path, Other())
    assert report.remade == ['shard-000001'] and not report.restored
    assert list(verify_store(path)) == []
    assert Store(path)[4].meta == {'seed': -1}
    assert_same(Store(path)[3], varied_sample(3))


def test_a_failing_repair_leaves_the_damaged_shard_as_it_was(path):
    class Failing(Source):
        def generate(self, shard, rows, notes):
            raise RuntimeError('out of memory')

    change_byte(path)
    before = folder_bytes(path)
    with pytest.raises(RuntimeError, match='out of memory'):
        repair_store(path, Failing())
    assert folder_bytes(path) == before


def test_a_shard_that_cannot_be_repaired_is_listed_and_the_others_are_repaired(path):
    class Partly(Source):
        def generate(self, shard, rows, notes):
            if shard == 1:
                raise StoreError("sample '000004' can't be made now")
            return super().generate(shard, rows, notes)

    whole = folder_bytes(path)
    change_byte(path)
    (path / 'shard-000000.tar').unlink()
    (path / 'shard-000002.index.npy').unlink()
    broken = (path / 'shard-000001.tar').read_bytes()
    report = repair_store(path, Partly())
    assert report.restored == ['shard-000000', 'shard-000002'] and report.generated == 3
    assert report.left == ["shard-000001: sample '000004' can't be made now"]
    assert folder_bytes(path) == whole | {'shard-000001.tar': broken}


def test_a_shard_of_other_settings_is_listed_and_the_others_are_repaired(path, tmp_path):
    write_store(tmp_path / 'other', map(varied_sample, range(7)), 3, CONFIG | {'steps': 6})
    shutil.copy(tmp_path / 'other' / 'shard-000000.json', path)
    (path / 'shard-000002.index.npy').unlink()
    report = repair_store(path)
    assert report.restored == ['shard-000002']
    (left,) = report.left
    assert left.startswith('shard-000000 in ') and 'was made with another configuration' in left


def test_what_was_repaired_is_reported_though_the_store_holds_too_much(path):
    shutil.copy(path / 'shard-000000.json', path / 'shard-000003.json')
    (path / 'shard-000002.index.npy').unlink()
    report = repair_store(path)
    assert report.restored == ['shard-000002']
    assert 'more shards than 7 samples would take' in report.left[0]


def test_the_source_says_which_samples_are_due(path):
    class Longer(Source):
        num_samples = 11

        def keys(self, shard):
            return (
                ['000003', '000004', 'new']
                if shard == 1
                else [f'{number:06d}' for number in range(3 * shard, min(3 * shard + 3, 11))]
            )

    found = [
        (problem.kind, problem.shard, problem.key)
        for problem in verify_store(path, source=Longer())
    ]
    assert found == [
        ('missing', 1, 'new'),
        ('foreign', 1, '000005'),
        ('missing', 2, '000007'),
        ('missing', 2, '000008'),
        ('missing', 3, None),
    ]
    assert list(verify_store(path, source=Source())) == []


def test_files_that_do_not_belong_are_named_and_kept(path):
    for name in ('notes.txt', 'shard-000009.tar', 'shard-000001.tar.tmp'):
        (path / name).write_bytes(b'x')
    found = list(verify_store(path))
    assert {(problem.kind, problem.where[len(str(path)) + 1 :]) for problem in found} == {
        ('foreign', 'notes.txt'),
        ('foreign', 'shard-000009.tar'),
        ('foreign', 'shard-000001.tar.tmp'),
    }
    repair_store(path, Source())
    assert (path / 'notes.txt').exists() and (path / 'shard-000009.tar').exists()


def test_every_damaged_shard_is_looked_at(path):
    for number in range(3):
        (path / f'shard-{number:06d}.tar').write_bytes(b'nothing')
    assert {problem.shard for problem in verify_store(path)} == {0, 1, 2}


def test_one_key_in_two_shards_is_named_with_both(tmp_path):
    write_store(tmp_path, map(varied_sample, [1, 2, 3, 1]), 2)
    (problem,) = verify_store(tmp_path)
    assert (problem.kind, problem.key, problem.shard) == ('doubled', '000001', 1)
    assert 'shard-000000' in problem.what

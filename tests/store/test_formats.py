"""All samples of a store have the same members and types, and stores of version 1 are read."""

from __future__ import annotations

import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.store_samples import assert_same, folder_bytes, make_sample, varied_sample
from helpers.tools import run_tool

from freeatm_mm.prompts import Noun
from freeatm_mm.store import Store, StoreError, repair_store, verify_store, write_store
from freeatm_mm.store.edit import filter_store, merge_stores, parse_condition

VERSION_1 = Path(__file__).parent / 'version-1.zip'


def sample(number, nouns=2, categories=True, meta=None):
    """A sample with or without nouns, categories and any meta."""
    made = make_sample(number, nouns)
    if not categories:
        made = replace(
            made, nouns=tuple(Noun(noun.text, noun.start, noun.end) for noun in made.nouns)
        )
    return replace(made, meta={'seed': number} if meta is None else meta)


def many(first, rest, count=9):
    return [first(number) for number in range(6)] + [rest(number) for number in range(6, count)]


def bare(number):
    return sample(number, nouns=0, meta={})


def full(number):
    return sample(
        number,
        1 + number % 3,
        meta={
            'lost_nouns': [{'text': 'cat', 'reason': None}],
            'mask_trust': [{'area': 0.5}],
            'number': number if number % 2 else None,
        },
    )


STORES = {
    'no nouns first': many(bare, full),
    'no nouns last': many(full, bare),
    'no nouns at all': many(bare, bare),
    'no categories first': many(lambda n: sample(n, categories=False), full),
    'no categories last': many(full, lambda n: sample(n, categories=False)),
    'no categories at all': [sample(n, categories=False) for n in range(9)],
    'meta comes and goes': [
        sample(n, meta=meta)
        for n, meta in enumerate(
            [{}, {'a': 1}, {'b': []}, {'a': 'x'}, {'a': None}, {'c': {}}, {'a': [1, 'x']}, {}]
        )
    ],
    'in turns': [(bare, full, lambda n: sample(n, categories=False))[n % 3](n) for n in range(9)],
    'one sample': [bare(0)],
}


@pytest.fixture(params=STORES.values(), ids=STORES)
def samples(request):
    return request.param


@pytest.fixture
def path(samples, tmp_path):
    write_store(tmp_path / 'store', samples, 4)
    return tmp_path / 'store'


def assert_comes_back(rows, samples):
    assert len(rows) == len(samples)
    for row, made in zip(rows, samples):
        info = row['json']
        assert (row['__key__'], info['caption']) == (made.key, made.caption)
        assert json.loads(info['meta']) == made.meta
        nouns = [noun for noun in info['nouns'] if noun['text']]
        assert [
            (noun['text'], noun['start'], noun['end'], noun['category'] or None) for noun in nouns
        ] == [(noun.text, noun.start, noun.end, noun.category) for noun in made.nouns]
        np.testing.assert_array_equal(
            np.array([(noun['lo'], noun['hi']) for noun in nouns], np.float32).reshape(-1, 2),
            made.scales,
        )
        masks = np.array(row['masks.png'])
        if nouns:
            np.testing.assert_array_equal(masks.reshape(made.masks.shape), made.masks)
        else:
            assert not masks.any()
        np.testing.assert_array_equal(np.array(row['png']), np.array(made.image))


@pytest.mark.parametrize('streaming', [True, False])
def test_hugging_face_datasets_reads_the_shards_as_they_are(path, samples, tmp_path, streaming):
    datasets = pytest.importorskip('datasets')
    files = sorted(map(str, path.glob('*.tar')))
    rows = datasets.load_dataset(
        'webdataset',
        data_files={'train': files},
        split='train',
        streaming=streaming,
        cache_dir=str(tmp_path / 'cache'),
    )
    assert_comes_back(list(rows), samples)


def test_hugging_face_datasets_reads_the_parquet_export(path, samples, tmp_path):
    datasets = pytest.importorskip('datasets')
    assert run_tool('store/export', 'parquet', path, tmp_path / 'out') == 0
    rows = datasets.load_dataset(
        'parquet',
        data_dir=str(tmp_path / 'out' / 'data'),
        split='train',
        cache_dir=str(tmp_path / 'cache'),
    )
    for row, made in zip(rows, samples, strict=True):
        assert (row['key'], json.loads(row['meta'])) == (made.key, made.meta)
        assert [noun['category'] for noun in row['nouns']] == [noun.category for noun in made.nouns]
        assert (row['masks'] is None) == (not made.nouns)


def test_all_samples_have_the_same_members_and_types(path, samples):
    found = set()
    for shard in path.glob('*.tar'):
        with tarfile.open(shard) as tar:
            names = tar.getnames()
            for name in names[::3]:
                info = json.load(tar.extractfile(name))
                assert info['nouns'] and isinstance(info['meta'], str)
                found |= {
                    (tuple(info), tuple((field, type(value)) for field, value in noun.items()))
                    for noun in info['nouns']
                }
        assert [name.split('.', 1)[1] for name in names] == ['json', 'masks.png', 'png'] * (
            len(names) // 3
        )
    assert len(found) == 1


def test_the_store_itself_gives_what_was_written(path, samples):
    store = Store(path)
    for found, made in zip(store, samples, strict=True):
        assert_same(found, made)
    raw = store.read(0)
    assert len(raw.info['nouns']) == len(samples[0].nouns)
    assert bool(raw.masks_bytes) == bool(samples[0].nouns)
    assert list(verify_store(path)) == []


# --- version 1 ---


@pytest.fixture
def old(tmp_path):
    """Seven samples, written by the first version: without masks where there are no nouns."""
    with zipfile.ZipFile(VERSION_1) as archive:
        archive.extractall(tmp_path / 'old')
    return tmp_path / 'old'


def old_sample(number):
    made = varied_sample(number)
    if number == 2:
        made = replace(
            made,
            meta={'other': None},
            nouns=tuple(Noun(noun.text, noun.start, noun.end) for noun in made.nouns),
        )
    return made


def test_a_store_of_version_1_is_read_and_sound(old, capsys):
    store = Store(old)
    assert (store.manifest['version'], store.config) == (1, {'steps': 5, 'num_samples': 7})
    for number, found in enumerate(store):
        assert_same(found, old_sample(number))
    assert run_tool('store/verify', old) == 0
    assert capsys.readouterr().out == 'sound\n'


def test_a_store_of_version_1_is_copied_into_the_new_one(old, tmp_path):
    assert merge_stores([old], tmp_path / 'new') == 7
    assert filter_store(old, tmp_path / 'few', [parse_condition('meta.seed!=2')]) == 7
    for number, found in enumerate(Store(tmp_path / 'new')):
        assert_same(found, old_sample(number))
    with tarfile.open(tmp_path / 'new' / 'shard-000001.tar') as tar:
        assert '000004.masks.png' in tar.getnames()


def test_a_store_of_version_1_is_repaired_and_gone_on_with(old):
    whole = folder_bytes(old)
    (old / 'shard-000001.index.npy').unlink()
    (old / 'shard-000002.json').unlink()
    report = repair_store(old)
    assert report.restored == ['shard-000001', 'shard-000002'] and not report.left
    assert (old / 'shard-000001.index.npy').read_bytes() == whole['shard-000001.index.npy']
    assert list(verify_store(old)) == []
    for ending in ('.tar', '.index.npy', '.json'):
        (old / f'shard-000001{ending}').unlink()
    write_store(old, map(old_sample, range(7)), 3, {'steps': 5, 'num_samples': 7})
    for number, found in enumerate(Store(old)):
        assert_same(found, old_sample(number))
    assert list(verify_store(old)) == []


def test_single_bits_of_a_version_1_manifest_are_not_passed_over(old):
    """Without a checksum of its own: the shards' records are what it is compared with."""
    file = old / 'store.json'
    content, sound = file.read_bytes(), json.loads(file.read_bytes())
    samples = [sample.key for sample in Store(old)]
    for place in np.random.default_rng(0).choice(8 * len(content), 400, replace=False):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        try:
            store = Store(old)
            assert store.config == sound['config'] and [raw.key for raw in store] == samples
        except StoreError:
            continue
        try:
            same = json.loads(changed) == sound
        except ValueError:
            same = False
        assert same or list(verify_store(old, decode=False))

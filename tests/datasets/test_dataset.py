"""The dataset: stores, folders, both together, and what it says about bad ones."""

import copy
import io
import logging
import os
import random
import sys

import cv2
import numpy as np
import pytest
import torch
from helpers.servers import serve_files
from helpers.tiny_runs import config, different, train
from helpers.tiny_stores import make_store
from PIL import Image
from torch.utils.data import DataLoader

from freeatm_mm.configs import check_datasets
from freeatm_mm.datasets import FreeATMDataset, LoadFromStore, SeededSampler
from freeatm_mm.datasets import dataset as module
from freeatm_mm.errors import InputError
from freeatm_mm.ops import noun_id
from freeatm_mm.store import Sample, Store, StoreError, encode_sample, write_store
from freeatm_mm.store.errors import UnreachableStoreError


def make_folder(path, names):
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (12, 10), (number, 0, 200)).save(path / name)
    return path


def test_sample_equals_the_stores(tmp_path):
    store = Store(make_store(tmp_path / 'store'))
    dataset = FreeATMDataset(tmp_path / 'store', pipeline=[LoadFromStore()])
    assert len(dataset) == len(store) == 12
    for number in (0, 3, 11):
        sample, results = store[number], dataset[number]
        np.testing.assert_array_equal(results['img'][:, :, ::-1], np.asarray(sample.image))
        assert results['sample_idx'] == number and results['img_path'] == sample.key
        if sample.nouns:
            np.testing.assert_array_equal(results['stored_masks'], sample.masks)
            np.testing.assert_array_equal(results['mask_scales'], sample.scales)
            assert results['noun_ids'].tolist() == [noun_id(n.category) for n in sample.nouns]
        else:
            assert 'stored_masks' not in results


def test_a_store_at_an_address_is_as_one_here(tmp_path, monkeypatch):
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'cache'))
    path = make_store(tmp_path / 'served' / 'store')
    with serve_files(path.parent) as server:
        there, here = (
            FreeATMDataset(root, pipeline=[LoadFromStore()])
            for root in (f'{server.address}/store', path)
        )
        # Forked after the first read, as the workers of a training may be.
        loader = DataLoader(
            there, 3, num_workers=2, collate_fn=list, multiprocessing_context='fork'
        )
        assert there[0]['sample_idx'] == 0
        for number, results in enumerate(result for batch in loader for result in batch):
            expected = here[number]
            assert results.keys() == expected.keys()
            for name in ('img', 'stored_masks', 'mask_scales'):
                np.testing.assert_array_equal(results.get(name, 0), expected.get(name, 0))
        assert number == 11


@pytest.mark.parametrize('options', [{}, {'mask_source': 'other'}])
def test_a_batch_from_an_address_is_few_requests(options, tmp_path, monkeypatch):
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr('freeatm_mm.addresses.DELAYS', (0.0,))
    path = make_store(tmp_path / 'served' / 'store')
    pipeline = [dict(type='LoadFromStore'), *VIEW, dict(type='PackFreeATMInputs', grid_size=5)]
    draws = [(number, 100 + number) for number in (6, 0, 9, 2, 3, 11, 2, 5)]
    with serve_files(path.parent) as server:
        there, here = (
            FreeATMDataset(root, pipeline=pipeline, **options)
            for root in (f'{server.address}/store', path)
        )
        found = there.draw_batch(draws)
        asked = [place for _, place, _ in server.asked if place.endswith('.tar')]
        assert len(asked) == 3  # one a shard
        assert list(map(contents, found)) == list(map(contents, here.draw_batch(draws)))
        there.sources[0].read(6)  # no longer at hand
        assert len([place for _, place, _ in server.asked if place.endswith('.tar')]) == 4
        # A server that stops to answer isn't asked for every sample of the batch.
        server.mode, before = 503, len(server.asked)
        with pytest.raises(StoreError, match=r'its server answers 503 \(2 tries\)'):
            there.draw_batch(draws)
        assert len(server.asked) - before <= 2 * (3 + 2)
        # That says nothing of its samples, which aren't passed over for it.
        server.mode = 'sound'
        there = FreeATMDataset(
            f'{server.address}/store', pipeline=pipeline, max_unreadable=0.9, **options
        )
        there.draw_batch(draws[:1])
        server.mode, before = 503, len(server.asked)
        with pytest.raises(StoreError, match=r'its server answers 503 \(2 tries\)$'):
            there.draw_batch(draws)
        assert len(server.asked) - before <= 2 * (3 + 2) and not there._unreadable.any()


def test_samples_of_a_server_that_is_away_are_not_passed_over(tmp_path, monkeypatch):
    """Else which samples are trained on would depend on the network."""
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr('freeatm_mm.addresses.DELAYS', (0.0,))
    path = make_store(tmp_path / 'served' / 'store')
    pipeline = [dict(type='LoadFromStore'), *VIEW, dict(type='PackFreeATMInputs', grid_size=5)]
    with serve_files(path.parent) as server:
        dataset = FreeATMDataset(f'{server.address}/store', pipeline=pipeline, max_unreadable=0.5)
        dataset[0]
        server.mode, before = 503, len(server.asked)
        for draw in (lambda: dataset[3], lambda: dataset.draw_batch([(3, 0), (4, 0), (5, 0)])):
            with pytest.raises(UnreachableStoreError, match='answers 503') as caught:
                draw()
            assert 'max_unreadable' not in str(caught.value)
        assert len(server.asked) - before <= 2 * (1 + 3 + 2)
        server.mode = 'sound'
        assert dataset[3]['data_samples'] is not None and not dataset._unreadable.any()


def test_masks_left_out(tmp_path):
    make_store(tmp_path / 'store')
    dataset = FreeATMDataset(tmp_path / 'store', masks=False, pipeline=[LoadFromStore()])
    assert not any('stored_masks' in dataset[number] for number in range(12))


def test_stores_and_folders_together(tmp_path):
    make_store(tmp_path / 'a', count=6, nouns=(1,))
    make_folder(tmp_path / 'real', ['b/ö 2.jpg', 'a.PNG', 'b/1.jpeg', 'z.bmp'])
    (tmp_path / 'real' / 'notes.txt').write_text('no image')
    make_store(tmp_path / 'b', count=3, nouns=(2,), seed=1)
    dataset = FreeATMDataset(
        [tmp_path / 'a', tmp_path / 'real', str(tmp_path / 'b')], pipeline=[LoadFromStore()]
    )
    assert len(dataset) == 13
    names = [dataset[number]['img_path'] for number in range(13)]
    assert names == [
        *(f'{n:06d}' for n in range(6)),
        'a.PNG',
        'b/1.jpeg',
        'b/ö 2.jpg',
        'z.bmp',
        *(f'{n:06d}' for n in range(3)),
    ]
    counts = [len(dataset[number].get('noun_ids', ())) for number in range(13)]
    assert counts == [1] * 6 + [0] * 4 + [2] * 3
    assert dataset[-1]['sample_idx'] == 12


def test_linked_folders_are_read_once_each(tmp_path):
    """Class folders that are links elsewhere count; links to a folder above don't go round."""
    folder = make_folder(tmp_path / 'real', ['a/0.png', 'a/1.png'])
    make_folder(tmp_path / 'disk', ['0.png', 'deeper/1.png'])
    (folder / 'b').symlink_to(tmp_path / 'disk')
    (folder / 'a' / 'up').symlink_to(folder)
    (tmp_path / 'disk' / 'deeper' / 'round').symlink_to(tmp_path / 'disk')
    (folder / 'd.png').mkdir()  # a folder, whatever its name
    (folder / 'c.png').symlink_to(tmp_path / 'disk' / '0.png')
    dataset = FreeATMDataset(folder, pipeline=[LoadFromStore()])
    assert [dataset[number]['img_path'] for number in range(len(dataset))] == [
        'a/0.png',
        'a/1.png',
        'b/0.png',
        'b/deeper/1.png',
        'c.png',
    ]


def test_unreadable_folder_is_told(tmp_path, monkeypatch):
    """Permissions don't bind root, who may run the tests: the system's answer is made up."""
    folder = make_folder(tmp_path / 'real', ['a/0.png', 'b/0.png'])
    scan = os.scandir

    def refuse(path):
        if str(path).endswith('b'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(StoreError, match=r"real/b can't be read \(Permission denied\)"):
        FreeATMDataset(folder)


def test_indices(tmp_path):
    make_store(tmp_path / 'store')
    chosen = FreeATMDataset(tmp_path / 'store', indices=[7, 2], pipeline=[LoadFromStore()])
    assert [chosen[0]['img_path'], chosen[1]['img_path']] == ['000007', '000002']
    assert len(FreeATMDataset(tmp_path / 'store', indices=5)) == 5


def test_share_is_a_fixed_random_part(tmp_path):
    make_store(tmp_path / 'a', count=30)
    make_folder(tmp_path / 'b', [f'{n}.png' for n in range(30)])
    stores = [tmp_path / 'a', tmp_path / 'b']
    half = FreeATMDataset(stores, share=0.5, pipeline=[LoadFromStore()])
    names = [half[number]['img_path'] for number in range(len(half))]
    assert len(half) == len(set(names)) == 30
    assert 8 <= sum(name.endswith('.png') for name in names) <= 22  # of both, and of neither all
    again = FreeATMDataset(stores, share=0.5, pipeline=[LoadFromStore()])
    assert again.data_list.tolist() == half.data_list.tolist() == sorted(half.data_list)
    assert len(FreeATMDataset(stores, share=0.5, indices=[7, 2, 40, 3])) == 2
    assert len(FreeATMDataset(stores, share=1e-6)) == 1
    for share in (0, -0.5, 1.5):
        with pytest.raises(ValueError, match='share'):
            FreeATMDataset(stores, share=share)


def test_opening_costs_nothing_per_sample(tmp_path):
    dataset = FreeATMDataset(make_store(tmp_path / 'store', count=20))
    assert isinstance(dataset.data_list, range)
    assert sys.getsizeof(dataset.data_list) < 100


def test_a_seed_decides_all_random_choices(tmp_path):
    make_store(tmp_path / 'store')

    def draw(results):
        return random.random(), np.random.uniform(), torch.rand(1).item()

    dataset = FreeATMDataset(tmp_path / 'store', pipeline=[draw], photometric=['function'])
    first = dataset[(3, 17)]
    dataset[(4, 1)]
    assert dataset[(3, 17)] == first != dataset[(3, 18)]
    np.random.seed(0)
    expected = np.random.uniform()
    np.random.seed(0)
    assert dataset[3][1] == expected  # a plain number leaves the random state alone


def test_pipeline_that_leaves_masks_behind_is_refused(tmp_path):
    pipeline = [dict(type='LoadFromStore'), dict(type='RandomFlip', prob=0.5)]
    store = make_store(tmp_path / 'store')
    with pytest.raises(ValueError, match='use FreeATMRandomFlip'):
        FreeATMDataset(store, pipeline=pipeline)
    FreeATMDataset(store, masks=False, pipeline=pipeline)[0]


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda path: path / 'nowhere', 'no such folder'),
        (lambda path: path, 'is empty'),
        (lambda path: [], 'has no data_root'),
        (lambda path: '', 'has no data_root'),
    ],
)
def test_bad_stores(tmp_path, make, message):
    with pytest.raises(StoreError, match=message):
        FreeATMDataset(make(tmp_path))
    dataset = dict(type='FreeATMDataset', data_root=make(tmp_path))
    wrapped = dict(dataset=dict(type='ConcatDataset', datasets=[dataset]))
    with pytest.raises(
        StoreError, match=rf'^train_dataloader.dataset.datasets.0: .*{message}.*--data-root'
    ):
        check_datasets(dict(train_dataloader=wrapped))


def test_broken_image_is_named(tmp_path):
    folder = make_folder(tmp_path / 'real', ['good.png', 'worse.png'])
    (folder / 'worse.png').write_bytes(b'no image at all')
    dataset = FreeATMDataset(folder, pipeline=[LoadFromStore()])
    dataset[0]
    with pytest.raises(StoreError, match="worse.png.*can't be decoded"):
        dataset[1]
    (folder / 'worse.png').unlink()
    with pytest.raises(StoreError, match="worse.png.*can't be read"):
        dataset[1]


def test_names_of_any_bytes(tmp_path):
    """File names are bytes; on old disks they needn't be UTF-8."""
    folder = make_folder(tmp_path / 'real', ['good.png'])
    os.rename(folder / 'good.png', os.fsencode(folder) + b'/stra\xdfe.png')
    sample = FreeATMDataset(folder, pipeline=[LoadFromStore()])[0]
    assert os.fsencode(sample['img_path']) == b'stra\xdfe.png'


@pytest.fixture
def told(monkeypatch):
    """The warnings of this process, each a line."""
    messages = []
    monkeypatch.setattr(
        module,
        'print_log',
        lambda message, logger, level: (
            messages.append(message) if (logger, level) == ('current', logging.WARNING) else None
        ),
    )
    return messages


def spoil(path, key):
    """Changes a byte of a sample's image in a store's shard."""
    for shard in sorted(path.glob('*.tar')):
        data = shard.read_bytes()
        at = data.find(f'{key}.png'.encode())
        if at >= 0:
            shard.write_bytes(data[: at + 600] + bytes([data[at + 600] ^ 1]) + data[at + 601 :])
            return
    raise AssertionError(f'there is no sample {key}')


def make_damaged(kind, path):
    """Twelve samples, the third and eighth of which can't be read; path, and their names."""
    if kind == 'store':
        make_store(path)
        for key in ('000002', '000007'):
            spoil(path, key)
        return path, ['000002', '000007']
    make_folder(path, [f'{number:02d}.jpg' for number in range(12)])
    whole = (path / '02.jpg').read_bytes()
    (path / '02.jpg').write_bytes(whole[: len(whole) // 2])  # a download that was cut off
    (path / '07.jpg').write_bytes(b'')
    return path, ['02.jpg', '07.jpg']


def choose(results):
    """A transform that keeps the name and draws a number."""
    return dict(path=results['img_path'], drawn=np.random.uniform())


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', ['store', 'folder'])
def test_unreadable_samples_are_passed_over_if_asked(kind, tmp_path, told):
    path, names = make_damaged(kind, tmp_path / 'data')
    dataset = FreeATMDataset(
        path, pipeline=[LoadFromStore(), choose], photometric=['function'], max_unreadable=0.2
    )
    sampler = SeededSampler(dataset, seed=1, shuffle=False)
    runs = []
    for workers in (0, 2, 0):
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=5, sampler=sampler, num_workers=workers, collate_fn=list
        )
        runs.append([item for batch in loader for item in batch])
    assert runs[0] == runs[1] == runs[2]  # the same images in their place
    paths = [item['path'] for item in runs[0]]
    assert len(paths) == 12 and not set(paths) & set(names)
    assert len(set(paths)) == 10
    # Told once each, with a count, though they were met three times.
    assert len(told) == 2
    assert names[0] in told[0] and '(unreadable so far: 1 of 12, at most 2)' in told[0]
    assert names[1] in told[1] and 'so far: 2 of 12, ' in told[1]
    assert not any('\n' in message for message in told)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', ['store', 'folder'])
@pytest.mark.parametrize('workers', [0, 2])
def test_too_many_unreadable_samples_stop_the_training(kind, workers, tmp_path):
    path, names = make_damaged(kind, tmp_path / 'data')
    for share, message in (
        (0.1, "with it 2 samples of 12 can't be read, and max_unreadable=0.1 allows 1"),
        (0.0, 'max_unreadable of FreeATMDataset'),
    ):
        dataset = FreeATMDataset(
            path, pipeline=[LoadFromStore(), choose], photometric=['function'], max_unreadable=share
        )
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=5,
            num_workers=workers,
            collate_fn=list,
            sampler=SeededSampler(dataset),
        )
        batches = iter(loader)
        with pytest.raises(StoreError, match=message):
            list(batches)
        if workers:  # not left to the collection of garbage, which may take its time
            batches._shutdown_workers()
    with pytest.raises(ValueError, match='max_unreadable 1'):
        FreeATMDataset(path, max_unreadable=1)


VIEW = [
    dict(type='FreeATMRandomResizedCrop', scale=20, backend='pillow'),
    dict(type='RandomApply', prob=0.5, transforms=[dict(type='ColorJitter', brightness=0.4)]),
    dict(type='FreeATMRandomFlip', prob=0.5),
]


def contents(item):
    """All of a packed sample, to compare."""
    views, sample = item['inputs'], item['data_samples']
    views = views if isinstance(views, list) else [views]
    fields = {key: np.asarray(sample.get(key)).tolist() for key in sorted(sample.all_keys())}
    return [view.tolist() for view in views], fields


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    'options', [{}, {'masks': False}, {'mask_source': 'other'}, {'one_noun': True}]
)
@pytest.mark.parametrize('views', [VIEW, [dict(type='FreeATMMultiView', transforms=[VIEW])]])
def test_a_batch_is_its_samples(views, options, tmp_path, told, monkeypatch):
    """Bit for bit: those that can't be read, and those that a transform refuses, included."""
    options = dict(options)
    pack = dict(one_noun=options.pop('one_noun', False))
    load = dict(trust=options.get('masks', True), **({} if options else {'centred_box': 'own'}))
    path, _ = make_damaged('store', tmp_path / 'store')
    views = [dict(view) for view in views]
    if views[0]['type'] == 'FreeATMMultiView':
        views[0]['num_views'] = 2

    def refuse(results):
        return None if np.random.uniform() < 0.2 else results

    pipeline = [
        dict(type='LoadFromStore', **load),
        *views,
        refuse,
        dict(type='PackFreeATMInputs', grid_size=5, **pack),
    ]
    monkeypatch.setattr(module, 'DRAWN_TOGETHER', 5)
    made = [
        FreeATMDataset(
            path, pipeline=pipeline, photometric=['function'], max_unreadable=0.4, **options
        )
        for _ in range(2)
    ]
    draws = [(number % 12, 100 + number) for number in range(30)]
    together = made[0].draw_batch(draws)
    alone = [made[1][draw] for draw in draws]
    assert list(map(contents, together)) == list(map(contents, alone))
    half = len(told) // 2
    assert half >= 2 and told[:half] == told[half:]
    assert any('noun_ids' in item['data_samples'] for item in alone) == (
        options != {'masks': False}
    )


def test_a_dataset_derived_from_ours_is_asked_as_it_says(tmp_path):
    class Derived(FreeATMDataset):
        def prepare_data(self, idx):
            return 'prepared'

    pipeline = [dict(type='LoadFromStore'), dict(type='PackFreeATMInputs', grid_size=5)]
    dataset = Derived(make_store(tmp_path / 'store'), pipeline=pipeline)
    assert dataset.draw_batch([(0, 1)]) == ['prepared']


def test_other_errors_are_no_unreadable_samples(tmp_path):
    def broken(results):
        raise ValueError('a transform')

    dataset = FreeATMDataset(
        make_store(tmp_path / 'store'),
        photometric=['function'],
        pipeline=[LoadFromStore(), broken],
        max_unreadable=0.9,
    )
    with pytest.raises(ValueError, match='a transform'):
        dataset[0]


@pytest.mark.parametrize('image_format', ['JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'PPM'])
def test_images_cut_off_are_unreadable(image_format, tmp_path):
    """Not half an image over grey."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    data = buffer.getvalue()
    suffix = {'JPEG': 'jpg'}.get(image_format, image_format.lower())
    (tmp_path / 'real').mkdir()
    for number, cut in enumerate((len(data) // 2, len(data) - 20)):
        (tmp_path / 'real' / f'{number}.{suffix}').write_bytes(data[:cut])
    dataset = FreeATMDataset(tmp_path / 'real', pipeline=[LoadFromStore()])
    for number in (0, 1):
        with pytest.raises(StoreError, match=f"{number}.{suffix}.*can't be decoded"):
            dataset[number]


def pictures():
    """Files of many kinds, with what they should look like: name -> (bytes, RGB)."""
    small = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    colours = np.kron(small, np.ones((8, 8, 1), np.uint8))
    image = Image.fromarray(colours)
    alpha = np.full((*colours.shape[:2], 1), 90, np.uint8)
    grey = np.repeat(np.asarray(image.convert('L'))[..., None], 3, 2)
    palette = image.quantize(16)

    def encoded(picture, image_format='PNG', **options):
        buffer = io.BytesIO()
        picture.save(buffer, image_format, **options)
        return buffer.getvalue()

    def deep(array):
        return cv2.imencode('.png', array.astype(np.uint16) * 257)[1].tobytes()

    return {
        'palette.png': (encoded(palette, transparency=3), np.asarray(palette.convert('RGB'))),
        'rgba.png': (encoded(Image.fromarray(np.dstack([colours, alpha]))), colours),
        'grey-alpha.png': (encoded(Image.fromarray(grey[..., 0]).convert('LA')), grey),
        'grey.jpg': (encoded(image.convert('L'), 'JPEG', quality=100), grey),
        'bit.png': (encoded(image.convert('1')), np.asarray(image.convert('1').convert('RGB'))),
        'cmyk.jpg': (encoded(image.convert('CMYK'), 'JPEG', quality=100), colours),
        '16-bit.png': (deep(colours[..., ::-1]), colours),
        '16-bit-grey.png': (deep(grey[..., 0]), grey),
    }


@pytest.mark.parametrize('name', pictures())
def test_kinds_of_pictures_look_as_they_should(name, tmp_path):
    data, expected = pictures()[name]
    (tmp_path / name).write_bytes(data)
    found = FreeATMDataset(tmp_path, pipeline=[LoadFromStore()])[0]['img'][..., ::-1]
    assert found.shape == expected.shape and found.dtype == np.uint8
    np.testing.assert_allclose(found.astype(int), expected, atol=4 if '.jpg' in name else 0)


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('masks', [True, False])
def test_a_turned_image_is_turned_in_a_folder_and_not_in_a_store(backend, masks, tmp_path):
    """A folder's as in mmpretrain; a store's not, as its masks take the pixels as stored."""
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown a quarter to the right
    buffer = io.BytesIO()
    Image.new('RGB', (40, 20)).save(buffer, 'JPEG', exif=turned)
    (tmp_path / 'real').mkdir()
    (tmp_path / 'real' / 'a.jpg').write_bytes(buffer.getvalue())
    upright = Sample.from_image('a', Image.new('RGB', (40, 20)))
    # Such as writers no longer make.
    raw = encode_sample(upright)._replace(image_bytes=buffer.getvalue())
    write_store(tmp_path / 'store', [raw])
    loader = LoadFromStore(imdecode_backend=backend)
    for source, size in (('real', (40, 20)), ('store', (20, 40))):
        assert (
            FreeATMDataset(tmp_path / source, masks=masks, pipeline=[loader])[0]['img_shape']
            == size
        )


@pytest.mark.parametrize(
    'noun', [dict(lo=float('nan')), dict(hi=float('inf')), dict(hi=None), dict(lo='x')]
)
def test_attention_that_is_no_number_is_told(noun, tmp_path):
    make_store(tmp_path / 'store', nouns=(1,))
    dataset = FreeATMDataset(tmp_path / 'store', pipeline=[LoadFromStore()])
    info = dataset.get_data_info(0)
    raw = info['source'].read(0)
    raw.info['nouns'][0].update(noun)

    class Source:
        path = 'store'

        def read(self, number):
            return raw

    with pytest.raises(StoreError, match="store: sample '000000': its JSON"):
        LoadFromStore()(dict(info, source=Source()))


def test_indices_of_a_file(tmp_path):
    store, path = make_store(tmp_path / 'store'), tmp_path / 'samples.json'
    path.write_text('[7, 2]')
    named = FreeATMDataset(store, indices=str(path), pipeline=[LoadFromStore()])
    listed = FreeATMDataset(store, indices=[7, 2], pipeline=[LoadFromStore()])
    assert [named[i]['img_path'] for i in (0, 1)] == [listed[i]['img_path'] for i in (0, 1)]
    for text in ('{"a": 1}', '[1, true]', '[0.5]'):
        path.write_text(text)
        with pytest.raises(InputError, match='samples.json must be a list of the numbers'):
            FreeATMDataset(store, indices=str(path))
    with pytest.raises((FileNotFoundError, InputError)):
        FreeATMDataset(store, indices=str(tmp_path / 'none.json'))


@pytest.mark.parametrize('indices', [0, []])
def test_nothing_left_is_told(indices, tmp_path):
    make_store(tmp_path / 'store')
    with pytest.raises(StoreError, match='no sample is left of the 12 in .*store: indices='):
        FreeATMDataset(tmp_path / 'store', indices=indices)


@pytest.mark.parametrize('indices', [13, -13, [0, 12], [-13]])
def test_samples_that_there_are_not_are_told(indices, tmp_path):
    make_store(tmp_path / 'store')
    with pytest.raises(
        StoreError, match='store: indices asks for -?1.*the number of samples is 12'
    ):
        FreeATMDataset(tmp_path / 'store', indices=indices)
    assert len(FreeATMDataset(tmp_path / 'store', indices=12)) == 12
    assert len(FreeATMDataset(tmp_path / 'store', indices=-12)) == 12


def test_stores_without_a_noun_are_warned_of(tmp_path, told):
    make_store(tmp_path / 'plain', nouns=(0,))
    make_store(tmp_path / 'nouns')
    make_folder(tmp_path / 'real', ['a.png'])
    FreeATMDataset([tmp_path / 'nouns', tmp_path / 'plain'])
    FreeATMDataset(tmp_path / 'real')
    FreeATMDataset(tmp_path / 'plain', masks=False)
    dataset = dict(type='FreeATMDataset', data_root=str(tmp_path / 'plain'))
    check_datasets(dict(train_dataloader=dict(dataset=dataset)))
    assert told == []
    FreeATMDataset([tmp_path / 'plain', tmp_path / 'real'])
    assert len(told) == 1 and 'plain: no sample has a noun' in told[0]


def masks_of(dataset, number):
    """Masks, scales and nouns that a sample gets, in a form that compares."""
    results = dataset[number]
    return tuple(
        results[key].tobytes() if key in results else None
        for key in ('stored_masks', 'mask_scales', 'noun_ids')
    )


def test_masks_of_other_images(tmp_path):
    """Each image of the stores gets another's, none its own, none twice; folders get none."""
    make_store(tmp_path / 'a', count=9)
    make_folder(tmp_path / 'real', ['x.png', 'y.png'])
    make_store(tmp_path / 'b', count=8, seed=1, mask_size=(6, 9))
    stores = [tmp_path / 'a', tmp_path / 'real', tmp_path / 'b']

    def dataset(**arguments):
        return FreeATMDataset(stores, pipeline=[LoadFromStore()], **arguments)

    own, other = dataset(), dataset(mask_source='other')
    infos = [other.get_data_info(number) for number in range(len(other))]
    numbers = [
        (str(info['mask_source'].path), info['mask_source_idx'])
        for info in infos
        if 'mask_source' in info
    ]
    images = [(str(info['source'].path), info['source_idx']) for info in infos]
    assert images == [
        (str(info['source'].path), info['source_idx'])
        for info in map(own.get_data_info, range(len(own)))
    ]
    assert len(numbers) == len(set(numbers)) == 17
    places = [number for number in range(19) if number not in (9, 10)]
    assert all(images[place] != number for place, number in zip(places, numbers))
    assert sorted(numbers) == sorted(images[place] for place in places)
    for place, number in zip(places, numbers):
        assert masks_of(other, place) == masks_of(own, images.index(number))
        np.testing.assert_array_equal(other[place]['img'], own[place]['img'])
        assert other[place]['img_path'] == own[place]['img_path']
    assert masks_of(other, 9) == (None,) * 3

    # The same in every run, at any order of access; another with another seed.
    again = dataset(mask_source='other')
    assert [masks_of(again, number) for number in reversed(range(19))] == [
        masks_of(other, number) for number in reversed(range(19))
    ]
    assert [
        masks_of(dataset(mask_source='other', mask_source_seed=1), number) for number in places
    ] != [masks_of(other, number) for number in places]
    # Among the samples that are used, only.
    part = dataset(mask_source='other', indices=[0, 1, 2, 9])
    assert {part.get_data_info(number)['mask_source_idx'] for number in range(3)} == {0, 1, 2}
    half = dataset(mask_source='other', share=0.5)
    used = {
        (str(info['source'].path), info['source_idx'])
        for info in map(half.get_data_info, range(len(half)))
    }
    assert all(
        (str(info['mask_source'].path), info['mask_source_idx']) in used
        for info in map(half.get_data_info, range(len(half)))
        if 'mask_source' in info
    )


def test_indices_of_any_kind_and_none_that_is_no_number(tmp_path):
    store = make_store(tmp_path / 'store')
    for indices in (np.array([1, 2]), torch.tensor([1, 2]), (1, 2), range(1, 3)):
        dataset = FreeATMDataset(store, indices=indices)
        assert [dataset.get_data_info(number)['source_idx'] for number in (0, 1)] == [1, 2]
    assert len(FreeATMDataset(store, indices=np.int64(4))) == 4
    for indices in ([1.5], 2.0, True, ['1'], np.array([0.5])):
        with pytest.raises(InputError, match='indices must be a number of samples, a list'):
            FreeATMDataset(store, indices=indices)
    dataset = FreeATMDataset(store, pipeline=[LoadFromStore()])
    assert dataset[torch.tensor(3)]['img_path'] == dataset[np.int64(-9)]['img_path'] == '000003'
    for number in (12, -13):
        with pytest.raises(IndexError, match=f'sample {number} of a data set that has 12'):
            dataset[number]
    for number in (1.0, [1, 2], '1'):
        with pytest.raises(TypeError, match='samples are chosen by their number, got'):
            dataset[number]


def test_pipelines_that_lose_the_masks_or_read_nothing_are_told(tmp_path):
    store, load, pack = make_store(tmp_path / 'store'), dict(type='LoadFromStore'), 'PackInputs'
    with pytest.raises(ValueError, match='PackInputs would leave the masks out: use PackFreeATM'):
        FreeATMDataset(store, pipeline=[load, dict(type=pack)], photometric=[pack])
    FreeATMDataset(store, masks=False, pipeline=[load, dict(type=pack)])
    crop = dict(type='FreeATMRandomResizedCrop', scale=32)
    for masks, first in ((True, crop), (False, crop), (False, dict(type='LoadImageFromFile'))):
        with pytest.raises(ValueError, match=f'begin with LoadFromStore, not {first["type"]}'):
            FreeATMDataset(store, masks=masks, pipeline=[first])


def test_a_subset_keeps_to_itself(tmp_path):
    """As `KFoldDataset` takes one: its masks, and the count that its workers share."""
    store = make_store(tmp_path / 'store')
    dataset = FreeATMDataset(store, mask_source='other', max_unreadable=0.5)
    dataset._batches = 'of all samples'
    fold = dataset.get_subset([1, 4, 5, 9])
    in_place = copy.deepcopy(dataset)
    in_place.get_subset_([1, 4, 5, 9])
    for subset in (fold, in_place):
        infos = [subset.get_data_info(number) for number in range(len(subset))]
        assert [info['source_idx'] for info in infos] == [1, 4, 5, 9]
        assert sorted(info['mask_source_idx'] for info in infos) == [1, 4, 5, 9]
        assert all(info['source_idx'] != info['mask_source_idx'] for info in infos)
        assert subset._unreadable.is_shared() and not hasattr(subset, '_batches')
        assert isinstance(subset.data_list, np.ndarray)


@pytest.mark.filterwarnings('ignore')
def test_masks_of_other_images_in_workers_and_epochs(tmp_path):
    store = make_store(tmp_path / 'store', nouns=(1,))

    def keep(results):
        return results['img_path'], results['stored_masks'].tobytes()

    dataset = FreeATMDataset(
        store, mask_source='other', pipeline=[LoadFromStore(), keep], photometric=['function']
    )
    sampler, seen = SeededSampler(dataset, seed=0), []
    for epoch, workers in ((0, 0), (1, 2), (5, 1)):
        sampler.set_epoch(epoch)
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=5, num_workers=workers, sampler=sampler, collate_fn=list
        )
        seen.append(dict(item for batch in loader for item in batch))
    assert len(seen[0]) == 12 and seen[0] == seen[1] == seen[2]


def test_controls_where_they_make_no_sense_are_refused(tmp_path):
    store = make_store(tmp_path / 'store')
    make_folder(tmp_path / 'real', ['x.png', 'y.png'])
    with pytest.raises(ValueError, match="mask_source='other' needs masks=True"):
        FreeATMDataset(store, masks=False, mask_source='other')
    with pytest.raises(ValueError, match="mask_source 'another'"):
        FreeATMDataset(store, mask_source='another')
    for stores, arguments, count in (
        (tmp_path / 'real', {}, 0),
        (store, dict(indices=[3]), 1),
        (store, dict(indices=[3, 3]), 1),
    ):
        with pytest.raises(StoreError, match=f'exchanges masks.*there are {count}'):
            FreeATMDataset(stores, mask_source='other', **arguments)
    with pytest.raises(ValueError, match='centred_box of LoadFromStore needs masks=True'):
        FreeATMDataset(store, masks=False, pipeline=[LoadFromStore(centred_box=0.2)])
    with pytest.raises(ValueError, match='trust of LoadFromStore needs masks=True'):
        FreeATMDataset(store, masks=False, pipeline=[LoadFromStore(trust=True)])
    for option, (trust, one_noun) in {'trust': (True, False), 'one_noun': (False, True)}.items():
        pack = dict(type='PackFreeATMInputs', grid_size=5, with_masks=False, one_noun=one_noun)
        with pytest.raises(
            ValueError, match=f'{option} of .* needs with_masks=True of PackFreeATM'
        ):
            FreeATMDataset(store, pipeline=[LoadFromStore(trust=trust), pack])
    for box in (0, -0.1, 1.5, 'whole'):
        with pytest.raises(ValueError, match='centred_box'):
            LoadFromStore(centred_box=box)


@pytest.mark.parametrize('box', [0.25, 1.0, 'own'])
def test_centred_boxes_in_place_of_masks(box, tmp_path):
    """Nouns, scales and the image stay; with masks of others, too."""
    store = make_store(tmp_path / 'store')
    for source in ('own', 'other'):
        plain, boxes = (
            FreeATMDataset(store, mask_source=source, pipeline=[LoadFromStore(centred_box=value)])
            for value in (None, box)
        )
        for number in range(12):
            one, other = plain[number], boxes[number]
            assert masks_of(plain, number)[1:] == masks_of(boxes, number)[1:]
            np.testing.assert_array_equal(one['img'], other['img'])
            if 'stored_masks' not in one:
                continue
            assert other['stored_masks'].shape == one['stored_masks'].shape
            for mask, given in zip(one['stored_masks'], other['stored_masks']):
                area = (mask >= 115).mean() if box == 'own' else box
                assert given.mean() / 255 == pytest.approx(area, abs=0.002)
                np.testing.assert_array_equal(given, given[::-1, ::-1])


@pytest.mark.parametrize('box', [0.25, 1.0, 'own'])
@pytest.mark.parametrize('source', ['own', 'other'])
def test_a_box_has_the_trust_of_the_mask_in_whose_place_it_is(source, box, tmp_path):
    """And another image's mask its own, as its noun: each sample by itself, and in memory."""
    store = make_store(tmp_path / 'store', nouns=(1, 2))
    crop = dict(type='FreeATMRandomResizedCrop', scale=20, crop_ratio_range=(1.0, 1.0))
    steps = [
        dict(type='LoadFromStore', centred_box=box, trust=True),
        crop,
        dict(type='PackFreeATMInputs', grid_size=5),
    ]
    alone, together = (
        FreeATMDataset(store, mask_source=source, pipeline=steps, in_memory=in_memory)
        for in_memory in (False, True)
    )
    plain = FreeATMDataset(store, mask_source=source, pipeline=[LoadFromStore()])
    draws = [(number, number) for number in range(12)]
    for number, item in enumerate(together.draw_batch(draws)):
        given = plain[number]
        inside = given['stored_masks'] >= 115
        (low, high), levels = given['mask_scales'].T, given['stored_masks'].T / 255
        maps = (low + (high - low) * levels).T
        expected = [
            1 - attention[~front].mean() / attention[front].mean()
            for attention, front in zip(maps, inside)
        ]
        for sample in (item['data_samples'], alone[number]['data_samples']):
            assert sample.noun_ids.tolist() == given['noun_ids'].tolist()
            np.testing.assert_allclose(sample.trust, expected, rtol=1e-5)


@pytest.mark.filterwarnings('ignore')
def test_controls_from_the_command_line(tmp_path):
    """A training for each, through config, loader and model; each learns something else."""
    store = make_store(tmp_path / 'store', count=20)
    states = {}
    for name, changes in {
        'own': {},
        'other': {'train_dataloader.dataset.mask_source': 'other'},
        'other, workers': {
            'train_dataloader.dataset.mask_source': 'other',
            'train_dataloader.num_workers': 2,
        },
        'box': {'train_dataloader.dataset.pipeline.0.centred_box': 0.5},
    }.items():
        states[name] = train(config(store, tmp_path / name, **changes), f'control-{name}')
    assert different(states['other'], states['other, workers']) == []
    arms = [states[name] for name in states if name != 'other, workers']
    assert all(different(one, two) for at, one in enumerate(arms) for two in arms[:at])


@pytest.mark.filterwarnings('ignore')
def test_a_training_through_wrappers(tmp_path):
    """A repeated data set and two joined ones; as with more workers, bit for bit."""
    store, states = make_store(tmp_path / 'store', count=10), []
    for workers in (0, 2):
        cfg = config(store, tmp_path / f'{workers}', workers=workers)
        inner = cfg.train_dataloader.dataset
        cfg.train_dataloader.dataset = dict(
            type='RepeatDataset',
            times=2,
            dataset=dict(type='ConcatDataset', datasets=[inner, dict(inner, masks=False)]),
        )
        states.append(train(cfg, f'wrapped-{workers}'))
    assert different(*states) == []

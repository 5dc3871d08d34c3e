"""The dataset: stores, folders, both together, and what it says about bad ones."""
import os
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_stores import make_store

from freeatm_mm.datasets import FreeATMDataset, LoadFromStore, check_stores
from freeatm_mm.datasets.transforms import noun_id
from freeatm_mm.store import Store, StoreError


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


def test_masks_left_out(tmp_path):
    make_store(tmp_path / 'store')
    dataset = FreeATMDataset(tmp_path / 'store', masks=False, pipeline=[LoadFromStore()])
    assert not any('stored_masks' in dataset[number] for number in range(12))


def test_stores_and_folders_together(tmp_path):
    make_store(tmp_path / 'a', count=6, nouns=(1, ))
    make_folder(tmp_path / 'real', ['b/ö 2.jpg', 'a.PNG', 'b/1.jpeg', 'z.bmp'])
    (tmp_path / 'real' / 'notes.txt').write_text('no image')
    make_store(tmp_path / 'b', count=3, nouns=(2, ), seed=1)
    dataset = FreeATMDataset([tmp_path / 'a', tmp_path / 'real', str(tmp_path / 'b')],
                             pipeline=[LoadFromStore()])
    assert len(dataset) == 13
    names = [dataset[number]['img_path'] for number in range(13)]
    assert names == [*(f'{n:06d}' for n in range(6)), 'a.PNG', 'b/1.jpeg', 'b/ö 2.jpg', 'z.bmp',
                     *(f'{n:06d}' for n in range(3))]
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
        'a/0.png', 'a/1.png', 'b/0.png', 'b/deeper/1.png', 'c.png']


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
    import random

    import torch
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


@pytest.mark.parametrize('make, message', [
    (lambda path: path / 'nowhere', 'no such folder'),
    (lambda path: path, 'is empty'),
    (lambda path: [], 'empty list'),
])
def test_bad_stores(tmp_path, make, message):
    with pytest.raises(StoreError, match=message):
        FreeATMDataset(make(tmp_path))
    config = dict(a=[dict(type='FreeATMDataset', store=make(tmp_path))])
    with pytest.raises(StoreError, match=message):
        check_stores(config)


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

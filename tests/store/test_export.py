"""Exports, read back by the packages that they are for."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from helpers.store_samples import make_sample, varied_sample
from PIL import Image

from freeatm_mm.prompts import Noun
from freeatm_mm.store import Sample, Store, StoreError, decode_masks, write_store
from freeatm_mm.store.export import (
    binary_masks,
    coco_annotation,
    export_class_folders,
    export_coco,
    export_mmseg,
    export_parquet,
)
from freeatm_mm.store.locking import new_folder


def square(side, x, y, size, value=255):
    mask = np.zeros((side, side), np.uint8)
    mask[y : y + size, x : x + size] = value
    return mask


def sample(key, masks, names=('dog', 'cat'), category=True, side=8):
    caption = 'a photo of ' + ' '.join(names)
    nouns = tuple(
        Noun(name, caption.index(name), caption.index(name) + len(name), name if category else None)
        for name in names
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8))
    return Sample.from_image(
        key,
        image,
        image_format='png',
        caption=caption,
        nouns=nouns,
        masks=np.stack(masks),
        scales=np.tile([[0.0, 1.0]], (len(nouns), 1)).astype(np.float32),
    )


@pytest.fixture
def path(tmp_path):
    """Two images: two squares that overlap in one, and a flat mask in the other."""
    write_store(
        tmp_path / 'store',
        [
            sample('a', [square(8, 0, 0, 4), square(8, 3, 3, 4, 200)]),
            sample('b', [square(8, 4, 0, 2), np.zeros((8, 8), np.uint8)], category=False),
        ],
        1,
    )
    return tmp_path / 'store'


def test_coco_is_read_by_pycocotools(path, tmp_path):
    from pycocotools.coco import COCO

    report = export_coco(path, tmp_path / 'coco')
    assert (report.images, report.instances, report.empty) == (2, 3, 1)
    coco = COCO(tmp_path / 'coco' / 'coco.json')
    assert coco.loadCats(coco.getCatIds()) == [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}]
    dog, cat, other = coco.loadAnns(coco.getAnnIds())
    assert (dog['image_id'], dog['category_id'], dog['bbox'], dog['area']) == (
        0,
        2,
        [0, 0, 4, 4],
        16,
    )
    assert (cat['category_id'], cat['bbox']) == (1, [3, 3, 4, 4])
    assert (other['image_id'], other['bbox']) == (1, [4, 0, 2, 2])
    np.testing.assert_array_equal(coco.annToMask(dog), square(8, 0, 0, 4, 1))
    (image,) = coco.loadImgs(1)
    assert (tmp_path / 'coco' / 'images' / image['file_name']).read_bytes() == Store(path)[
        1
    ].image_bytes
    assert sorted(file.name for file in (tmp_path / 'coco').iterdir()) == ['coco.json', 'images']


def test_masks_are_resized_to_the_image(tmp_path):
    big = sample('a', [square(4, 1, 0, 2), square(4, 0, 0, 1)], side=16)
    found = binary_masks(big)
    assert found.shape == (2, 16, 16)
    rows, columns = np.flatnonzero(found[0].any(1)), np.flatnonzero(found[0].any(0))
    assert (columns[0], columns[-1], rows[0], rows[-1]) == (4, 11, 0, 7)


def test_an_empty_mask_has_no_annotation():
    assert coco_annotation(np.zeros((4, 4), bool)) is None


def test_mmseg_label_maps(path, tmp_path):
    report = export_mmseg(path, tmp_path / 'seg')
    assert (report.instances, report.empty) == (3, 1)
    folder = tmp_path / 'seg'
    assert (folder / 'classes.txt').read_text().split() == ['background', 'cat', 'dog']
    labels = np.asarray(Image.open(folder / 'labels' / 'a.png'))
    expected = np.where(square(8, 3, 3, 4), 1, 0)
    expected[:4, :4] = 2  # the dog is stronger where both are
    np.testing.assert_array_equal(labels, expected)
    assert (folder / 'images' / 'b.png').exists()


def test_mmseg_reads_the_label_maps(path, tmp_path):
    pytest.importorskip('mmseg')
    from mmseg.datasets import BaseSegDataset

    export_mmseg(path, tmp_path / 'seg')
    classes = (tmp_path / 'seg' / 'classes.txt').read_text().split()
    data = BaseSegDataset(
        data_root=str(tmp_path / 'seg'),
        metainfo={'classes': classes},
        img_suffix='.png',
        data_prefix={'img_path': 'images', 'seg_map_path': 'labels'},
        reduce_zero_label=False,
        pipeline=[{'type': 'mmseg.LoadAnnotations'}],
    )
    assert len(data) == 2
    assert set(np.unique(data[0]['gt_seg_map'])) == {0, 1, 2}


def test_more_categories_than_a_label_map_holds_are_refused(tmp_path):
    names = [f'thing{number:03d}' for number in range(300)]
    write_store(
        tmp_path / 'store',
        [sample(f'k{n}', [square(8, 0, 0, 2)] * 2, names[2 * n : 2 * n + 2]) for n in range(150)],
        200,
    )
    with pytest.raises(ValueError, match='at most 254 categories, the store has 300'):
        export_mmseg(tmp_path / 'store', tmp_path / 'seg')
    assert not (tmp_path / 'seg').exists() and not (tmp_path / '.seg.tmp').exists()
    report = export_mmseg(tmp_path / 'store', tmp_path / 'seg', categories=names[:2])
    assert (report.instances, report.unlisted) == (2, 298)


@pytest.mark.parametrize('name', ['a\nb', 'a\u2028b', ' dog', 'dog ', 'background', '\x85'])
def test_a_category_that_is_no_line_of_its_own_is_refused(tmp_path, name):
    """Lines of classes.txt say which number is which: all after it would be called wrongly."""
    write_store(tmp_path / 'store', [sample('a', [square(8, 0, 0, 4)], (name,))])
    with pytest.raises(StoreError, match="can't be a line of its own in classes.txt"):
        export_mmseg(tmp_path / 'store', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('export', [export_coco, export_mmseg, export_class_folders])
def test_a_store_without_nouns_has_nothing_to_export(tmp_path, export):
    write_store(tmp_path / 'store', [make_sample(0, nouns=0)])
    with pytest.raises(StoreError, match='no image of the store .* has a noun'):
        export(tmp_path / 'store', tmp_path / 'out')


def test_class_folders(path, tmp_path):
    from torchvision.datasets import ImageFolder

    report = export_class_folders(path, tmp_path / 'whole')
    assert (report.images, report.instances) == (2, 4)
    data = ImageFolder(tmp_path / 'whole')
    assert data.classes == ['cat', 'dog'] and len(data) == 4
    report = export_class_folders(path, tmp_path / 'crops', crop=True, categories=['dog'])
    assert (report.instances, report.unlisted, report.empty) == (2, 2, 0)
    crops = sorted((tmp_path / 'crops' / 'dog').iterdir())
    assert [Image.open(file).size for file in crops] == [(4, 4), (2, 2)]
    np.testing.assert_array_equal(
        np.asarray(Image.open(crops[0])), np.asarray(Store(path)[0].image)[:4, :4]
    )


def test_what_got_nothing_is_named_and_has_no_folder(path, tmp_path):
    from torchvision.datasets import ImageFolder

    write_store(
        tmp_path / 'more',
        [*Store(path), sample('c', [square(8, 0, 0, 4)], ('bird',)), make_sample(3, nouns=0)],
    )
    asked = ['bird', 'brid', 'cat']
    report = export_class_folders(tmp_path / 'more', tmp_path / 'whole', categories=asked)
    assert (report.images, report.left_out, report.unlisted) == (3, 1, 2)
    assert len(list((tmp_path / 'whole').rglob('*.png'))) == report.instances == 3
    assert report.unused == ['brid'] and "1 category without any instance: 'brid'" in str(report)
    assert '1 image left out: without a noun in the export' in str(report)
    assert ImageFolder(tmp_path / 'whole').classes == ['bird', 'cat']
    report = export_class_folders(
        tmp_path / 'more', tmp_path / 'crops', categories=asked, crop=True
    )
    assert (report.images, report.left_out, report.empty) == (2, 2, 1)  # a cat is nowhere
    for export in (export_coco, export_mmseg):
        report = export(tmp_path / 'more', tmp_path / export.__name__, categories=asked)
        assert (report.images, report.left_out, report.unused) == (4, 0, ['brid'])
        assert report.categories == asked  # their numbers are those asked for


@pytest.mark.parametrize('export', [export_coco, export_mmseg, export_class_folders])
def test_an_export_without_any_instance_is_not_made(path, tmp_path, export):
    with pytest.raises(StoreError, match='can be exported: 4 of a category not asked for, 0 with'):
        export(path, tmp_path / 'out', categories=['dgo'])
    assert sorted(file.name for file in tmp_path.iterdir()) == ['store']


@pytest.mark.parametrize(
    'name',
    [
        '../x',
        '/etc/x',
        '..',
        '.x',
        'a/b',
        'a\\b',
        'a\0b',
        'x' * 200,
        'a.',
        '\N{RIGHT-TO-LEFT OVERRIDE}x',
    ],
)
def test_categories_that_would_leave_the_folder_are_refused(tmp_path, name):
    hostile = sample('a', [square(8, 0, 0, 4), square(8, 3, 3, 4)])
    nouns = tuple(Noun(noun.text, noun.start, noun.end, name) for noun in hostile.nouns)
    write_store(
        tmp_path / 'store',
        [
            Sample(
                **{field: getattr(hostile, field) for field in hostile.__dataclass_fields__}
                | {'nouns': nouns}
            )
        ],
    )
    with pytest.raises(StoreError, match="can't be the name of a folder"):
        export_class_folders(tmp_path / 'store', tmp_path / 'out' / 'folders')
    assert [file.name for file in tmp_path.iterdir()] in (['store', 'out'], ['out', 'store'])
    assert not list((tmp_path / 'out').iterdir())


def test_parquet_is_read_by_hugging_face_datasets(tmp_path, monkeypatch):
    pytest.importorskip('pyarrow')
    datasets = pytest.importorskip('datasets')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_OFFLINE', True, raising=False)
    write_store(tmp_path / 'store', map(varied_sample, range(7)), 3)
    report = export_parquet(tmp_path / 'store', tmp_path / 'parquet', rows_per_group=2)
    assert (report.images, report.instances, report.categories) == (
        7,
        11,
        ['bird', 'dress', 'sand'],
    )
    files = sorted(map(str, (tmp_path / 'parquet' / 'data').iterdir()))
    assert [file[-28:] for file in files] == [
        f'train-{number:05d}-of-00003.parquet' for number in range(3)
    ]
    data = datasets.load_dataset(
        'parquet', data_files=files, split='train', cache_dir=str(tmp_path / 'cache')
    )
    assert len(data) == 7
    for number, row in enumerate(data):
        expected = varied_sample(number)
        assert (row['key'], row['caption']) == (expected.key, expected.caption)
        np.testing.assert_array_equal(np.asarray(row['image']), np.asarray(expected.image))
        assert [noun['text'] for noun in row['nouns']] == [noun.text for noun in expected.nouns]
        assert json.loads(row['meta']) == expected.meta
        assert np.array_equal(
            [[noun['lo'], noun['hi']] for noun in row['nouns']] or np.zeros((0, 2)), expected.scales
        )
        if expected.nouns:
            np.testing.assert_array_equal(
                np.asarray(row['masks']).reshape(-1, row['mask_height'], row['mask_width']),
                expected.masks,
            )
        else:
            assert row['masks'] is None


def test_parquet_holds_what_is_in_the_shards_byte_for_byte(tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet')
    write_store(tmp_path / 'store', map(make_sample, range(3)))
    export_parquet(tmp_path / 'store', tmp_path / 'out')
    rows = parquet.read_table(tmp_path / 'out' / 'data').to_pylist()
    for number, row in enumerate(rows):
        assert row['image']['bytes'] == make_sample(number).image_bytes
        np.testing.assert_array_equal(
            decode_masks(row['masks']['bytes'], 2, 8, 6), make_sample(number).masks
        )


def test_an_export_that_is_there_is_kept(path, tmp_path):
    (tmp_path / 'out').mkdir()
    for export in (export_coco, export_mmseg, export_class_folders, export_parquet):
        with pytest.raises(StoreError, match='is there already'):
            export(path, tmp_path / 'out')


def test_what_another_process_exports_is_left_alone(path, tmp_path):
    out = tmp_path / 'out'
    with new_folder(out) as folder:
        (folder / 'theirs').touch()
        with pytest.raises(StoreError, match=f'another process is making {out}: wait'):
            export_coco(path, out)
    assert [file.name for file in out.iterdir()] == ['theirs']


def test_an_export_does_not_take_the_place_of_one_made_meanwhile(path, tmp_path):
    out = tmp_path / 'out'
    with pytest.raises(StoreError, match='out is there already'):
        with new_folder(out):
            (out / 'theirs').mkdir(parents=True)
    assert sorted(file.name for file in tmp_path.rglob('*') if 'store' not in str(file)) == [
        'out',
        'theirs',
    ]


def test_what_a_killed_export_left_is_gone(path, tmp_path):
    scratch = tmp_path / '.out.tmp'
    (scratch / 'images').mkdir(parents=True)
    os.mkfifo(scratch / 'pipe')
    (scratch / 'elsewhere').symlink_to(path)
    export_coco(path, tmp_path / 'out')
    assert sorted(file.name for file in (tmp_path / 'out').iterdir()) == ['coco.json', 'images']
    assert not scratch.exists() and len(Store(path)) == 2


def test_a_damaged_sample_leaves_no_half_export(path, tmp_path):
    tar = path / 'shard-000001.tar'
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    for export in (export_coco, export_mmseg, export_class_folders, export_parquet):
        with pytest.raises(StoreError, match="'b' is corrupt|JSON"):
            export(path, tmp_path / 'out')
        assert sorted(file.name for file in tmp_path.iterdir()) == ['store']


@pytest.mark.parametrize(
    'change',
    [{'threshold': 0}, {'threshold': 1.5}, {'categories': []}, {'categories': ['dog', 'dog']}],
)
def test_arguments_out_of_range_are_refused(path, tmp_path, change):
    with pytest.raises(ValueError, match='threshold|categories'):
        export_coco(path, tmp_path / 'out', **change)


def test_parquet_refuses_a_sample_that_is_none(path, tmp_path, monkeypatch):
    pytest.importorskip('pyarrow')
    read = Store.read

    def without_caption(store, index):
        raw = read(store, index)
        return raw._replace(
            info={key: value for key, value in raw.info.items() if key != 'caption'}
        )

    monkeypatch.setattr(Store, 'read', without_caption)
    with pytest.raises(StoreError, match="sample 'a': its JSON is not a sample.*caption"):
        export_parquet(path, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()

"""Own images with own masks: each format becomes the same store; bad input is named."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from helpers.tools import exit_code
from PIL import Image

from freeatm_mm import cli
from freeatm_mm.errors import InputError
from freeatm_mm.store import Store, verify_store
from freeatm_mm.store.export import binary_masks
from freeatm_mm.store.importing import read_rle

SIZE = (40, 60)  # height, width
DOG = np.zeros(SIZE, bool)
DOG[10:30, 5:25] = True
BALL = np.zeros(SIZE, bool)
BALL[2:6, 40:52] = True


def runs(mask):
    """Run lengths, column by column, as COCO has them."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    Image.new('RGB', SIZE[::-1], 'green').save(folder / 'a b.jpg')
    Image.new('L', SIZE[::-1], 90).save(folder / 'c.png')
    return folder


def make_masks(tmp_path, images):
    folder = tmp_path / 'masks'
    (folder / 'a b').mkdir(parents=True)
    Image.fromarray(DOG).save(folder / 'a b' / 'dog_1.png')
    Image.fromarray(np.uint8(255 * BALL)).save(folder / 'a b' / 'tennis_ball.png')
    return folder


def make_labels(tmp_path, images):
    folder = tmp_path / 'labels'
    folder.mkdir()
    (folder / 'classes.txt').write_text('background\ndog\ntennis ball\n')
    Image.fromarray(np.uint8(DOG + 2 * BALL)).save(folder / 'a b.png')
    Image.fromarray(np.full(SIZE, 255, np.uint8)).save(folder / 'c.png')
    return folder


def coco(**changes):
    box = [5, 10, 25, 10, 25, 30, 5, 30]
    content = {
        'images': [{'id': 7, 'file_name': 'a b.jpg'}, {'id': 9, 'file_name': 'c.png'}],
        'categories': [{'id': 1, 'name': 'dog'}, {'id': 5, 'name': 'tennis ball'}],
        'annotations': [
            {'image_id': 7, 'category_id': 1, 'segmentation': [box]},
            {
                'image_id': 7,
                'category_id': 5,
                'segmentation': {'size': list(SIZE), 'counts': runs(BALL)},
            },
            {'image_id': 9, 'category_id': 1, 'iscrowd': 1, 'segmentation': {}},
        ],
    }
    return {**content, **changes}


def make_coco(tmp_path, images):
    path = tmp_path / 'instances.json'
    path.write_text(json.dumps(coco()))
    return path


@pytest.mark.parametrize(
    'make', [make_masks, make_labels, make_coco], ids=['masks', 'labels', 'coco']
)
def test_every_format_makes_the_same_store(tmp_path, images, capsys, make):
    masks, out = make(tmp_path, images), tmp_path / 'store'
    words = ['import', make.__name__.removeprefix('make_'), images, masks, out, '--quiet']
    assert exit_code(cli, words) == 0
    assert capsys.readouterr().out.startswith('2 images with 2 masks\n1 images have no mask')
    assert list(verify_store(out)) == []
    first, second = Store(out)
    assert (first.key, second.key) == ('a-b', 'c') and first.meta['file'] == 'a b.jpg'
    assert first.image_bytes == (images / 'a b.jpg').read_bytes()
    assert first.caption == 'a photo of dog, tennis ball' and second.caption == 'a photo'
    assert [noun.name for noun in first.nouns] == ['dog', 'tennis ball'] and not second.nouns
    assert first.masks.shape == (2, 40, 60)  # smaller than 64: as it is
    found = binary_masks(first)
    for mask, expected in zip(found, (DOG, BALL)):
        overlap = (mask & expected).sum() / (mask | expected).sum()
        assert overlap > 0.9
    assert exit_code(cli, words) == 0  # again: it is there


def test_small_objects_keep_a_foreground_and_ranges(tmp_path, images):
    folder = make_masks(tmp_path, images)
    Image.fromarray(np.ones(SIZE, bool)).save(folder / 'a b' / 'all.png')
    words = ['import', 'masks', images, folder, tmp_path / 'store', '--quiet', '--mask-size', 6]
    assert exit_code(cli, words) == 0
    sample = Store(tmp_path / 'store')[0]
    assert sample.masks.shape == (3, 4, 6) and (sample.masks.reshape(3, -1).max(1) == 255).all()
    assert [noun.text for noun in sample.nouns] == ['all', 'dog', 'tennis ball']
    assert sample.masks[0].min() == 255 and sample.scales[0].tolist() == [0, 1]
    assert sample.scales[2, 1] < 0.6  # the ball fills no cell


def test_sam_in_both_of_its_forms(tmp_path, images, capsys):
    folder = tmp_path / 'sa'
    folder.mkdir()
    entries = [
        {'segmentation': {'size': list(SIZE), 'counts': runs(mask)}}
        for mask in (DOG, BALL, DOG & 0)
    ]
    (folder / 'x.json').write_text(
        json.dumps({'image': {'file_name': 'c.png'}, 'annotations': entries})
    )
    words = ['import', 'sam', images, folder, tmp_path / 'one', '--most', 1, '--quiet']
    assert exit_code(cli, words) == 0
    shown = capsys.readouterr().out
    assert '1 masks left out: no pixel' in shown and '1 masks left out: the smallest' in shown
    (sample,) = Store(tmp_path / 'one')
    assert sample.caption == 'a photo of object' and binary_masks(sample)[0].sum() == DOG.sum()
    masks = tmp_path / 'amg' / 'c'
    masks.mkdir(parents=True)
    (masks / 'metadata.csv').write_text('id,area\n')
    Image.fromarray(DOG).save(masks / '0.png')
    words = [
        'import',
        'masks',
        images,
        masks.parent,
        tmp_path / 'two',
        '--noun',
        'thing',
        '--quiet',
    ]
    assert exit_code(cli, words) == 0
    assert Store(tmp_path / 'two')[1].nouns[0].name == 'thing'


def test_run_lengths_as_pycocotools_has_them():
    mask_api = pytest.importorskip('pycocotools.mask')
    random = np.random.default_rng(0)
    for share in (0.02, 0.5, 1.0):
        mask = random.random((37, 53)) < share
        encoded = mask_api.encode(np.asfortranarray(mask, np.uint8))
        assert (read_rle(encoded['counts'].decode(), (37, 53)) == mask).all()
        assert (read_rle(runs(mask), (37, 53)) == mask).all()


@pytest.mark.parametrize('counts', [[5], [-1, 7], 'x', 'P', 'oooooooooooooo', None, [2.0, 4]])
def test_broken_run_lengths_are_refused(counts):
    with pytest.raises(InputError, match='run lengths'):
        read_rle(counts, (2, 3))


@pytest.mark.parametrize(
    'changes, said',
    [
        ({'images': [{'id': 7, 'file_name': '../../secret.png'}]}, 'leads out of'),
        ({'images': [{'id': 7, 'file_name': 'none.jpg'}], 'annotations': []}, 'none.jpg'),
        ({'images': [{'id': 7}]}, 'images.0 has no file_name'),
        ({'images': []}, 'annotations of image 7, which is not listed'),
        ({'categories': []}, 'a category that is not listed'),
        ({'annotations': None}, "no list 'annotations'"),
        (
            {'annotations': [{'image_id': 7, 'category_id': 1, 'segmentation': [[1, 2, 3, 4]]}]},
            'fewer than three points',
        ),
        (
            {
                'annotations': [
                    {
                        'image_id': 7,
                        'category_id': 1,
                        'segmentation': {'size': [9, 9], 'counts': [81]},
                    }
                ]
            },
            r'size \[9, 9\] and the image \[40, 60\]',
        ),
    ],
)
def test_what_is_wrong_with_coco_is_named(tmp_path, images, capsys, changes, said):
    path = tmp_path / 'instances.json'
    path.write_text(json.dumps(coco(**changes)))
    assert exit_code(cli, ['import', 'coco', images, path, tmp_path / 'store', '--quiet']) == 2
    err = capsys.readouterr().err
    assert re.search(said, err) and err.startswith('freeatm import: ') and err.count('\n') == 1


def test_unusable_images_are_left_out_up_to_a_number(tmp_path, images, capsys):
    folder = make_masks(tmp_path, images)
    (images / 'broken.jpg').write_bytes(b'no image')
    words = ['import', 'masks', images, folder, tmp_path / 'store', '--quiet']
    assert exit_code(cli, words) == 2
    assert 'broken.jpg: it is no readable image' in (said := capsys.readouterr().err)
    assert '--max-bad N' in said
    assert exit_code(cli, [*words, '--max-bad', 1]) == 0
    shown = capsys.readouterr().out
    assert 'left out: ' in shown and '1 images left out: they could not be used' in shown
    assert len(Store(tmp_path / 'store')) == 2


@pytest.mark.parametrize('kind', ['LA', 'palette', 'colours'])
def test_masks_are_their_light_pixels_however_they_are_encoded(tmp_path, images, kind):
    """Transparency says nothing, and in a palette black need not be number 0."""
    folder = make_masks(tmp_path, images)
    light = np.uint8(255 * BALL)
    if kind == 'LA':
        picture = Image.fromarray(np.stack([light, np.full_like(light, 255)], 2), 'LA')
    else:
        picture = Image.fromarray(np.uint8(BALL == 0) if kind == 'palette' else np.uint8(BALL))
        picture.putpalette([255, 255, 255, 0, 0, 0] if kind == 'palette' else [0, 0, 0, 64, 0, 0])
    picture.save(folder / 'a b' / 'tennis_ball.png')
    words = ['import', 'masks', images, folder, tmp_path / 'store', '--quiet']
    assert exit_code(cli, words) == 0
    mask = binary_masks(Store(tmp_path / 'store')[0])[1]
    assert (mask & BALL).sum() / (mask | BALL).sum() > 0.9


@pytest.mark.parametrize('name', ['images', 'categories'])
def test_a_doubled_id_of_coco_is_refused(tmp_path, images, capsys, name):
    content = coco()
    content[name][1]['id'] = content[name][0]['id']
    path = tmp_path / 'instances.json'
    path.write_text(json.dumps(content))
    assert exit_code(cli, ['import', 'coco', images, path, tmp_path / 'store', '--quiet']) == 2
    assert f'two of the {name} have the id {content[name][0]["id"]}' in capsys.readouterr().err

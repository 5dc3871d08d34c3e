"""Own images with own masks: each format becomes the same store; bad input is named."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from helpers.tools import exit_code
from PIL import Image

from freeatm_mm import cli
from freeatm_mm.errors import InputError
from freeatm_mm.store import Store, verify_store
from freeatm_mm.store.export import binary_masks
from freeatm_mm.store.importing import _segmentation, read_rle, shrink_mask, stretch_masks

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
    assert capsys.readouterr().out.startswith('2 images with 2 masks\n1 image without a mask')
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


@pytest.mark.parametrize('size', [(600, 800), (3000, 4000)])
def test_a_few_pixels_are_a_small_object(size):
    mask = np.zeros(size, bool)
    mask[5:8, 10:12] = True
    small = shrink_mask(mask, 64)
    (values,), (scale,) = stretch_masks([small])
    assert values[0, 0] == 255 and (values > 0).sum() == 1
    assert scale[0] == 0 and scale[1] == pytest.approx(
        6 * 64**2 / size[1] ** 2, rel=0.1
    )  # cells of whole pixels
    (values,), _ = stretch_masks([np.zeros((3, 4))])
    assert not values.any()
    assert (shrink_mask(np.ones(size, bool), 7) == 1).all()


def test_cells_of_one_share_are_flat_and_no_noise():
    rng = np.random.default_rng(0)
    for cell in (9, 10, 26, 28):
        rows = np.arange(cell**2) < cell**2 // 3
        cells = rng.permuted(np.tile(rows, (16, 16, 1)), axis=2).reshape(16, 16, cell, cell)
        mask = cells.transpose(0, 2, 1, 3).reshape(16 * cell, 16 * cell)
        (values,), (scale,) = stretch_masks([shrink_mask(mask, 16)])
        assert (values == 255).all() and scale[0] == 0
        assert scale[1] == pytest.approx(rows.mean())
    almost = np.ones((960, 960), bool)
    almost[0, 0] = False  # the smallest difference that there is, is one
    (values,), _ = stretch_masks([shrink_mask(almost, 16)])
    assert values[0, 0] == 0 and (values == 255).sum() == 255


def test_polygons_hold_the_pixels_whose_centres_they_hold():
    theirs = pytest.importorskip('pycocotools.mask')
    path = pytest.importorskip('matplotlib.path')

    def draw(polygon, size=(80, 90)):
        return _segmentation([np.ravel(polygon).tolist()], size)

    square = draw([[10, 10], [20, 10], [20, 20], [10, 20]])
    assert square.sum() == 100 and square[10:20, 10:20].all()
    assert draw([[10.5, 10.5], [12.5, 10.5], [12.5, 12.5], [10.5, 12.5]]).sum() == 4
    assert draw([[-1e300, -1e300], [1e300, -1e300], [1e300, 1e300], [-1e300, 1e300]]).all()
    assert not draw([[-9, -9], [-1, -9], [-1, 500]]).any()
    rng = np.random.default_rng(0)
    areas = []
    for radius in np.linspace(5, 38, 60):
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
        far = radius * rng.uniform(0.3, 1, len(angles))
        polygon = [45, 40] + np.stack([np.cos(angles), np.sin(angles)], 1) * far[:, None]
        ours = draw(polygon)
        coco = theirs.decode(theirs.frPyObjects([polygon.ravel().tolist()], 80, 90))[..., 0] > 0
        grid = np.stack(np.meshgrid(np.arange(90) + 0.5, np.arange(80) + 0.5), -1).reshape(-1, 2)
        exact = path.Path(polygon).contains_points(grid).reshape(80, 90)
        assert (ours ^ exact).sum() <= 1
        areas.append((ours.sum(), coco.sum()))
    ours, coco = np.sum(areas, 0)
    assert abs(ours / coco - 1) < 0.01


def test_a_store_among_its_images_can_be_continued(tmp_path, images, capsys):
    masks = make_masks(tmp_path, images)
    words = ['import', 'masks', images, masks, images / 'store', '--quiet']
    shown = []
    for _ in range(2):
        assert exit_code(cli, words) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


@pytest.mark.parametrize('make', [make_masks, make_labels], ids=['masks', 'labels'])
def test_stores_and_hidden_files_among_the_sources_change_nothing(tmp_path, images, capsys, make):
    masks = make(tmp_path, images)
    words = ['import', make.__name__.removeprefix('make_'), images, masks]
    shown = []
    for most in (1, 2, 1, 2):
        for out in (images / f'{most}', masks / f'{most}'):
            assert exit_code(cli, [*words, out, '--most', most, '--quiet']) == 0
            shown.append(capsys.readouterr().out)
        for folder in (images, masks, *(path for path in masks.iterdir() if path.is_dir())):
            (folder / '.DS_Store').write_text('x' * len(shown))
        (images / '.thumbs').mkdir(exist_ok=True)
        (images / '.thumbs' / f'{len(shown)}.png').write_bytes(b'')
    assert shown[:4] == shown[4:] and 'skipped' not in ''.join(shown)
    assert 'no image has it' not in ''.join(shown)


def test_the_folder_of_images_or_masks_is_no_store(tmp_path, images, capsys):
    masks = make_masks(tmp_path, images)
    for out in (images, masks):
        assert exit_code(cli, ['import', 'masks', images, masks, out, '--quiet']) == 2
        assert f"{out} holds what is imported and can't be the store" in capsys.readouterr().err
        assert not (out / 'store.json').exists()


def test_an_empty_line_among_classes_is_refused(tmp_path, images, capsys):
    labels = make_labels(tmp_path, images)
    words = ['import', 'labels', images, labels, tmp_path / 'store', '--quiet']
    (labels / 'classes.txt').write_text('background\n\ndog\n')
    assert exit_code(cli, words) == 2
    assert 'classes.txt: line 2 is empty, and lines are counted' in capsys.readouterr().err
    (labels / 'classes.txt').write_text('background\ndog\ntennis ball\n\n\n')
    assert exit_code(cli, words) == 0


def test_other_classes_are_another_source(tmp_path, images, capsys):
    labels = make_labels(tmp_path, images)
    words = ['import', 'labels', images, labels, tmp_path / 'store', '--quiet']
    assert exit_code(cli, words) == 0
    (labels / 'classes.txt').write_text('background\ncat\ntennis ball\n')
    assert exit_code(cli, words) == 2
    assert 'source_sha256' in capsys.readouterr().err


def test_a_class_of_255_counts_in_maps_of_16_bits(tmp_path, images, capsys):
    labels = make_labels(tmp_path, images)
    (labels / 'classes.txt').write_text('\n'.join(f'c{number}' for number in range(300)))
    Image.fromarray(np.where(DOG, 255, 256).astype(np.uint16)).save(labels / 'a b.png')
    words = ['import', 'labels', images, labels, tmp_path / 'store', '--quiet']
    assert exit_code(cli, words) == 0
    named = [[noun.text for noun in sample.nouns] for sample in Store(tmp_path / 'store')]
    assert named == [['c255', 'c256'], []]  # in 8 bits 255 is what mmseg ignores
    assert '1 label map of 8 bits with pixels of 255, which are' in capsys.readouterr().out


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
    assert '1 mask left out: without a pixel' in shown and '1 mask left out: the small' in shown
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
        ({'images': [{'id': 7}]}, r"images\[0\]: the field 'file_name' is missing"),
        ({'images': []}, 'annotations of image 7, which is not listed'),
        ({'categories': []}, 'a category that is not listed'),
        ({'annotations': None}, 'annotations must be a list'),
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


@pytest.mark.parametrize(
    'changes, said',
    [
        ({'images': [{'id': 7, 'file_name': 'a b.jpg\0'}]}, "can't be the name of a file"),
        ({'images': [{'id': 7, 'file_name': 'c.png'}] * 2}, 'images: the id 7 is there 2 times'),
        ({'categories': [{'id': 1, 'name': 'x' * 201}]}, 'more than 200 characters'),
        ({'images': [{'id': True, 'file_name': 'c.png'}]}, 'id must be an integer'),
        (
            {'images': [{'id': 7, 'file_name': 'a b.jpg', 'width': 120, 'height': 80}]},
            'annotations are of an image of 120x80 pixels, and it has 60x40',
        ),
        (
            {
                'annotations': [
                    {'image_id': 7, 'category_id': 1, 'segmentation': [[10**400, 2, 3, 4, 5, 6]]}
                ],
            },
            'a polygon is no list of x, y',
        ),
    ],
    ids=['zero byte', 'twice', 'long name', 'no number', 'other size', 'too large'],
)
def test_hostile_coco_is_one_sentence(tmp_path, images, capsys, changes, said):
    path = tmp_path / 'instances.json'
    content = coco(**changes)
    listed = {entry['id'] for entry in content['images']}
    content['annotations'] = [e for e in content['annotations'] if e['image_id'] in listed]
    path.write_text(json.dumps(content))
    assert exit_code(cli, ['import', 'coco', images, path, tmp_path / 'store', '--quiet']) == 2
    err = capsys.readouterr().err
    assert re.search(said, err) and err.startswith('freeatm import: ') and err.count('\n') == 1


def white_in_a_palette(mask):
    """Black where the mask is, but number 0 of the palette is white: as optimizers number them."""
    picture = Image.fromarray(np.uint8(~mask), 'P')
    picture.putpalette([255, 255, 255, 0, 0, 0])
    return picture


def grey_and_alpha(mask):
    grey = Image.fromarray(np.uint8(255 * mask))
    grey.putalpha(255)
    return grey


@pytest.mark.parametrize(
    'make',
    [
        white_in_a_palette,
        grey_and_alpha,
        lambda mask: Image.fromarray(np.uint8(38 * mask)),
        lambda mask: Image.fromarray(np.uint16(65535 * mask)),
        lambda mask: Image.fromarray(np.uint8(255 * mask[..., None] * np.ones(3, bool))),
    ],
    ids=['palette', 'alpha', 'one value', '16 bits', 'colours'],
)
def test_white_is_white_in_every_kind_of_picture(tmp_path, images, make):
    folder = make_masks(tmp_path, images)
    make(DOG).save(folder / 'a b' / 'dog_1.png')
    words = ['import', 'masks', images, folder, tmp_path / 'store', '--quiet']
    assert exit_code(cli, words) == 0
    assert (binary_masks(Store(tmp_path / 'store')[0])[0] == DOG).all()


def test_a_mask_without_white_is_refused(tmp_path, images, capsys):
    folder = make_masks(tmp_path, images)
    Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(SIZE).astype(np.uint8) // 3).save(
        folder / 'a b' / 'dog_1.png'
    )
    assert exit_code(cli, ['import', 'masks', images, folder, tmp_path / 'store']) == 2
    assert 'none above 127' in capsys.readouterr().err


def test_labels_of_one_bit_are_classes(tmp_path, images):
    folder = make_labels(tmp_path, images)
    Image.fromarray(DOG).save(folder / 'a b.png')
    words = ['import', 'labels', images, folder, tmp_path / 'store', '--quiet']
    assert exit_code(cli, words) == 0
    assert [noun.name for noun in Store(tmp_path / 'store')[0].nouns] == ['dog']


def test_what_belongs_to_nothing_is_counted(tmp_path, images, capsys):
    folder = make_masks(tmp_path, images)
    (folder / 'other').mkdir()
    (images / 'd.heic').write_bytes(b'')
    for name in ('ball.gif', 'cat.npy', '.hidden', '._dog.png'):
        (folder / 'a b' / name).write_bytes(b'')
    assert exit_code(cli, ['import', 'masks', images, folder, tmp_path / 'store', '--quiet']) == 0
    shown = capsys.readouterr().out
    assert (
        '1 name of masks, or folders of them, left out' in shown
        and '3 other entries skipped: linked folders' in shown
    )


@pytest.mark.parametrize('place', ['.', 'below', '../apart'])
def test_what_json_does_not_name_is_counted(tmp_path, images, capsys, place):
    (images / 'more').mkdir()
    Image.new('L', SIZE[::-1]).save(images / 'more' / 'c.png')
    coco_json = tmp_path / 'instances.json'
    coco_json.write_text(json.dumps(coco(images=[{'id': 7, 'file_name': './a b.jpg'}])))
    content = json.loads(coco_json.read_text())
    content['annotations'].pop()
    coco_json.write_text(json.dumps(content))
    assert exit_code(cli, ['import', 'coco', images, coco_json, tmp_path / 'one', '--quiet']) == 0
    shown = capsys.readouterr().out
    assert shown == "1 image with 2 masks\n2 images left out: not named in the masks' JSON\n"

    folder = images / place
    (folder / 'deep').mkdir(parents=True)
    for name in ('c.json', 'deep/a b.json', '._c.json'):
        entry = {'image': {'file_name': 'c.png'}, 'annotations': []}
        (folder / name).write_text(json.dumps(entry) if name != '._c.json' else '\0')
    (folder / 'c.txt').write_text('')
    assert exit_code(cli, ['import', 'sam', images, folder, tmp_path / 'two', '--quiet']) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ['1 image with 0 masks', '1 image without a mask']
    assert shown[2].startswith('2 other entries skipped') and len(shown) == 4
    assert shown[3] == "2 images left out: not named in the masks' JSON"


@pytest.mark.parametrize('make', [make_masks, make_labels], ids=['masks', 'labels'])
def test_images_in_folders_have_their_masks_in_the_same_folders(tmp_path, images, capsys, make):
    masks = make(tmp_path, images)
    (images / 'b').mkdir()
    (images / 'a b.jpg').rename(images / 'b' / 'a b.jpg')
    (masks / 'b').mkdir()
    name = 'a b' if make is make_masks else 'a b.png'
    (masks / name).rename(masks / 'b' / name)
    (images / 'linked').symlink_to(images / 'b')
    masks = masks.rename(images / 'masks')  # no images, though they lie there
    words = ['import', make.__name__.removeprefix('make_'), images, masks, tmp_path / 'store']
    assert exit_code(cli, [*words, '--quiet']) == 0
    shown = capsys.readouterr().out
    assert shown.startswith('2 images with 2 masks\n1 image without a mask\n1 other entry skipped')
    assert 'left out' not in shown
    first, second = Store(tmp_path / 'store')
    assert (first.key, first.meta['file'], len(first.nouns)) == ('b-a-b', 'b/a b.jpg', 2)
    assert (second.key, second.meta['file']) == ('c', 'c.png')


@pytest.mark.parametrize('make', [make_masks, make_labels], ids=['masks', 'labels'])
def test_folders_that_cannot_be_listed_are_counted(tmp_path, images, capsys, monkeypatch, make):
    masks = make(tmp_path, images)
    for folder in (images, masks):
        (folder / 'shut').mkdir()
    scandir, closed = os.scandir, 'shut'

    def refuse(path):
        if Path(path).name == closed:
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    words = ['import', make.__name__.removeprefix('make_'), images, masks, tmp_path / 'store']
    assert exit_code(cli, [*words, '--quiet']) == 0
    shown = capsys.readouterr().out
    assert "2 other entries skipped: linked folders, folders that can't be listed" in shown
    for closed in (images.name, masks.name):
        assert exit_code(cli, [*words[:-1], tmp_path / f'of-{closed}', '--quiet']) == 2
        assert f"{closed} can't be listed (Permission denied)" in capsys.readouterr().err


def test_where_no_image_has_masks_it_says_where_they_belong(tmp_path, images, capsys):
    folder = tmp_path / 'masks'
    folder.mkdir()
    Image.new('L', SIZE[::-1], 255).save(folder / 'a b.png')
    assert exit_code(cli, ['import', 'masks', images, folder, tmp_path / 'store', '--quiet']) == 2
    assert f'the masks of a b.jpg belong in {folder / "a b"}' in capsys.readouterr().err


def test_an_image_on_its_side_is_stored_upright_and_needs_upright_masks(tmp_path, images, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    Image.new('RGB', SIZE, 'green').save(images / 'a b.jpg', exif=exif)  # upright: 60 x 40
    words = ['import', 'masks', images, make_masks(tmp_path, images), tmp_path / 'one', '--quiet']
    assert exit_code(cli, words) == 0
    assert Store(tmp_path / 'one')[0].image.size == SIZE[::-1]
    assert '1 image encoded anew' in capsys.readouterr().out
    path = tmp_path / 'instances.json'
    listed = [{'id': 7, 'file_name': 'a b.jpg', 'width': SIZE[0], 'height': SIZE[1]}]
    content = coco(images=listed)
    path.write_text(json.dumps({**content, 'annotations': content['annotations'][:1]}))
    assert exit_code(cli, ['import', 'coco', images, path, tmp_path / 'two', '--quiet']) == 2
    assert 'turned upright, as its EXIF says, has 60x40' in capsys.readouterr().err


def test_links_out_of_the_folder_and_names_in_bytes_are_refused(tmp_path, images, capsys):
    folder = make_masks(tmp_path, images)
    Image.new('RGB', SIZE[::-1]).save(tmp_path / 'secret.png')
    (images / 'link.png').symlink_to(tmp_path / 'secret.png')
    words = ['import', 'masks', images, folder, tmp_path / 'store', '--quiet']
    assert exit_code(cli, words) == 2
    assert "'link.png' leads out of" in capsys.readouterr().err
    (images / 'link.png').unlink()
    (folder / 'a b' / 'd\udcffg.png').write_bytes((folder / 'a b' / 'dog_1.png').read_bytes())
    assert exit_code(cli, words) == 2
    assert 'is not UTF-8: rename the file' in capsys.readouterr().err
    (folder / 'a b' / 'd\udcffg.png').rename(folder / 'a b' / 'd\udcc3\udcb6g.png')
    assert exit_code(cli, words) == 0
    names = {noun.text for noun in Store(tmp_path / 'store')[0].nouns}
    assert names == {'dög', 'dog', 'tennis ball'}


def test_other_files_do_not_pass_for_what_is_there(tmp_path, images, capsys):
    path = make_coco(tmp_path, images)
    words = ['import', 'coco', images, path, tmp_path / 'store', '--quiet']
    assert exit_code(cli, words) == 0
    path.write_text(json.dumps(coco(annotations=[])))
    assert exit_code(cli, words) == 2
    assert 'source_sha256' in capsys.readouterr().err


def test_many_files_of_one_name_get_their_numbers_quickly(monkeypatch):
    from freeatm_mm.store import importing

    taken = {}
    keys = [importing._key(stem, taken) for stem in ['a', 'a-2', 'a', *['b'] * 20_000]]
    assert keys[:5] == ['a', 'a-2', 'a-3', 'b', 'b-2'] and len(set(keys)) == len(keys)


def test_told_to_end_it_says_how_to_go_on_and_leaves_no_scraps(
    tmp_path, images, monkeypatch, capsys
):
    from freeatm_mm.store import importing

    def end(data):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(data)

    real = importing.decode_picture
    monkeypatch.setattr(importing, 'decode_picture', end)
    path = make_coco(tmp_path, images)
    words = ['import', 'coco', images, path, tmp_path / 'store', '--quiet']
    assert exit_code(cli, words) == 128 + signal.SIGTERM
    assert 'ended by SIGTERM; the same command goes on' in capsys.readouterr().err
    assert not list((tmp_path / 'store').glob('*.tmp'))
    monkeypatch.undo()
    assert exit_code(cli, words) == 0 and len(Store(tmp_path / 'store')) == 2


def test_a_broken_json_of_sam_is_one_image(tmp_path, images, capsys):
    folder = tmp_path / 'sa'
    folder.mkdir()
    (folder / 'a.json').write_text('{"image": {"file_name": ')
    content = {'image': {'file_name': 'c.png', 'width': 60, 'height': 40}, 'annotations': []}
    (folder / 'c.json').write_text(json.dumps(content))
    words = ['import', 'sam', images, folder, tmp_path / 'store', '--quiet']
    assert exit_code(cli, words) == 2 and 'a.json is not JSON' in capsys.readouterr().err
    assert exit_code(cli, [*words, '--max-bad', 1]) == 0
    assert len(Store(tmp_path / 'store')) == 1


def test_unusable_images_are_left_out_up_to_a_number(tmp_path, images, capsys):
    folder = make_masks(tmp_path, images)
    (images / 'broken.jpg').write_bytes(b'no image')
    words = ['import', 'masks', images, folder, tmp_path / 'store', '--quiet']
    assert exit_code(cli, words) == 2
    assert "broken.jpg: its image can't be read" in (said := capsys.readouterr().err)
    assert '--max-bad N' in said
    assert exit_code(cli, [*words, '--max-bad', 1]) == 0
    shown = capsys.readouterr().out
    assert 'left out: ' in shown and '1 image left out: not usable' in shown
    assert len(Store(tmp_path / 'store')) == 2

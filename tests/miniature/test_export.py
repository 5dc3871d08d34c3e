"""Exports: COCO, label maps, retrieval, class folders, and the store with exact masks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from freeatm_mm.miniature.export import (
    BLOCK_NAMES,
    export_exact_store,
    export_positions,
    export_world,
    same_object_share,
)
from freeatm_mm.miniature.scenes import SceneMaker
from freeatm_mm.miniature.sources import NOUNS
from freeatm_mm.store import Store

COUNTS = {'train': 6, 'test': 4}


@pytest.fixture(scope='module')
def world(source_folder, tmp_path_factory):
    return export_world(source_folder, tmp_path_factory.mktemp('world'), COUNTS, workers=1)


def test_coco_holds_the_exact_masks(world, source_folder):
    for split, count in COUNTS.items():
        maker = SceneMaker(source_folder, split)
        coco = COCO(world / split / 'coco.json')
        assert len(coco.imgs) == count
        assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(NOUNS)
        for index in range(count):
            scene = maker.scene(index)
            annotations = coco.loadAnns(coco.getAnnIds(index))
            assert len(annotations) == len(scene.masks)
            labels = np.asarray(Image.open(world / split / 'labels' / f'{index:06d}.png'))
            picture = np.asarray(Image.open(world / split / 'images' / f'{index:06d}.png'))
            assert np.array_equal(picture, scene.image)
            assert np.array_equal(labels > 0, scene.masks.any(0))
            for k, annotation in enumerate(annotations):
                assert np.array_equal(coco.annToMask(annotation), scene.masks[k])
                assert NOUNS[annotation['category_id'] - 1] == scene.record.nouns[k].category
                assert (labels[scene.masks[k]] == annotation['category_id']).all()
                x, y, w, h = annotation['bbox']
                assert scene.masks[k][y : y + h, x : x + w].sum() == scene.masks[k].sum()
                crop = Image.open(
                    world
                    / split
                    / 'objects'
                    / scene.record.nouns[k].category
                    / f'{index:06d}_{k}.png'
                )
                assert np.array_equal(crop, scene.image[y : y + h, x : x + w])


def test_retrieval_files_are_as_lavis_reads_them(world):
    train = json.loads((world / 'train' / 'retrieval.json').read_text())
    test = json.loads((world / 'test' / 'retrieval.json').read_text())
    assert all(isinstance(row['caption'], str) for row in train)
    assert all(isinstance(row['caption'], list) for row in test)
    for split, rows in (('train', train), ('test', test)):
        assert all((world / split / row['image']).is_file() for row in rows)


def test_a_split_is_made_once(world, source_folder):
    before = (world / 'train' / 'coco.json').stat().st_mtime_ns
    export_world(source_folder, world, COUNTS, workers=1)
    assert (world / 'train' / 'coco.json').stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="'scenes': 6.*not.*'scenes': 7"):
        export_world(source_folder, world, {'train': 7}, workers=1)


def test_the_exact_store_holds_area_shares(source_folder, tmp_path):
    store = Store(
        export_exact_store(
            source_folder, tmp_path / 'exact', 5, mask_side=8, workers=1, samples_per_shard=2
        )
    )
    maker = SceneMaker(source_folder, 'train', seed=1)
    assert len(store) == 5
    for index in range(5):
        scene, sample = maker.scene(index), store[index]
        assert sample.caption == scene.record.prompt and sample.nouns == scene.record.nouns
        share = scene.masks[0, 8:16, 16:24].mean()  # one cell, counted by hand
        assert abs(sample.masks[0, 1, 2] / 255 - share) <= 0.5 / 255
        assert np.array_equal(np.asarray(sample.image), scene.image)


def test_same_object_share_counts_photos(source_folder):
    # 8 garments of weight 2 with 5000 photos, 13 stamp nouns of weight 1 with a few
    from freeatm_mm.miniature.sources import load_cutouts

    stamps = load_cutouts(source_folder, 'train').stamps
    total = 2 * 8 + 13
    expected = 8 * (2 / total) ** 2 / 5000 + sum(
        (1 / total) ** 2 / len(stamps[noun]) for noun in stamps
    )
    assert same_object_share(source_folder) == pytest.approx(expected)


def test_position_captions_need_the_position(source_folder, tmp_path):
    """Every picture has a mirrored twin; captions are unique, and say where the pixels are."""
    out = export_positions(
        source_folder, tmp_path / 'positions', {'train': 60, 'test': 40}, workers=1
    )
    for split, count in (('train', 60), ('test', 40)):
        rows = {
            wording: json.loads((out / split / f'{wording}.json').read_text())
            for wording in ('words', 'blocks')
        }
        assert 0 < len(rows['words']) == len(rows['blocks']) <= 2 * count
        assert [row['image_id'] for row in rows['words']] == list(range(len(rows['words'])))
        captions = [
            row['caption'] if split == 'train' else row['caption'][0] for row in rows['words']
        ]
        assert len(set(captions)) == len(captions)
        maker = SceneMaker(source_folder, split)
        for number in range(0, len(captions), 2):
            name = rows['words'][number]['image']
            plain, twin = (
                np.asarray(Image.open(out / row['image']))
                for row in rows['words'][number : number + 2]
            )
            assert np.array_equal(plain[:, ::-1], twin)
            for kind in rows.values():
                assert [row['mirrored'] for row in kind[number : number + 2]] == [
                    number + 1,
                    number,
                ]
            swapped = captions[number].replace('left', '*').replace('right', 'left')
            assert swapped.replace('*', 'right') == captions[number + 1]
            scene = maker.scene(int(name[-10:-4]))
            assert np.array_equal(plain, scene.image)
            for noun, mask in zip(scene.record.nouns, scene.masks):
                ys, xs = np.nonzero(mask)
                y, x = ((values.min() + values.max() + 1) / 2 for values in (ys, xs))
                block = sum(y >= edge for edge in (64 / 3, 128 / 3)) * 3 + sum(
                    x >= edge for edge in (64 / 3, 128 / 3)
                )
                assert f'{noun.text} {BLOCK_NAMES[block]}' in captions[number]
                blocks = rows['blocks'][number]['caption']
                assert f'The {noun.text} is in block {block}.' in (
                    blocks if split == 'train' else blocks[0]
                )

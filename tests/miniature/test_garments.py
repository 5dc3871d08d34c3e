"""Scenes of single garments: each photo once, and what is read is what was made."""

import numpy as np
import pytest

from freeatm_mm.errors import InputError
from freeatm_mm.miniature.garments import export_garments, load_garments
from freeatm_mm.miniature.scenes import SceneMaker
from freeatm_mm.miniature.sources import GARMENTS


def test_each_photo_has_a_scene_of_its_own(source_folder):
    maker = SceneMaker(source_folder, 'test')
    scenes = [maker.garment(index) for index in range(4 * len(GARMENTS))]
    assert len({scene.objects for scene in scenes}) == len(scenes)
    assert {scene.objects[0] for scene in scenes} == {
        f'{noun}-{number}' for noun in GARMENTS for number in range(4)
    }
    assert all(scene.masks.shape[0] == 1 and scene.masks.any() for scene in scenes)
    again = SceneMaker(source_folder, 'test').garment(9)
    np.testing.assert_array_equal(again.image, scenes[9].image)
    with pytest.raises(IndexError, match='no photo number 4'):
        maker.garment(4 * len(GARMENTS))


def test_garments_are_read_as_they_were_made(source_folder, tmp_path):
    folder = export_garments(source_folder, tmp_path, dict(train=2, val=1, test=3), workers=1)
    found = load_garments(folder)
    maker = SceneMaker(source_folder, 'test')
    test = found['test']
    assert {split: len(scenes) for split, scenes in found.items()} == dict(train=16, val=8, test=24)
    for index in range(24):
        scene = maker.garment(index)
        np.testing.assert_array_equal(test.images[index], scene.image)
        np.testing.assert_array_equal(test.object_masks[index], scene.masks[0])
        assert test.categories[test.object_category[index]] == scene.record.nouns[0].category
        rows, columns = np.nonzero(scene.masks[0])
        assert tuple(test.object_boxes[index]) == (
            columns.min(),
            rows.min(),
            columns.max() + 1,
            rows.max() + 1,
        )


def test_missing_and_broken_garments_are_told(tmp_path):
    with pytest.raises(InputError, match='--garments'):
        load_garments(tmp_path)
    (tmp_path / 'train.npz').write_bytes(b'nothing')
    with pytest.raises(InputError, match='train.npz'):
        load_garments(tmp_path)

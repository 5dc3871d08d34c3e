"""Scenes: repeatable, with exact masks and captions whose spans hold the nouns."""

from __future__ import annotations

import numpy as np
import pytest

from freeatm_mm.miniature.compose import compose_scenes
from freeatm_mm.miniature.scenes import SIDE, SceneMaker, noun_probabilities, sample_prompt
from freeatm_mm.miniature.sources import GARMENTS, NOUNS


@pytest.fixture(scope='module')
def scenes(source_folder):
    maker = SceneMaker(source_folder, 'train')
    return [maker.scene(index) for index in range(60)]


def test_the_same_number_gives_the_same_scene(scenes, source_folder):
    maker = SceneMaker(source_folder, 'train')
    for index in (59, 3):  # in any order
        again = maker.scene(index)
        assert np.array_equal(again.image, scenes[index].image)
        assert np.array_equal(again.masks, scenes[index].masks)
        assert again.record == scenes[index].record
    assert SceneMaker(source_folder, 'train', seed=1).scene(3).record != scenes[3].record


def test_masks_are_where_the_objects_are(scenes):
    """Backgrounds have hardly any blue; the magenta stamps and most garments have much."""
    checked = 0
    for scene in scenes:
        assert scene.image.shape == (SIDE, SIDE, 3) and scene.masks.shape[1:] == (SIDE, SIDE)
        assert scene.masks.sum(0).max() <= 1  # one object a pixel
        if any(colour in scene.record.prompt for colour in ('red', 'green', 'yellow')):
            continue
        blue = scene.image[..., 2] > 64
        inside = scene.masks.any(0)
        grown = np.pad(inside, 2)
        grown = np.any(
            [
                np.roll(grown, (dy, dx), (0, 1))
                for dy in (-2, -1, 0, 1, 2)
                for dx in (-2, -1, 0, 1, 2)
            ],
            0,
        )[2:-2, 2:-2]
        assert blue[inside].mean() > 0.97 and not blue[~grown].any()
        checked += 1
    assert checked > 10


def test_every_object_stays_visible(scenes):
    areas = [mask.sum() for scene in scenes for mask in scene.masks]
    assert min(areas) > 30


def test_captions_name_the_objects(scenes):
    counts = {len(scene.record.nouns) for scene in scenes}
    assert counts == {1, 2, 3}
    for scene in scenes:
        assert len(scene.record.nouns) == len(scene.masks) == len(scene.objects)
        for noun, cutout in zip(scene.record.nouns, scene.objects):
            assert noun.category == noun.text and noun.text in NOUNS
            if noun.text in GARMENTS:
                assert cutout.startswith(noun.text)


def test_workers_do_not_change_the_scenes(scenes, source_folder):
    composed = list(compose_scenes(source_folder, 'train', 3, workers=2, progress=False))
    for scene, again in zip(scenes, composed):
        assert np.array_equal(scene.image, again.image) and scene.record == again.record


def test_prompts_are_like_the_captions():
    prompts = [sample_prompt(str(number), 0) for number in range(2000)]
    assert sample_prompt('7', 0) == prompts[7] and sample_prompt('7', 1) != prompts[7]
    shares = np.zeros(len(NOUNS))
    for record in prompts:
        for noun in record.nouns:
            shares[NOUNS.index(noun.category)] += 1
    shares /= shares.sum()
    assert noun_probabilities().sum() == pytest.approx(1)
    assert np.abs(shares - noun_probabilities()).max() < 0.015


def test_plain_prompts_name_the_first_noun():
    for number in range(200):
        prompt, plain = (sample_prompt(str(number), 0, way) for way in (False, True))
        noun = prompt.nouns[0].text
        assert plain.id == prompt.id and len(plain.nouns) == 1
        assert plain.prompt in (f'a photo of a {noun}', f'a photo of an {noun}')
        assert plain.prompt[plain.nouns[0].start : plain.nouns[0].end] == noun

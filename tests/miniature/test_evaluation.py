"""Evaluating: counting found nouns, and masks on noised scenes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from freeatm_mm.generation import load_pipeline
from freeatm_mm.miniature import evaluation
from freeatm_mm.miniature.evaluation import (
    NounClassifier,
    NounSegmenter,
    evaluate_reconstructions,
    evaluate_scenes,
    found_nouns,
    masks_on_noised_scenes,
    record_generated_scenes,
    record_noised_scenes,
    trained,
)
from freeatm_mm.miniature.report import generator_facts, generator_report
from freeatm_mm.miniature.scenes import SceneMaker, sample_prompt
from freeatm_mm.miniature.sources import NOUNS
from freeatm_mm.results import new_results

SHIPPED = Path(__file__).parents[2] / 'weights' / 'miniature-generator'


def test_found_nouns_counted_by_hand():
    scores, labels = np.full((3, len(NOUNS)), -1.0), np.zeros((3, len(NOUNS)))
    scores[:, :4] = [[0.9, 0.1, 0.5, 0.2], [0.1, 0.9, 0.8, 0.3], [0.2, 0.1, 0.3, 0.9]]
    labels[:, :4] = [[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0]]
    found = found_nouns(scores, labels)
    # image 0: its one noun is first; image 1: of nouns 0 and 2, only 2 is among the first two;
    # image 2: noun 2 comes second
    assert found['found'] == pytest.approx(2 / 4)
    assert found['found_by_count'] == {1: 0.5, 2: 0.5}
    assert found['found_by_noun'] == {NOUNS[0]: 0.5, NOUNS[2]: 0.5}
    assert found['chance'] == pytest.approx((1 + 4 + 1) / len(NOUNS) / 4)


def test_chance_is_what_random_scores_find():
    rng = np.random.default_rng(0)
    labels = np.zeros((4000, len(NOUNS)))
    for row in labels:
        row[rng.choice(len(NOUNS), rng.integers(1, 4), replace=False)] = 1
    found = found_nouns(rng.random(labels.shape), labels)
    assert found['found'] == pytest.approx(found['chance'], abs=0.02)


def test_the_classifier_learns_and_repeats(source_folder):
    maker = SceneMaker(source_folder, 'train')
    scenes = [maker.scene(index) for index in range(64)]
    first, second = (NounClassifier(seed=1).fit(scenes, epochs=16, batch_size=16) for _ in range(2))
    assert evaluate_scenes(first, scenes)['found'] > evaluate_scenes(first, scenes)['chance'] + 0.2
    images = np.stack([scene.image for scene in scenes])
    assert np.array_equal(first.scores(images), second.scores(images))
    # an autoencoder that changes nothing loses nothing
    pipe = SimpleNamespace(
        image_processor=load_pipeline(SHIPPED).pipe.image_processor,
        vae=SimpleNamespace(
            encode=lambda x: SimpleNamespace(latent_dist=SimpleNamespace(mean=x)),
            decode=lambda x: SimpleNamespace(sample=x),
        ),
    )
    assert evaluate_reconstructions(first, pipe, scenes) == evaluate_scenes(first, scenes)


@pytest.fixture(scope='module')
def segmenter(source_folder):
    maker = SceneMaker(source_folder, 'train')
    return NounSegmenter().fit(
        [maker.scene(index) for index in range(64)], epochs=16, batch_size=16
    )


def test_the_segmenter_learns_where_the_named_nouns_are(source_folder, segmenter):
    maker = SceneMaker(source_folder, 'val')
    scenes = [maker.scene(index) for index in range(40)]
    overlaps = []
    for scene in scenes:
        masks = segmenter.masks(scene.image, scene.record.nouns)
        assert masks.shape == scene.masks.shape and masks.dtype == bool
        # a pixel belongs to one noun, and no noun is a speck
        assert masks.sum(0).max() <= 1 and all(
            mask.sum() == 0 or mask.sum() >= 41 for mask in masks
        )
        union = (masks | scene.masks).sum((1, 2))
        overlaps += list((masks & scene.masks).sum((1, 2)) / union)
    assert np.mean(overlaps) > 0.3  # a third of it is what a whole image gets
    # what isn't named isn't marked
    one = segmenter.masks(scenes[0].image, scenes[0].record.nouns[:1])
    assert one.shape == (1, 64, 64)


def test_a_network_is_trained_once(source_folder, tmp_path):
    scenes = [SceneMaker(source_folder, 'train').scene(index) for index in range(16)]
    path = tmp_path / 'network.safetensors'
    first = trained(NounSegmenter(seed=3), path, lambda: scenes, 1)
    second = trained(NounSegmenter(seed=4), path, lambda: pytest.fail('trained again'), 1)
    image, nouns = scenes[0].image, scenes[0].record.nouns
    assert np.array_equal(first.masks(image, nouns), second.masks(image, nouns))


def test_drawn_scenes_are_recorded_and_marked(segmenter):
    pipe = load_pipeline(SHIPPED).pipe
    prompts = [sample_prompt(f'x-{number}', 0) for number in range(3)]
    batches = list(record_generated_scenes(pipe, prompts, segmenter, 2, 3.0, batch_size=2))
    assert [len(scenes) for _, scenes in batches] == [2, 1]
    for recorder, scenes in batches:
        for masks, scene in zip(recorder.masks(), scenes, strict=True):
            assert len(masks) == len(scene.masks) == len(scene.record.nouns)
            assert scene.image.shape == (64, 64, 3) and scene.image.dtype == np.uint8


def test_scenes_are_noised_as_in_training(source_folder, monkeypatch):
    """Whatever the sampler last drew at: a share sqrt(alpha) of the picture, and the rest noise."""
    scenes = [SceneMaker(source_folder, 'val').scene(0)]
    pipe = load_pipeline(SHIPPED).pipe
    seen = []
    pipe.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    alphas = pipe.scheduler.alphas_cumprod
    for drawn_in in (None, 12):
        if drawn_in:
            pipe.scheduler.set_timesteps(drawn_in)
        for noise in (torch.zeros, torch.ones):
            seen.clear()
            monkeypatch.setattr(
                evaluation.torch, 'randn', lambda shape, generator, noise=noise: noise(shape)
            )
            list(record_noised_scenes(pipe, scenes, timesteps=(0, 50, 500, 950)))
            clean = (seen[0] - noise(()) * (1 - alphas[0]) ** 0.5) / alphas[0] ** 0.5
            for noised, t in zip(seen, (0, 50, 500, 950), strict=True):
                wanted = alphas[t] ** 0.5 * clean + (1 - alphas[t]) ** 0.5 * noise(())
                torch.testing.assert_close(noised, wanted)


def test_masks_on_noised_scenes_are_scored_by_resolution(source_folder):
    maker = SceneMaker(source_folder, 'val')
    scenes = [maker.scene(index) for index in range(6)]
    pipe = load_pipeline(SHIPPED).pipe
    scores = masks_on_noised_scenes(pipe, scenes, timesteps=(100, 500), batch_size=4)
    assert set(scores) == {'all', '8x8', '4x4'}
    nouns = sum(len(scene.masks) for scene in scenes)
    for score in scores.values():
        assert score['nouns'] == nouns and 0 <= score['iou'] <= score['best_iou'] <= 1
    again = masks_on_noised_scenes(pipe, scenes, timesteps=(100, 500), batch_size=4)
    assert again == scores
    assert torch.is_grad_enabled()
    found = found_nouns(np.eye(len(NOUNS)), np.eye(len(NOUNS)))
    results = new_results('x', 'python x') | {
        'images': 4,
        'steps': 2,
        'guidance': 3.0,
        'generated': found,
        'real': found,
        'reconstructed': found,
        'masks': scores,
        'masks_unseen_objects': scores,
    }
    report = generator_report(results)
    assert all(
        '100.0%' in fact or f'{scores["all"]["iou"]:.3f}' in fact
        for fact in generator_facts(results).values()
    )
    assert '| generated | 100.0% | 100.0% | - | - |' in report
    assert f'| 4x4 | {scores["4x4"]["iou"]:.3f} |' in report

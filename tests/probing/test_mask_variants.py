"""Variants of one recording: which there are, how they are scored, what is chosen."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.tiny_pipelines import tiny_stable_diffusion

from freeatm_mm.attention import AttentionRecorder, dense_crf, mask_trust, minmax, resize
from freeatm_mm.probing import mask_variants
from freeatm_mm.probing.mask_quality import mask_quality, summarise

PROMPTS = ['a red dog on the sand', 'a blue bird']
NOUNS = [[(6, 9), (17, 21)], [(7, 11)]]


def make_scene(seed, nouns):
    random = np.random.default_rng(seed)
    return SimpleNamespace(
        image=random.integers(0, 256, (24, 24, 3), dtype=np.uint8),
        masks=random.random((len(nouns), 24, 24)) < 0.3,
        record=SimpleNamespace(nouns=[SimpleNamespace(text='noun') for _ in nouns]),
    )


@pytest.fixture(scope='module')
def recorded():
    pipe = tiny_stable_diffusion()
    with AttentionRecorder(
        pipe, PROMPTS, NOUNS, self_attention=16, **mask_variants.RECORDING
    ) as recorder:
        pipe(
            PROMPTS,
            num_inference_steps=3,
            output_type='latent',
            generator=torch.Generator().manual_seed(0),
        )
    return [(recorder, [make_scene(seed, nouns) for seed, nouns in enumerate(NOUNS)])]


def variants_of(recorder, heads=None):
    return mask_variants.make_variants(recorder, num_steps=3, noisier=range(1, 3), heads=heads)


def test_the_variants_of_a_unet(recorded):
    recorder = recorded[0][0]
    names = [variant.name for variant in variants_of(recorder, {'mid_block': [0, 1]})]
    assert len(set(names)) == len(names)
    blocks = {'down_blocks.0', 'down_blocks.1', 'mid_block', 'up_blocks.0', 'up_blocks.1'}
    assert {name.split(', ')[1] for name in names if name.startswith('figure 5a')} == blocks
    assert {'8x8 alone', '16x16 alone', '16x16, CRF', 'the 2 best heads, CRF'} < set(names)
    assert not any('heads' in variant.name for variant in variants_of(recorder))


def test_scores_are_those_of_the_masks(recorded):
    recorder, scenes = recorded[0]
    rows, masks, _ = mask_variants.score_variants(recorded, variants_of, crf_size=12)
    assert [row['method'] for row in rows] == list(masks)
    by_name = {row['method']: row['metrics'] for row in rows}
    paper = [each.numpy() for each in recorder.masks()]
    sharp = [
        dense_crf(resize(minmax(maps)[0], (12, 12)), scene.image)
        for maps, scene in zip(paper, scenes)
    ]
    for name, expected in (
        ("figure 5c: all steps, all blocks (the paper's)", paper),
        ('all blocks, CRF', sharp),
    ):
        for found, wanted in zip(masks[name], expected):
            np.testing.assert_allclose(found, wanted, atol=1e-5)
        summary = summarise(
            [mask_quality(maps, scene.masks) for maps, scene in zip(expected, scenes)]
        )
        for key in ('iou', 'best_iou', 'pointing'):
            assert by_name[name][key] == pytest.approx(summary[key], abs=1e-3)
        assert by_name[name]['box_iou'] == pytest.approx(summary['found_box_iou'], abs=1e-3)
    picture = mask_variants.variants_picture(scenes, {'one': paper, 'two': sharp}, size=32)
    assert picture.width > 3 * 32 and picture.height > 4 * 32
    pixels = np.asarray(picture)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


class FakeRecorder:
    """Head 1 of layer b and head 0 of layer a each see half of the object; others see noise."""

    layers = {'a': 2, 'b': 2}

    def __init__(self, exact):
        random = np.random.default_rng(0)
        left = exact.copy()
        left[..., 8:] = False
        self.maps = {
            ('a', 0): left,
            ('b', 1): exact & ~left,
            ('a', 1): random.random(exact.shape),
            ('b', 0): random.random(exact.shape),
        }

    def masks(self, heads):
        chosen = [self.maps[layer, head] for layer, some in heads.items() for head in some]
        return [torch.from_numpy(np.mean(chosen, axis=0).astype(np.float32))]


def test_best_heads_finds_those_that_see_the_object():
    exact = np.zeros((1, 16, 16), bool)
    exact[0, 4:12, 4:12] = True
    recordings = iter([(FakeRecorder(exact), [SimpleNamespace(masks=exact)])])
    assert mask_variants.best_heads(recordings, counts=(1, 2, 4, 8)) == {'a': [0], 'b': [1]}


def test_trust_report_ranks():
    random = np.random.default_rng(0)
    masks, qualities = [], []
    for _ in range(20):  # the fainter the background, the better the mask
        noise = random.uniform(0, 1)
        exact = np.zeros((2, 16, 16), bool)
        exact[0, 2:9, 2:9], exact[1, 9:15, 9:15] = True, True
        maps = exact + noise * random.uniform(0, 1.4, exact.shape)
        masks.append(maps)
        qualities.append(mask_quality(maps, exact))
    report = mask_variants.trust_report(masks, qualities)
    scores = report['peakedness']
    assert scores['rank_correlation'] > 0.8
    assert scores['iou_of_better_half'] > scores['iou'] + 0.05
    fixed = [quality.iou[:, 8] for quality in qualities]
    assert scores['iou'] == pytest.approx(np.concatenate(fixed).mean())
    areas = [each.area for maps in masks for each in mask_trust(maps)]
    order = np.argsort(areas, kind='stable')[:20]
    assert report['area']['iou_of_better_half'] == pytest.approx(
        np.concatenate(fixed)[order].mean()
    )


def test_ranks_share_ties():
    np.testing.assert_array_equal(mask_variants._ranks(np.array([3.0, 1, 3, 2])), [2.5, 0, 2.5, 1])


def test_report_names_every_variant(recorded):
    rows, _, _ = mask_variants.score_variants(recorded, variants_of, crf_size=12)
    parts = [
        {
            'title': title,
            'picture': f'{title}.png',
            'description': 'scenes.',
            'rows': rows,
            'trust': {'area': {'rank_correlation': 0.5, 'iou': 0.25, 'iou_of_better_half': 0.75}},
        }
        for title in ('One', 'Two')
    ]
    report = mask_variants.variants_report(
        {
            'name': 'mask-quality',
            'command': 'command',
            'date': 'today',
            'hardware': 'machine',
            'heads': {},
            'parts': parts,
        }
    )
    for row in rows:
        assert report.count(f'| {row["method"]} | {row["metrics"]["iou"]:.3f} |') == 2
    assert '| area | 0.50 | 0.250 | 0.750 |' in report
    assert '## Two' in report and '(Two.png)' in report

"""Mask scores against pixel-by-pixel loops."""

from __future__ import annotations

import json

import numpy as np
import pytest

from freeatm_mm.probing.mask_quality import (
    THRESHOLDS,
    centred_box,
    mask_quality,
    match_regions,
    mean_box_size,
    summarise,
)


def brute_iou(binary, exact):
    both = either = 0
    for y in range(exact.shape[0]):
        for x in range(exact.shape[1]):
            both += binary[y, x] and exact[y, x]
            either += binary[y, x] or exact[y, x]
    return both / either


def brute_box_iou(binary, exact):
    """IoU of the filled boxes round two masks; 0 where the first is empty."""
    filled = []
    for mask in (binary, exact):
        rows, columns = np.nonzero(mask)
        box = np.zeros(mask.shape, bool)
        if len(rows):
            box[min(rows) : max(rows) + 1, min(columns) : max(columns) + 1] = True
        filled.append(box)
    return brute_iou(*filled)


def enlarge(mask, size):
    """Bilinear, pixel centres at half coordinates, one pixel at a time."""
    out = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            v = min(max((y + 0.5) * mask.shape[0] / size[0] - 0.5, 0), mask.shape[0] - 1)
            u = min(max((x + 0.5) * mask.shape[1] / size[1] - 0.5, 0), mask.shape[1] - 1)
            top, left = int(v), int(u)
            low, right = min(top + 1, mask.shape[0] - 1), min(left + 1, mask.shape[1] - 1)
            a, b = v - top, u - left
            out[y, x] = (1 - a) * ((1 - b) * mask[top, left] + b * mask[top, right]) + a * (
                (1 - b) * mask[low, left] + b * mask[low, right]
            )
    return out


@pytest.mark.parametrize('seed', range(3))
def test_every_score_against_loops(seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((3, 4, 5)) * 1e-3 + 0.2
    exact = rng.random((3, 9, 8)) < 0.3
    exact[:, 4, 4] = True
    found = mask_quality(masks, exact, box_size=(0.5, 0.5))
    soft = []
    for mask in masks:
        soft.append(enlarge((mask - mask.min()) / (mask.max() - mask.min()), (9, 8)))
    box = np.zeros((9, 8), bool)
    box[2:6, 2:6] = True  # 4 of 9 rows (4.5 rounds to even), 4 of 8 columns
    for k in range(3):
        for t, threshold in enumerate(THRESHOLDS):
            assert found.iou[k, t] == pytest.approx(brute_iou(soft[k] >= threshold, exact[k]))
            others = [brute_iou(soft[j] >= threshold, exact[k]) for j in range(3) if j != k]
            assert found.other_iou[k, t] == pytest.approx(np.mean(others))
            assert found.found_box_iou[k, t] == pytest.approx(
                brute_box_iou(soft[k] >= threshold, exact[k])
            )
        highest = np.unravel_index(soft[k].argmax(), (9, 8))
        assert found.pointing[k] == exact[k][highest]
        assert found.mass[k] == pytest.approx(soft[k][exact[k]].sum() / soft[k].sum())
        assert found.area[k] == pytest.approx(exact[k].mean())
        assert found.box_iou[k] == pytest.approx(brute_iou(box, exact[k]))


def test_a_perfect_mask_scores_one_and_scale_does_not_matter():
    exact = np.zeros((2, 8, 8), bool)
    exact[0, :3, :4], exact[1, 5:, 2:7] = True, True
    quality = mask_quality(exact * 0.01 + 3.0, exact)
    summary = summarise([quality])
    assert summary['iou'] == summary['best_iou'] == summary['pointing'] == summary['mass'] == 1.0
    assert summary['controls']['other_noun']['iou'] == 0.0
    assert summary['controls']['centred_box'] is None


def test_flat_mask_scores_like_chance_and_never_nan():
    exact = np.zeros((1, 4, 4), bool)
    exact[0, 0, :2] = True
    quality = mask_quality(np.full((1, 2, 2), 0.7), exact)
    assert quality.iou[0].tolist() == [0.0] * len(THRESHOLDS)
    assert quality.pointing[0] == quality.mass[0] == quality.area[0] == 2 / 16


def test_empty_exact_masks_are_left_out_and_counted():
    rng = np.random.default_rng(0)
    exact = np.zeros((2, 4, 4), bool)
    exact[0, 1, 1] = True
    whole = mask_quality(rng.random((2, 4, 4)), exact)
    alone = mask_quality(np.zeros((0, 4, 4)), np.zeros((0, 4, 4), bool))
    assert np.isnan(whole.iou[1]).all() and np.isnan(whole.pointing[1])
    summary = summarise([whole, alone], categories=[['leaf', 'bag'], []])
    assert summary['images'] == 2
    assert summary['nouns'] == 1 and summary['nouns_without_pixels'] == 1
    assert list(summary['class_iou']) == ['leaf']
    json.dumps(summary, allow_nan=False)


def test_summary_picks_the_best_threshold_of_the_data_set_and_sums_classes():
    exact = np.zeros((1, 1, 10), bool)
    exact[0, 0, :5] = True
    first = mask_quality(
        np.array([[[1, 1, 1, 1, 0.5, 0.5, 0.2, 0, 0, 0]]]), exact, (0.3, 0.45, 0.6)
    )
    second = mask_quality(
        np.array([[[1, 1, 0.4, 0.4, 0.4, 0, 0, 0, 0, 0]]]), exact, (0.3, 0.45, 0.6)
    )
    summary = summarise([first, second], 0.45, [['leaf'], ['leaf']])
    assert summary['sweep'] == pytest.approx(
        {'0.3': (5 / 6 + 1) / 2, '0.45': (5 / 6 + 2 / 5) / 2, '0.6': (4 / 5 + 2 / 5) / 2}
    )
    assert summary['best_threshold'] == 0.3 and summary['iou'] == pytest.approx(37 / 60)
    assert summary['class_iou'] == pytest.approx({'leaf': (5 + 2) / (6 + 5)})
    assert summary['controls']['other_noun'] is None
    with pytest.raises(ValueError, match='not in the sweep'):
        summarise([first], 0.5)
    with pytest.raises(ValueError, match='each noun of each image'):
        summarise([first], 0.45, [['leaf', 'bag']])


def test_mean_box_size_and_centred_box():
    masks = np.zeros((3, 10, 20), bool)
    masks[0, 2:4, 5:15], masks[1, 0:6, 0:4] = True, True
    assert mean_box_size([masks[:1], masks[1:]]) == pytest.approx((0.4, 0.35))
    box = centred_box((10, 20), (0.4, 0.35))
    assert box.sum() == 4 * 7 and box[3:7, 6:13].all()
    assert centred_box((4, 4), (0.01, 1.0)).sum() == 4
    with pytest.raises(ValueError, match='none of the exact masks'):
        mean_box_size([masks[2:]])


@pytest.mark.parametrize(
    'masks, exact, message',
    [
        (np.zeros((1, 2, 2)), np.zeros((2, 2, 2), bool), 'same nouns'),
        (np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), 'boolean'),
        (np.full((1, 2, 2), np.inf), np.zeros((1, 2, 2), bool), r'nouns \[0\] are not finite'),
    ],
)
def test_bad_masks_are_named(masks, exact, message):
    with pytest.raises(ValueError, match=message):
        mask_quality(masks, exact)


def test_thresholds_outside_their_range_are_refused():
    with pytest.raises(ValueError, match='thresholds in'):
        mask_quality(np.zeros((1, 2, 2)), np.ones((1, 2, 2), bool), thresholds=(0.0, 0.5))


def test_each_noun_gets_a_region_of_its_own():
    """By the best assignment in all, which isn't each noun's own best; no region twice."""
    labels = np.zeros((4, 6), int)
    labels[:, 2:4], labels[:, 4:] = 7, 9
    exact = np.zeros((2, 4, 6), bool)
    exact[0, :, 2:4] = True  # region 7 to the pixel
    exact[1, :, 2:5] = True  # overlaps 7 most, but 9 is left for it
    matched = match_regions(labels, exact)
    assert (matched[0] == (labels == 7)).all() and (matched[1] == (labels == 9)).all()
    one = match_regions(np.ones((4, 6), int), exact)
    assert one.any((1, 2)).tolist() == [False, True]  # the larger overlap
    with pytest.raises(ValueError, match='needs labels'):
        match_regions(labels[:2], exact)

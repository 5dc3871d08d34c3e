"""Measures of trust against plain numpy, and on masks whose answer is plain to see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.examples import examples
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.attention import mask_trust


def reference(maps, threshold):
    binary = []
    for plane in maps:
        span = plane.max() - plane.min()
        binary.append((plane - plane.min()) / span >= threshold if span else plane < 0)
    rows = []
    for noun, plane in enumerate(maps):
        inside = binary[noun]
        peakedness = 1 - plane[~inside].mean() / plane[inside].mean() if inside.any() else 0
        overlaps = [
            (inside & other).sum() / (inside | other).sum()
            for index, other in enumerate(binary)
            if index != noun
            if (inside | other).any()
        ]
        rows.append((peakedness, inside.mean(), max(overlaps, default=0)))
    return rows


@examples(50)
@given(
    st.integers(0, 4),
    st.integers(1, 6),
    st.integers(2, 6),
    st.integers(0, 999),
    st.sampled_from([0.2, 0.45, 0.8]),
)
def test_equals_plain_numpy(count, height, width, seed, threshold):
    maps = np.random.default_rng(seed).uniform(0, 0.02, (count, height, width))
    maps[:, 0, 0] += 0.01  # not flat
    found = mask_trust(maps, threshold)
    expected = reference(maps, threshold)
    assert len(found) == count
    for trust, row in zip(found, expected):
        np.testing.assert_allclose((trust.peakedness, trust.area, trust.overlap), row, atol=1e-9)


def test_plain_cases():
    maps = torch.full((4, 8, 8), 0.001)
    maps[0, :4, :4] = 0.1  # peaked
    maps[1, :4, :4] = 0.0012  # the same place, hardly seen
    maps[2, 4:, :] = 0.1  # somewhere else, larger
    peaked, faint, large, flat = mask_trust(maps)
    assert peaked.peakedness == pytest.approx(0.99) and peaked.area == 1 / 4
    assert faint.peakedness == pytest.approx(1 / 6)
    assert (peaked.overlap, faint.overlap, large.overlap, flat.overlap) == (1, 1, 0, 0)
    assert large.area == 1 / 2
    assert (flat.peakedness, flat.area) == (0, 0)
    assert faint.to_json() == {'peakedness': 0.167, 'area': 0.25, 'overlap': 1.0}
    assert mask_trust(np.zeros((0, 4, 4))) == []


def test_refuses_what_is_no_attention():
    for maps in (np.full((1, 2, 2), -1.0), np.full((1, 2, 2), np.nan), np.zeros((2, 2))):
        with pytest.raises(ValueError, match='mask_trust needs raw attention'):
            mask_trust(maps)

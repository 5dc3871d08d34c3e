"""Mask arithmetic: ranges, rounding, geometry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.attention_reference import bilinear
from helpers.examples import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from freeatm_mm.attention import binarize, box_of, dequantize, minmax, quantize, resize
from freeatm_mm.ops import peakedness

finite = st.floats(-(2.0**60), 2.0**60, width=32)
stacks = hnp.arrays(np.float32, st.tuples(*[st.integers(1, 5)] * 3), elements=finite)


@examples(60)
@given(stacks)
def test_quantize_restores_within_half_a_level(maps):
    levels, scales = quantize(maps)
    assert levels.dtype == np.uint8 and levels.shape == maps.shape
    assert scales.dtype == np.float32 and scales.shape == (len(maps), 2)
    np.testing.assert_array_equal(scales[:, 0], maps.min((1, 2)))
    np.testing.assert_array_equal(scales[:, 1], maps.max((1, 2)))
    restored = dequantize(levels, scales)
    low, high = scales[:, 0].astype(np.float64), scales[:, 1].astype(np.float64)
    # Half a level, and what float32 rounds off numbers of this size.
    bound = (high - low) / 255 / 2 + 1e-6 * np.maximum(abs(low), abs(high))
    assert (abs(restored.astype(np.float64) - maps).max((1, 2)) <= bound).all()


def test_quantize_a_flat_map_is_exact():
    maps = torch.full((2, 3, 4), 0.1)
    maps[1, 0, 0] = 0.7
    levels, scales = quantize(maps)
    assert int(levels[0].max()) == 0 and int(levels[1].max()) == 255
    assert torch.equal(dequantize(levels, scales)[0], maps[0])


@examples(60)
@given(stacks)
def test_minmax_fills_the_range(maps):
    stretched, flat = minmax(maps)
    assert np.isfinite(stretched).all()
    for given_map, result, is_flat in zip(maps, stretched, flat):
        low, high = given_map.min().astype(np.float64), given_map.max().astype(np.float64)
        if high - low < 0.9e-6 * max(abs(low), abs(high)) or high == low:
            assert is_flat
        elif high - low > 1.1e-6 * max(abs(low), abs(high)):
            assert not is_flat
        assert result.min() == 0 and result.max() == (0 if is_flat else 1)


def test_minmax_keeps_no_maps():
    stretched, flat = minmax(torch.zeros(0, 4, 4))
    assert stretched.shape == (0, 4, 4) and flat.shape == (0,)
    levels, scales = quantize(torch.zeros(0, 4, 4))
    assert levels.shape == (0, 4, 4) and scales.shape == (0, 2)
    assert dequantize(levels, scales).shape == (0, 4, 4)
    assert resize(torch.zeros(0, 4, 4), (8, 8)).shape == (0, 8, 8)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('function', [minmax, quantize])
def test_values_that_are_not_finite(function, value):
    maps = torch.zeros(1, 2, 2)
    maps[0, 1, 1] = value
    with pytest.raises(ValueError, match='not finite'):
        function(maps)


def test_dequantize_checks_its_input():
    with pytest.raises(ValueError, match='uint8'):
        dequantize(torch.zeros(1, 2, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match='scales must have shape'):
        dequantize(torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(1, 2))


def test_numpy_and_torch_give_the_same():
    maps = np.random.default_rng(0).random((3, 5, 7), dtype=np.float32)
    for function in (
        lambda x: resize(x, (9, 4)),
        lambda x: minmax(x)[0],
        lambda x: minmax(x)[1],
        lambda x: quantize(x)[0],
        lambda x: quantize(x)[1],
        binarize,
    ):
        of_numpy, of_torch = function(maps), function(torch.from_numpy(maps))
        assert isinstance(of_numpy, np.ndarray) and isinstance(of_torch, torch.Tensor)
        np.testing.assert_array_equal(of_numpy, of_torch.numpy())
    assert box_of(maps[0] > 0.5) == box_of(torch.from_numpy(maps[0] > 0.5))


def test_resize_keeps_positions():
    rows, columns = np.mgrid[:6, :10].astype(np.float32)
    large = resize(np.stack([rows, columns]), (12, 40))
    np.testing.assert_allclose(large[0, :, 3], np.clip((np.arange(12) + 0.5) / 2 - 0.5, 0, 5))
    np.testing.assert_allclose(large[1, 5], np.clip((np.arange(40) + 0.5) / 4 - 0.5, 0, 9))
    noise = np.random.default_rng(0).random((6, 10), dtype=np.float32)
    np.testing.assert_allclose(resize(noise, (13, 17)), bilinear(noise, (13, 17)), atol=1e-6)
    assert resize(noise, (6, 10)) is not noise


def test_resize_averages_when_it_shrinks():
    stripes = np.zeros((8, 64), np.float32)
    stripes[:, ::2] = 1
    np.testing.assert_allclose(resize(stripes, (4, 4))[:, 1:-1], 0.5, atol=0.02)
    assert resize(np.ones((8, 64), np.float32), (3, 5)) == pytest.approx(1)


def test_binarize():
    maps = torch.tensor([0.0, 0.4499, 0.45, 1.0])
    assert binarize(maps).tolist() == [False, False, True, True]
    assert binarize(maps, 0.9).tolist() == [False, False, False, True]
    for value in (-0.1, 1.1, float('nan')):
        with pytest.raises(ValueError, match='minmax first'):
            binarize(torch.tensor([0.5, value]))


@examples(60)
@given(st.data())
def test_box_of_a_rectangle(data):
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom = data.draw(st.integers(top + 1, height))
    right = data.draw(st.integers(left + 1, width))
    mask = np.zeros((height, width), bool)
    mask[[top, bottom - 1], left:right] = True
    mask[top:bottom, [left, right - 1]] = True
    assert box_of(mask) == (left / width, top / height, right / width, bottom / height)


def test_box_of_other_things():
    assert box_of(np.zeros((3, 4), bool)) is None
    assert box_of(np.ones((3, 4), bool)) == (0, 0, 1, 1)
    for mask in (np.zeros((3, 4)), np.zeros((1, 3, 4), bool)):
        with pytest.raises(ValueError, match='one boolean mask'):
            box_of(mask)


def test_peakedness_against_a_loop():
    maps = np.random.default_rng(0).random((3, 4, 5)) * 0.02
    maps[2] = 0.01
    found = peakedness(maps)
    for value, attention in zip(found[:2], maps):
        stretched = (attention - attention.min()) / (attention.max() - attention.min())
        front, back = attention[stretched >= 0.45], attention[stretched < 0.45]
        assert value == pytest.approx(1 - back.mean() / front.mean())
    assert found[2] == 0
    np.testing.assert_allclose(peakedness(torch.from_numpy(maps)).numpy(), found)

"""Pooling against equation 2 written out in NumPy; batches of any numbers of instances."""

import numpy as np
import pytest
import torch

from freeatm_mm.ops import UNKNOWN_NOUN, check_masks, pad_instances, pool_instances


def test_pooling_equals_equation_2():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 5, 4, 6)).astype(np.float32)
    masks = rng.uniform(0, 0.02, (3, 2, 4, 6)).astype(np.float32)
    expected = np.zeros((3, 2, 5))
    for b in range(3):
        for k in range(2):
            for i in range(4):
                for j in range(6):
                    expected[b, k] += masks[b, k, i, j] * features[b, :, i, j].astype(np.float64)
            expected[b, k] /= masks[b, k].astype(np.float64).sum()
    features, masks = torch.from_numpy(features), torch.from_numpy(masks)
    pooled = pool_instances(features, masks)
    np.testing.assert_allclose(pooled, expected.reshape(6, 5), rtol=1e-4, atol=1e-6)
    places = torch.tensor([0, 3, 4])
    assert torch.equal(pool_instances(features, masks, places), pooled[places])
    channels_last = features.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pool_instances(channels_last, masks), pooled)


def test_pooling_does_not_depend_on_the_masks_scale_and_takes_tiny_attention():
    features, masks = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    pooled = pool_instances(features, masks)
    torch.testing.assert_close(pool_instances(features, masks * 1e-30), pooled)
    half = pool_instances(features.half(), masks * 1e-6)  # weights are formed in float32
    torch.testing.assert_close(half.float(), pooled, rtol=1e-2, atol=5e-3)


def test_empty_and_uniform_masks():
    features = torch.randn(2, 3, 4, 4)
    assert pool_instances(features, torch.zeros(2, 1, 4, 4)).eq(0).all()
    mean = features.mean((2, 3))
    torch.testing.assert_close(pool_instances(features, torch.ones(2, 1, 4, 4)), mean)
    torch.testing.assert_close(pool_instances(features, torch.ones(2, 1, 1, 1)), mean)


def test_wrong_grid_is_named():
    with pytest.raises(ValueError, match=r'5x5.*7x7.*grid_size.*\(7, 7\)'):
        pool_instances(torch.zeros(2, 3, 7, 7), torch.zeros(2, 1, 5, 5))
    with pytest.raises(ValueError, match='batch size is 3 .* masks, 2 and'):
        pool_instances(torch.zeros(2, 3, 7, 7), torch.zeros(3, 1, 7, 7))


def test_padding_keeps_every_instance_and_pools_the_others_whole():
    masks = [torch.rand(2, 3, 4, 5), None, torch.rand(2, 0, 4, 5), torch.rand(2, 1, 4, 5)]
    nouns = [torch.tensor([7, 8, 9]), None, torch.tensor([], dtype=torch.int64), None]
    batch = pad_instances(masks, nouns)
    assert batch.masks.shape == (2, 4, 3, 4, 5) and batch.places.tolist() == [0, 1, 2, 3, 6, 9]
    assert batch.nouns.tolist() == [7, 8, 9, *[UNKNOWN_NOUN] * 3]
    features = torch.randn(4, 6, 4, 5)
    for view in (0, 1):
        rows = []
        for feature, mask in zip(features.double().numpy(), masks):
            given = mask is not None and mask.shape[1]
            for one in mask[view].double().numpy() if given else np.ones((1, 4, 5)):
                rows.append((feature * one).sum((1, 2)) / one.sum())
        pooled = pool_instances(features, batch.masks[view], batch.places)
        np.testing.assert_allclose(pooled, np.array(rows), rtol=1e-4, atol=1e-5)


def test_a_batch_without_a_single_mask_is_pooled_whole():
    features = torch.randn(2, 3, 4, 4)
    for batch in (
        pad_instances([None, None], views=3),
        pad_instances([torch.rand(3, 0, 2, 2)] * 2),
    ):
        assert batch.places.tolist() == [0, 1] and len(batch.nouns) == 2
        pooled = pool_instances(features, batch.masks[0], batch.places)
        torch.testing.assert_close(pooled, features.mean((2, 3)))
    assert len(pad_instances([None], views=3).masks) == 3
    with pytest.raises(ValueError, match='no images'):
        pad_instances([])


def test_masks_that_do_not_fit_each_other_are_told():
    for other in (torch.rand(2, 1, 5, 4), torch.rand(1, 1, 4, 4)):
        with pytest.raises(ValueError, match=r'different \(views, height, width\)'):
            pad_instances([torch.rand(2, 1, 4, 4), other])
    with pytest.raises(ValueError, match='image 1 has 2 masks and 3 nouns'):
        pad_instances([None, torch.rand(2, 2, 4, 4)], [None, torch.arange(3)])


BAD_MASKS = [(float('nan'), 'NaN or infinite'), (float('inf'), 'NaN'), (-0.5, r'negative \(-0.5\)')]


@pytest.mark.parametrize('value, said', BAD_MASKS)
def test_masks_that_are_no_weights_are_told(value, said):
    """A sum of weights of both signs is near 0: a feature of 1e38 would come of it."""
    masks = torch.rand(2, 2, 4, 4)
    check_masks(masks)
    masks[1, 0, 2, 3] = value
    for call in (lambda: check_masks(masks), lambda: pad_instances([None, masks])):
        with pytest.raises(ValueError, match=said):
            call()
    check_masks(masks[:, :0])


@pytest.mark.parametrize('dtype', [torch.uint8, torch.bool, torch.float16, torch.int64])
def test_masks_of_other_types_are_weights_too(dtype):
    features, masks = torch.randn(2, 3, 4, 4), (torch.rand(2, 5, 4, 4) * 9).to(dtype)
    check_masks(masks)
    assert torch.equal(pool_instances(features, masks), pool_instances(features, masks.float()))


def test_double_precision_is_kept():
    features = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    masks = torch.rand(1, 1, 3, 3, dtype=torch.float64)
    expected = (features * masks).sum((2, 3)) / masks.sum()
    torch.testing.assert_close(pool_instances(features, masks), expected, rtol=1e-14, atol=1e-14)


def test_gradients_reach_the_features_by_the_masks_weights():
    features, mask = torch.randn(1, 2, 3, 3, requires_grad=True), torch.rand(1, 1, 3, 3)
    pool_instances(features, mask).sum().backward()
    torch.testing.assert_close(features.grad, (mask / mask.sum()).expand(1, 2, 3, 3))

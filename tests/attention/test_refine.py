"""Propagation against explicit self-attention, and the CRF against every pair of pixels."""

from __future__ import annotations

import itertools
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from helpers.attention_reference import bilinear
from helpers.examples import examples
from helpers.tiny_pipelines import tiny_if, tiny_stable_diffusion
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.attention import AttentionRecorder, dense_crf, propagate
from freeatm_mm.attention.softmax import add_affinity

PROMPTS = ['a red dog on the sand', 'a blue bird']
NOUNS = [[(6, 9), (17, 21)], [(7, 11)]]


def generate(pipe, steps=2, **options):
    return pipe(
        PROMPTS,
        num_inference_steps=steps,
        output_type='pt',
        **options,
        generator=torch.Generator().manual_seed(1),
    ).images


@contextmanager
def explicit_self_attention(pipe, text_keys):
    """Collects the probabilities (batch, heads, N, N) with which pixels attend to pixels."""
    from diffusers.models.attention_processor import AttnAddedKVProcessor, AttnProcessor

    seen, patched, stock = [], [], dict(pipe.unet.attn_processors)

    def wrap(module):
        scores = module.get_attention_scores

        def get_attention_scores(query, key, attention_mask=None):
            probabilities = scores(query, key, attention_mask)
            pixels = probabilities[..., text_keys:].detach().double().numpy()
            seen.append(
                (pixels / pixels.sum(-1, keepdims=True)).reshape(
                    -1, module.heads, *pixels.shape[1:]
                )
            )
            return probabilities

        module.get_attention_scores = get_attention_scores
        patched.append(module)

    for name, module in pipe.unet.named_modules():
        if name.endswith('attn1') or getattr(module, 'add_k_proj', None) is not None:
            wrap(module)
    pipe.unet.set_attn_processor(
        {
            name: AttnAddedKVProcessor()
            if 'AddedKV' in type(processor).__name__
            else AttnProcessor()
            for name, processor in stock.items()
        }
    )
    try:
        yield seen
    finally:
        pipe.unet.set_attn_processor(stock)
        for module in patched:
            del module.get_attention_scores


@pytest.mark.parametrize(
    ('make', 'text_keys', 'side', 'guidance'),
    [
        (tiny_stable_diffusion, 0, 8, 7.5),
        (tiny_stable_diffusion, 0, 16, 1.0),
        (tiny_if, 77, 16, 7.5),
    ],
)
def test_propagated_masks_equal_explicit_self_attention(make, text_keys, side, guidance):
    pipe = make()
    plain = generate(pipe, guidance_scale=guidance)
    with AttentionRecorder(pipe, PROMPTS, NOUNS, self_attention=side) as recorder:
        generated = generate(pipe, guidance_scale=guidance)
    assert torch.equal(plain, generated)
    with explicit_self_attention(pipe, text_keys) as seen:
        generate(pipe, guidance_scale=guidance)
    seen = [each for each in seen if each.shape[-1] == side**2]
    assert seen
    first_row = 2 if guidance > 1 else 0
    for image, raw in enumerate(recorder.masks(size=(side, side))):
        affinity = np.mean([each[first_row + image].mean(0) for each in seen], axis=0)
        for times in (1, 3):
            masks = recorder.masks(propagate=times)[image]
            assert masks.shape == (len(NOUNS[image]), 16, 16)
            for noun in range(len(masks)):
                expected = raw[noun].double().numpy().ravel()
                for _ in range(times):
                    expected = affinity @ expected
                expected = expected.reshape(side, side)
                if side < 16:
                    expected = bilinear(expected, (16, 16))
                np.testing.assert_allclose(masks[noun], expected, rtol=0, atol=1e-6)


def test_one_matrix_whatever_the_steps_and_nothing_without_asking():
    pipe = tiny_stable_diffusion()
    with AttentionRecorder(pipe, PROMPTS, NOUNS, self_attention=32) as recorder:
        generate(pipe, 4)
    # Both resolutions are small enough; only the larger one's sum is kept.
    assert {size: tuple(total.total_BTN.shape) for size, total in recorder._affinities.items()} == {
        (16, 16): (2, 256, 256)
    }
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        generate(pipe, 1)
    assert not recorder._affinities
    with pytest.raises(ValueError, match='propagate=2 needs.*self_attention'):
        recorder.masks(propagate=2)
    with pytest.raises(ValueError, match='self_attention must be a whole number from 1'):
        AttentionRecorder(pipe, PROMPTS, NOUNS, self_attention=0)


def test_fused_projections_are_refused():
    pipe = tiny_stable_diffusion()
    with pytest.raises(RuntimeError, match='without calling its own query and key'):
        with AttentionRecorder(pipe, PROMPTS, NOUNS, self_attention=16, blocks='mid'):
            pipe.fuse_qkv_projections(vae=False)
            generate(pipe, 1)


def test_affinity_in_pieces(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 11, 3, 4, generator=generator) for _ in range(2))
    expected = (torch.einsum('bnhc,bkhc->bhnk', query.double(), key.double()) / 2).softmax(-1)
    for budget in (1, 100, 10**6):
        monkeypatch.setattr('freeatm_mm.attention.softmax.CPU_LOGITS', budget)
        total = torch.ones(2, 11, 11)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            add_affinity(query, key, 0.5, total)
        torch.testing.assert_close(total.double() - 1, expected.mean(1), rtol=0, atol=1e-6)


@examples(30)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 4), st.integers(0, 99))
def test_propagation_averages(height, width, times, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    affinity = torch.rand(
        2, height * width, height * width, generator=generator, dtype=torch.float64
    )
    affinity /= affinity.sum(-1, keepdim=True)
    result = propagate(maps, affinity, times)
    for image, noun in itertools.product(range(2), range(3)):
        expected = (
            np.linalg.matrix_power(affinity[image].numpy(), times)
            @ maps[image, noun].numpy().ravel()
        )
        np.testing.assert_allclose(result[image, noun].ravel(), expected, rtol=1e-9)
    assert float(result.max()) <= float(maps.max()) + 1e-9
    assert float(result.min()) >= float(maps.min()) - 1e-9


def test_propagation_refuses_other_sizes():
    with pytest.raises(ValueError, match=r'maps of 2x3 need an affinity of shape \(..., 6, 6\)'):
        propagate(torch.zeros(1, 2, 3), torch.zeros(5, 5))
    for times in (-1, 10**9, 1.5):
        with pytest.raises(ValueError, match='times to propagate must be a whole number from 0'):
            propagate(torch.zeros(1, 2, 3), torch.zeros(6, 6), times)


def brute_force_crf(
    mask, image, threshold, appearance, position, colour, smoothness, distance, iterations
):
    """Mean field by the paper's formulas: labels, pixels and pairs in loops, in float64."""
    height, width = mask.shape
    places = list(itertools.product(range(height), range(width)))
    sigma = position * min(height, width)

    def kernel(a, b, first):
        apart = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
        if not first:
            return math.exp(-apart / (2 * distance**2))
        unlike = sum((float(image[a][c]) - float(image[b][c])) ** 2 for c in range(3))
        return math.exp(-apart / (2 * sigma**2) - unlike / (2 * colour**2))

    kernels = {}
    for first in (True, False):
        sums = [sum(kernel(a, b, first) for b in places if b != a) for a in places]
        for (i, a), (j, b) in itertools.product(enumerate(places), repeat=2):
            if i != j:
                kernels[first, i, j] = kernel(a, b, first) / math.sqrt(sums[i] * sums[j])

    odds = threshold / (1 - threshold)
    shares = [min(max(float(mask[a]), 1e-4), 1 - 1e-4) for a in places]
    shares = [share / (share + (1 - share) * odds) for share in shares]
    unary = [[-math.log(1 - share), -math.log(share)] for share in shares]
    label = [[1 - share, share] for share in shares]
    for _ in range(iterations):
        label_before, label = label, []
        for i in range(len(places)):
            weights = []
            for this in (0, 1):
                energy = unary[i][this]
                for first, weight in ((True, appearance), (False, smoothness)):
                    energy += sum(
                        weight * kernels[first, i, j] * label_before[j][1 - this]
                        for j in range(len(places))
                        if j != i
                    )
                weights.append(math.exp(-energy))
            label.append([weight / sum(weights) for weight in weights])
    shares = [share[1] for share in label]
    return np.array([share * odds / (1 - share + share * odds) for share in shares]).reshape(
        mask.shape
    )


@pytest.mark.parametrize(
    'options',
    [
        dict(
            threshold=0.45,
            appearance=4.0,
            position=0.4,
            colour=60.0,
            smoothness=1.0,
            distance=1.0,
            iterations=5,
        ),
        dict(
            threshold=0.6,
            appearance=0.7,
            position=1.0,
            colour=25.0,
            smoothness=0.0,
            distance=0.5,
            iterations=1,
        ),
        dict(
            threshold=0.5,
            appearance=0.0,
            position=0.2,
            colour=13.0,
            smoothness=2.0,
            distance=2.0,
            iterations=3,
        ),
    ],
)
def test_crf_equals_brute_force(options):
    random = np.random.default_rng(3)
    image = random.integers(60, 160, (4, 5, 3), dtype=np.uint8)
    masks = random.uniform(0, 1, (2, 4, 5)).astype(np.float32)
    masks[0, 0, :2] = 0, 1
    refined = dense_crf(masks, image, **options)
    assert refined.shape == masks.shape and refined.dtype == np.float32
    for mask, result in zip(masks, refined):
        np.testing.assert_allclose(
            result, brute_force_crf(mask, image, **options), rtol=0, atol=1e-5
        )


def test_crf_without_rounds_or_weights_changes_nothing():
    random = np.random.default_rng(0)
    masks = random.uniform(0.01, 0.99, (2, 6, 6)).astype(np.float32)
    image = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for options in (dict(iterations=0), dict(appearance=0.0, smoothness=0.0)):
        np.testing.assert_allclose(dense_crf(masks, image, **options), masks, atol=1e-5)


def test_crf_moves_a_mask_to_the_edge_of_the_image():
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 200, 120, 40
    right = np.arange(16) >= 8
    blurred = np.tile(1 / (1 + np.exp(-(np.arange(16) - 5.0) / 1.5)), (1, 16, 1))
    assert ((blurred[0] >= 0.45) != right).any()
    refined = dense_crf(blurred, image, position=0.5)
    np.testing.assert_array_equal(refined[0] >= 0.45, np.broadcast_to(right, (16, 16)))
    # A picture of one colour has no edge to move to: the same mask stays where it was.
    kept = dense_crf(blurred, np.zeros_like(image), smoothness=0.0, appearance=0.1)
    np.testing.assert_array_equal(kept >= 0.45, blurred >= 0.45)


def test_crf_refuses_what_it_cannot_use():
    image, mask = np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4))
    for match, arguments in (
        (r'masks of shape \(K, h, w\)', (mask + 2, image)),
        ('image of shape', (mask, image.astype(float))),
        ('97x97 are too many', (np.zeros((1, 97, 97)), image)),
    ):
        with pytest.raises(ValueError, match=match):
            dense_crf(*arguments)
    assert dense_crf(mask[:0], image).shape == (0, 4, 4)
    with pytest.raises(ValueError, match='threshold between 0 and 1'):
        dense_crf(mask, image, threshold=1.0)
    for name, value in (
        ('iterations', 10**9),
        ('iterations', -1),
        ('colour', 0.0),
        ('position', float('nan')),
        ('appearance', -1.0),
        ('distance', 1e300),
    ):
        with pytest.raises(ValueError, match=name):
            dense_crf(mask, image, **{name: value})


def test_linear_attention_is_not_taken_for_a_softmax():
    from diffusers.models.attention_processor import Attention, SanaLinearAttnProcessor2_0

    from freeatm_mm.attention.families import FAMILIES
    from freeatm_mm.attention.taps import self_attention_modules

    family = next(family for family in FAMILIES if family.name == 'Sana')
    linear = Attention(8, heads=2, dim_head=4, processor=SanaLinearAttnProcessor2_0())
    softmax = Attention(8, heads=2, dim_head=4)
    assert self_attention_modules(torch.nn.ModuleList([linear, softmax]), family) == [
        ('1', softmax)
    ]
    with pytest.raises(ValueError, match='no self-attention that can be recorded'):
        self_attention_modules(torch.nn.ModuleList([linear]), family)

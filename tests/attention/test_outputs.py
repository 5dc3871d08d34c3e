"""Heads weighted by their contribution, and rescaled words, against explicit references."""

from __future__ import annotations

import re
from contextlib import contextmanager

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_generators as tiny
from helpers.attention_reference import bilinear
from helpers.numpy_attention import softmax
from helpers.tiny_pipelines import tiny_stable_diffusion
from helpers.two_prompts import NOUNS, PROMPTS, SQUARE, hook_count, images_of, word_place

from freeatm_mm.attention import AttentionRecorder

# Of each pipeline: text attention, whether the image stands first in one sequence with the text,
# the number of text tokens, places of a word's keys, and where the prompts stand in the batch.
CASES = {
    'sd': (tiny_stable_diffusion, r'attn2$', None, 77, lambda word: ((1 + word,),), 2),
    'sd3': (
        tiny.tiny_stable_diffusion_3,
        r'blocks\.\d+\.attn$',
        True,
        77 + 256,
        lambda word: ((1 + word,), (77 + word,)),
        2,
    ),
    'flux': (
        tiny.tiny_flux,
        r'^transformer_blocks\.\d+\.attn$',
        False,
        512,
        lambda word: ((word,),),
        0,
    ),
}
DOUBLE_STREAM = {'flux': dict(blocks='transformer_blocks')}


@contextmanager
def explicit_calls(denoiser, pattern):
    """Collects layer, module, queries, keys, values and mask of attention calls, in float64."""
    seen, inside, real, handles = [], [], F.scaled_dot_product_attention, []

    def watched(query, key, value, attn_mask=None, **options):
        if inside:
            arrays = [tensor.detach().double().numpy() for tensor in (query, key, value)]
            bias = np.zeros(1)
            if attn_mask is not None:
                bias = attn_mask.double().numpy()
                bias = np.where(bias > 0, 0, -np.inf) if attn_mask.dtype == torch.bool else bias
            seen.append(
                (*inside[-1], *arrays, np.broadcast_to(bias, (len(query), 1, 1, key.shape[2])))
            )
        return real(query, key, value, attn_mask=attn_mask, **options)

    for name, module in denoiser.named_modules():
        if re.search(pattern, name):
            handles += [
                module.register_forward_pre_hook(
                    lambda module, args, name=name: inside.append((name, module))
                ),
                module.register_forward_hook(lambda module, args, output: inside.pop() and None),
            ]
    F.scaled_dot_product_attention = watched
    try:
        yield seen
    finally:
        F.scaled_dot_product_attention = real
        for handle in handles:
            handle.remove()


def explicit_maps(case, seen, row, weigh=True, heads=None):
    """All text keys' maps (pixels, keys) for a row: one for each layer and step."""
    _, _, image_first, text, _, _ = CASES[case]
    maps = []
    for _, module, query, key, value, bias in seen:
        logits = query[row] @ key[row].swapaxes(-1, -2) / query.shape[-1] ** 0.5
        probabilities = softmax(logits + bias[row])
        outputs = probabilities @ value[row]
        keys = slice(0, text)
        if image_first is not None:
            count = query.shape[2] - text
            pixels = slice(0, count) if image_first else slice(text, None)
            keys = slice(count, None) if image_first else slice(0, text)
            probabilities, outputs = probabilities[:, pixels], outputs[:, pixels]
        weight = module.to_out[0].weight.detach().double().numpy()
        parts = outputs @ weight.reshape(len(weight), len(outputs), -1).transpose(1, 2, 0)
        whole = parts.sum(0) + module.to_out[0].bias.detach().double().numpy()
        scores = np.maximum((parts * whole).sum(-1), 1e-20)
        chosen = list(range(len(scores)) if heads is None else heads)
        scores = scores[chosen] if weigh else np.ones_like(scores[chosen])
        scores /= scores.sum(0)
        maps.append((scores[..., None] * probabilities[chosen][..., keys]).sum(0))
    return maps


def mean_of(maps, columns):
    """The mean of some keys' maps over layers and steps, at 16x16."""
    planes = [each[:, list(columns)].mean(1) for each in maps]
    sides = [round(len(plane) ** 0.5) for plane in planes]
    return np.mean(
        [bilinear(plane.reshape(side, side), (16, 16)) for plane, side in zip(planes, sides)],
        axis=0,
    )


def recorded_and_seen(case, **options):
    make, pattern, *_ = CASES[case]
    pipe = make()
    call = dict(SQUARE, num_inference_steps=2)
    denoiser = pipe.unet if case == 'sd' else pipe.transformer
    plain, hooks = images_of(pipe, **call), hook_count(pipe)
    with AttentionRecorder(
        pipe, PROMPTS, NOUNS, **DOUBLE_STREAM.get(case, {}), **options
    ) as recorder:
        assert torch.equal(images_of(pipe, **call), plain)
    assert hook_count(pipe) == hooks
    with explicit_calls(denoiser, pattern) as seen:
        images_of(pipe, **call)
    return recorder, seen


def noun_maps(case, maps, prompt):
    places_of = CASES[case][4]
    return np.stack(
        [
            np.mean(
                [
                    mean_of(maps, columns)
                    for columns in places_of(word_place(PROMPTS[prompt], span))
                ],
                axis=0,
            )
            for span in NOUNS[prompt]
        ]
    )


@pytest.mark.parametrize('case', CASES)
def test_heads_weighted_by_contribution_equal_explicit_attention(case):
    recorder, seen = recorded_and_seen(case, head_weights='contribution')
    for prompt, masks in enumerate(recorder.masks(size=(16, 16))):
        row = CASES[case][5] + prompt
        expected = noun_maps(case, explicit_maps(case, seen, row), prompt)
        np.testing.assert_allclose(masks.numpy(), expected, rtol=0, atol=1e-6)
        plain = noun_maps(case, explicit_maps(case, seen, row, weigh=False), prompt)
        assert np.abs(plain - expected).max() > 1e-5  # the weights change something


def test_the_mean_of_weighted_heads_kept_apart_is_the_weighted_mean():
    pipe = tiny_stable_diffusion()
    masks = []
    for separate in ((), ('heads',)):
        with AttentionRecorder(
            pipe, PROMPTS, NOUNS, head_weights='contribution', separate=separate
        ) as recorder:
            images_of(pipe, **SQUARE)
        masks.append(recorder.masks())
    for together, apart in zip(*masks):
        torch.testing.assert_close(together, apart, rtol=0, atol=1e-7)


def test_chosen_heads_share_the_weight():
    recorder, seen = recorded_and_seen('sd', head_weights='contribution', heads=[1])
    maps = explicit_maps('sd', seen, 2, heads=[1])
    expected = noun_maps('sd', maps, 0)
    np.testing.assert_allclose(recorder.masks(size=(16, 16))[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('case', ['sd', 'sd3'])
def test_rescaled_maps_are_divided_by_the_sum_over_words(case):
    recorder, seen = recorded_and_seen(case, rescale='words')
    for prompt, masks in enumerate(recorder.masks(size=(16, 16))):
        maps = explicit_maps(case, seen, CASES[case][5] + prompt, weigh=False)
        words = range(len(PROMPTS[prompt].split()))
        columns = [each for word in words for places in CASES[case][4](word) for each in places]
        total = len(columns) * mean_of(maps, columns)
        expected = noun_maps(case, maps, prompt) / total
        np.testing.assert_allclose(masks.numpy(), expected, rtol=0, atol=1e-6)


def test_words_that_are_cut_off_or_cleaned_away_leave_the_rest_to_share():
    pipe = tiny.tiny_pixart()
    prompt = 'a red dog http://example.com on the sand'
    with AttentionRecorder(
        pipe, [prompt], [[(6, 9)]], rescale='words', clean_caption=True
    ) as recorder:
        pipe(
            [prompt],
            num_inference_steps=1,
            height=64,
            width=64,
            use_resolution_binning=False,
            output_type='latent',
            clean_caption=True,
        )
    (mask,) = recorder.masks()[0]
    assert 0 < mask.min() and mask.max() <= 1


def test_options_that_cannot_be_had_are_refused():
    pipe = tiny_stable_diffusion()
    with pytest.raises(ValueError, match="head_weights must be one of .*got 'best'"):
        AttentionRecorder(pipe, PROMPTS, NOUNS, head_weights='best')
    with pytest.raises(ValueError, match="rescale must be one of .*got 'all'"):
        AttentionRecorder(pipe, PROMPTS, NOUNS, rescale='all')
    with pytest.raises(ValueError, match='give prompts and nouns rather than columns='):
        AttentionRecorder(pipe, ['a dog'], [['dog']], columns=[[[2]]], rescale='words')
    flux = tiny.tiny_flux()
    with pytest.raises(ValueError, match='single_transformer_blocks.0.attn has none of its own'):
        AttentionRecorder(flux, PROMPTS, NOUNS, head_weights='contribution')


def test_an_adapter_in_the_output_projection_is_refused():
    peft = pytest.importorskip('peft')
    pipe = tiny_stable_diffusion()
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=['to_out.0']))
    with pytest.raises(ValueError, match='plain linear layer, not .*fuse adapters'):
        AttentionRecorder(pipe, PROMPTS, NOUNS, head_weights='contribution')


def test_an_output_projection_that_is_offloaded_at_once_is_refused():
    """PyTorch multiplies with weights that are elsewhere, and gives whatever is in the memory."""
    accelerate = pytest.importorskip('accelerate')
    pipe = tiny_stable_diffusion()
    accelerate.cpu_offload(pipe.unet, torch.device('cpu'))
    with (
        pytest.raises(
            RuntimeError, match='of .*attn2 where it was computed, on cpu, and it was off'
        ),
        AttentionRecorder(pipe, PROMPTS, NOUNS, head_weights='contribution'),
    ):
        images_of(pipe, num_inference_steps=1, output_type='pt')


def test_a_compiled_denoiser_is_refused_where_heads_are_weighted():
    pipe = tiny_stable_diffusion()
    recorder = AttentionRecorder(pipe, PROMPTS, NOUNS, head_weights='contribution')
    pipe.unet.compile(backend='eager')
    with pytest.raises(ValueError, match='as it was before torch.compile'), recorder:
        pass


OUTPUT_CASES = {
    **{name: CASES[name] for name in ('sd3', 'flux')},
    'qwen': (
        tiny.tiny_qwen_image,
        r'blocks\.\d+\.attn$',
        False,
        None,
        lambda word: ((word,),),
        0,
    ),
}


@pytest.mark.parametrize('case', OUTPUT_CASES)
def test_maps_of_outputs_equal_explicit_products(case):
    make, pattern, image_first, _, places_of, row = OUTPUT_CASES[case]
    pipe = make()
    call = dict(SQUARE)
    plain = images_of(pipe, **call)
    with AttentionRecorder(
        pipe, PROMPTS, NOUNS, maps='output', separate='layers' if case == 'flux' else ()
    ) as recorder:
        assert torch.equal(images_of(pipe, **call), plain)
    pattern = '|'.join(f'^{re.escape(layer)}$' for layer in recorder.layers)
    with explicit_calls(pipe.transformer, pattern) as seen:
        images_of(pipe, **call)
    calls = [recorder.num_steps * len(recorder.layers), len(seen)]
    assert calls[0] in (calls[1], calls[1] // 2)
    if calls[0] != calls[1]:  # the second pass of each step is the one without the prompt
        layers = len(recorder.layers)
        seen = [call for place, call in enumerate(seen) if place // layers % 2 == 0]
    for prompt, masks in enumerate(recorder.masks()):
        logits = []
        for _, _, query, key, value, bias in seen:
            place = row + prompt
            scores = query[place] @ key[place].swapaxes(-1, -2) / query.shape[-1] ** 0.5
            probabilities = softmax(scores + bias[place])
            outputs = (probabilities @ value[row + prompt]).transpose(1, 0, 2)
            outputs = outputs.reshape(len(outputs), -1)
            count = masks[0].numel()
            first = 0 if image_first else len(outputs) - count
            text = outputs[count:] if image_first else outputs[:first]
            pixels = outputs[first : first + count]
            logits.append(text @ pixels.T / outputs.shape[-1] ** 0.5)
        words = range(len(PROMPTS[prompt].split()))
        columns = [each for word in words for group in places_of(word) for each in group]
        chances = dict(zip(columns, softmax(np.mean(logits, 0)[columns].T).T))
        for mask, span in zip(masks, NOUNS[prompt]):
            groups = places_of(word_place(PROMPTS[prompt], span))
            expected = np.mean([np.mean([chances[c] for c in g], 0) for g in groups], 0)
            np.testing.assert_allclose(
                mask.numpy(), expected.reshape(mask.shape), rtol=0, atol=1e-6
            )


def test_the_sums_of_outputs_do_not_grow_with_steps_and_heads_apart_have_the_same_mean():
    pipe, masks = tiny.tiny_stable_diffusion_3(), []
    for separate in ((), ('heads',)):
        with AttentionRecorder(pipe, PROMPTS, NOUNS, maps='output', separate=separate) as recorder:
            images_of(pipe, **SQUARE)
        first = sum(total.total_BTN.numel() for total in recorder._sums.values())
        masks.append(recorder.masks())
        with recorder:
            images_of(pipe, **{**SQUARE, 'num_inference_steps': 4})
        assert sum(total.total_BTN.numel() for total in recorder._sums.values()) == first
    for together, apart in zip(*masks):
        torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)


def test_maps_of_outputs_are_refused_where_there_are_none():
    sd = tiny_stable_diffusion()
    with pytest.raises(ValueError, match="maps must be one of .*got 'values'"):
        AttentionRecorder(sd, PROMPTS, NOUNS, maps='values')
    with pytest.raises(ValueError, match='needs text that attends to the image'):
        AttentionRecorder(sd, PROMPTS, NOUNS, maps='output')
    with pytest.raises(ValueError, match='leave head_weights, rescale and probability out'):
        AttentionRecorder(sd, PROMPTS, NOUNS, maps='output', head_weights='contribution')


@pytest.mark.skipif(not hasattr(diffusers, 'PRXPipeline'), reason='needs a newer diffusers')
def test_text_that_attends_to_nothing_has_no_outputs():
    prx = tiny.tiny_prx()
    recorder = AttentionRecorder(prx, PROMPTS, NOUNS, maps='output')
    with pytest.raises(ValueError, match='attends to nothing'), recorder:
        images_of(prx, **SQUARE, guidance_scale=1.0, use_resolution_binning=False)

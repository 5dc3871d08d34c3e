"""Step caches of diffusers: right, each layer over what was computed of it, or refused."""

from __future__ import annotations

import functools
from contextlib import contextmanager

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FasterCacheConfig, FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.hooks import LayerSkipConfig, apply_layer_skip
from helpers import tiny_generators as tiny
from helpers.attention_reference import bilinear
from helpers.numpy_attention import attention_of, cross, sequence
from helpers.tiny_pipelines import tiny_stable_diffusion
from helpers.two_prompts import NOUNS, PROMPTS, SQUARE, attn2, block_attention, word_place

from freeatm_mm.attention import AttentionRecorder

FLUX = dict(SQUARE, num_inference_steps=6)
FIRST_BLOCK_ONLY = {
    'transformer_blocks.0.attn': 6,
    'single_transformer_blocks.0.attn': 1,
    'single_transformer_blocks.1.attn': 1,
}
flux_attention = functools.partial(sequence, text=512)


def generate(pipe, **options):
    return pipe(
        list(PROMPTS),
        generator=torch.Generator().manual_seed(1),
        **{'output_type': 'pt', 'num_inference_steps': 6, **options},
    ).images


def broadcast(**options):
    """Pyramid attention broadcast over the whole run."""
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: 500,
        **options,
    )


def caches():
    """The step caches that the installed diffusers has, by name."""
    found = {'first block': FirstBlockCacheConfig(threshold=10.0), 'pyramid': broadcast()}
    if hasattr(diffusers, 'MagCacheConfig'):
        found['mag'] = diffusers.MagCacheConfig(
            threshold=10.0,
            max_skip_steps=2,
            retention_ratio=0.2,
            num_inference_steps=6,
            mag_ratios=torch.ones(6),
        )
    if hasattr(diffusers, 'TaylorSeerCacheConfig'):
        found['taylor'] = diffusers.TaylorSeerCacheConfig(
            cache_interval=3, disable_cache_before_step=2
        )
        found['taylor, attention'] = diffusers.TaylorSeerCacheConfig(
            cache_interval=3,
            disable_cache_before_step=2,
            cache_identifiers=[r'transformer_blocks\.0\.attn'],
        )
        found['taylor, lite'] = diffusers.TaylorSeerCacheConfig(
            cache_interval=3, disable_cache_before_step=2, use_lite_mode=True
        )
    if hasattr(diffusers, 'SeaCacheConfig'):
        found['sea'] = diffusers.SeaCacheConfig(
            threshold=10.0,
            raw_vision_callback=lambda module, args, kwargs: [
                tokens.T[:, None, :, None] for tokens in kwargs['hidden_states']
            ],
        )
    return found


CACHES = sorted(caches())


@contextmanager
def computed_attention(denoiser, keep, compute):
    """As ``attention_of``, without the calls that a cache answered: ``to_q`` tells them apart."""
    events, handles = [], []

    def projected(name):
        return lambda module, args, output: events.append(('projected', name))

    with attention_of(denoiser, keep, compute) as seen:
        for name, module in denoiser.named_modules():
            if keep(name):
                handles += [
                    module.register_forward_pre_hook(
                        lambda module, args, name=name: events.append(('called', name))
                    ),
                    module.to_q.register_forward_hook(projected(name)),
                ]
        done = []
        yield done
    for handle in handles:
        handle.remove()
    calls = [place for place, event in enumerate(events) if event[0] == 'called']
    assert len(calls) == len(seen)
    done += [
        item
        for place, item in zip(calls, seen)
        if events[place + 1 : place + 2] == [('projected', item[0])]
    ]


def mean_of_layers(seen, row, column, size):
    """Mean over layers of each layer's mean over what was computed of it."""
    by_layer = {}
    for name, probabilities in seen:
        plane = probabilities[row].astype(np.float64)[..., column].mean(0)
        shrink = round((size[0] * size[1] / plane.size) ** 0.5)
        by_layer.setdefault(name, []).append(
            bilinear(plane.reshape(size[0] // shrink, size[1] // shrink), size)
        )
    return np.mean([np.mean(maps, axis=0) for maps in by_layer.values()], axis=0), {
        name: len(maps) for name, maps in by_layer.items()
    }


def compare(pipe, denoiser, keep, compute, size, first_row, first_column, options):
    plain = generate(pipe, **options)
    with computed_attention(denoiser, keep, compute) as seen:
        with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
            assert torch.equal(generate(pipe, **options), plain)
    for image, mask in enumerate(recorder.masks()):
        for noun, span in enumerate(NOUNS[image]):
            column = first_column + word_place(PROMPTS[image], span)
            expected, steps = mean_of_layers(seen, first_row + image, column, size)
            np.testing.assert_allclose(mask[noun], expected, rtol=0, atol=1e-6)
    assert recorder.layer_steps == steps
    assert recorder.num_steps == 6
    return recorder


def test_every_cache_of_diffusers_is_in_a_test():
    """FasterCache, which changes the batch, is refused; the others are recorded."""
    found = {name for name in dir(diffusers) if name.endswith(('CacheConfig', 'BroadcastConfig'))}
    recorded = {type(config).__name__ for config in caches().values()} | {'TextKVCacheConfig'}
    assert found == {*(recorded & found), 'FasterCacheConfig'}


@pytest.mark.skipif(not hasattr(diffusers, 'TextKVCacheConfig'), reason='needs a newer diffusers')
def test_text_keys_from_a_cache():
    pipe = tiny.tiny_nucleus()
    options = dict(SQUARE, num_inference_steps=3)
    masks = []
    for cached in (False, True):
        if cached:
            pipe.transformer.enable_cache(diffusers.TextKVCacheConfig())
        with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
            generate(pipe, **options)
        assert set(recorder.layer_steps.values()) == {3}
        masks.append(recorder.masks())
    for mask, other in zip(*masks):
        torch.testing.assert_close(mask, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('name', CACHES)
def test_step_caches_of_a_transformer(name):
    pipe = tiny.tiny_flux()
    pipe.transformer.enable_cache(caches()[name])
    recorder = compare(pipe, pipe.transformer, block_attention, flux_attention, (8, 8), 0, 0, FLUX)
    if name != 'sea':  # runs whatever the pipeline tells it too little of
        assert min(recorder.layer_steps.values()) < 6  # the cache did something
    pipe.transformer.disable_cache()
    recorder = compare(pipe, pipe.transformer, block_attention, flux_attention, (8, 8), 0, 0, FLUX)
    assert set(recorder.layer_steps.values()) == {6}
    assert all(part.layer is None for part in recorder._sums)


def test_the_mean_under_a_cache_is_not_that_of_the_first_block():
    pipe = tiny.tiny_flux()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=10.0))
    with AttentionRecorder(pipe, PROMPTS, NOUNS, separate='steps') as recorder:
        generate(pipe, **FLUX)
    assert recorder.layer_steps == FIRST_BLOCK_ONLY
    double, single = (recorder.masks(blocks=block)[0] for block in ('double', 'single'))
    torch.testing.assert_close(recorder.masks()[0], (double + 2 * single) / 3, rtol=1e-5, atol=0)
    with pytest.raises(
        ValueError,
        match='single_transformer_blocks.0.attn was computed in none of the steps chosen',
    ):
        recorder.masks(steps=[3])


def test_a_step_cache_under_guidance_of_two_passes():
    pipe = tiny.tiny_flux()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=10.0))
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        generate(pipe, true_cfg_scale=3.0, negative_prompt=['a tree'] * 2, **FLUX)
    assert recorder.num_steps == 6
    assert recorder.layer_steps == FIRST_BLOCK_ONLY


def test_step_cache_of_a_unet():
    pipe = tiny_stable_diffusion()
    diffusers.hooks.apply_pyramid_attention_broadcast(
        pipe.unet,
        broadcast(
            cross_attention_block_skip_range=3, cross_attention_timestep_skip_range=(-1, 1001)
        ),
    )
    recorder = compare(pipe, pipe.unet, attn2, cross, (16, 16), 2, 1, {})
    assert min(recorder.layer_steps.values()) < 6
    with AttentionRecorder(pipe, PROMPTS, NOUNS, self_attention=16) as recorder:
        generate(pipe)
    assert [mask.shape for mask in recorder.masks(propagate=1)] == [(2, 16, 16), (3, 16, 16)]


@pytest.mark.parametrize(
    'apply',
    [
        lambda pipe: pipe.transformer.enable_cache(
            FasterCacheConfig(
                spatial_attention_block_skip_range=2,
                spatial_attention_timestep_skip_range=(-1, 681),
                current_timestep_callback=lambda: 500,
                is_guidance_distilled=True,
                tensor_format='BCHW',
            )
        ),
        lambda pipe: apply_layer_skip(
            pipe.transformer, LayerSkipConfig([0], fqn='transformer_blocks')
        ),
    ],
)
def test_hooks_that_change_the_attention_are_refused(apply):
    pipe = tiny.tiny_flux()
    apply(pipe)
    with pytest.raises(ValueError, match="has diffusers' hook (faster_cache|layer_skip), with"):
        AttentionRecorder(pipe, PROMPTS, NOUNS).__enter__()
    pipe = tiny.tiny_flux()
    with (
        pytest.raises(ValueError, match="has diffusers' hook (faster_cache|layer_skip), with"),
        AttentionRecorder(pipe, PROMPTS, NOUNS),
    ):
        generate(pipe, **SQUARE)
        apply(pipe)  # between two calls
        generate(pipe, **SQUARE)


def test_hooks_that_only_move_weights_are_not():
    pipe = tiny.tiny_flux()
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        generate(pipe, **SQUARE)
    pipe.transformer.enable_group_offload(
        onload_device=torch.device('cpu'),
        offload_device=torch.device('cpu'),
        offload_type='block_level',
        num_blocks_per_group=1,
    )
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as offloaded:
        generate(pipe, **SQUARE)
    assert torch.equal(recorder.masks()[0], offloaded.masks()[0])


def test_layers_that_something_else_leaves_out():
    """As caches do that are no hooks of diffusers: never an uneven mean without a word."""
    pipe = tiny_stable_diffusion()
    block, steps = pipe.unet.mid_block, []
    forward = block.forward

    def sometimes(hidden, *args, **kwargs):
        steps.append(len(steps))
        return forward(hidden, *args, **kwargs) if len(steps) % 2 else hidden

    block.forward = sometimes
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        generate(pipe)
    with pytest.raises(ValueError, match="in 3 steps and others in 6.*separate='layers'"):
        recorder.masks()
    steps.clear()
    with AttentionRecorder(pipe, PROMPTS, NOUNS, separate='layers') as recorder:
        generate(pipe)
    parts = [recorder.masks(blocks=name, size=(16, 16))[0] for name in recorder.layers]
    torch.testing.assert_close(recorder.masks()[0], torch.stack(parts).mean(0))
    torch.testing.assert_close(
        recorder.masks(weights='resolution')[0],
        torch.stack(
            [
                torch.stack(
                    [
                        part
                        for part, name in zip(parts, recorder.layers)
                        if fine == name.startswith(('down_blocks.0', 'up_blocks.1'))
                    ]
                ).mean(0)
                for fine in (True, False)
            ]
        ).mean(0),
    )


def test_attention_image_by_image_or_head_by_head_is_refused():
    pipe = tiny.tiny_flux()
    attend = torch.nn.functional.scaled_dot_product_attention

    class OneByOne:
        """Flux's processor without rotary embedding, one piece at a time."""

        def __init__(self, axis):
            self.axis = axis

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, *others, **options):
            text = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
            both = torch.cat([encoder_hidden_states, hidden_states], 1) if text else hidden_states
            query, key, value = (
                projection(both).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for projection in (attn.to_q, attn.to_k, attn.to_v)
            )
            parts = [
                attend(*(x.narrow(self.axis, place, 1) for x in (query, key, value)))
                for place in range(query.shape[self.axis])
            ]
            out = torch.cat(parts, self.axis).transpose(1, 2).flatten(2)
            return (out[:, text:], out[:, :text]) if text else out

    for axis in (0, 1):
        pipe.transformer.set_attn_processor(OneByOne(axis))
        with pytest.raises(RuntimeError, match='ran without scaled_dot_product_attention over'):
            with AttentionRecorder(pipe, PROMPTS, NOUNS):
                generate(pipe, **SQUARE)


def test_another_attention_backend_is_recorded():
    """Also one that never calls PyTorch's own function."""
    pipe = tiny.tiny_flux()
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as usual:
        generate(pipe, **SQUARE)
    try:  # newer diffusers keep the backend for all that is loaded
        for backend in ('_native_math', 'flex'):
            pipe.transformer.set_attention_backend(backend)
            with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
                generate(pipe, **SQUARE)
            torch.testing.assert_close(recorder.masks()[0], usual.masks()[0])
    finally:
        pipe.transformer.set_attention_backend('native')

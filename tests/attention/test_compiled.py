"""Recording inside compiled denoisers: masks as without compiling, images and graphs as compiled.

The counters are those of Dynamo: with a recorder, a network is compiled once more in as many
graphs, without a break that the plain compiled network doesn't have, and never again.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.attention_processor import AttnProcessor
from helpers import tiny_generators as tiny
from helpers.tiny_pipelines import tiny_if, tiny_stable_diffusion
from helpers.two_prompts import NOUNS, PROMPTS, SQUARE, hook_count, images_of
from torch._dynamo.utils import counters

from freeatm_mm.attention import AttentionRecorder


def whole(pipe, name, **options):
    setattr(pipe, name, torch.compile(getattr(pipe, name), **options))


def in_place(pipe, name, **options):
    getattr(pipe, name).compile(**options)


def regional(pipe, name, **options):
    getattr(pipe, name).compile_repeated_blocks(**options)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    assert not counters['graph_break'], dict(counters['graph_break'])
    return counters['stats']['unique_graphs']


def recorded(pipe, draw, **options):
    with AttentionRecorder(pipe, PROMPTS, NOUNS, **options) as recorder:
        images = draw()
    return recorder, images


def check(pipe, name, compile, *, size=SQUARE, backend='aot_eager', **options):
    """Compiles a pipeline's denoiser, records twice, and compares with recording before."""

    def draw():
        return images_of(pipe, **{**size, 'num_inference_steps': 2, 'output_type': 'pt'})

    expected, _ = recorded(pipe, draw, **options)
    compile(pipe, name, backend=backend, fullgraph=True)
    hooks, plain = hook_count(pipe), draw()
    alone = graphs()
    assert alone
    first, images = recorded(pipe, draw, **options)
    assert torch.equal(images, plain)
    both = graphs()
    # Sizes that proved to vary are compiled as such at once: fewer graphs than the first time.
    assert alone < both <= 2 * alone
    second, images = recorded(pipe, draw, **options)
    assert torch.equal(images, plain)
    assert torch.equal(draw(), plain)
    assert graphs() == both and hook_count(pipe) == hooks
    propagate = 2 if 'self_attention' in options else 0
    for recorder in (first, second):
        assert recorder.num_steps == expected.num_steps
        assert recorder.layers == expected.layers
        assert recorder.layer_steps == expected.layer_steps
        for mask, other in zip(
            recorder.masks(propagate=propagate), expected.masks(propagate=propagate)
        ):
            torch.testing.assert_close(mask, other, rtol=1e-5, atol=1e-6)
    return first


@pytest.mark.parametrize(
    'build, name, compile',
    [
        (tiny_stable_diffusion, 'unet', whole),
        (tiny_stable_diffusion, 'unet', regional),
        (tiny.tiny_flux, 'transformer', in_place),
        (tiny.tiny_flux, 'transformer', regional),
        (tiny.tiny_stable_diffusion_3, 'transformer', whole),
    ],
)
def test_masks_graphs_and_images(build, name, compile):
    check(build(), name, compile, size={} if name == 'unet' else SQUARE)


CASCADE = dict(height=128, width=160)


@pytest.mark.parametrize(
    'build, name, size',
    [
        (tiny.tiny_lumina, 'transformer', SQUARE),
        (lambda: tiny.tiny_cascade('StableCascade').prior_pipe, 'prior', CASCADE),
    ],
    ids=['rotated queries', 'text behind the pixels'],
)
def test_other_places_of_queries_and_text(build, name, size):
    check(build(), name, in_place, size=size, backend='eager')


def test_text_at_a_place_of_each_image():
    """Lumina-Image 2 reads lengths from its masks, which breaks its graphs by itself."""
    pipe = tiny.tiny_lumina2()

    def draw():
        return images_of(pipe, **{**SQUARE, 'num_inference_steps': 1})

    expected, _ = recorded(pipe, draw)
    in_place(pipe, 'transformer', backend='eager')
    plain = draw()
    breaks = counters['graph_break'].total()
    recorder, images = recorded(pipe, draw)
    assert torch.equal(images, plain)
    assert counters['graph_break'].total() == 2 * breaks
    assert recorder.layer_steps == expected.layer_steps
    for mask, other in zip(recorder.masks(), expected.masks()):
        torch.testing.assert_close(mask, other, rtol=1e-5, atol=1e-6)


def test_blocks_that_break_the_graph_are_recorded_if_compiled_by_themselves():
    """The experts of HiDream are chosen by data."""
    pipe = tiny.tiny_hidream()

    def draw():
        return images_of(pipe, **{**SQUARE, 'num_inference_steps': 1})

    expected, _ = recorded(pipe, draw)
    pipe.transformer.double_stream_blocks[0].block.compile(backend='eager')
    recorder, images = recorded(pipe, draw)
    assert torch.equal(images, draw())
    assert recorder.layer_steps == expected.layer_steps
    for mask, other in zip(recorder.masks(), expected.masks()):
        torch.testing.assert_close(mask, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('build', [tiny_if, tiny.tiny_pixart])
def test_text_beside_pixels_and_masked_padding(build):
    """Keys of text and pixels in one softmax; padding that an attention mask leaves out."""
    pipe = build()
    if hasattr(pipe, 'unet'):
        check(pipe, 'unet', in_place, size={})
    else:
        check(pipe, 'transformer', whole, size=dict(use_resolution_binning=False))


def test_self_attention_and_what_is_kept_apart():
    pipe = tiny_stable_diffusion()
    options = dict(self_attention=8, separate=('layers', 'steps', 'heads'), blocks=['mid', 'up'])
    recorder = check(pipe, 'unet', regional, size={}, **options)
    assert {part.step for part in recorder._sums} == {0, 1}


@pytest.mark.parametrize(
    'build, name', [(tiny_stable_diffusion, 'unet'), (tiny.tiny_flux, 'transformer')]
)
def test_inductor(build, name):
    size = {} if name == 'unet' else SQUARE
    check(build(), name, regional, size=size, backend='inductor')


def test_chosen_steps_and_two_recorders_at_once():
    pipe = tiny.tiny_flux()
    draw = lambda: images_of(pipe, **SQUARE)  # noqa: E731
    expected, _ = recorded(pipe, draw, steps=[1])
    regional(pipe, 'transformer', backend='aot_eager')
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as everything:
        recorder, _ = recorded(pipe, draw, steps=[1])
    assert (everything.num_steps, recorder.num_steps) == (2, 1)
    for mask, other in zip(recorder.masks(), expected.masks()):
        torch.testing.assert_close(mask, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('compile', [whole, in_place, regional])
def test_compiled_inside_the_with_is_refused(compile):
    pipe = tiny.tiny_flux()
    with AttentionRecorder(pipe, PROMPTS, NOUNS):
        compile(pipe, 'transformer', backend='aot_eager')
        with pytest.raises(ValueError, match='call torch.compile before the with block'):
            images_of(pipe, **SQUARE)
    assert hook_count(pipe) == 0


def test_attention_without_the_function_is_refused():
    pipe = tiny_stable_diffusion()
    pipe.unet.set_attn_processor(AttnProcessor())
    pipe.unet.compile_repeated_blocks(backend='aot_eager')
    before = pipe.unet.mid_block.attentions[0].transformer_blocks[0]._compiled_call_impl
    with (
        pytest.raises(RuntimeError, match='attn2 ran in compiled code without a scaled_dot_'),
        AttentionRecorder(pipe, PROMPTS, NOUNS),
    ):
        images_of(pipe, num_inference_steps=1, output_type='pt')
    assert before is pipe.unet.mid_block.attentions[0].transformer_blocks[0]._compiled_call_impl


def test_a_step_cache_in_compiled_code_is_refused():
    pipe = tiny.tiny_flux()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    regional(pipe, 'transformer')
    with pytest.raises(ValueError, match='a compiled denoiser with a step cache cannot be'):
        AttentionRecorder(pipe, PROMPTS, NOUNS).__enter__()


def test_what_was_compiled_stays_usable_without_a_recorder():
    """A copy, a saved state: nothing of the recorder's is in them."""
    pipe = tiny.tiny_flux()
    whole(pipe, 'transformer', backend='aot_eager')
    names = set(pipe.transformer.state_dict())
    recorded(pipe, lambda: images_of(pipe, **SQUARE))
    assert set(pipe.transformer.state_dict()) == names
    assert set(pipe.transformer._modules) == {'_orig_mod'}

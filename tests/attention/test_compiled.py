"""Recording inside compiled denoisers: masks as without compiling, images and graphs as compiled.

The counters are those of Dynamo: with a recorder, a network is compiled once more in as many
graphs, without a break that the plain compiled network doesn't have, and never again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.attention_processor import AttnProcessor
from helpers import tiny_generators as tiny
from helpers import tiny_transformers, tiny_variants
from helpers.tiny_pipelines import (
    _seeded,
    tiny_if,
    tiny_stable_diffusion,
    tiny_stable_diffusion_xl,
)
from helpers.two_prompts import NOUNS, PROMPTS, SQUARE, hook_count, images_of
from PIL import Image
from torch._dynamo.utils import counters

from freeatm_mm.attention import FAMILIES, AttentionRecorder

TWO_STEPS = dict(num_inference_steps=2, output_type='pt')


def whole(pipe, name, **options):
    setattr(pipe, name, torch.compile(getattr(pipe, name), **options))


def in_place(pipe, name, **options):
    getattr(pipe, name).compile(**options)


def regional(pipe, name, **options):
    network = getattr(pipe, name)
    if network._repeated_blocks:
        network.compile_repeated_blocks(**options)
        return
    for part in network.children():  # diffusers names none for this class: all of its lists
        for block in part if isinstance(part, torch.nn.ModuleList) else ():
            block.compile(**options)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    assert not counters['graph_break'], dict(counters['graph_break'])
    return counters['stats']['unique_graphs']


def recorded(pipe, generate, prompts=PROMPTS, **options):
    with AttentionRecorder(pipe, prompts, NOUNS[: len(prompts)], **options) as recorder:
        images = generate()
    return recorder, images


def check(pipe, name, compile, *, call=SQUARE, backend='aot_eager', prompts=PROMPTS, **options):
    """Compiles a pipeline's denoiser, records twice, and compares with recording before.

    Args:
        call: Options of the pipeline's call.
        options: Of the recorder.
    """

    def generate():
        return images_of(pipe, prompts=prompts, **call)

    options['prompts'] = prompts
    expected, _ = recorded(pipe, generate, **options)
    compile(pipe, name, backend=backend, fullgraph=True)
    hooks, plain = hook_count(pipe), generate()
    alone = graphs()
    assert alone
    first, images = recorded(pipe, generate, **options)
    assert torch.equal(images, plain)
    both = graphs()
    # Sizes that proved to vary are compiled as such at once: fewer graphs than the first time.
    assert alone < both <= 2 * alone
    second, images = recorded(pipe, generate, **options)
    assert torch.equal(images, plain)
    assert torch.equal(generate(), plain)
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
    check(build(), name, compile, call=TWO_STEPS if name == 'unet' else SQUARE)


CASCADE = dict(TWO_STEPS, height=128, width=160)


@pytest.mark.parametrize(
    'build, name, call',
    [
        (tiny.tiny_lumina, 'transformer', SQUARE),
        (lambda: tiny.tiny_cascade('StableCascade').prior_pipe, 'prior', CASCADE),
    ],
    ids=['rotated queries', 'text behind the pixels'],
)
def test_other_places_of_queries_and_text(build, name, call):
    check(build(), name, in_place, call=call, backend='eager')


def qwen_image_edit():
    pipe = tiny.tiny_qwen_image_edit('QwenImageEditPipeline')
    inspect.getmodule(type(pipe)).calculate_dimensions = lambda area, ratio: (48, 32, None)
    return pipe


def ideogram():
    pipe = tiny_transformers.tiny_ideogram4()
    inspect.getmodule(type(pipe)).QWEN3_VL_ACTIVATION_LAYERS = (0, 1)
    return pipe


def ovis_image():
    pipe = tiny_transformers.tiny_ovis_image()
    pipe.user_prompt_begin_id = 8
    return pipe


def random_tensor(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Network(NamedTuple):
    """How a family's network is called to be compiled.

    Attributes:
        make: Builds a tiny pipeline.
        call: Options of its call beside those of a square of 64 pixels and one step.
        prompts: What it generates.
        whole: Whether PyTorch makes one graph of it.
        blocks: Whether it is tested block by block, too.
        without: Options that its call doesn't take.
    """

    make: Callable[[], Any]
    call: dict = {}
    prompts: list = PROMPTS
    whole: bool = True
    blocks: bool = False
    without: tuple = ()


# The families that diffusers 0.35 has are tested as a whole alone: how blocks are told apart does
# not depend on the family.
newer = functools.partial(Network, blocks=True)
WITHOUT_GUIDANCE = dict(guidance_scale=1.0)
FLUX_2 = dict(WITHOUT_GUIDANCE, text_encoder_out_layers=(1, 2))
IN_PIXELS = dict(WITHOUT_GUIDANCE, use_resolution_binning=False)
SHORT = dict(WITHOUT_GUIDANCE, max_sequence_length=64)
NETWORKS = {
    'aMUSEd': Network(tiny.tiny_amused, dict(height=32, width=32)),
    'AuraFlow': Network(tiny_transformers.tiny_aura_flow),
    'Bria 3.2': newer(tiny_transformers.tiny_bria),
    'Bria FIBO': newer(tiny_transformers.tiny_bria_fibo, WITHOUT_GUIDANCE),
    'Chroma': Network(tiny.tiny_chroma, SHORT),
    'CogView 3 Plus': Network(tiny_transformers.tiny_cogview3),
    'CogView 4': Network(tiny_transformers.tiny_cogview4),
    'Cosmos Predict2': Network(tiny_transformers.tiny_cosmos2),
    'ERNIE-Image': newer(tiny_transformers.tiny_ernie_image, dict(use_pe=False)),
    'Flux.2': newer(tiny.tiny_flux2, FLUX_2),
    'Flux.2 Klein': newer(tiny.tiny_flux2_klein, FLUX_2),
    'GLIGEN': Network(
        tiny_variants.tiny_gligen,
        dict(
            gligen_phrases=['a bird'],
            gligen_boxes=[[0.1, 0.2, 0.5, 0.6]],
            gligen_scheduled_sampling_beta=1.0,
        ),
    ),
    'HunyuanDiT': Network(
        tiny.tiny_hunyuan_dit, dict(height=128, width=128, use_resolution_binning=False)
    ),
    'HunyuanImage 2.1': newer(functools.partial(tiny.tiny_hunyuan_image, 4.0), whole=False),
    'Ideogram 4': newer(
        ideogram, dict(guidance_scale=7.0, guidance_schedule=None, max_sequence_length=96)
    ),
    'InstructPix2Pix': Network(
        tiny.tiny_pix2pix, dict(image=random_tensor(3, 2, 3, 64, 64)), without=('height', 'width')
    ),
    'Kandinsky 2.1': Network(
        tiny.tiny_kandinsky,
        dict(image_embeds=random_tensor(2, 2, 32), negative_image_embeds=random_tensor(3, 2, 32)),
    ),
    'Kandinsky 3': Network(tiny.tiny_kandinsky3),
    'Kandinsky 5': newer(tiny_transformers.tiny_kandinsky5, WITHOUT_GUIDANCE),
    'Kolors': Network(tiny.tiny_kolors),
    'LDM3D': Network(tiny_variants.tiny_ldm3d, dict(output_type='np')),
    'Krea 2': newer(tiny_transformers.tiny_krea2, dict(guidance_scale=0.0, max_sequence_length=64)),
    'LongCat-Image': newer(
        tiny_transformers.tiny_longcat_image, dict(WITHOUT_GUIDANCE, enable_prompt_rewrite=False)
    ),
    'NucleusMoE-Image': newer(tiny.tiny_nucleus, WITHOUT_GUIDANCE),
    'Ovis-Image': newer(ovis_image, SHORT),
    'PRX': newer(tiny.tiny_prx, IN_PIXELS),
    'PRX in pixels': newer(tiny.tiny_prx_pixel, dict(IN_PIXELS, height=32, width=32)),
    'Qwen-Image': Network(tiny.tiny_qwen_image),
    'Qwen-Image-Edit': newer(
        qwen_image_edit,
        dict(true_cfg_scale=1.0, image=Image.new('RGB', (48, 32), 'red')),
        PROMPTS[:1],
    ),
    'Qwen-Image 2.1': newer(
        tiny.tiny_qwen_image_21,
        dict(height=128, output_type='latent', num_inference_steps=2),
        whole=False,
    ),
    'Sana': Network(tiny.tiny_sana, dict(height=32, width=32, use_resolution_binning=False)),
    'Stable Diffusion with safety, semantic or self-attention guidance': Network(
        functools.partial(tiny_variants.tiny_stable_diffusion_as, 'StableDiffusionPipelineSafe')
    ),
    'Stable Diffusion XL': Network(tiny_stable_diffusion_xl),
    'UnCLIP (the DALL-E 2 type)': Network(
        tiny.tiny_unclip,
        {f'{part}_num_inference_steps': 2 for part in ('prior', 'decoder', 'super_res')},
        without=('height', 'width', 'num_inference_steps'),
    ),
    'Wan with one frame': Network(tiny_transformers.tiny_wan, dict(num_frames=1)),
    'Z-Image': newer(tiny.tiny_z_image, dict(height=48)),
    'Z-Image-Omni': newer(tiny.tiny_z_image_omni, dict(height=48)),
    'latent diffusion (LDM) with BERT': Network(tiny.tiny_latent_diffusion, dict(output_type='np')),
}
# By the other tests of this file.
TESTED_APART = {
    'DeepFloyd IF',
    'Flux.1',
    'HiDream-I1',
    'Lumina-Image 2',
    'Lumina-Next',
    'PixArt-alpha and PixArt-sigma',
    'Stable Cascade and Wuerstchen',
    'Stable Diffusion 1.x, 2.x and LCM',
    'Stable Diffusion 3 and 3.5',
    'priors of Stable Cascade and Wuerstchen',
}


def built(name):
    """A family's tiny pipeline, the name of its network and what `check` is told of its call."""
    network = NETWORKS[name]
    (family,) = (family for family in FAMILIES if family.name == name)
    if not hasattr(diffusers, family.pipelines[0]):
        pytest.skip(f'diffusers {diffusers.__version__} has no {family.pipelines[0]}')
    call = {**SQUARE, 'num_inference_steps': 1, **network.call}
    call = {option: value for option, value in call.items() if option not in network.without}
    told = {option: call[option] for option in ('image', 'max_sequence_length') if option in call}
    options = dict(call=call, prompts=network.prompts, call_options=told)
    return network.make(), family.denoiser, options


def those(kind):
    """The names of the networks that are tested in one of two ways, `'whole'` or `'blocks'`."""
    marks = {'Qwen-Image-Edit': tiny.needs_own_tokenizer}
    return [
        pytest.param(name, marks=marks.get(name, ()))
        for name, network in NETWORKS.items()
        if getattr(network, kind)
    ]


def test_every_family_is_compiled():
    assert {*NETWORKS, *TESTED_APART} == {family.name for family in FAMILIES}
    assert not TESTED_APART & set(NETWORKS)


@pytest.mark.parametrize('name', those('whole'))
def test_whole_networks(name):
    pipe, denoiser, options = built(name)
    check(pipe, denoiser, in_place, backend='eager', **options)


@pytest.mark.parametrize('name', those('blocks'))
def test_networks_block_by_block(name):
    pipe, denoiser, options = built(name)
    check(pipe, denoiser, regional, backend='eager', **options)


@pytest.mark.parametrize('name', ['Krea 2', 'Z-Image'])
def test_inductor_on_shared_heads_and_complex_rotations(name):
    pipe, denoiser, options = built(name)
    check(pipe, denoiser, regional, backend='inductor', **options)


def test_a_network_that_falls_apart_into_blocks_is_refused():
    pipe, denoiser, options = built('HunyuanImage 2.1')
    in_place(pipe, denoiser, backend='eager')
    with pytest.raises(RuntimeError, match=r'or, if its graphs break, with transformer_blocks\.0'):
        recorded(pipe, lambda: images_of(pipe, **options['call']))
    assert images_of(pipe, **options['call']).isfinite().all()


@pytest.mark.parametrize('name', ['Lumina-Image 2', 'Qwen-Image 2.1'])
def test_networks_that_break_their_graphs_by_themselves(name):
    """They read lengths from their masks, outside of their blocks."""
    if name == 'Lumina-Image 2':
        pipe, call = tiny.tiny_lumina2(), {**SQUARE, 'num_inference_steps': 1}
    else:
        pipe, _, options = built(name)
        call = options['call']

    def generate():
        return images_of(pipe, **call)

    expected, _ = recorded(pipe, generate)
    in_place(pipe, 'transformer', backend='eager')
    plain = generate()
    breaks = counters['graph_break'].total()
    recorder, images = recorded(pipe, generate)
    assert torch.equal(images, plain)
    assert counters['graph_break'].total() == 2 * breaks
    assert recorder.layer_steps == expected.layer_steps
    for mask, other in zip(recorder.masks(), expected.masks()):
        torch.testing.assert_close(mask, other, rtol=1e-5, atol=1e-6)


def test_blocks_that_break_the_graph_are_recorded_if_compiled_by_themselves():
    """The experts of HiDream are chosen by data."""
    pipe = tiny.tiny_hidream()

    def generate():
        return images_of(pipe, **{**SQUARE, 'num_inference_steps': 1})

    expected, _ = recorded(pipe, generate)
    pipe.transformer.double_stream_blocks[0].block.compile(backend='eager')
    recorder, images = recorded(pipe, generate)
    assert torch.equal(images, generate())
    assert recorder.layer_steps == expected.layer_steps
    for mask, other in zip(recorder.masks(), expected.masks()):
        torch.testing.assert_close(mask, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('build', [tiny_if, tiny.tiny_pixart])
def test_text_beside_pixels_and_masked_padding(build):
    """Keys of text and pixels in one softmax; padding that an attention mask leaves out."""
    pipe = build()
    if hasattr(pipe, 'unet'):
        check(pipe, 'unet', in_place, call=TWO_STEPS)
    else:
        check(pipe, 'transformer', whole, call=dict(TWO_STEPS, use_resolution_binning=False))


def test_self_attention_and_what_is_kept_apart():
    pipe = tiny_stable_diffusion()
    options = dict(self_attention=8, separate=('layers', 'steps', 'heads'), blocks=['mid', 'up'])
    recorder = check(pipe, 'unet', regional, call=TWO_STEPS, **options)
    assert {part.step for part in recorder._sums} == {0, 1}


@_seeded
def one_level():
    """A UNet of one resolution: compiling one of two takes twice as long."""
    pipe = tiny_stable_diffusion()
    blocks = {f'{way}_block_types': (f'CrossAttn{way.title()}Block2D',) for way in ('down', 'up')}
    unet = tiny.like(pipe.unet, block_out_channels=(32,), **blocks)
    return tiny.rebuilt(pipe, type(pipe), unet=unet)


@pytest.mark.parametrize('build, name', [(one_level, 'unet'), (tiny.tiny_flux, 'transformer')])
def test_inductor(build, name):
    call = TWO_STEPS if name == 'unet' else SQUARE
    check(build(), name, regional, call=call, backend='inductor')


def test_chosen_steps_and_two_recorders_at_once():
    pipe = tiny.tiny_flux()
    generate = lambda: images_of(pipe, **SQUARE)  # noqa: E731
    expected, _ = recorded(pipe, generate, steps=[1])
    regional(pipe, 'transformer', backend='aot_eager')
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as everything:
        recorder, _ = recorded(pipe, generate, steps=[1])
    assert (everything.num_steps, recorder.num_steps) == (2, 1)
    for mask, other in zip(recorder.masks(), expected.masks()):
        torch.testing.assert_close(mask, other, rtol=1e-5, atol=1e-6)
    blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    before = [block._compiled_call_impl for block in blocks]
    everything.__enter__()
    with recorder:  # which ends last
        everything.__exit__(None, None, None)
        generate()
    assert (everything.num_steps, recorder.num_steps) == (0, 1)
    assert [block._compiled_call_impl for block in blocks] == before


@pytest.mark.parametrize('compile', [whole, in_place, regional])
def test_compiled_inside_the_with_is_refused(compile):
    pipe = tiny.tiny_flux()
    with (
        pytest.raises(ValueError, match='call torch.compile before the with block'),
        AttentionRecorder(pipe, PROMPTS, NOUNS),
    ):
        images_of(pipe, **SQUARE)
        compile(pipe, 'transformer', backend='aot_eager')
        pytest.raises(ValueError, images_of, pipe, **SQUARE)
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

"""Pipelines that share a row with another one: the same denoiser and text, called otherwise.

Each generates, and its maps are compared with attention written out. Those that the installed
diffusers lacks are skipped.
"""

from __future__ import annotations

import functools

import diffusers
import pytest
import torch
from helpers import tiny_variants as variants
from helpers.attention_reference import explicit_attention
from helpers.numpy_attention import attention_of, cross, sequence
from helpers.two_prompts import NOUNS, PROMPTS, SQUARE, attn2, block_attention, check

from freeatm_mm.attention import AttentionRecorder


def images(height=64, width=64, count=2, channels=3, seed=3):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def check_guided(pipe, size, guidance, options, **others):
    """A U-Net of CLIP's text, whose prompts stand behind as many negative ones."""
    check(
        pipe,
        lambda: explicit_attention(pipe),
        lambda word: ((1 + word,),),
        size,
        first_row=2 if guidance > 1 else 0,
        options=options,
        **others,
    )


def skip_without(name):
    if not hasattr(diffusers, name):
        pytest.skip(f'diffusers {diffusers.__version__} has no {name}')


SANA = dict(
    num_inference_steps=2, height=32, width=64, use_resolution_binning=False, output_type='pt'
)
WIDE = dict(SQUARE, width=96)
MASK = images(64, 96, channels=1).round()
FROM_IMAGE = dict(image=images(64, 96), strength=1.0)
FLUX = {
    'FluxKontextPipeline': dict(image=images(64, 96), max_area=64 * 96, _auto_resize=False),
    'FluxKontextInpaintPipeline': dict(
        FROM_IMAGE, mask_image=MASK, max_area=64 * 96, _auto_resize=False
    ),
    'FluxControlImg2ImgPipeline': dict(FROM_IMAGE, control_image=images(64, 96)),
    'FluxControlInpaintPipeline': dict(FROM_IMAGE, control_image=images(64, 96), mask_image=MASK),
    'FluxControlNetImg2ImgPipeline': dict(FROM_IMAGE, control_image=images(64, 96)),
    'FluxControlNetInpaintPipeline': dict(
        FROM_IMAGE, control_image=images(64, 96), mask_image=MASK
    ),
}


@pytest.mark.parametrize('guided', [False, True])
@pytest.mark.parametrize('name', FLUX)
def test_flux_variants(name, guided):
    skip_without(name)
    options = dict(WIDE, **FLUX[name])
    if guided:
        if 'Kontext' not in name:
            pytest.skip(f'{name} takes no true guidance')
        options.update(true_cfg_scale=3.0, negative_prompt=['a tree'] * len(PROMPTS))
    pipe = variants.tiny_flux_variant(name)
    check(
        pipe,
        # A reference image's tokens stand behind those of the image.
        lambda: attention_of(
            pipe.transformer,
            block_attention,
            variants.own_image(functools.partial(sequence, text=512), 8 * 12),
        ),
        lambda word: ((word,),),
        (8, 12),
        options=options,
        calls=slice(None, None, 2) if guided else slice(None),
        expected_steps=2,
    )


QWEN = {
    'QwenImageControlNetPipeline': dict(control_image=images()),
    'QwenImageControlNetInpaintPipeline': dict(
        control_image=images(), control_mask=images(channels=1).round()
    ),
}


@pytest.mark.parametrize('guided', [False, True])
@pytest.mark.parametrize('name', QWEN)
def test_qwen_image_variants(name, guided):
    skip_without(name)
    pipe = variants.tiny_qwen_image_variant(name)
    options = dict(SQUARE, true_cfg_scale=4.0, **QWEN[name])
    if guided:
        options.update(negative_prompt=[' '] * len(PROMPTS))
    check(
        pipe,
        lambda: attention_of(pipe.transformer, block_attention, variants.qwen_sequence),
        lambda word: ((word,),),
        (8, 8),
        options=options,
        calls=slice(None, None, 2) if guided else slice(None),
        expected_steps=2,
    )


XL = {
    'StableDiffusionXLControlNetUnionPipeline': dict(control_image=[images()], control_mode=[0]),
    'StableDiffusionXLControlNetUnionImg2ImgPipeline': dict(
        image=images(), control_image=[images()], control_mode=[0], strength=1.0
    ),
    'StableDiffusionXLControlNetUnionInpaintPipeline': dict(
        image=images(),
        mask_image=images(channels=1).round(),
        control_image=[images()],
        control_mode=[0],
        strength=1.0,
    ),
}


@pytest.mark.parametrize('guidance', [5.0, 1.0])
@pytest.mark.parametrize('name', XL)
def test_stable_diffusion_xl_variants(name, guidance):
    pipe = variants.tiny_xl_union(name)
    check_guided(pipe, (8, 8), guidance, dict(SQUARE, guidance_scale=guidance, **XL[name]))


@pytest.mark.parametrize('guidance', [5.0, 1.0])
@pytest.mark.parametrize('name', ['StableUnCLIPPipeline', 'StableUnCLIPImg2ImgPipeline'])
def test_stable_unclip(name, guidance):
    pipe = variants.tiny_stable_unclip(name)
    options = dict(SQUARE, guidance_scale=guidance)
    if 'Img2Img' in name:
        options.update(image=images(32, 32))
    else:
        options.update(prior_num_inference_steps=2)
    check_guided(pipe, (16, 16), guidance, options)


@pytest.mark.parametrize('name', ['SanaSprintPipeline', 'SanaSprintImg2ImgPipeline'])
def test_sana_sprint(name):
    """Guidance is an input of the network, so the batch is not doubled."""
    pipe = variants.tiny_sana_sprint(name)
    options = dict(SANA, intermediate_timesteps=None, complex_human_instruction=None)
    if 'Img2Img' in name:
        options.update(image=images(32, 64), strength=1.0)
    check(
        pipe,
        lambda: attention_of(pipe.transformer, attn2, cross),
        lambda word: ((1 + word,),),
        (16, 32),
        options=options,
        recorder_options=dict(call_options=dict(complex_human_instruction=None)),
    )


GUIDED = {
    'StableDiffusionPipelineSafe': {},
    'SemanticStableDiffusionPipeline': dict(editing_prompt=['a tree', 'the sand']),
}


@pytest.mark.parametrize('guidance', [5.0, 1.0])
@pytest.mark.parametrize('name', GUIDED)
def test_further_guidance(name, guidance):
    """Other texts stand behind the prompt's part of the batch."""
    pipe = variants.tiny_stable_diffusion_as(name)
    check_guided(pipe, (16, 16), guidance, dict(SQUARE, guidance_scale=guidance, **GUIDED[name]))


@pytest.mark.parametrize('guidance', [5.0, 1.0])
def test_self_attention_guidance(guidance):
    """Each step calls the network once more, for images with what it attends to blurred."""
    pipe = variants.tiny_stable_diffusion_as('StableDiffusionSAGPipeline')
    for strength, calls in ((0.75, slice(None, None, 2)), (0.0, slice(None))):
        options = dict(SQUARE, guidance_scale=guidance, sag_scale=strength)
        check_guided(pipe, (16, 16), guidance, options, calls=calls, expected_steps=2)


@pytest.mark.parametrize('guidance', [5.0, 1.0])
@pytest.mark.parametrize(
    'name', ['StableDiffusionGLIGENPipeline', 'StableDiffusionGLIGENTextImagePipeline']
)
def test_gligen(name, guidance):
    """With images, each step calls the network once more, without what is in the boxes."""
    pipe = variants.tiny_gligen(name)
    check_guided(
        pipe,
        (16, 16),
        guidance,
        dict(
            SQUARE,
            guidance_scale=guidance,
            gligen_phrases=['a bird'],
            gligen_boxes=[[0.1, 0.2, 0.5, 0.6]],
            gligen_scheduled_sampling_beta=0.5,
        ),
        calls=slice(None, None, 2 if 'TextImage' in name else 1),
        expected_steps=2,
    )


@pytest.mark.parametrize('guidance', [5.0, 1.0])
def test_images_with_depth(guidance):
    pipe = variants.tiny_ldm3d()
    options = dict(SQUARE, guidance_scale=guidance, output_type='np')
    check_guided(pipe, (16, 16), guidance, options)
    options = dict(options, return_dict=False, num_inference_steps=1)
    assert AttentionRecorder(pipe).generate(PROMPTS, NOUNS, **options).images.shape[0] == 2


def test_stable_diffusion_whose_weights_were_edited():
    pipe = variants.tiny_stable_diffusion_as('StableDiffusionModelEditingPipeline')
    check(
        pipe,
        lambda: explicit_attention(pipe),
        lambda word: ((1 + word,),),
        (16, 16),
        first_row=2,
        options=SQUARE,
    )


@pytest.mark.parametrize('guidance', [5.0, 1.0])
def test_latent_upscaler(guidance):
    pipe = variants.tiny_latent_upscaler()
    check_guided(
        pipe,
        (16, 16),
        guidance,
        dict(
            image=images(16, 16, channels=4),
            num_inference_steps=2,
            guidance_scale=guidance,
            output_type='pt',
        ),
    )

"""Guidance that puts more than two parts into a batch: perturbed attention, InstructPix2Pix."""

from __future__ import annotations

import functools

import diffusers
import pytest
import torch
from helpers import tiny_generators as tiny
from helpers.attention_reference import explicit_attention
from helpers.numpy_attention import attention_of, cross, sequence
from helpers.tiny_pipelines import tiny_stable_diffusion, tiny_stable_diffusion_xl
from helpers.two_prompts import NOUNS, PROMPTS, attn2, block_attention, check, images_of

from freeatm_mm.attention import FAMILIES, AttentionRecorder

PERTURBED = dict(num_inference_steps=2, pag_scale=2.0, output_type='pt')
GUIDED = [(5.0, 1), (1.0, 1), (5.0, 2), (0.0, 2)]


def picture(count=2, seed=2):
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def like(pipe, name, **options):
    """A pipeline of another class with the parts of one."""
    return tiny.rebuilt(pipe, getattr(diffusers, name), **options)


@pytest.mark.parametrize(('guidance', 'images'), GUIDED)
@pytest.mark.parametrize('kind', ['', 'XL'])
def test_perturbed_stable_diffusion(kind, guidance, images):
    base = tiny_stable_diffusion_xl() if kind else tiny_stable_diffusion()
    pipe = like(base, f'StableDiffusion{kind}PAGPipeline')
    check(
        pipe,
        lambda: explicit_attention(pipe),
        lambda word: ((1 + word,),),
        (8, 8) if kind else (16, 16),
        images=images,
        first_row=2 * images if guidance > 1 else 0,
        options=dict(PERTURBED, guidance_scale=guidance),
    )


@pytest.mark.parametrize(
    'name',
    [
        'StableDiffusionPAGImg2ImgPipeline',
        'StableDiffusionPAGInpaintPipeline',
        'StableDiffusionControlNetPAGPipeline',
        'StableDiffusionControlNetPAGInpaintPipeline',
        'StableDiffusionXLPAGImg2ImgPipeline',
        'StableDiffusionXLPAGInpaintPipeline',
        'StableDiffusionXLControlNetPAGPipeline',
        'StableDiffusionXLControlNetPAGImg2ImgPipeline',
    ],
)
@pytest.mark.parametrize('guidance', [5.0, 1.0])
def test_perturbed_relatives_of_stable_diffusion(name, guidance):
    base = tiny_stable_diffusion_xl() if 'XL' in name else tiny_stable_diffusion()
    parts = {}
    options = dict(PERTURBED, guidance_scale=guidance, height=64, width=64, image=picture())
    if 'ControlNet' in name:
        parts['controlnet'] = tiny.controlnet_for(base.unet)
    if 'Inpaint' in name:
        options['mask_image'] = (picture(seed=5)[:, :1] > 0.5).float()
    if 'Img2Img' in name:
        del options['height'], options['width']
    if 'Inpaint' in name or 'Img2Img' in name:
        options['strength'] = 1.0
    if 'ControlNet' in name and ('Inpaint' in name or 'Img2Img' in name):
        options['control_image'] = picture(seed=4)
    pipe = like(base, name, **parts)
    check(
        pipe,
        lambda: explicit_attention(pipe),
        lambda word: ((1 + word,),),
        (8, 8) if 'XL' in name else (16, 16),
        first_row=2 if guidance > 1 else 0,
        options=options,
    )


@pytest.mark.parametrize(('guidance', 'images'), GUIDED[:3])
@pytest.mark.parametrize(
    'name', ['StableDiffusion3PAGPipeline', 'StableDiffusion3PAGImg2ImgPipeline']
)
def test_perturbed_stable_diffusion_3(name, guidance, images):
    # Its first block perturbs image and text together, in a call of attention of their own.
    # Its processors leave out the norms of queries and keys (Stable Diffusion 3.5).
    pipe = like(
        tiny.tiny_stable_diffusion_3(qk_norm=None), name, pag_applied_layers=r'blocks.0.attn$'
    )
    text = 77 + 256
    options = dict(PERTURBED, guidance_scale=guidance, height=64, width=64)
    if 'Img2Img' in name:
        options.update(image=picture(), strength=1.0)
    check(
        pipe,
        lambda: attention_of(
            pipe.transformer, block_attention, functools.partial(sequence, text=text)
        ),
        lambda word: ((1 + word,), (77 + word,)),
        (8, 8),
        images=images,
        first_row=2 * images if guidance > 1 else 0,
        options=options,
    )


@pytest.mark.parametrize(('guidance', 'images'), GUIDED[:3])
@pytest.mark.parametrize('name', ['PixArtSigmaPAGPipeline', 'SanaPAGPipeline'])
def test_perturbed_cross_attention(name, guidance, images):
    if name == 'SanaPAGPipeline' and images > 1:
        pytest.skip('Sana gives several images of a prompt the wrong masks')
    options = dict(PERTURBED, guidance_scale=guidance, use_resolution_binning=False)
    if name == 'SanaPAGPipeline':
        pipe = like(tiny.tiny_sana(), name)
        options.update(height=32, width=64, complex_human_instruction=None)
        size, recorder_options = (16, 32), dict(call_options=dict(complex_human_instruction=None))
    else:
        pipe = like(tiny.tiny_pixart(sigma=True), name, pag_applied_layers='blocks.1')
        options.update(height=64, width=96, clean_caption=False)
        size, recorder_options = (8, 12), dict(clean_caption=False)
    first = int(name == 'SanaPAGPipeline')  # Gemma's start token
    check(
        pipe,
        lambda: attention_of(pipe.transformer, attn2, cross),
        lambda word: ((first + word,),),
        size,
        images=images,
        first_row=2 * images if guidance > 1 else 0,
        options=options,
        recorder_options=recorder_options,
    )


def test_every_perturbing_pipeline_with_a_known_base_has_a_row():
    known = {name for family in FAMILIES for name in family.pipelines}
    perturbing = {name for name in dir(diffusers) if 'PAG' in name and name.endswith('Pipeline')}
    # A video, and families that have no row.
    others = {name for name in perturbing if name.startswith(('AnimateDiff', 'HunyuanDiT'))}
    assert perturbing - known <= others


def test_a_perturbing_pipeline_without_perturbation_is_guided_as_others():
    pipe = like(tiny_stable_diffusion(), 'StableDiffusionPAGPipeline')
    check(
        pipe,
        lambda: explicit_attention(pipe),
        lambda word: ((1 + word,),),
        (16, 16),
        first_row=2,
        options=dict(PERTURBED, pag_scale=0.0),
    )


def test_self_attention_of_a_perturbed_image_is_that_of_the_unperturbed():
    options = dict(PERTURBED, guidance_scale=5.0)
    pipe = like(tiny_stable_diffusion(), 'StableDiffusionPAGPipeline', pag_applied_layers='up')
    affinities = []
    for scale in (0.0, 1e-9):
        with AttentionRecorder(pipe, PROMPTS, NOUNS, self_attention=32) as recorder:
            images_of(pipe, **dict(options, pag_scale=scale))
        (total,) = recorder._affinities.values()
        affinities.append(total.total_BTN)
    assert torch.allclose(*affinities, atol=1e-5)


@pytest.mark.parametrize('guidance', [4.0, 1.0])
def test_steps_that_generate_one_tensor_are_steps_of_their_own(guidance):
    kept = []

    def same(pipe, index, timestep, values):
        kept.append(values['latents'])
        return {'latents': kept[0]}

    recorder = AttentionRecorder(tiny.tiny_flux())
    recorder.generate(
        PROMPTS,
        NOUNS,
        num_inference_steps=4,
        height=64,
        width=64,
        true_cfg_scale=guidance,
        negative_prompt=['a tree'] * len(PROMPTS),
        callback_on_step_end=same,
    )
    assert recorder.num_steps == 4


@pytest.mark.parametrize('scaled', [lambda noisy: noisy, torch.clone], ids=['one', 'equal'])
def test_guidance_by_two_calls_of_a_unet_is_refused(scaled):
    """Also where each call is given images of its own, by `scale_model_input` for example."""
    pipe = tiny_stable_diffusion()
    noisy = torch.zeros(2, 4, 16, 16)
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder, torch.no_grad():
        with_prompt, without = pipe.encode_prompt(PROMPTS, 'cpu', 1, True)
        for timestep in (500, 100):  # one tensor at several levels is no guidance
            pipe.unet(scaled(noisy), timestep, with_prompt)
            pipe.unet(scaled(noisy), timestep, with_prompt.clone())
        with pytest.raises(ValueError, match='StableDiffusionPipeline called its unet twice for'):
            pipe.unet(scaled(noisy), 100, encoder_hidden_states=without)
    assert recorder.num_steps == 4
    told = dict(columns=[[[2]], [[2]]], nouns=[['dog']] * 2)
    with AttentionRecorder(pipe, PROMPTS, **told) as recorder, torch.no_grad():
        pipe.unet(scaled(noisy), 500, with_prompt)
        pipe.unet(scaled(noisy + 1), 500, without)  # a second call at a level, of other images
        with pytest.raises(ValueError, match='StableDiffusionPipeline called its unet twice for'):
            pipe.unet(scaled(noisy + 1), 500, with_prompt)
    assert recorder.num_steps == 2


@pytest.mark.parametrize('guidance', [4.0, 1.0])
def test_more_images_than_were_told_are_refused(guidance):
    pipe = like(tiny_stable_diffusion(), 'StableDiffusionPAGPipeline')
    with pytest.raises(
        ValueError, match='the denoiser got a batch of .*give the recorder the same'
    ):
        with AttentionRecorder(pipe, PROMPTS, NOUNS, check_prompts=False):
            images_of(pipe, 2, **dict(PERTURBED, guidance_scale=guidance))


@pytest.mark.parametrize('check_prompts', [True, False])
def test_each_call_is_checked_for_the_order_of_its_images(check_prompts):
    """Two guided images are as many rows as four unguided ones."""
    pipe, options = tiny_stable_diffusion(), dict(num_inference_steps=1, output_type='pt')
    with (
        pytest.raises(ValueError, match='a batch of 4 different images, but the recorder is for 2'),
        AttentionRecorder(pipe, PROMPTS, NOUNS, check_prompts=check_prompts),
    ):
        images_of(pipe, **options)
        images_of(pipe, 2, guidance_scale=1.0, **options)
    told = dict(num_images_per_prompt=2, check_prompts=check_prompts)
    with (
        pytest.raises(ValueError, match='batch of 4 in which .* one prompt have different embedd'),
        AttentionRecorder(pipe, PROMPTS, NOUNS, **told),
    ):
        images_of(pipe, 2, **options)
        images_of(pipe, **options)
    # The same noise for every image.
    latents = torch.zeros(4, 4, 16, 16)
    with AttentionRecorder(pipe, PROMPTS, NOUNS, **told) as recorder:
        images_of(pipe, 2, guidance_scale=1.0, latents=latents, **options)
    assert recorder.num_steps == 1


@pytest.mark.parametrize('guidance', [5.0, 1.0])
def test_another_pipeline_may_perturb_the_network_that_is_recorded(guidance):
    pipe = tiny_stable_diffusion()
    other = like(pipe, 'StableDiffusionPAGPipeline')
    options = dict(PERTURBED, guidance_scale=guidance)
    masks = []
    for recorded in (other, pipe):
        with AttentionRecorder(recorded, PROMPTS, NOUNS) as recorder:
            images_of(other, **options)
        masks.append(recorder.masks())
    assert all(map(torch.equal, *masks))


@pytest.mark.parametrize(('guidance', 'images'), GUIDED)
@pytest.mark.parametrize('kind', ['', 'XL'])
def test_instruct_pix2pix(kind, guidance, images):
    pipe = tiny.tiny_pix2pix(kind)
    options = dict(num_inference_steps=2, output_type='pt', image=picture(2 * images))
    if kind:
        options.update(height=64, width=64)
    check(
        pipe,
        lambda: explicit_attention(pipe),
        lambda word: ((1 + word,),),
        (8, 8) if kind else (16, 16),
        images=images,
        options=dict(options, guidance_scale=guidance, image_guidance_scale=1.5),
    )

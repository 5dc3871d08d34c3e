"""Every family beyond Stable Diffusion and DeepFloyd IF's stage I: maps, images, tokens, guidance.

Each is a tiny random model of the real pipeline class. The words of the prompts are single tokens
of every tokenizer, so a noun's column is counted by hand: ``word_place`` plus what stands before.
"""

from __future__ import annotations

import functools
import inspect
import re
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from helpers import tiny_generators as tiny
from helpers.attention_reference import explicit_attention, mean_map
from helpers.numpy_attention import (
    attention_of,
    cross,
    hidream_attention,
    pixels_then_text,
    ragged_sequence,
    rotated_cross,
    sequence,
)
from helpers.tiny_pipelines import tiny_stable_diffusion, tiny_stable_diffusion_xl
from helpers.two_prompts import (
    NOUNS,
    PROMPTS,
    SQUARE,
    attn2,
    block_attention,
    check,
    images_of,
)
from packaging.version import Version

from freeatm_mm.attention import AttentionRecorder, NounTruncatedError

# Cross-attention transformers ------------------------------------------------------------------

PIXART = dict(
    num_inference_steps=2,
    height=64,
    width=96,
    use_resolution_binning=False,
    output_type='pt',
    clean_caption=False,
)


@pytest.mark.parametrize(
    ('sigma', 'guidance', 'images'), [(False, 4.5, 2), (True, 4.5, 1), (False, 1.0, 1)]
)
def test_pixart(sigma, guidance, images):
    pipe = tiny.tiny_pixart(sigma)
    batch = len(PROMPTS) * images
    check(
        pipe,
        lambda: attention_of(pipe.transformer, attn2, cross),
        lambda word: ((word,),),
        (8, 12),
        images=images,
        first_row=batch if guidance > 1 else 0,
        options=dict(PIXART, guidance_scale=guidance),
        recorder_options=dict(clean_caption=False),
    )


def test_pixart_masks_padding():
    pipe = tiny.tiny_pixart()
    with attention_of(pipe.transformer, attn2, cross) as seen:
        images_of(pipe, **PIXART)
    words = len(PROMPTS[0].split()) + 1  # and the end token
    assert seen[0][1].shape == (4, 3, 96, 120)
    assert all(probabilities[2, ..., words:].max() < 1e-6 for _, probabilities in seen)


def test_pixart_counts_tokens_to_the_length_of_the_call():
    pipe = tiny.tiny_pixart()
    options = dict(PIXART, max_sequence_length=6)
    with pytest.raises(NounTruncatedError, match='prompt 0.*sand.*cut off'):
        AttentionRecorder(pipe, PROMPTS, NOUNS, call_options=dict(max_sequence_length=6))
    with AttentionRecorder(
        pipe,
        PROMPTS,
        NOUNS,
        truncated='skip',
        clean_caption=False,
        call_options=dict(max_sequence_length=6),
    ) as recorder:
        images_of(pipe, **options)
    assert recorder.truncated == [(0, 1), (1, 1), (1, 2)]
    with pytest.raises(ValueError, match='hold only 6 text keys.*max_sequence_length'):
        with AttentionRecorder(pipe, PROMPTS, NOUNS, clean_caption=False, check_prompts=False):
            images_of(pipe, **options)
    with pytest.raises(ValueError, match="PixArtAlphaPipeline is called without .*'max_length'"):
        AttentionRecorder(pipe, PROMPTS, NOUNS, call_options=dict(max_length=6))


SANA = dict(
    num_inference_steps=2, height=32, width=64, use_resolution_binning=False, output_type='pt'
)


def sana_columns(pipe, instruction):
    """``word place -> column``, by choosing tokens of the first prompt as the paper says."""
    text = '\n'.join(instruction or ()) + PROMPTS[0]
    extra = len(pipe.tokenizer(text[: -len(PROMPTS[0])]).input_ids) - 2 if instruction else 0
    ids = pipe.tokenizer(text, padding='max_length', max_length=300 + extra).input_ids
    kept = [ids[0], *ids[-299:]]
    red, dog = (pipe.tokenizer(word).input_ids[-1] for word in ('red', 'dog'))
    first = next(place for place in range(300) if kept[place : place + 2] == [red, dog]) - 1
    return lambda word: ((first + word,),)


@pytest.mark.parametrize(
    ('guidance', 'images', 'qk_norm'),
    [(4.5, 1, None), (1.0, 2, None), (4.5, 1, 'rms_norm_across_heads')],
)
def test_sana(guidance, images, qk_norm):
    pipe = tiny.tiny_sana(qk_norm)
    instruction = inspect.signature(pipe.__call__).parameters['complex_human_instruction'].default
    check(
        pipe,
        lambda: attention_of(pipe.transformer, attn2, cross),
        sana_columns(pipe, instruction),
        (16, 32),
        images=images,
        first_row=2 * images if guidance > 1 else 0,
        options=dict(SANA, guidance_scale=guidance),
    )


def test_sana_with_a_tokenizer_made_to_pad_on_the_left():
    """As Gemma's is by its class; the pipeline turns it round at its first call."""
    pipe = tiny.tiny_sana()
    instruction = inspect.signature(pipe.__call__).parameters['complex_human_instruction'].default
    columns = sana_columns(pipe, instruction)
    pipe.tokenizer.padding_side = 'left'
    check(
        pipe,
        lambda: attention_of(pipe.transformer, attn2, cross),
        columns,
        (16, 32),
        first_row=2,
        options=SANA,
    )


@pytest.mark.parametrize('instruction', [None, ['a photo of'], ['be kind to a cat:', 'sand: ']])
def test_sana_with_another_instruction(instruction):
    pipe = tiny.tiny_sana()
    check(
        pipe,
        lambda: attention_of(pipe.transformer, attn2, cross),
        sana_columns(pipe, instruction),
        (16, 32),
        first_row=2,
        options=dict(SANA, complex_human_instruction=instruction),
        recorder_options=dict(call_options=dict(complex_human_instruction=instruction)),
    )


KANDINSKY_3 = dict(num_inference_steps=2, height=64, width=128, output_type='pt')


@pytest.mark.parametrize(('guidance', 'images'), [(3.0, 1), (1.0, 2)])
def test_kandinsky_3(guidance, images):
    pipe = tiny.tiny_kandinsky3()

    def to_text(name):
        return re.search(r'blocks\.\d\.attentions\.[1-9]\.attention$', name) is not None

    recorder = check(
        pipe,
        lambda: attention_of(pipe.unet, to_text, cross),
        lambda word: ((word,),),
        (8, 16),
        images=images,
        first_row=2 * images if guidance > 1 else 0,
        options=dict(KANDINSKY_3, guidance_scale=guidance),
    )
    assert {part.group for part in recorder._sums} == {'down', 'up'}


# One softmax over text keys and pixel keys -----------------------------------------------------
@pytest.mark.parametrize(
    ('guidance', 'images', 'perturbed'), [(5.0, 1, 0), (1.0, 2, 0), (5.0, 1, 2.0), (5.0, 2, 2.0)]
)
def test_hunyuan_dit(guidance, images, perturbed):
    pipe = tiny.tiny_hunyuan_dit()
    options = dict(SQUARE, height=128, width=192, use_resolution_binning=False)
    options.update(guidance_scale=guidance)
    if perturbed:
        pipe = tiny.rebuilt(pipe, diffusers.HunyuanDiTPAGPipeline, pag_applied_layers='blocks.1')
        options.update(pag_scale=perturbed)
    recorder = check(
        pipe,
        lambda: attention_of(pipe.transformer, attn2, rotated_cross),
        lambda word: ((1 + word,), (77 + word,)),
        (8, 12),
        images=images,
        first_row=2 * images if guidance > 1 else 0,
        options=options,
    )
    assert recorder.layers == {f'blocks.{block}.attn2': 2 for block in range(4)}


@pytest.mark.parametrize(
    ('guidance', 'images', 'side'), [(4.0, 1, 'right'), (1.0, 2, 'right'), (4.0, 1, 'left')]
)
def test_lumina(guidance, images, side):
    pipe = tiny.tiny_lumina(side)
    longest = -(-(1 + len(PROMPTS[1].split())) // 8) * 8

    def columns(word, prompt):
        return ((word + (longest - len(prompt.split()) if side == 'left' else 1),),)

    check(
        pipe,
        lambda: attention_of(pipe.transformer, attn2, rotated_cross),
        columns,
        (8, 12),
        images=images,
        options=dict(SQUARE, height=128, width=192, guidance_scale=guidance, clean_caption=False),
        recorder_options=dict(clean_caption=False),
    )


FUSED = {
    'stable diffusion': (tiny_stable_diffusion, 'unet', {}),
    'xl': (tiny_stable_diffusion_xl, 'unet', {}),
    'pixart': (tiny.tiny_pixart, 'transformer', dict(clean_caption=False)),
    'hunyuan': (tiny.tiny_hunyuan_dit, 'transformer', dict(height=128, width=128)),
}


@pytest.mark.parametrize('name', FUSED)
def test_fused_projections_are_recorded(name):
    make, denoiser, told = FUSED[name]
    pipe = make()
    binning = {} if denoiser == 'unet' else dict(use_resolution_binning=False)
    generate = functools.partial(images_of, pipe, **dict(SQUARE, **told, **binning))
    told.pop('height', None), told.pop('width', None)

    def masks(**options):
        plain = generate()
        with AttentionRecorder(pipe, PROMPTS, NOUNS, **told, **options) as recorder:
            assert torch.equal(plain, generate())
        maps = recorder.masks(propagate=1) if options else []
        return [*recorder.masks(), *maps]

    options = {} if name == 'hunyuan' else dict(self_attention=32)
    apart = masks(**options)
    getattr(pipe, denoiser).fuse_qkv_projections()
    fused = masks(**options)
    getattr(pipe, denoiser).unfuse_qkv_projections()
    for one, other in [*zip(apart, fused), *zip(apart, masks())]:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        assert one.std() > 1e-9


def kandinsky_options():
    generator = torch.Generator().manual_seed(2)
    embeddings = torch.randn(4, 32, generator=generator)
    return dict(
        image_embeds=embeddings[:2],
        negative_image_embeds=embeddings[2:],
        height=64,
        width=64,
        num_inference_steps=2,
        output_type='pt',
    )


@pytest.mark.parametrize(
    ('guidance', 'images', 'probability'), [(4.0, 2, 'joint'), (4.0, 1, 'text')]
)
def test_kandinsky_2_1(guidance, images, probability):
    pipe = tiny.tiny_kandinsky()
    # 10 tokens of the image embedding, the start token, then the words.
    check(
        pipe,
        lambda: explicit_attention(pipe),
        lambda word: ((11 + word,),),
        (16, 16),
        images=images,
        first_row=2 * images,
        probability=probability,
        text_keys=87 if probability == 'text' else None,
        options=dict(kandinsky_options(), guidance_scale=guidance),
    )


@pytest.mark.parametrize(
    ('guidance', 'images', 'probability'), [(8.0, 1, 'joint'), (1.0, 2, 'joint'), (8.0, 1, 'text')]
)
def test_unclip(guidance, images, probability):
    pipe = tiny.tiny_unclip()
    # 4 tokens of the image embedding, the start token, then the words.
    check(
        pipe,
        lambda: explicit_attention(SimpleNamespace(unet=pipe.decoder)),
        lambda word: ((5 + word,),),
        (16, 16),
        images=images,
        first_row=2 * images if guidance > 1 else 0,
        probability=probability,
        text_keys=81 if probability == 'text' else None,
        expected_steps=2,
        options=dict(
            decoder_guidance_scale=guidance,
            prior_guidance_scale=guidance,
            prior_num_inference_steps=2,
            decoder_num_inference_steps=2,
            super_res_num_inference_steps=2,
            output_type='pt',
        ),
    )


def test_deepfloyd_stage_two():
    pipe = tiny.tiny_if_super_resolution()
    low = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    check(
        pipe,
        lambda: explicit_attention(pipe),
        lambda word: ((word,),),
        (16, 16),
        first_row=2,
        options=dict(image=low, num_inference_steps=2, output_type='pt', clean_caption=False),
        recorder_options=dict(clean_caption=False),
    )


CASCADE = dict(height=128, width=160, output_type='pt')


@pytest.mark.parametrize('kind', ['StableCascade', 'StableCascadePrior', 'WuerstchenPrior'])
@pytest.mark.parametrize(
    ('guidance', 'images', 'probability'), [(4.0, 1, 'joint'), (1.0, 2, 'joint'), (4.0, 1, 'text')]
)
def test_cascade(kind, guidance, images, probability):
    pipe = tiny.tiny_cascade(kind.removesuffix('Prior'))
    prior, before = pipe.prior_prior, 'prior_'
    if kind.endswith('Prior'):
        pipe, before = pipe.prior_pipe, ''
    text = 77 + (0 if kind == 'WuerstchenPrior' else 2 * 4)
    steps = {f'{before}num_inference_steps': 2, f'{before}guidance_scale': guidance}
    check(
        pipe,
        lambda: attention_of(prior, lambda name: name.endswith('.attention'), pixels_then_text),
        lambda word: ((1 + word,),),
        (3, 4),
        images=images,
        probability=probability,
        text_keys=text if probability == 'text' else None,
        options=dict(CASCADE, **steps),
        expected_steps=2,
    )


def test_wuerstchen():
    """The whole generates one prompt at a time (0.35); its masks are its prior's."""
    pipe = tiny.tiny_cascade('Wuerstchen')
    masks = []
    for part, before in ((pipe, 'prior_'), (pipe.prior_pipe, '')):
        options = {f'{before}num_inference_steps': 2, f'{before}guidance_scale': 4.0}
        with AttentionRecorder(part, PROMPTS[0], NOUNS[0]) as recorder:
            images_of(part, prompts=PROMPTS[:1], **dict(CASCADE, width=128), **options)
        masks.append(recorder.masks()[0])
    assert torch.equal(*masks) and masks[0].std() > 1e-9
    with pytest.raises(ValueError, match='PriorPipelineOutput holds no images: record this'):
        AttentionRecorder(pipe.prior_pipe).generate(
            PROMPTS[0], NOUNS[0], height=128, width=128, num_inference_steps=1
        )


# aMUSEd -------------------------------------------------------------------------------------------


def _amused_attention(name):
    return name.endswith('.attn2') or re.search(r'_block\.attention_blocks\.\d\.attn1$', name)


@pytest.mark.parametrize(
    ('downsample', 'guidance', 'images'), [(False, 5.0, 1), (True, 1.0, 1), (False, 5.0, 2)]
)
def test_amused(downsample, guidance, images):
    pipe = tiny.tiny_amused(downsample)
    check(
        pipe,
        lambda: attention_of(pipe.transformer, _amused_attention, cross),
        lambda word: ((1 + word,),),
        (8, 12) if downsample else (16, 24),
        images=images,
        first_row=len(PROMPTS) * images if guidance > 1 else 0,
        options=dict(SQUARE, height=32, width=48, guidance_scale=guidance),
        expected_steps=2,
        in_turn=True,
    )


@pytest.mark.parametrize('name', ['AmusedImg2ImgPipeline', 'AmusedInpaintPipeline'])
def test_amused_from_images(name):
    pipe = tiny.rebuilt(tiny.tiny_amused(), getattr(diffusers, name))
    call = dict(image=torch.rand(2, 3, 32, 48), num_inference_steps=3, strength=0.9)
    if 'Inpaint' in name:
        call['mask_image'] = torch.ones(2, 1, 32, 48)
    check(
        pipe,
        lambda: attention_of(pipe.transformer, _amused_attention, cross),
        lambda word: ((1 + word,),),
        (16, 24),
        images=2,
        first_row=4,
        options=dict(call, output_type='pt', guidance_scale=5.0),
        expected_steps=2,
        in_turn=True,
    )


def test_amused_gives_its_images_prompt_after_prompt():
    pipe = tiny.tiny_amused()
    call = dict(SQUARE, height=32, width=32, num_images_per_prompt=2)
    result = AttentionRecorder(pipe, truncated='skip').generate(
        [f'a dog {"on the sand " * 30}and a tree', 'a bird'], [['dog', 'tree'], ['bird']], **call
    )
    assert result.names == [['dog', 'tree'], ['bird']] * 2
    assert [prompt[:6] for prompt in result.prompts] == ['a dog ', 'a bird'] * 2
    assert result.truncated == [(0, 1), (2, 1)]


# Stable Diffusion's relatives ------------------------------------------------------------------


@pytest.mark.parametrize('name', ['stage three', 'latent consistency', 'controlnet'])
def test_relatives_of_stable_diffusion(name):
    low = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    pipe, options, first_row = {
        'stage three': lambda: (tiny.tiny_upscaler(), dict(image=low[..., :16, :16] * 2 - 1), 2),
        'latent consistency': lambda: (tiny.tiny_latent_consistency(), {}, 0),
        'controlnet': lambda: (tiny.tiny_controlnet(), dict(image=low), 2),
    }[name]()
    check(
        pipe,
        lambda: explicit_attention(pipe),
        lambda word: ((1 + word,),),
        (16, 16),
        first_row=first_row,
        options=dict(options, num_inference_steps=2, output_type='pt'),
    )


# One sequence of text and image ----------------------------------------------------------------


@pytest.mark.parametrize(
    ('guidance', 'images', 'probability'), [(7.0, 1, 'joint'), (1.0, 2, 'joint'), (7.0, 1, 'text')]
)
def test_stable_diffusion_3(guidance, images, probability):
    pipe = tiny.tiny_stable_diffusion_3()
    text = 77 + 256
    recorder = check(
        pipe,
        lambda: attention_of(
            pipe.transformer, block_attention, functools.partial(sequence, text=text)
        ),
        lambda word: ((1 + word,), (77 + word,)),
        (8, 12),
        images=images,
        first_row=2 * images if guidance > 1 else 0,
        probability=probability,
        text_keys=text if probability == 'text' else None,
        options=dict(SQUARE, width=96, guidance_scale=guidance),
    )
    assert {part.group for part in recorder._sums} == {'transformer'}


@pytest.mark.parametrize(
    ('text_encoders', 'columns'),
    [
        (['text_encoder'], lambda word: ((1 + word,),)),
        (['text_encoder_3'], lambda word: ((77 + word,),)),
    ],
)
def test_stable_diffusion_3_text_encoders_can_be_chosen(text_encoders, columns):
    pipe = tiny.tiny_stable_diffusion_3(qk_norm=None)
    check(
        pipe,
        lambda: attention_of(
            pipe.transformer, block_attention, functools.partial(sequence, text=77 + 256)
        ),
        columns,
        (8, 8),
        first_row=2,
        options=SQUARE,
        recorder_options=dict(text_encoders=text_encoders),
    )
    with pytest.raises(ValueError, match="text_encoders must be of .*got \\['t5'\\]"):
        AttentionRecorder(pipe, PROMPTS, NOUNS, text_encoders=['t5'])


def test_stable_diffusion_3_without_t5():
    pipe = tiny.tiny_stable_diffusion_3(t5=False)
    # Zeros stand in for T5's tokens: 77 up to diffusers 0.35, as many as T5's in newer ones.
    text = 77 + pipe._get_t5_prompt_embeds('').shape[1]
    check(
        pipe,
        lambda: attention_of(
            pipe.transformer, block_attention, functools.partial(sequence, text=text)
        ),
        lambda word: ((1 + word,),),
        (8, 8),
        first_row=2,
        options=SQUARE,
    )


def test_stable_diffusion_3_without_t5_but_with_its_tokenizer():
    """Zeros stand in for T5; what falls on them tells no noun from another and counts for none."""
    pipe = tiny.tiny_stable_diffusion_3()
    pipe.text_encoder_3 = None
    nouns = [[(2, 5), (13, 17)]]
    masks = []
    for encoders in (None, ('text_encoder', 'text_encoder_2')):
        with AttentionRecorder(
            pipe, ['a dog on the sand'], nouns, text_encoders=encoders
        ) as recorder:
            pipe(['a dog on the sand'], generator=torch.Generator().manual_seed(0), **SQUARE)
        masks.append(recorder.masks()[0])
    assert torch.equal(*masks)


def test_stable_diffusion_3_noun_that_clip_alone_cuts_off():
    pipe = tiny.tiny_stable_diffusion_3()
    prompt = ' '.join(['a'] * 80) + ' dog'
    span = (len(prompt) - 3, len(prompt))
    with (
        AttentionRecorder(pipe, [prompt], [[span]]) as recorder,
        attention_of(
            pipe.transformer, block_attention, functools.partial(sequence, text=333)
        ) as seen,
    ):
        pipe([prompt], **SQUARE)
    assert recorder.truncated == []
    np.testing.assert_allclose(
        recorder.masks()[0][0], mean_map(seen, 1, [77 + 80], (8, 8)), rtol=0, atol=1e-6
    )
    with pytest.raises(NounTruncatedError, match="prompt 0.*'dog'.*cut off"):
        AttentionRecorder(pipe, [prompt], [[span]], text_encoders=['text_encoder'])


def test_stable_diffusion_3_leaves_out_skip_layer_guidance():
    pipe = tiny.tiny_stable_diffusion_3()
    options = dict(
        SQUARE,
        num_inference_steps=4,
        skip_guidance_layers=[0],
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
    )
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        images_of(pipe, **options)
    assert recorder.num_steps == 4
    assert sum(total.count for total in recorder._sums.values()) == 4 * len(recorder.layers)


@pytest.mark.parametrize(
    ('pipeline', 'guided', 'images', 'probability'),
    [
        ('FluxPipeline', False, 2, 'joint'),
        ('FluxPipeline', True, 1, 'joint'),
        ('FluxPipeline', False, 1, 'text'),
        ('FluxImg2ImgPipeline', True, 1, 'joint'),
    ],
)
def test_flux(pipeline, guided, images, probability):
    pipe = tiny.tiny_flux(pipeline)
    options = dict(SQUARE, width=96)
    if guided:
        options.update(true_cfg_scale=3.0, negative_prompt=['a tree'] * len(PROMPTS))
    if pipeline == 'FluxImg2ImgPipeline':
        options.update(
            image=torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3)), strength=1.0
        )
    recorder = check(
        pipe,
        lambda: attention_of(
            pipe.transformer, block_attention, functools.partial(sequence, text=512)
        ),
        lambda word: ((word,),),
        (8, 12),
        images=images,
        probability=probability,
        text_keys=512 if probability == 'text' else None,
        options=options,
        expected_steps=2,
        # Guidance is a second pass after each first.
        calls=slice(None, None, 2) if guided else slice(None),
    )
    assert {part.group for part in recorder._sums} == {'double', 'single'}
    assert recorder.masks(blocks='single')[0].shape == (2, 8, 12)


@pytest.mark.parametrize(
    ('guided', 'images', 'probability', 'side'),
    [(True, 1, 'joint', 'right'), (False, 2, 'joint', 'right'), (True, 1, 'text', 'left')],
)
def test_qwen_image(guided, images, probability, side):
    pipe = tiny.tiny_qwen_image(side)
    options = dict(SQUARE, true_cfg_scale=4.0)
    if guided:
        options.update(negative_prompt=[' '] * len(PROMPTS))
    # The longest prompt and what the template puts after it; the shorter one is padded.
    after = len(pipe.tokenizer(tiny.QWEN_TEMPLATE.split('{}')[1]).input_ids)
    text = len(PROMPTS[1].split()) + after

    def compute(module, *args, **kwargs):
        length = kwargs['encoder_hidden_states'].shape[1]
        keep = kwargs.get('encoder_hidden_states_mask')
        if keep is not None and Version(diffusers.__version__) >= Version('0.40'):
            # Newer ones mask padding; 0.35 passes the mask on and doesn't use it.
            image = torch.ones(len(keep), kwargs['hidden_states'].shape[1], dtype=torch.bool)
            kwargs['attention_mask'] = torch.cat([keep.bool(), image], 1)
        return sequence(module, *args, text=length, **kwargs)

    check(
        pipe,
        lambda: attention_of(pipe.transformer, block_attention, compute),
        lambda word: ((word,),),
        (8, 8),
        images=images,
        probability=probability,
        text_keys=text if probability == 'text' else None,
        options=options,
        expected_steps=2,
        calls=slice(None, None, 2) if guided else slice(None),
    )


@pytest.mark.parametrize(
    ('guidance', 'images', 'probability'), [(4.0, 1, 'joint'), (1.0, 2, 'joint'), (4.0, 1, 'text')]
)
def test_lumina2(guidance, images, probability):
    pipe = tiny.tiny_lumina2()
    before = len(pipe.tokenizer(pipe.system_prompt + ' <Prompt Start> ').input_ids)
    lengths = [before + len(prompt.split()) for prompt in PROMPTS]
    # Of several images of a prompt the text is cut as long as another's (Lumina2 of diffusers).
    places = [(0, length, length) for length in lengths * images]
    check(
        pipe,
        lambda: attention_of(
            pipe.transformer,
            lambda name: re.search(r'^layers\.\d+\.attn$', name) is not None,
            functools.partial(ragged_sequence, places=places, pixels=96),
        ),
        lambda word: ((before + word,),),
        (8, 12),
        images=images,
        probability=probability,
        text_keys=max(lengths) if probability == 'text' else None,
        options=dict(SQUARE, height=128, width=192, guidance_scale=guidance),
        expected_steps=2,
        calls=slice(None, None, 2) if guidance > 1 else slice(None),
    )


@pytest.mark.parametrize(
    ('guidance', 'images', 'probability', 'width'),
    [(4.0, 1, 'joint', 96), (1.0, 2, 'joint', 64), (4.0, 1, 'text', 64)],
)
def test_hidream(guidance, images, probability, width):
    pipe = tiny.tiny_hidream()
    # 72x48 pixels are those of 96x64 at the one size that it generates.
    size, text = ((6, 9) if width == 96 else (8, 8)), 3 * 128
    recorder = check(
        pipe,
        lambda: attention_of(
            pipe.transformer,
            lambda name: name.endswith('.attn1'),
            functools.partial(hidream_attention, pixels=size[0] * size[1], text=text),
        ),
        lambda word: ((word,), (128 + 1 + word,), (256 + 1 + word,)),
        size,
        images=images,
        first_row=2 * images if guidance > 1 else 0,
        probability=probability,
        text_keys=text if probability == 'text' else None,
        options=dict(SQUARE, width=width, guidance_scale=guidance),
    )
    assert {part.group for part in recorder._sums} == {'double', 'single'}


@pytest.mark.parametrize(
    ('pipeline', 'guidance', 'images', 'probability'),
    [
        ('ChromaPipeline', 5.0, 1, 'joint'),
        ('ChromaPipeline', 1.0, 2, 'joint'),
        ('ChromaPipeline', 5.0, 1, 'text'),
        ('ChromaImg2ImgPipeline', 5.0, 1, 'joint'),
        ('ChromaInpaintPipeline', 5.0, 1, 'joint'),
    ],
)
def test_chroma(pipeline, guidance, images, probability):
    if not hasattr(diffusers, pipeline):
        pytest.skip(f'diffusers {diffusers.__version__} has no {pipeline}')
    pipe = tiny.tiny_chroma(pipeline)
    options = dict(SQUARE, width=96, guidance_scale=guidance, max_sequence_length=64)
    generator = torch.Generator().manual_seed(3)
    if pipeline != 'ChromaPipeline':
        options.update(image=torch.rand(2, 3, 64, 96, generator=generator), strength=1.0)
    if pipeline == 'ChromaInpaintPipeline':
        options.update(mask_image=torch.rand(2, 1, 64, 96, generator=generator).round())
    recorder = check(
        pipe,
        lambda: attention_of(
            pipe.transformer, block_attention, functools.partial(sequence, text=64)
        ),
        lambda word: ((word,),),
        (8, 12),
        images=images,
        probability=probability,
        text_keys=64 if probability == 'text' else None,
        options=options,
        recorder_options=dict(call_options=dict(max_sequence_length=64)),
        expected_steps=2,
        calls=slice(None, None, 2) if guidance > 1 else slice(None),
    )
    assert {part.group for part in recorder._sums} == {'double', 'single'}


@pytest.mark.parametrize(
    ('pipeline', 'guidance', 'images'),
    [
        ('KolorsPipeline', 5.0, 1),
        ('KolorsPipeline', 1.0, 2),
        ('KolorsPipeline', 5.0, 2),
        ('KolorsImg2ImgPipeline', 5.0, 1),
        ('KolorsPAGPipeline', 5.0, 1),
        ('KolorsPAGPipeline', 1.0, 2),
    ],
)
def test_kolors(pipeline, guidance, images):
    pipe = tiny.tiny_kolors(pipeline)
    options = dict(SQUARE, guidance_scale=guidance)
    if pipeline == 'KolorsImg2ImgPipeline':
        image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
        options.update(image=image, strength=1.0)
    if pipeline == 'KolorsPAGPipeline':
        options.update(pag_scale=2.0)
    check(
        pipe,
        lambda: explicit_attention(pipe),
        # Padding up to 256, and each prompt ends at the last key.
        lambda word, prompt: ((256 - len(prompt.split()) + word,),),
        (8, 8),
        images=images,
        first_row=2 * images if guidance > 1 else 0,
        options=options,
    )


def test_kolors_takes_a_length_and_leaves_it_unused():
    masks = [
        AttentionRecorder(tiny.tiny_kolors()).generate(
            PROMPTS, NOUNS, generator=torch.Generator().manual_seed(1), **SQUARE, **length
        )
        for length in ({}, dict(max_sequence_length=64))
    ]
    assert all(map(torch.equal, masks[0].masks, masks[1].masks))


@pytest.mark.parametrize('side', ['left', 'right'])
def test_rows_of_another_length_are_refused_where_columns_depend_on_it(side):
    """The columns would be of padding, or of another text encoder."""
    pipe = tiny.tiny_hidream()
    pipe.tokenizer_4.padding_side = side
    for told in (dict(max_sequence_length=64), {}):
        called = {} if told else dict(max_sequence_length=64)
        with (
            pytest.raises(ValueError, match='text_encoder_4 encoded rows of .* tokens, where the'),
            AttentionRecorder(pipe, PROMPTS, NOUNS, call_options=told),
        ):
            images_of(pipe, **dict(SQUARE, **called))
    masks = AttentionRecorder(pipe).generate(PROMPTS, NOUNS, max_sequence_length=64, **SQUARE).masks
    assert len(masks) == 2

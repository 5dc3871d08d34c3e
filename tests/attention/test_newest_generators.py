"""The families that only the newest diffusers has; skipped where it is older.

``./run newest-generators`` runs them, in an environment of their own.
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
from helpers import tiny_transformers
from helpers import tiny_variants as variants
from helpers.attention_reference import mean_map
from helpers.numpy_attention import (
    attention_of,
    cross,
    hunyuan_image_attention,
    nucleus_attention,
    prx_attention,
    qwen_image_21_attention,
    ragged_sequence,
    sequence,
    shared_sequence,
    single_projection_sequence,
    z_image_attention,
)
from helpers.tiny_variants import own_image, qwen_sequence
from helpers.two_prompts import (
    NOUNS,
    PROMPTS,
    SQUARE,
    block_attention,
    images_of,
    spans,
    word_place,
)
from PIL import Image

from freeatm_mm.attention import AttentionRecorder


def needs(pipeline):
    """Skips a test where the installed diffusers lacks a pipeline."""
    return pytest.mark.skipif(
        not hasattr(diffusers, pipeline),
        reason=f'diffusers {diffusers.__version__} has no {pipeline}',
    )


def chat_place(pipe, rendered):
    """How many tokens stand before the first prompt in its chat, by the tokens themselves."""
    ids = pipe.tokenizer(rendered, add_special_tokens=False).input_ids
    red, dog = (
        pipe.tokenizer(word, add_special_tokens=False).input_ids[0] for word in ('red', 'dog')
    )
    places = [place for place in range(len(ids)) if ids[place : place + 2] == [red, dog]]
    assert len(places) == 1
    return places[0] - 1, len(ids)


def flux2_attention(module, *args, **kwargs):
    compute = sequence if hasattr(module, 'add_k_proj') else single_projection_sequence
    return compute(module, *args, text=512, **kwargs)


@needs('Flux2KleinPipeline')
@pytest.mark.parametrize(
    ('guidance', 'images', 'probability', 'side'),
    [(4.0, 1, 'joint', 'right'), (1.0, 2, 'joint', 'right'), (4.0, 1, 'text', 'left')],
)
def test_flux2_klein(guidance, images, probability, side):
    pipe = tiny.tiny_flux2_klein(side)
    first, length = chat_place(
        pipe,
        f'<|im_start|>user\n{PROMPTS[0]}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n',
    )

    def columns(word, prompt):
        whole = length + len(PROMPTS[prompt].split()) - len(PROMPTS[0].split())
        return (first + word + (512 - whole if side == 'left' else 0),)

    options = dict(SQUARE, width=96, guidance_scale=guidance, text_encoder_out_layers=(1, 2))
    recorder = run(
        pipe,
        flux2_attention,
        columns,
        (8, 12),
        images=images,
        probability=probability,
        text_keys=512,
        options=options,
        calls=slice(None, None, 2 if guidance > 1 else 1),
    )
    assert recorder.num_steps == 2
    assert {part.group for part in recorder._sums} == {'double', 'single'}


@needs('Flux2KleinInpaintPipeline')
@pytest.mark.parametrize('guidance', [4.0, 1.0])
def test_flux2_klein_inpaint(guidance):
    pipe = variants.tiny_flux2_klein_inpaint()
    first, _ = chat_place(
        pipe,
        f'<|im_start|>user\n{PROMPTS[0]}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n',
    )
    generator = torch.Generator().manual_seed(3)
    run(
        pipe,
        variants.own_image(flux2_attention, 8 * 12),
        lambda word, prompt: (first + word,),
        (8, 12),
        text_keys=512,
        options=dict(
            SQUARE,
            width=96,
            guidance_scale=guidance,
            text_encoder_out_layers=(1, 2),
            image=torch.rand(2, 3, 64, 96, generator=generator),
            mask_image=torch.rand(2, 1, 64, 96, generator=generator).round(),
            strength=1.0,
        ),
        calls=slice(None, None, 2 if guidance > 1 else 1),
    )


@needs('Flux2Pipeline')
@pytest.mark.parametrize('probability', ['joint', 'text'])
def test_flux2(probability):
    pipe = tiny.tiny_flux2()
    first, length = chat_place(
        pipe, f'<s>[SYSTEM_PROMPT]{pipe.system_message}[/SYSTEM_PROMPT][INST]{PROMPTS[0]}[/INST]'
    )

    def columns(word, prompt):  # the tokenizer pads on the left
        whole = length + len(PROMPTS[prompt].split()) - len(PROMPTS[0].split())
        return (512 - whole + first + word,)

    run(
        pipe,
        flux2_attention,
        columns,
        (8, 8),
        probability=probability,
        text_keys=512,
        options=dict(SQUARE, text_encoder_out_layers=(1, 2)),
    )


@needs('ZImagePipeline')
@pytest.mark.parametrize(
    ('guidance', 'images', 'probability'), [(4.0, 1, 'joint'), (0.0, 2, 'joint'), (4.0, 1, 'text')]
)
def test_z_image(guidance, images, probability):
    pipe = tiny.tiny_z_image()
    first, length = chat_place(
        pipe, f'<|im_start|>user\n{PROMPTS[0]}<|im_end|>\n<|im_start|>assistant\n'
    )
    # Six by eight tokens, filled up to 64; then the longer caption, filled up too.
    longest = length + len(PROMPTS[1].split()) - len(PROMPTS[0].split())
    text = -(-longest // 32) * 32
    run(
        pipe,
        functools.partial(z_image_attention, image=48, text_start=64),
        lambda word, prompt: (first + word,),
        (6, 8),
        images=images,
        probability=probability,
        text_keys=text,
        options=dict(SQUARE, height=48, guidance_scale=guidance),
        keep=lambda name: re.search(r'^layers\.\d+\.attention$', name) is not None,
    )


@needs('ZImageControlNetPipeline')
@pytest.mark.parametrize('guidance', [4.0, 0.0])
@pytest.mark.parametrize('name', ['ZImageControlNetPipeline', 'ZImageControlNetInpaintPipeline'])
def test_z_image_control(name, guidance):
    pipe = variants.tiny_z_image_control(name)
    first, _ = chat_place(
        pipe, f'<|im_start|>user\n{PROMPTS[0]}<|im_end|>\n<|im_start|>assistant\n'
    )
    generator = torch.Generator().manual_seed(3)
    options = dict(control_image=torch.rand(2, 3, 48, 64, generator=generator))
    if 'Inpaint' in name:
        options.update(
            image=torch.rand(2, 3, 48, 64, generator=generator),
            mask_image=torch.rand(2, 1, 48, 64, generator=generator).round(),
        )
    run(
        pipe,
        functools.partial(z_image_attention, image=48, text_start=64),
        lambda word, prompt: (first + word,),
        (6, 8),
        text_keys=32,
        options=dict(SQUARE, height=48, guidance_scale=guidance, **options),
        keep=lambda name: re.search(r'^layers\.\d+\.attention$', name) is not None,
    )


@needs('PRXPipeline')
@pytest.mark.parametrize(
    ('pixels', 'guidance', 'probability'),
    [(False, 1.0, 'joint'), (False, 4.0, 'text'), (True, 4.0, 'joint')],
)
def test_prx(pixels, guidance, probability):
    pipe = tiny.tiny_prx_pixel() if pixels else tiny.tiny_prx()
    # PRX of diffusers 0.42 generates one image at a time under guidance.
    prompts = slice(0, 1) if guidance > 1 else slice(None)
    options = dict(SQUARE, guidance_scale=guidance)
    options.update(use_resolution_binning=False, **(dict(height=32, width=32) if pixels else {}))
    run(
        pipe,
        prx_attention,
        lambda word, prompt: (word + (not pixels),),
        (16, 16) if pixels else (8, 8),
        probability=probability,
        text_keys=48 if pixels else 64,
        options=options,
        prompts=prompts,
        first_row=1 if guidance > 1 else 0,
        keep=lambda name: re.search(r'^blocks\.\d+\.attention$', name) is not None,
    )


def filled_up(count):
    return -(-count // 32) * 32


@needs('ZImageOmniPipeline')
@pytest.mark.parametrize(
    ('guidance', 'images', 'probability', 'go_by'),
    [(4.0, 1, 'joint', 0), (0.0, 2, 'joint', 0), (4.0, 1, 'text', 1), (0.0, 1, 'joint', 2)],
)
def test_z_image_omni(guidance, images, probability, go_by):
    pipe = tiny.tiny_z_image_omni()
    texts = [
        ('a red dog on the sand ' + 'in the sky ' * 10).strip(),
        'a photo of a cat on the tree',
    ]
    nouns = [spans(texts[0], 'dog', 'sand'), spans(texts[1], 'cat', 'tree')]
    count = [len(pipe.tokenizer(text).input_ids) for text in texts]
    before, after = '<|im_start|>user\n', '<|im_end|>\n<|im_start|>assistant\n'
    options, pieces, pictures = dict(SQUARE, height=48, guidance_scale=guidance), [], 0
    if go_by:
        pipe.vae.to(torch.bfloat16)  # the pipeline encodes in it
        options['image'] = [
            Image.new('RGB', (64, 64), colour) for colour in ('red', 'blue')[:go_by]
        ]
        before, after, pictures = '<|vision_end|>', f'{after}<|vision_start|>', 64 * go_by
        pieces = [filled_up(len(pipe.tokenizer('<|im_start|>user\n<|vision_start|>').input_ids))]
        pieces += [32] * (go_by - 1)
    first, behind = (len(pipe.tokenizer(part).input_ids) for part in (before, after))
    last = 32 if go_by else 0
    places = []
    for words in count:
        length = filled_up(first + words + behind)
        places.append((sum(pieces), length, sum(pieces) + length + last + pictures))
    assert len(set(places)) == 2
    run(
        pipe,
        functools.partial(
            ragged_sequence,
            places=[place for place in places for _ in range(images)],
            pixels=48,
        ),
        lambda word, prompt: (first + word,),
        (6, 8),
        images=images,
        probability=probability,
        text_keys=max(length for _, length, _ in places),
        options=options,
        keep=lambda name: re.search(r'^layers\.\d+\.attention$', name) is not None,
        texts=(texts, nouns),
    )


@needs('HunyuanImagePipeline')
@pytest.mark.parametrize(
    ('guidance', 'images', 'probability', 'written'),
    [(None, 2, 'joint', False), (4.0, 1, 'joint', False), (4.0, 1, 'text', True)],
)
def test_hunyuan_image(guidance, images, probability, written):
    pipe = tiny.tiny_hunyuan_image(guidance)
    texts = [f'a dog on the sand{" in the sky" * 2}', "a photo of a cat and 'red' on the tree"]
    texts[1] = texts[1] if written else texts[1].replace("'", '')
    nouns = [spans(texts[0], 'dog', 'sand'), spans(texts[1], 'cat', 'photo')]
    after = len(pipe.tokenizer(tiny.QWEN_TEMPLATE.split('{}')[1]).input_ids)
    lengths = [len(pipe.tokenizer(text).input_ids) + after for text in texts]
    glyphs = [0, len(pipe.tokenizer_2('Text "red". ').input_ids) if written else 0]
    places = [(16 * 24 + first, length, 0) for first, length in zip(glyphs, lengths)]
    recorder = run(
        pipe,
        functools.partial(
            hunyuan_image_attention, places=[place for place in places for _ in range(images)]
        ),
        lambda word, prompt: (word,),
        (16, 24),
        images=images,
        probability=probability,
        text_keys=max(lengths),
        options=dict(SQUARE, width=96),
        calls=slice(None, None, 2 if guidance else 1),
        keep=lambda name: re.search(r'^(single_)?transformer_blocks\.\d+\.attn$', name) is not None,
        texts=(texts, nouns),
    )
    assert recorder.num_steps == 2
    assert {part.group for part in recorder._sums} == {'double', 'single'}


@needs('NucleusMoEImagePipeline')
@pytest.mark.parametrize(
    ('guidance', 'images', 'probability', 'side'),
    [(4.0, 1, 'joint', 'left'), (1.0, 2, 'joint', 'right'), (4.0, 1, 'text', 'right')],
)
def test_nucleus(guidance, images, probability, side):
    pipe = tiny.tiny_nucleus(side)
    first, length = chat_place(pipe.processor, pipe._format_prompt(PROMPTS[0]))
    longest = length + len(PROMPTS[1].split()) - len(PROMPTS[0].split())
    padded = -(-longest // 8) * 8

    def columns(word, prompt):
        whole = (length, longest)[prompt]
        return (first + word + (padded - whole if side == 'left' else 0),)

    run(
        pipe,
        nucleus_attention,
        columns,
        (8, 8),
        images=images,
        probability=probability,
        text_keys=padded,
        options=dict(SQUARE, guidance_scale=guidance),
        calls=slice(None, None, 2 if guidance > 1 else 1),
    )


@tiny.needs_own_tokenizer
@pytest.mark.parametrize(
    ('name', 'guided', 'images', 'probability', 'count'),
    [
        ('QwenImageEditPipeline', True, 1, 'joint', 1),
        ('QwenImageEditInpaintPipeline', False, 1, 'joint', 1),
        ('QwenImageEditPlusPipeline', True, 1, 'text', 2),
        ('QwenImageEditPlusPipeline', False, 2, 'joint', 1),
    ],
)
def test_qwen_image_edit(name, guided, images, probability, count, monkeypatch):
    if not hasattr(diffusers, name):
        pytest.skip(f'diffusers {diffusers.__version__} has no {name}')
    pipe = tiny.tiny_qwen_image_edit(name)
    module = inspect.getmodule(type(pipe))
    monkeypatch.setattr(
        module,
        'calculate_dimensions',
        lambda area, ratio: (48, 32) if 'Plus' in name else (48, 32, None),
    )
    pictures = [Image.new('RGB', (48, 32), colour) for colour in ('red', 'blue')[:count]]
    options = dict(SQUARE, image=pictures if 'Plus' in name else pictures[0], true_cfg_scale=4.0)
    if guided:
        options['negative_prompt'] = ['a tree']
    if 'Inpaint' in name:
        options.update(mask_image=Image.new('L', (48, 32), 'white'), strength=1.0)
    prompt, rows = PROMPTS[0], []
    with pipe.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs['input_ids'][0].tolist()), with_kwargs=True
    ):
        images_of(pipe, prompts=[prompt], **options)
    red, dog = (pipe.tokenizer(word).input_ids[0] for word in ('red', 'dog'))
    (first,) = (
        place - 1 for place in range(len(rows[0])) if rows[0][place : place + 2] == [red, dog]
    )
    assert rows[0].count(pipe.tokenizer.convert_tokens_to_ids('<|image_pad|>')) == 6 * count
    first -= pipe.prompt_template_encode_start_idx
    text = len(rows[0]) - pipe.prompt_template_encode_start_idx

    size = (4, 6) if 'Inpaint' in name else (8, 8)  # it generates at the size of its image
    run(
        pipe,
        own_image(qwen_sequence, size[0] * size[1]),
        lambda word, prompt: (first + word,),
        size,
        images=images,
        probability=probability,
        text_keys=text,
        options=options,
        calls=slice(None, None, 2 if guided else 1),
        prompts=slice(0, 1),
    )


@tiny.needs_own_tokenizer
def test_images_among_the_text_must_be_seen():
    pipe = tiny.tiny_qwen_image_edit('QwenImageEditPipeline')
    with pytest.raises(ValueError, match='check_prompts=False does not go with QwenImageEdit'):
        AttentionRecorder(pipe, PROMPTS[:1], NOUNS[:1], check_prompts=False)


@needs('QwenImage21Pipeline')
@pytest.mark.parametrize(
    ('guided', 'images', 'probability', 'cached'),
    [
        (True, 1, 'joint', True),
        (False, 2, 'joint', True),
        (True, 1, 'text', False),
    ],
)
def test_qwen_image_21(guided, images, probability, cached):
    pipe = tiny.tiny_qwen_image_21()
    first, length = chat_place(pipe.processor, pipe.prompt_template_t2i.format(PROMPTS[0]))
    options = dict(SQUARE, height=128, width=96, output_type='latent', use_kv_cache=cached)
    if guided:
        options.update(true_cfg_scale=4.0, negative_prompt=['a tree'] * len(PROMPTS))
    run(
        pipe,
        functools.partial(qwen_image_21_attention, pixels=48, kept={}),
        lambda word, prompt: (first - pipe._drop_idx + word,),
        (8, 6),
        images=images,
        probability=probability,
        text_keys=length - pipe._drop_idx + len(PROMPTS[1].split()) - len(PROMPTS[0].split()),
        options=options,
        calls=slice(None, None, 2 if guided else 1),
    )
    with pytest.raises(ValueError, match='leave image out'):
        AttentionRecorder(
            pipe, PROMPTS, NOUNS, call_options=dict(image=[Image.new('RGB', (32, 32))])
        )


@needs('BriaPipeline')
@pytest.mark.parametrize(
    ('guidance', 'images', 'probability'), [(5.0, 1, 'joint'), (1.0, 2, 'joint'), (5.0, 2, 'text')]
)
def test_bria(guidance, images, probability):
    pipe = tiny_transformers.tiny_bria()
    run(
        pipe,
        functools.partial(sequence, text=128),
        lambda word, prompt: (word,),
        (8, 12),
        images=images,
        probability=probability,
        text_keys=128,
        options=dict(SQUARE, width=96, guidance_scale=guidance),
        first_row=2 * images if guidance > 1 else 0,
    )


@needs('BriaFiboPipeline')
@pytest.mark.parametrize(
    ('guidance', 'images', 'probability', 'side'),
    [(5.0, 1, 'joint', 'right'), (1.0, 2, 'joint', 'left'), (5.0, 1, 'text', 'right')],
)
def test_bria_fibo(guidance, images, probability, side):
    pipe = tiny_transformers.tiny_bria_fibo(side)
    text = 1 + len(PROMPTS[1].split())

    def columns(word, prompt):
        behind = len(PROMPTS[1].split()) - len(PROMPTS[prompt].split()) if side == 'left' else 0
        return (1 + word + behind,)

    options = dict(SQUARE, width=96, guidance_scale=guidance)
    if guidance > 1:  # an empty one is a token of Llama's
        options['negative_prompt'] = ['a tree'] * len(PROMPTS)
    run(
        pipe,
        functools.partial(sequence, text=text),
        columns,
        (4, 6),
        images=images,
        probability=probability,
        text_keys=text,
        options=options,
        first_row=2 * images if guidance > 1 else 0,
    )


@needs('OvisImagePipeline')
@pytest.mark.parametrize(
    ('guidance', 'images', 'probability', 'side'),
    [(5.0, 1, 'joint', 'right'), (1.0, 2, 'joint', 'left'), (5.0, 1, 'text', 'right')],
)
def test_ovis_image(guidance, images, probability, side):
    pipe = tiny_transformers.tiny_ovis_image(side)
    first, length = chat_place(
        pipe,
        f'<|im_start|>user\n{pipe.system_prompt}{PROMPTS[0]}<|im_end|>\n'
        '<|im_start|>assistant\n<think>\n\n</think>\n\n',
    )
    pipe.user_prompt_begin_id = 8  # the instruction's end stays, as the real one's does

    def columns(word, prompt):
        whole = length + len(PROMPTS[prompt].split()) - len(PROMPTS[0].split())
        return (first + word - 8 + (64 + 8 - whole if side == 'left' else 0),)

    run(
        pipe,
        functools.partial(sequence, text=64),
        columns,
        (8, 12),
        images=images,
        probability=probability,
        text_keys=64,
        options=dict(SQUARE, width=96, guidance_scale=guidance, max_sequence_length=64),
        calls=slice(None, None, 2 if guidance > 1 else 1),
    )


@needs('LongCatImagePipeline')
@pytest.mark.parametrize(
    ('guidance', 'images', 'probability', 'side'),
    [(4.5, 1, 'joint', 'right'), (1.0, 2, 'joint', 'left'), (4.5, 1, 'text', 'right')],
)
def test_longcat_image(guidance, images, probability, side):
    pipe = tiny_transformers.tiny_longcat_image(side)
    pipe.tokenizer_max_length = 64

    def columns(word, prompt):
        return (word + (64 - len(PROMPTS[prompt].split()) if side == 'left' else 0),)

    run(
        pipe,
        functools.partial(sequence, text=64),
        columns,
        (8, 12),
        images=images,
        probability=probability,
        text_keys=64,
        options=dict(SQUARE, width=96, guidance_scale=guidance, enable_prompt_rewrite=False),
        calls=slice(None, None, 2 if guidance > 1 else 1),
    )


@needs('LongCatImagePipeline')
def test_longcat_image_tokenizes_quotes_by_character():
    pipe = tiny_transformers.tiny_longcat_image()
    prompt = "a sign 'dog' on the sand"
    nouns = [[(8, 11), (19, 23)]]
    recorder = AttentionRecorder(pipe, [prompt], nouns, check_prompts=True)
    seen = []
    handle = pipe.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs['input_ids'][0].tolist()), with_kwargs=True
    )
    with recorder:
        pipe([prompt], **dict(SQUARE, guidance_scale=1.0, enable_prompt_rewrite=False))
    handle.remove()
    prefix = len(
        pipe.tokenizer(pipe.prompt_template_encode_prefix, add_special_tokens=False).input_ids
    )
    words = pipe.tokenizer.convert_ids_to_tokens(seen[0][prefix:])
    ((dog,), (sand,)) = recorder._targets.positions[0]
    assert ''.join(words[place] for place in dog).replace('\u2581', '') == 'dog'
    assert len(dog) >= 3 and [words[place] for place in sand] == ['\u2581sand']


@needs('LongCatImagePipeline')
def test_longcat_image_that_rewrites_the_prompt_is_refused():
    pipe = tiny_transformers.tiny_longcat_image()
    pipe.rewire_prompt = lambda prompt, device: ['a red bird'] * len(prompt)
    with pytest.raises(ValueError, match='text_encoder encoded other prompts'):
        with AttentionRecorder(pipe, PROMPTS, NOUNS):
            images_of(pipe, **SQUARE)


@needs('Krea2Pipeline')
@pytest.mark.parametrize(
    ('guidance', 'images', 'probability', 'side'),
    [(4.5, 1, 'joint', 'right'), (0.0, 2, 'joint', 'left'), (4.5, 1, 'text', 'right')],
)
def test_krea2(guidance, images, probability, side):
    pipe = tiny_transformers.tiny_krea2(side)
    text = 64 - pipe.prompt_template_encode_num_suffix_tokens

    def columns(word, prompt):
        return (word + (text - len(PROMPTS[prompt].split()) if side == 'left' else 0),)

    run(
        pipe,
        functools.partial(shared_sequence, text=64),
        columns,
        (8, 12),
        images=images,
        probability=probability,
        text_keys=64,
        options=dict(SQUARE, width=96, guidance_scale=guidance, max_sequence_length=64),
        calls=slice(None, None, 2 if guidance > 0 else 1),
        keep=lambda name: re.search(r'^transformer_blocks\.\d+\.attn$', name) is not None,
    )


@needs('Ideogram4Pipeline')
@pytest.mark.parametrize(
    ('guidance', 'images', 'probability'), [(7.0, 1, 'joint'), (1.0, 2, 'joint'), (7.0, 1, 'text')]
)
def test_ideogram4(guidance, images, probability, monkeypatch):
    """Guidance generates with a network of its own, which isn't recorded."""
    monkeypatch.setattr(
        inspect.getmodule(diffusers.Ideogram4Pipeline), 'QWEN3_VL_ACTIVATION_LAYERS', (0, 1)
    )
    pipe = tiny_transformers.tiny_ideogram4()
    first, length = chat_place(
        pipe,
        f'<|im_start|>user\n{PROMPTS[0]}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n',
    )

    def columns(word, prompt):
        whole = length + len(PROMPTS[prompt].split()) - len(PROMPTS[0].split())
        return (96 - whole + first + word,)

    recorder = run(
        pipe,
        functools.partial(shared_sequence, text=96, halves=True),
        columns,
        (8, 12),
        images=images,
        probability=probability,
        text_keys=96,
        options=dict(
            SQUARE,
            width=96,
            guidance_scale=guidance,
            guidance_schedule=None,
            max_sequence_length=96,
        ),
        keep=lambda name: re.search(r'^layers\.\d+\.attention$', name) is not None,
    )
    assert recorder.num_steps == 2
    with pytest.raises(ValueError, match='text_encoder encoded other prompts'):
        with AttentionRecorder(pipe, ['a cat'], [[(2, 5)]]):
            images_of(
                pipe,
                prompts=['a dog'],
                **dict(SQUARE, guidance_scale=guidance, guidance_schedule=None),
            )


def ernie_attention(module, hidden_states, attention_mask=None, image_rotary_emb=None, **others):
    """Attention of ERNIE-Image's layers, the text put before the image."""
    pixels = 8 * 12
    angles = image_rotary_emb[:, :, 0]
    probabilities = shared_sequence(
        module,
        hidden_states,
        attention_mask=attention_mask,
        image_rotary_emb=(angles.cos(), angles.sin()),
        text=0,
        halves=True,
    )[:, :, :pixels]
    return np.concatenate([probabilities[..., pixels:], probabilities[..., :pixels]], -1)


@needs('ErnieImagePipeline')
@pytest.mark.parametrize(
    ('guidance', 'images', 'probability'), [(4.0, 1, 'joint'), (1.0, 2, 'joint'), (4.0, 2, 'text')]
)
def test_ernie_image(guidance, images, probability):
    pipe = tiny_transformers.tiny_ernie_image()
    run(
        pipe,
        ernie_attention,
        lambda word, prompt: (1 + word,),
        (8, 12),
        images=images,
        probability=probability,
        text_keys=max(len(prompt.split()) for prompt in PROMPTS) + 1,
        options=dict(SQUARE, width=96, guidance_scale=guidance, use_pe=False),
        first_row=2 * images if guidance > 1 else 0,
        keep=lambda name: re.search(r'^layers\.\d+\.self_attention$', name) is not None,
    )


def kandinsky5_attention(module, hidden_states, encoder_hidden_states=None, **others):
    names = SimpleNamespace(
        heads=module.num_heads,
        to_q=module.to_query,
        to_k=module.to_key,
        norm_q=module.query_norm,
        norm_k=module.key_norm,
    )
    return cross(names, hidden_states, encoder_hidden_states)


@needs('Kandinsky5T2IPipeline')
@pytest.mark.parametrize(
    ('guidance', 'images', 'side'), [(3.5, 1, 'right'), (1.0, 2, 'left'), (3.5, 2, 'left')]
)
def test_kandinsky5(guidance, images, side):
    pipe = tiny_transformers.tiny_kandinsky5(side)
    longest = max(len(prompt.split()) for prompt in PROMPTS)

    def columns(word, prompt):
        return (word + (longest - len(PROMPTS[prompt].split()) if side == 'left' else 0),)

    run(
        pipe,
        kandinsky5_attention,
        columns,
        (4, 6),
        images=images,
        text_keys=0,
        options=dict(SQUARE, width=96, guidance_scale=guidance),
        calls=slice(None, None, 2 if guidance > 1 else 1),
        keep=lambda name: re.search(r'^visual_\w+\.\d+\.cross_attention$', name) is not None,
    )


def run(
    pipe,
    compute,
    columns,
    size,
    *,
    images=1,
    probability='joint',
    text_keys,
    options,
    calls=slice(None),
    keep=block_attention,
    prompts=slice(None),
    first_row=0,
    texts=(PROMPTS, NOUNS),
):
    """Like ``check`` of the other families, for columns that depend on the prompt.

    The reference puts the text keys first. `texts` are prompts and their nouns.
    """
    prompts, nouns = (part[prompts] for part in texts)
    generate = functools.partial(images_of, pipe, images, prompts=prompts, **options)
    plain = generate()
    told = {name: options[name] for name in ('image', 'max_sequence_length') if name in options}
    with AttentionRecorder(
        pipe,
        prompts,
        nouns,
        num_images_per_prompt=images,
        probability=probability,
        call_options=told,
    ) as recorder:
        assert torch.equal(plain, generate())
    with attention_of(pipe.transformer, keep, compute) as seen:
        generate()
    layers = len(recorder.layers)
    by_call = [seen[start : start + layers] for start in range(0, len(seen), layers)][calls]
    seen = [item for call in by_call for item in call]
    masks = recorder.masks()
    assert len(masks) == len(prompts) * images
    for image, mask in enumerate(masks):
        prompt = image // images
        assert mask.shape == (len(nouns[prompt]), *size)
        for noun, span in enumerate(nouns[prompt]):
            tokens = columns(word_place(prompts[prompt], span), prompt)
            expected = mean_map(
                seen, first_row + image, tokens, size, text_keys if probability == 'text' else None
            )
            np.testing.assert_allclose(mask[noun].numpy(), expected, rtol=0, atol=1e-6)
            assert expected.std() > 1e-9
    return recorder

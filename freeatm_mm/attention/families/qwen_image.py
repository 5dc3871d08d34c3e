"""Qwen-Image: text and image in one sequence."""

from __future__ import annotations

from typing import Any

from torch import nn

from freeatm_mm.attention.families.base import (
    TRANSFORMER_GROUPS,
    Call,
    CallNames,
    DenoiserInput,
    Encoder,
    Family,
    TextKeys,
    argument,
    drop_template,
    is_block_attention,
    length_of_call,
    pipeline_template,
    sequence,
)
from freeatm_mm.attention.families.latents import WANTS_AN_IMAGE, Latents

__all__ = ['QWEN_IMAGE', 'QWEN_IMAGE_21', 'QWEN_IMAGE_EDIT']

_IMAGE = '<|image_pad|>'


def _packed_with_shapes(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Packed latents, their (frames, height, width) in ``img_shapes``: Qwen-Image."""
    sample = argument(args, kwargs, 0, 'hidden_states')
    text = argument(args, kwargs, 1, 'encoder_hidden_states')
    shape = kwargs['img_shapes'][0]
    shape = shape[0] if isinstance(shape, list) else shape
    return sequence(sample, tuple(shape[-2:]), text.shape[1])


def _packed_with_references(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """As `_packed_with_shapes`, with images to go by behind: Qwen-Image-Edit."""
    layout = _packed_with_shapes(denoiser, args, kwargs)
    return layout._replace(length=layout.text_length + layout.sample.shape[1])


def _text_and_target(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Packed latents, their (frames, height, width) last in ``img_shapes``: Qwen-Image 2.1."""
    sample = argument(args, kwargs, 0, 'hidden_states')
    text = argument(args, kwargs, 1, 'encoder_hidden_states')
    return sequence(sample, tuple(kwargs['img_shapes'][0][-1][-2:]), text.shape[1])


def _edit_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    before, after = pipeline_template(call, tokenizer)
    if _IMAGE in before:
        return before, after
    images = call.given('image')
    count = len(images) if isinstance(images, list) else int(images is not None)
    pictures = [
        f'Picture {index}: <|vision_start|>{_IMAGE}<|vision_end|>' for index in range(1, count + 1)
    ]
    return before + ''.join(pictures), after


def _unpadded(call: Call, tokenizer: Any) -> int:
    return 2**20  # nothing is cut off


def _qwen_21_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    if call.given('image') is not None:
        raise ValueError(
            'Qwen-Image 2.1 with images to go by puts their tokens among those of the text, in '
            'which nouns are not found: leave image out'
        )
    before, after = call.pipe.prompt_template_t2i.split('{}')
    return before, after


def _drop_qwen_21_system(call: Call, tokenizer: Any) -> int:
    return call.pipe._drop_idx


QWEN_IMAGE = Family(
    name='Qwen-Image',
    pipelines=(
        'QwenImagePipeline',
        'QwenImageImg2ImgPipeline',
        'QwenImageInpaintPipeline',
        'QwenImageControlNetPipeline',
        'QwenImageControlNetInpaintPipeline',
    ),
    is_text_attention=is_block_attention,
    where="up to 512 Qwen tokens after the template's first 34, then the image",
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(
        Encoder(
            max_length=length_of_call,
            frame=pipeline_template,
            dropped=drop_template,
            padding='removed',
        ),
    ),
    two_passes=True,
    denoiser_input=_packed_with_shapes,
    block_groups=TRANSFORMER_GROUPS,
    # It takes a guidance_scale as well and does nothing with it.
    call_names=CallNames(guidance=('true_cfg_scale',), negative_prompt=' '),
    latents=Latents(frames=True),
)

QWEN_IMAGE_EDIT = Family(
    name='Qwen-Image-Edit',
    pipelines=(
        'QwenImageEditPipeline',
        'QwenImageEditInpaintPipeline',
        'QwenImageEditPlusPipeline',
    ),
    is_text_attention=is_block_attention,
    where="Qwen tokens after the template's first 64, those of the images to edit before the "
    "prompt's, then the image, then the images to edit",
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(
        Encoder(
            ('processor',),
            max_length=_unpadded,
            frame=_edit_frame,
            dropped=drop_template,
            padding='removed',
            image_token=_IMAGE,
        ),
    ),
    two_passes=True,
    denoiser_input=_packed_with_references,
    block_groups=TRANSFORMER_GROUPS,
    call_names=CallNames(guidance=('true_cfg_scale',), negative_prompt=' '),
    latents=WANTS_AN_IMAGE,
)

QWEN_IMAGE_21 = Family(
    name='Qwen-Image 2.1',
    pipelines=('QwenImage21Pipeline',),
    is_text_attention=is_block_attention,
    where="Qwen tokens after the system prompt's, kept from the first step on, then the image",
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(
        Encoder(
            ('processor',),
            max_length=_unpadded,
            frame=_qwen_21_frame,
            dropped=_drop_qwen_21_system,
            padding='removed',
        ),
    ),
    two_passes=True,
    denoiser_input=_text_and_target,
    block_groups=TRANSFORMER_GROUPS,
    call_names=CallNames(guidance=('true_cfg_scale',), negative_prompt=' '),
    latents=Latents(frames=True, alpha=True, image_is_optional=True),
)

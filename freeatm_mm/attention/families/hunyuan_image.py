"""HunyuanImage 2.1: the image and Qwen tokens in one sequence, those of written words first."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from freeatm_mm.attention.families.base import (
    Call,
    CallNames,
    DenoiserInput,
    Encoder,
    Family,
    Place,
    TextKeys,
    argument,
    drop_template,
    pipeline_template,
)
from freeatm_mm.attention.families.latents import Latents, scaled_alone

__all__ = ['HUNYUAN_IMAGE']


def _text_after_glyphs(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Planes, then ByT5's tokens, then Qwen's, in each row as many as its masks keep."""
    sample = argument(args, kwargs, 0, 'hidden_states')
    model: Any = denoiser
    height, width = (
        side // patch for side, patch in zip(sample.shape[-2:], model.config.patch_size[-2:])
    )
    image, text = height * width, kwargs['encoder_attention_mask']
    lengths, length = text.sum(1).tolist(), image + text.shape[1]
    glyphs, before = kwargs.get('encoder_attention_mask_2'), [0] * len(lengths)
    if model.context_embedder_2 is not None and kwargs.get('encoder_hidden_states_2') is not None:
        assert glyphs is not None
        before, length = glyphs.sum(1).tolist(), length + glyphs.shape[1]
    places = tuple(
        Place(image + int(first), int(count), 0) for first, count in zip(before, lengths)
    )
    return DenoiserInput(sample, (height, width), length=length, places=places)


def _length(call: Call, tokenizer: Any) -> int:
    return call.pipe.tokenizer_max_length


def is_hunyuan_image_attention(name: str, module: nn.Module) -> bool:
    """Tell whether a module attends to text and image; the refiner of the text sees no image."""
    return re.search(r'^(single_)?transformer_blocks\.\d+\.attn$', name) is not None


HUNYUAN_IMAGE = Family(
    name='HunyuanImage 2.1',
    pipelines=('HunyuanImagePipeline',),
    is_text_attention=is_hunyuan_image_attention,
    where="the image, ByT5 tokens of words in quotes, which are no nouns' keys, then up to 1000 "
    "Qwen tokens after the template's first 34 (padding masked)",
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(
        Encoder(
            max_length=_length, frame=pipeline_template, dropped=drop_template, padding='removed'
        ),
    ),
    two_passes=True,
    denoiser_input=_text_after_glyphs,
    block_groups={'transformer_blocks': 'double', 'single_transformer_blocks': 'single'},
    call_names=CallNames(guidance=('distilled_guidance_scale',), guiders=('guider', 'ocr_guider')),
    latents=Latents(scaled=scaled_alone),
)

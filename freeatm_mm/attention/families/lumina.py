"""Lumina: cross-attention of rotated queries to Gemma (Next), or one sequence with it (2)."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from freeatm_mm.attention.families.base import (
    Call,
    DenoiserInput,
    Encoder,
    Family,
    Place,
    TextKeys,
    clean_like_deepfloyd,
    is_cross_attention,
    length_of_call,
    planes,
)

__all__ = ['LUMINA', 'LUMINA_2']


def _length_of_pipe(call: Call, tokenizer: Any) -> int:
    # The pipeline's call takes a max_sequence_length and leaves it aside.
    return call.pipe.max_sequence_length


def _system_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    system = call.option('system_prompt')
    return f'{call.pipe.system_prompt if system is None else system} <Prompt Start> ', ''


def _text_without_padding(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Planes that become one sequence behind as much text as each row's mask keeps: Lumina2."""
    sample, size = planes(denoiser, args, kwargs)[:2]
    config: Any = denoiser.config
    size = (size[0] // config.patch_size, size[1] // config.patch_size)
    lengths = [int(length) for length in kwargs['encoder_attention_mask'].sum(1).tolist()]
    return DenoiserInput(
        sample,
        size,
        length=max(lengths) + size[0] * size[1],
        places=tuple(Place(0, length, length) for length in lengths),
    )


def is_joint_attention(name: str, module: nn.Module) -> bool:
    """Tell whether a module of Lumina2 attends to text and image; its refiners see one of them."""
    return re.search(r'^layers\.\d+\.attn$', name) is not None


LUMINA = Family(
    name='Lumina-Next',
    pipelines=('LuminaPipeline', 'LuminaText2ImgPipeline'),
    is_text_attention=is_cross_attention,
    where='up to 256 Gemma tokens, padded to the longest prompt (padding masked)',
    watched=True,
    denoiser='transformer',
    encoders=(Encoder(max_length=_length_of_pipe, padding='either', multiple=8),),
    conditional_first=True,
    prepare_prompts=clean_like_deepfloyd,
    block_groups={'layers': 'transformer'},
)

LUMINA_2 = Family(
    name='Lumina-Image 2',
    pipelines=('Lumina2Pipeline', 'Lumina2Text2ImgPipeline'),
    is_text_attention=is_joint_attention,
    where='up to 256 Gemma tokens, the system prompt first, without padding, then the image',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(Encoder(max_length=length_of_call, frame=_system_frame),),
    two_passes=True,
    denoiser_input=_text_without_padding,
    block_groups={'layers': 'transformer'},
)

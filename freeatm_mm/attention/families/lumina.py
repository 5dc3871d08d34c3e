"""Lumina-Next: cross-attention of rotated queries to Gemma."""

from __future__ import annotations

from typing import Any

from freeatm_mm.attention.families.base import (
    Call,
    Encoder,
    Family,
    clean_like_deepfloyd,
    is_cross_attention,
)

__all__ = ['LUMINA']


def _length_of_pipe(call: Call, tokenizer: Any) -> int:
    # The pipeline's call takes a max_sequence_length and leaves it aside.
    return call.pipe.max_sequence_length


LUMINA = Family(
    name='Lumina-Next',
    pipelines=('LuminaPipeline', 'LuminaText2ImgPipeline'),
    is_text_attention=is_cross_attention,
    where='up to 256 Gemma tokens, padded to the longest prompt (padding masked)',
    rotated=True,
    denoiser='transformer',
    encoders=(Encoder(max_length=_length_of_pipe, padding='either', multiple=8),),
    conditional_first=True,
    prepare_prompts=clean_like_deepfloyd,
    block_groups={'layers': 'transformer'},
)

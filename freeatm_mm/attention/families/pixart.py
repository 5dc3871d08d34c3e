"""PixArt: cross-attention of a transformer to T5."""

from __future__ import annotations

from freeatm_mm.attention.families.base import (
    TRANSFORMER_GROUPS,
    Encoder,
    Family,
    clean_like_deepfloyd,
    is_cross_attention,
    length_of_call,
)

__all__ = ['PIXART']

PIXART = Family(
    name='PixArt-alpha and PixArt-sigma',
    pipelines=('PixArtAlphaPipeline', 'PixArtSigmaPipeline', 'PixArtSigmaPAGPipeline'),
    is_text_attention=is_cross_attention,
    where='120 (alpha) or 300 (sigma) T5 tokens (padding masked)',
    denoiser='transformer',
    encoders=(Encoder(max_length=length_of_call),),
    prepare_prompts=clean_like_deepfloyd,
    block_groups=TRANSFORMER_GROUPS,
)

"""Kolors: the network of Stable Diffusion XL, with cross-attention to ChatGLM."""

from __future__ import annotations

from freeatm_mm.attention.families.base import Encoder, Family, is_cross_attention

__all__ = ['KOLORS']

KOLORS = Family(
    name='Kolors',
    pipelines=('KolorsPipeline', 'KolorsImg2ImgPipeline', 'KolorsPAGPipeline'),
    is_text_attention=is_cross_attention,
    where='256 ChatGLM tokens, padding (not masked) before the text',
    # The call's max_sequence_length is checked, and not used.
    encoders=(Encoder(max_length=256, padding='either'),),
)

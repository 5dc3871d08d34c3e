"""Bria 3.2: Flux.1's blocks without CLIP, text and image in one sequence."""

from __future__ import annotations

from freeatm_mm.attention.families.base import (
    Encoder,
    Family,
    TextKeys,
    is_block_attention,
    length_of_call,
    packed_with_ids,
)

__all__ = ['BRIA']

BRIA = Family(
    name='Bria 3.2',
    pipelines=('BriaPipeline',),
    is_text_attention=is_block_attention,
    where='128 T5 tokens, zeros behind the text (not masked), then the image',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(Encoder(max_length=length_of_call),),
    denoiser_input=packed_with_ids,
    block_groups={'transformer_blocks': 'double', 'single_transformer_blocks': 'single'},
)

"""Chroma: Flux.1's blocks without CLIP, text and image in one sequence."""

from __future__ import annotations

from freeatm_mm.attention.families.base import (
    Encoder,
    Family,
    TextKeys,
    convert_textual_inversion,
    is_block_attention,
    length_of_call,
    packed_with_ids,
)

__all__ = ['CHROMA']

CHROMA = Family(
    name='Chroma',
    pipelines=('ChromaPipeline', 'ChromaImg2ImgPipeline', 'ChromaInpaintPipeline'),
    is_text_attention=is_block_attention,
    where='512 T5 tokens (padding after its first token weighted less), then the image',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(Encoder(max_length=length_of_call),),
    two_passes=True,
    denoiser_input=packed_with_ids,
    prepare_prompts=convert_textual_inversion,
    block_groups={'transformer_blocks': 'double', 'single_transformer_blocks': 'single'},
)

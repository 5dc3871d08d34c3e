"""Bria 3.2 and FIBO: Flux.1's blocks without CLIP, text and image in one sequence."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from freeatm_mm.attention.families.base import (
    Encoder,
    Family,
    TextKeys,
    is_block_attention,
    length_of_call,
    packed_with_ids,
)
from freeatm_mm.attention.families.latents import Latents, flat, without_frames

__all__ = ['BRIA', 'BRIA_FIBO']

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


def _flat_frame(pipe: Any, latents: Tensor) -> Tensor:
    return flat(pipe, without_frames(latents))


BRIA_FIBO = Family(
    name='Bria FIBO',
    pipelines=('BriaFiboPipeline',),
    is_text_attention=is_block_attention,
    where='SmolLM3 tokens up to the longest prompt (padding masked), of which half is each '
    "block's own, then the image",
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(Encoder(max_length=length_of_call, padding='either', multiple=1),),
    denoiser_input=packed_with_ids,
    texts={'encoder_hidden_states': 0, 'text_encoder_layers': 1},
    block_groups={'transformer_blocks': 'double', 'single_transformer_blocks': 'single'},
    latents=Latents(frames=True, packed=_flat_frame),
)

"""AuraFlow: register tokens, text and image in one sequence."""

from __future__ import annotations

from typing import Any

from torch import nn

from freeatm_mm.attention.families.base import (
    DenoiserInput,
    Encoder,
    Family,
    TextKeys,
    is_block_attention,
    length_of_call,
    planes_and_text,
)
from freeatm_mm.attention.families.latents import Latents, scaled_alone

__all__ = ['AURA_FLOW']


def _planes_behind_registers(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Planes that stand behind learned register tokens and the text."""
    layout = planes_and_text(denoiser, args, kwargs)
    registers: Any = denoiser.register_tokens
    first = registers.shape[1]
    return layout._replace(
        text_start=first, image_start=first + layout.text_length, length=first + layout.length
    )


AURA_FLOW = Family(
    name='AuraFlow',
    pipelines=('AuraFlowPipeline',),
    is_text_attention=is_block_attention,
    where='8 register tokens, 256 T5 tokens (padding not masked), then the image',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(Encoder(max_length=length_of_call),),
    denoiser_input=_planes_behind_registers,
    block_groups={'joint_transformer_blocks': 'double', 'single_transformer_blocks': 'single'},
    latents=Latents(scaled=scaled_alone),
)

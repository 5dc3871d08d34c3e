"""CogView 3 Plus and 4: text and image in one sequence."""

from __future__ import annotations

import re

from torch import nn

from freeatm_mm.attention.families.base import (
    TRANSFORMER_GROUPS,
    Encoder,
    Family,
    TextKeys,
    length_of_call,
    planes_behind_text,
)
from freeatm_mm.attention.families.latents import Latents, scaled_alone

__all__ = ['COGVIEW_3_PLUS', 'COGVIEW_4']


def is_cogview_attention(name: str, module: nn.Module) -> bool:
    """Tell whether a module is the attention of one of CogView's blocks."""
    return re.search(r'^transformer_blocks\.\d+\.attn1$', name) is not None


COGVIEW_3_PLUS = Family(
    name='CogView 3 Plus',
    pipelines=('CogView3PlusPipeline',),
    is_text_attention=is_cogview_attention,
    where='224 T5 tokens (padding not masked), then the image',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(Encoder(max_length=length_of_call),),
    denoiser_input=planes_behind_text,
    block_groups=TRANSFORMER_GROUPS,
    latents=Latents(scaled=scaled_alone),
)

COGVIEW_4 = Family(
    name='CogView 4',
    pipelines=('CogView4Pipeline', 'CogView4ControlPipeline'),
    is_text_attention=is_cogview_attention,
    where='GLM tokens, padding (not masked) up to the longest prompt and a multiple of 16 before '
    'the text, then the image',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(Encoder(max_length=length_of_call, padding='before', multiple=16),),
    two_passes=True,
    denoiser_input=planes_behind_text,
    block_groups=TRANSFORMER_GROUPS,
    latents=Latents(scaled=scaled_alone),
)

"""Cosmos Predict2 and Wan: networks for videos, of which one frame is an image."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from freeatm_mm.attention.families.base import (
    TRANSFORMER_GROUPS,
    Call,
    CallNames,
    DenoiserInput,
    Encoder,
    Family,
    argument,
    is_cross_attention,
    length_of_call,
)
from freeatm_mm.attention.families.latents import Latents, as_given

__all__ = ['COSMOS_2', 'WAN']


def _one_frame(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Latents of shape (batch, channels, frames, height, width), of one frame."""
    sample = argument(args, kwargs, 0, 'hidden_states')
    config: Any = denoiser.config
    frames, height, width = (
        side // patch for side, patch in zip(sample.shape[2:], config.patch_size)
    )
    if frames != 1:
        raise ValueError(
            f'{type(denoiser).__name__} generates a video of {sample.shape[2]} latent frames, and '
            'masks are made for single images: call the pipeline with num_frames=1'
        )
    return DenoiserInput(sample, (height, width))


def is_second_attention(name: str, module: nn.Module) -> bool:
    """Tell whether a module is the attention of a block to the text, by its name."""
    return re.search(r'^blocks\.\d+\.attn2$', name) is not None


def _clean_like_wan(call: Call, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    module: Any = inspect.getmodule(type(call.pipe))
    return [module.prompt_clean(prompt) for prompt in prompts]


COSMOS_2 = Family(
    name='Cosmos Predict2',
    pipelines=('Cosmos2TextToImagePipeline',),
    is_text_attention=is_cross_attention,
    where='512 T5 tokens (padding zeroed, not masked)',
    denoiser='transformer',
    encoders=(Encoder(max_length=length_of_call),),
    two_passes=True,
    denoiser_input=_one_frame,
    block_groups=TRANSFORMER_GROUPS,
    latents='its call multiplies the latents that it is given: it generates from noise alone',
)

WAN = Family(
    name='Wan with one frame',
    pipelines=('WanPipeline',),
    is_text_attention=is_second_attention,
    where='512 UMT5 tokens (padding zeroed, not masked)',
    watched=True,
    denoiser='transformer',
    encoders=(Encoder(max_length=length_of_call),),
    two_passes=True,
    denoiser_input=_one_frame,
    prepare_prompts=_clean_like_wan,
    block_groups={'blocks': 'transformer'},
    call_names=CallNames(always={'num_frames': 1}),
    latents=Latents(frames=True, packed=as_given),
)

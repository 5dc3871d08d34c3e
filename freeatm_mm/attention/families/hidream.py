"""HiDream-I1: the image, T5 and Llama twice in one sequence."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import nn

from freeatm_mm.attention.families.base import (
    Call,
    DenoiserInput,
    Encoder,
    Family,
    TextKeys,
    argument,
)
from freeatm_mm.attention.families.latents import Latents

__all__ = ['HIDREAM']


def _t5_length(call: Call, tokenizer: Any = None) -> int:
    return min(call.option('max_sequence_length'), call.pipe.tokenizer_3.model_max_length)


def _llama_length(call: Call, tokenizer: Any) -> int:
    return min(call.option('max_sequence_length'), tokenizer.model_max_length)


def _after_t5(call: Call) -> int:
    return _t5_length(call)


def _after_llama(call: Call) -> int:
    return _t5_length(call) + _llama_length(call, call.pipe.tokenizer_4)


def _filled_up_and_texts(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Planes that become as many tokens as there may be, unless they are square; then the texts."""
    sample = argument(args, kwargs, 0, 'hidden_states')
    model: Any = denoiser
    height, width = (side // model.config.patch_size for side in sample.shape[-2:])
    image = height * width if height == width else model.max_seq
    llama = kwargs['encoder_hidden_states_llama3'].shape[2]
    text = kwargs['encoder_hidden_states_t5'].shape[1] + 2 * llama
    return DenoiserInput(sample, (height, width), text, image, 0, image + text)


def is_hidream_attention(name: str, module: nn.Module) -> bool:
    """Tell whether a module of HiDream attends to text and image."""
    return re.search(r'^(double|single)_stream_blocks\.\d+\.block\.attn1$', name) is not None


def _llama(start: Any) -> Encoder:
    return Encoder(
        ('tokenizer_4',),
        ('text_encoder_4',),
        ('prompt_4',),
        max_length=_llama_length,
        start=start,
        padding='either',
    )


def _generated_size(pipe: Any, height: int, width: int) -> tuple[int, int]:
    """The size of the same proportions with as many pixels as the square that it was made for."""
    factor = pipe.vae_scale_factor
    multiple, square = 2 * factor, pipe.default_sample_size * factor
    scale = math.sqrt(square**2 / (width * height))
    return (
        int(height * scale // multiple * multiple),
        int(width * scale // multiple * multiple),
    )


HIDREAM = Family(
    name='HiDream-I1',
    pipelines=('HiDreamImagePipeline',),
    is_text_attention=is_hidream_attention,
    where='the image, then 128 T5 tokens and twice 128 Llama tokens, those that all blocks pass on '
    "and each block's own (padding not masked); CLIP gives no keys",
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(
        Encoder(('tokenizer_3',), ('text_encoder_3',), ('prompt_3',), max_length=_t5_length),
        _llama(_after_t5),
        _llama(_after_llama),
    ),
    denoiser_input=_filled_up_and_texts,
    texts={'encoder_hidden_states_t5': 0, 'encoder_hidden_states_llama3': 1},
    block_groups={'double_stream_blocks': 'double', 'single_stream_blocks': 'single'},
    latents=Latents(generated_size=_generated_size, chosen_sizes=True),
)

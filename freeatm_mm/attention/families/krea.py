"""Krea 2: text and image in one sequence, with a suffix behind the padding of the text."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from freeatm_mm.attention.families.base import (
    TRANSFORMER_GROUPS,
    Call,
    CallNames,
    DenoiserInput,
    Encoder,
    Family,
    TextKeys,
    argument,
    drop_template,
    sequence,
)
from freeatm_mm.attention.families.latents import Latents

__all__ = ['KREA_2']


def _packed_with_positions(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Packed latents behind the text; ``position_ids`` has a place for each token of both."""
    sample = argument(args, kwargs, 0, 'hidden_states')
    text = argument(args, kwargs, 1, 'encoder_hidden_states').shape[1]
    rows, columns = (int(last) + 1 for last in kwargs['position_ids'][-1, 1:].tolist())
    return sequence(sample, (rows, columns), text)


def _prefix(call: Call, tokenizer: Any) -> tuple[str, str]:
    return call.pipe.prompt_template_encode_prefix, ''


def _suffix(call: Call, tokenizer: Any) -> tuple[str, str]:
    return '', call.pipe.prompt_template_encode_suffix


def _length_without_suffix(call: Call, tokenizer: Any) -> int:
    suffix = call.pipe.prompt_template_encode_num_suffix_tokens
    return call.option('max_sequence_length') - suffix


def is_krea_attention(name: str, module: nn.Module) -> bool:
    """Tell whether a module attends to text and image; those that fuse the text see it alone."""
    return re.search(r'^transformer_blocks\.\d+\.attn$', name) is not None


KREA_2 = Family(
    name='Krea 2',
    pipelines=('Krea2Pipeline',),
    is_text_attention=is_krea_attention,
    where="507 Qwen tokens after the template's first 34 (padding masked), 5 of the template's "
    'end, then the image',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(
        Encoder(
            max_length=_length_without_suffix,
            frame=_prefix,
            outside=_suffix,
            dropped=drop_template,
            padding='either',
        ),
    ),
    two_passes=True,
    denoiser_input=_packed_with_positions,
    block_groups=TRANSFORMER_GROUPS,
    call_names=CallNames(unguided=0.0),
    latents=Latents(frames=True),
)

"""LongCat-Image: Flux.1's blocks; what the prompt puts in quotes is a token a character."""

from __future__ import annotations

import inspect
from typing import Any

from freeatm_mm.attention.families.base import (
    Call,
    CallNames,
    Encoder,
    Family,
    TextKeys,
    is_block_attention,
    packed_with_ids,
)

__all__ = ['LONGCAT_IMAGE']


def _template(call: Call, tokenizer: Any) -> tuple[str, str]:
    pipe = call.pipe
    return pipe.prompt_template_encode_prefix, pipe.prompt_template_encode_suffix


def _length(call: Call, tokenizer: Any) -> int:
    return call.pipe.tokenizer_max_length


def _parts(call: Call, text: str) -> list[str]:
    """The parts of a text that are tokenized one by one."""
    module: Any = inspect.getmodule(type(call.pipe))
    parts: list[str] = []
    for part, quoted in module.split_quotation(text):
        parts += list(part) if quoted else [part]
    return parts


LONGCAT_IMAGE = Family(
    name='LongCat-Image',
    pipelines=('LongCatImagePipeline',),
    is_text_attention=is_block_attention,
    where='512 Qwen tokens, those in quotes one a character (padding not masked), then the image',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(
        Encoder(
            max_length=_length,
            outside=_template,
            parts=_parts,
            padding='either',
            special_tokens=False,
        ),
    ),
    two_passes=True,
    denoiser_input=packed_with_ids,
    block_groups={'transformer_blocks': 'double', 'single_transformer_blocks': 'single'},
    # Nouns can't be followed into a prompt that a language model rewrites.
    call_names=CallNames(always={'enable_prompt_rewrite': False}),
)

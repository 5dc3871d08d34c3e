"""Ovis-Image: Flux.1's blocks, with Qwen tokens behind an instruction."""

from __future__ import annotations

from typing import Any

from freeatm_mm.attention.families.base import (
    Call,
    Encoder,
    Family,
    TextKeys,
    chat_frame,
    is_block_attention,
    length_of_call,
    packed_with_ids,
)

__all__ = ['OVIS_IMAGE']


def _ovis_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    return chat_frame(
        lambda message: tokenizer.apply_chat_template(
            [{'role': 'user', 'content': call.pipe.system_prompt + message}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
    )


def _drop_instruction(call: Call, tokenizer: Any) -> int:
    return call.pipe.user_prompt_begin_id


OVIS_IMAGE = Family(
    name='Ovis-Image',
    pipelines=('OvisImagePipeline',),
    is_text_attention=is_block_attention,
    where='256 Qwen tokens after the first 28, which are the instruction (padding zeroed, not '
    'masked), then the image',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(
        Encoder(
            max_length=length_of_call,
            frame=_ovis_frame,
            dropped=_drop_instruction,
            padding='either',
            special_tokens=False,
        ),
    ),
    two_passes=True,
    denoiser_input=packed_with_ids,
    block_groups={'transformer_blocks': 'double', 'single_transformer_blocks': 'single'},
)

"""Sana: cross-attention to Gemma, behind an instruction."""

from __future__ import annotations

from typing import Any

from freeatm_mm.attention.families.base import (
    TRANSFORMER_GROUPS,
    Call,
    Encoder,
    Family,
    clean_like_deepfloyd,
    is_cross_attention,
    length_of_call,
)

__all__ = ['SANA']


def _instruction_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    return '\n'.join(call.option('complex_human_instruction') or ()), ''


def _drop_instruction(call: Call, tokenizer: Any) -> int:
    # SanaPipeline keeps the start token and the last tokens, as many as there would be without an
    # instruction.
    instruction, _ = _instruction_frame(call, tokenizer)
    return len(tokenizer.encode(instruction)) - 2 if instruction else 0


SANA = Family(
    name='Sana',
    pipelines=(
        'SanaPipeline',
        'SanaSprintPipeline',
        'SanaSprintImg2ImgPipeline',
        'SanaControlNetPipeline',
        'SanaPAGPipeline',
    ),
    is_text_attention=is_cross_attention,
    where='the start token and the last 299 Gemma tokens, which leaves out the instruction '
    'before the prompt (padding masked)',
    denoiser='transformer',
    encoders=(
        Encoder(
            max_length=length_of_call,
            frame=_instruction_frame,
            dropped=_drop_instruction,
            padding='set right',
        ),
    ),
    prepare_prompts=clean_like_deepfloyd,
    block_groups=TRANSFORMER_GROUPS,
)

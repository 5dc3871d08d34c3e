"""Qwen-Image: text and image in one sequence."""

from __future__ import annotations

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
    is_block_attention,
    length_of_call,
    sequence,
)

__all__ = ['QWEN_IMAGE']


def _packed_with_shapes(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Packed latents, their (frames, height, width) in ``img_shapes``: Qwen-Image."""
    sample = argument(args, kwargs, 0, 'hidden_states')
    text = argument(args, kwargs, 1, 'encoder_hidden_states')
    shape = kwargs['img_shapes'][0]
    shape = shape[0] if isinstance(shape, list) else shape
    return sequence(sample, tuple(shape[-2:]), text.shape[1])


def _qwen_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    before, after = call.pipe.prompt_template_encode.split('{}')
    return before, after


def _drop_qwen_template(call: Call, tokenizer: Any) -> int:
    return call.pipe.prompt_template_encode_start_idx


QWEN_IMAGE = Family(
    name='Qwen-Image',
    pipelines=(
        'QwenImagePipeline',
        'QwenImageImg2ImgPipeline',
        'QwenImageInpaintPipeline',
        'QwenImageControlNetPipeline',
        'QwenImageControlNetInpaintPipeline',
    ),
    is_text_attention=is_block_attention,
    where="up to 512 Qwen tokens after the template's first 34, then the image",
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(
        Encoder(
            max_length=length_of_call,
            frame=_qwen_frame,
            dropped=_drop_qwen_template,
            padding='removed',
        ),
    ),
    two_passes=True,
    denoiser_input=_packed_with_shapes,
    block_groups=TRANSFORMER_GROUPS,
    # It takes a guidance_scale as well and does nothing with it.
    call_names=CallNames(guidance=('true_cfg_scale',), negative_prompt=' '),
)

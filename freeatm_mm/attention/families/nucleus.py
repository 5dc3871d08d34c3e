"""NucleusMoE-Image: image queries on the keys of the image and of Qwen tokens behind it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from freeatm_mm.attention.families.base import (
    TRANSFORMER_GROUPS,
    Call,
    DenoiserInput,
    Encoder,
    Family,
    TextKeys,
    argument,
    chat_frame,
    is_block_attention,
    sequence,
)
from freeatm_mm.attention.families.latents import Latents, without_frames

__all__ = ['NUCLEUS']


def _packed_before_text(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Packed latents, their (frames, height, width) in ``img_shapes``, and the text behind."""
    sample = argument(args, kwargs, 0, 'hidden_states')
    shape = argument(args, kwargs, 1, 'img_shapes')
    shape = shape[0] if isinstance(shape, list) else shape
    text = argument(args, kwargs, 2, 'encoder_hidden_states')
    return sequence(sample, tuple(shape[-2:]), text.shape[1], text_first=False)


def _frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    return chat_frame(call.pipe._format_prompt)


def _length(call: Call, tokenizer: Any) -> int:
    return call.option('max_sequence_length') or call.pipe.default_max_sequence_length


def _in_patches(pipe: Any, latents: Tensor) -> Tensor:
    latents = without_frames(latents)
    return pipe._pack_latents(latents, *latents.shape, pipe.transformer.config.patch_size)


NUCLEUS = Family(
    name='NucleusMoE-Image',
    pipelines=('NucleusMoEImagePipeline',),
    is_text_attention=is_block_attention,
    where="the image, then up to 1024 Qwen tokens with the chat template's, padded to the longest "
    'prompt (padding masked)',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(
        Encoder(('processor',), max_length=_length, frame=_frame, padding='either', multiple=8),
    ),
    two_passes=True,
    denoiser_input=_packed_before_text,
    block_groups=TRANSFORMER_GROUPS,
    latents=Latents(frames=True, packed=_in_patches),
)

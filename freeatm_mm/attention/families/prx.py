"""PRX, of latents and of pixels: text and image in one sequence."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from freeatm_mm.attention.families.base import (
    Call,
    Encoder,
    Family,
    TextKeys,
    is_block_attention,
    planes_behind_text,
)
from freeatm_mm.attention.families.latents import Latents

__all__ = ['PRX', 'PRX_PIXEL']


def _clean_like_prx(call: Call, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    cleaner = call.pipe.text_preprocessor
    clean = cleaner.basic_clean if call.option('skip_text_cleaning') else cleaner.clean_text
    return [clean(prompt) for prompt in prompts]


def _clean_lightly(call: Call, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    module: Any = inspect.getmodule(type(call.pipe))
    return [module._basic_clean(prompt) for prompt in prompts]


def _length_of_prx(call: Call, tokenizer: Any) -> int:
    return call.option('tokenizer_max_length') or tokenizer.model_max_length


def _length_of_prx_pixel(call: Call, tokenizer: Any) -> int:
    return call.pipe.config.prompt_max_tokens


PRX = Family(
    name='PRX',
    pipelines=('PRXPipeline',),
    is_text_attention=is_block_attention,
    where='256 Gemma tokens (padding masked), then the image',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(Encoder(max_length=_length_of_prx, padding='either'),),
    denoiser_input=planes_behind_text,
    prepare_prompts=_clean_like_prx,
    block_groups={'blocks': 'transformer'},
)

PRX_PIXEL = Family(
    name='PRX in pixels',
    pipelines=('PRXPixelPipeline',),
    is_text_attention=is_block_attention,
    where='256 Qwen tokens (padding masked), then the image',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(Encoder(max_length=_length_of_prx_pixel, padding='either'),),
    denoiser_input=planes_behind_text,
    prepare_prompts=_clean_lightly,
    block_groups={'blocks': 'transformer'},
    latents=Latents(vae='', noise=lambda pipe: pipe.config.noise_scale),
)

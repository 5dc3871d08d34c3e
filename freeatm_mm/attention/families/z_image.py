"""Z-Image: image and text in one sequence, each filled up."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import nn

from freeatm_mm.attention.families.base import (
    Call,
    DenoiserInput,
    Encoder,
    Family,
    TextKeys,
    argument,
    chat,
    length_of_call,
)

__all__ = ['Z_IMAGE']


def _lists(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """A list of (channels, frames, height, width) and one of captions: Z-Image.

    Image and caption are each filled up to a multiple of tokens; the image stands first.
    """
    sample = torch.stack(list(argument(args, kwargs, 0, 'x')))
    captions = argument(args, kwargs, 2, 'cap_feats')
    patch = kwargs.get('patch_size', 2)
    module: Any = inspect.getmodule(type(denoiser))
    multiple = module.SEQ_MULTI_OF
    size = (sample.shape[-2] // patch, sample.shape[-1] // patch)
    image = -(-size[0] * size[1] // multiple) * multiple
    text = max(-(-len(caption) // multiple) * multiple for caption in captions)
    return DenoiserInput(sample, size, text, image, 0, image + text)


def _z_image_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    return chat(call, tokenizer, enable_thinking=True)


def is_z_image_attention(name: str, module: nn.Module) -> bool:
    """Tells whether a module of Z-Image attends to text and image; its refiners see one of them."""
    return re.search(r'^layers\.\d+\.attention$', name) is not None


Z_IMAGE = Family(
    name='Z-Image',
    pipelines=(
        'ZImagePipeline',
        'ZImageImg2ImgPipeline',
        'ZImageInpaintPipeline',
        'ZImageControlNetPipeline',
        'ZImageControlNetInpaintPipeline',
    ),
    is_text_attention=is_z_image_attention,
    where="the image, then up to 512 Qwen tokens with the chat template's, both filled up to "
    'a multiple of 32',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(Encoder(max_length=length_of_call, frame=_z_image_frame, padding='removed'),),
    conditional_first=True,
    denoiser_input=_lists,
    block_groups={'layers': 'transformer'},
)

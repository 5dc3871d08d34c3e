"""Z-Image and Z-Image-Omni: image and text in one sequence, each filled up."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import torch
from torch import nn

from freeatm_mm.attention.families.base import (
    Call,
    CallNames,
    DenoiserInput,
    Encoder,
    Family,
    Place,
    TextKeys,
    argument,
    chat,
    length_of_call,
)
from freeatm_mm.attention.families.latents import Latents

__all__ = ['Z_IMAGE', 'Z_IMAGE_OMNI']


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


def _filled_up(denoiser: nn.Module, length: int) -> int:
    module: Any = inspect.getmodule(type(denoiser))
    return -(-length // module.SEQ_MULTI_OF) * module.SEQ_MULTI_OF


def _captions_and_images(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """For each row pieces of a caption, then images to go by and the one that is generated: Omni.

    Each is filled up to a multiple of tokens. The prompt is in the last piece but one, or alone;
    what the images say to SigLIP stands behind them.
    """
    images = argument(args, kwargs, 0, 'x')
    captions = argument(args, kwargs, 2, 'cap_feats')
    seen = argument(args, kwargs, 5, 'siglip_feats')
    patch = kwargs.get('patch_size', 2)
    sample = torch.stack([row[-1] for row in images])
    size = (sample.shape[-2] // patch, sample.shape[-1] // patch)
    places, lengths = [], []
    for row, pieces in enumerate(captions):
        texts = [_filled_up(denoiser, len(piece)) for piece in pieces]
        of_prompt = max(len(texts) - 2, 0)
        pictures = [
            _filled_up(denoiser, 1 if image is None else math.prod(image.shape[-3:]) // patch**2)
            for image in images[row]
        ]
        features = [] if seen is None or seen[row] is None else seen[row]
        more = sum(
            _filled_up(denoiser, 1 if piece is None else math.prod(piece.shape[:2]))
            for piece in features
        )
        places.append(
            Place(sum(texts[:of_prompt]), texts[of_prompt], sum(texts) + sum(pictures[:-1]))
        )
        lengths.append(sum(texts) + sum(pictures) + more)
    return DenoiserInput(sample, size, length=max(lengths), places=tuple(places))


def _omni_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    if not call.given('image'):
        return '<|im_start|>user\n', '<|im_end|>\n<|im_start|>assistant\n'
    return '<|vision_end|>', '<|im_end|>\n<|im_start|>assistant\n<|vision_start|>'


def _z_image_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    return chat(call, tokenizer, enable_thinking=True)


def is_z_image_attention(name: str, module: nn.Module) -> bool:
    """Tell whether a module of Z-Image attends to text and image; its refiners see one of them."""
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
    texts={'cap_feats': 0},
    block_groups={'layers': 'transformer'},
    call_names=CallNames(unguided=0.0),
)

Z_IMAGE_OMNI = Family(
    name='Z-Image-Omni',
    pipelines=('ZImageOmniPipeline',),
    is_text_attention=is_z_image_attention,
    where="up to 512 Qwen tokens with the chat template's, in pieces before and after images to go "
    'by, then these images, then the image, all filled up to a multiple of 32',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(Encoder(max_length=length_of_call, frame=_omni_frame, padding='removed'),),
    conditional_first=True,
    denoiser_input=_captions_and_images,
    texts={'cap_feats': 0},
    block_groups={'layers': 'transformer'},
    call_names=CallNames(unguided=0.0),
    latents=Latents(image_is_optional=True),
)

"""ERNIE-Image: the image, then the text in one sequence."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from freeatm_mm.attention.families.base import (
    CallNames,
    DenoiserInput,
    Encoder,
    Family,
    TextKeys,
    argument,
    sequence,
)
from freeatm_mm.attention.families.latents import Latents, batch_normed

__all__ = ['ERNIE_IMAGE']


def _planes_before_text(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Planes that become one sequence before the text, which is ``text_bth``."""
    sample = argument(args, kwargs, 0, 'hidden_states')
    text = argument(args, kwargs, 2, 'text_bth').shape[1]
    patch: Any = denoiser.patch_size
    height, width = (side // patch for side in sample.shape[-2:])
    return sequence(sample, (height, width), text, text_first=False)


def is_ernie_attention(name: str, module: nn.Module) -> bool:
    """Tell whether a module is the attention of one of ERNIE-Image's layers."""
    return re.search(r'^layers\.\d+\.self_attention$', name) is not None


def _normed(pipe: Any, latents: Tensor) -> Tensor:
    return batch_normed(pipe, latents, 1e-5)  # whatever the config says: so the pipeline decodes


ERNIE_IMAGE = Family(
    name='ERNIE-Image',
    pipelines=('ErnieImagePipeline',),
    is_text_attention=is_ernie_attention,
    where='the image, then the Mistral tokens, filled up to the longest prompt (padding masked)',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(Encoder(padding='removed'),),
    denoiser_input=_planes_before_text,
    texts={'text_bth': 0},
    block_groups={'layers': 'transformer'},
    # Nouns can't be followed into a prompt that a language model rewrites.
    call_names=CallNames(always={'use_pe': False}),
    latents=Latents(scaled=_normed),
)

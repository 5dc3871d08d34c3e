"""Ideogram 4: padding, text and image in one packed sequence."""

from __future__ import annotations

import inspect
import re
from typing import Any

from torch import Tensor, nn

from freeatm_mm.attention.families.base import (
    Call,
    CallNames,
    DenoiserInput,
    Encoder,
    Family,
    TextKeys,
    argument,
    chat_frame,
    length_of_call,
    sequence,
)
from freeatm_mm.attention.families.latents import Latents, as_given

__all__ = ['IDEOGRAM_4']


def _packed_with_indicator(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """A packed sequence in which ``indicator`` says what each token is; the image stands last."""
    sample = argument(args, kwargs, 0, 'hidden_states')
    module: Any = inspect.getmodule(type(denoiser))
    pixels = int((kwargs['indicator'][0] == module.OUTPUT_IMAGE_INDICATOR).sum())
    places = kwargs['position_ids'][0, -pixels:, 1:]
    rows, columns = (places[-1] - places[0] + 1).tolist()
    return sequence(sample, (rows, columns), sample.shape[1] - pixels)


def is_layer_attention(name: str, module: nn.Module) -> bool:
    """Tell whether a module is the attention of one of the layers."""
    return re.search(r'^layers\.\d+\.attention$', name) is not None


def _message_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    return chat_frame(
        lambda text: tokenizer.apply_chat_template(
            [{'role': 'user', 'content': [{'type': 'text', 'text': text}]}],
            tokenize=False,
            add_generation_prompt=True,
        )
    )


def _in_patches(pipe: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as the sequence that is denoised, normalised by the VAE's own."""
    patch, vae = pipe.patch_size, pipe.vae
    rows = latents.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    packed = rows.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    return (packed - vae.bn.running_mean.to(packed)) / std.to(packed)


IDEOGRAM_4 = Family(
    name='Ideogram 4',
    pipelines=('Ideogram4Pipeline',),
    is_text_attention=is_layer_attention,
    where="up to 2,048 Qwen tokens with the chat template's, padding (masked) before them, then "
    'the image',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(
        Encoder(
            max_length=length_of_call,
            frame=_message_frame,
            padding='before',
            padding_token=0,
            special_tokens=False,
            reads='language_model.embed_tokens',
        ),
    ),
    denoiser_input=_packed_with_indicator,
    block_groups={'layers': 'transformer'},
    # Guidance is a network of its own, and a schedule unless a scale is given in its place.
    call_names=CallNames(always={'guidance_schedule': None}),
    latents=Latents(scaled=_in_patches, packed=as_given),
)

"""Kandinsky 2.1, 3 and 5, and 2.2, whose decoder sees no text."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from freeatm_mm.attention.families.base import (
    Call,
    DenoiserInput,
    Encoder,
    Family,
    TextKeys,
    argument,
    drop_template,
    is_added_key_attention,
    length_of_call,
)
from freeatm_mm.attention.families.latents import Latents, as_given, scaled_alone

__all__ = ['KANDINSKY_2_1', 'KANDINSKY_3', 'KANDINSKY_5', 'TEXTLESS']


def _after_kandinsky_image(call: Call) -> int:
    return call.pipe.unet.encoder_hid_proj.num_image_text_embeds


def is_kandinsky3_cross_attention(name: str, module: nn.Module) -> bool:
    """Tell whether a module of ``Kandinsky3UNet`` attends to text.

    All its attention modules call themselves cross-attention. The first of a block attends to
    pixels, the others to text; the one that pools the text into the time embedding has no pixels.
    """
    return re.search(r'\.attentions\.[1-9]\d*\.attention$', name) is not None


def _channels_last(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Latents of shape (batch, frames, height, width, channels)."""
    sample = argument(args, kwargs, 0, 'hidden_states')
    patch: Any = denoiser.patch_size
    return DenoiserInput(sample, (sample.shape[2] // patch[1], sample.shape[3] // patch[2]))


def is_kandinsky5_cross_attention(name: str, module: nn.Module) -> bool:
    """Tell whether a module of Kandinsky 5 attends from the image to the text."""
    return re.search(r'^visual_transformer_blocks\.\d+\.cross_attention$', name) is not None


def _template(call: Call, tokenizer: Any) -> tuple[str, str]:
    before, after = call.pipe.prompt_template.split('{}')
    return before, after


def _clean_like_kandinsky5(call: Call, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    module: Any = inspect.getmodule(type(call.pipe))
    return [module.prompt_clean(prompt) for prompt in prompts]


_OTHER_IMAGE = 'it also takes an image embedding, which its prior generates anew'

KANDINSKY_2_1 = Family(
    name='Kandinsky 2.1',
    pipelines=(
        'KandinskyPipeline',
        'KandinskyImg2ImgPipeline',
        'KandinskyInpaintPipeline',
        'KandinskyCombinedPipeline',
        'KandinskyImg2ImgCombinedPipeline',
        'KandinskyInpaintCombinedPipeline',
    ),
    is_text_attention=is_added_key_attention,
    where='10 tokens of the image embedding, 77 XLM-R tokens (padding not masked), then the pixels',
    text_keys=TextKeys.ADDED,
    encoders=(Encoder(max_length=77, start=_after_kandinsky_image),),
    latents=_OTHER_IMAGE,
)


def _whole_64(pipe: Any, height: int, width: int) -> tuple[int, int]:
    """The size rounded up to multiples of 64."""
    return -(-height // 64) * 64, -(-width // 64) * 64


KANDINSKY_3 = Family(
    name='Kandinsky 3',
    pipelines=('Kandinsky3Pipeline', 'Kandinsky3Img2ImgPipeline'),
    is_text_attention=is_kandinsky3_cross_attention,
    where='up to 128 T5 tokens, cut to the longest prompt (padding masked)',
    encoders=(Encoder(max_length=128),),
    latents=Latents(vae='movq', scaled=as_given, generated_size=_whole_64),
)


def _frame_of_pixels(pipe: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as one frame, channels last."""
    return latents.permute(0, 2, 3, 1).unsqueeze(1)


def _listed_size(pipe: Any, height: int, width: int) -> tuple[int, int]:
    """The listed size of the nearest proportions."""
    nearest = min(pipe.resolutions, key=lambda size: abs(size[0] / size[1] - width / height))
    return nearest[1], nearest[0]


KANDINSKY_5 = Family(
    name='Kandinsky 5',
    pipelines=('Kandinsky5T2IPipeline',),
    is_text_attention=is_kandinsky5_cross_attention,
    where="Qwen tokens after the template's first 40, up to the longest prompt (padding not "
    'masked); CLIP gives no keys',
    watched=True,
    denoiser='transformer',
    encoders=(
        Encoder(
            max_length=length_of_call,
            frame=_template,
            dropped=drop_template,
            padding='either',
            multiple=1,
        ),
    ),
    two_passes=True,
    denoiser_input=_channels_last,
    prepare_prompts=_clean_like_kandinsky5,
    block_groups={'visual_transformer_blocks': 'transformer'},
    latents=Latents(
        scaled=scaled_alone, packed=_frame_of_pixels, generated_size=_listed_size, chosen_sizes=True
    ),
)

#: Pipelines that generate from text although the network that generates has no text keys, and why.
TEXTLESS: dict[str, str] = dict.fromkeys(
    (
        'KandinskyV22Pipeline',
        'KandinskyV22CombinedPipeline',
        'KandinskyV22ControlnetPipeline',
        'KandinskyV22ControlnetImg2ImgPipeline',
        'KandinskyV22Img2ImgPipeline',
        'KandinskyV22Img2ImgCombinedPipeline',
        'KandinskyV22InpaintPipeline',
        'KandinskyV22InpaintCombinedPipeline',
    ),
    'the decoder of Kandinsky 2.2 sees an image embedding and no text, other than that of '
    'Kandinsky 2.1 or 3',
)

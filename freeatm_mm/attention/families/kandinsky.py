"""Kandinsky 2.1 and 3, and 2.2, whose decoder sees no text."""

from __future__ import annotations

import re

from torch import nn

from freeatm_mm.attention.families.base import (
    Call,
    Encoder,
    Family,
    TextKeys,
    is_added_key_attention,
)

__all__ = ['KANDINSKY_2_1', 'KANDINSKY_3', 'TEXTLESS']


def _after_kandinsky_image(call: Call) -> int:
    return call.pipe.unet.encoder_hid_proj.num_image_text_embeds


def is_kandinsky3_cross_attention(name: str, module: nn.Module) -> bool:
    """Tells whether a module of ``Kandinsky3UNet`` attends to text.

    All its attention modules call themselves cross-attention. The first of a block attends to
    pixels, the others to text; the one that pools the text into the time embedding has no pixels.
    """
    return re.search(r'\.attentions\.[1-9]\d*\.attention$', name) is not None


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
)

KANDINSKY_3 = Family(
    name='Kandinsky 3',
    pipelines=('Kandinsky3Pipeline', 'Kandinsky3Img2ImgPipeline'),
    is_text_attention=is_kandinsky3_cross_attention,
    where='up to 128 T5 tokens, cut to the longest prompt (padding masked)',
    encoders=(Encoder(max_length=128),),
)

#: Pipelines that draw from text although the network that draws has no text keys, and why.
TEXTLESS: dict[str, str] = dict.fromkeys(
    (
        'KandinskyV22Pipeline',
        'KandinskyV22CombinedPipeline',
        'KandinskyV22Img2ImgPipeline',
        'KandinskyV22Img2ImgCombinedPipeline',
        'KandinskyV22InpaintPipeline',
        'KandinskyV22InpaintCombinedPipeline',
    ),
    'the decoder of Kandinsky 2.2 sees an image embedding and no text, other than that of '
    'Kandinsky 2.1 or 3',
)

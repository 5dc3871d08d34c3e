"""DeepFloyd IF: text and pixels in one softmax."""

from __future__ import annotations

from freeatm_mm.attention.families.base import (
    Encoder,
    Family,
    TextKeys,
    clean_like_deepfloyd,
    is_added_key_attention,
)
from freeatm_mm.attention.families.latents import Latents

__all__ = ['DEEPFLOYD']

DEEPFLOYD = Family(
    name='DeepFloyd IF',
    pipelines=(
        'IFPipeline',
        'IFImg2ImgPipeline',
        'IFInpaintingPipeline',
        'IFSuperResolutionPipeline',
        'IFImg2ImgSuperResolutionPipeline',
        'IFInpaintingSuperResolutionPipeline',
    ),
    is_text_attention=is_added_key_attention,
    where='77 T5 tokens (padding not masked), then the pixels',
    text_keys=TextKeys.ADDED,
    encoders=(Encoder(max_length=77),),
    prepare_prompts=clean_like_deepfloyd,
    latents=Latents(vae=''),
)

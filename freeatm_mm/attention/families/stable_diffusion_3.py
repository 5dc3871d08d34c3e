"""Stable Diffusion 3: the image, two CLIPs and T5 in one sequence."""

from __future__ import annotations

from freeatm_mm.attention.families.base import (
    TRANSFORMER_GROUPS,
    Call,
    Encoder,
    Family,
    TextKeys,
    is_block_attention,
    length_of_call,
    planes_and_text,
)

__all__ = ['STABLE_DIFFUSION_3']


def _after_clip(call: Call) -> int:
    return call.pipe.tokenizer_max_length


STABLE_DIFFUSION_3 = Family(
    name='Stable Diffusion 3 and 3.5',
    pipelines=(
        'StableDiffusion3Pipeline',
        'StableDiffusion3Img2ImgPipeline',
        'StableDiffusion3InpaintPipeline',
        'StableDiffusion3ControlNetPipeline',
        'StableDiffusion3ControlNetInpaintingPipeline',
        'StableDiffusion3PAGPipeline',
        'StableDiffusion3PAGImg2ImgPipeline',
    ),
    is_text_attention=is_block_attention,
    where='the image, then 77 tokens of two CLIPs side by side in the channels, then 256 T5 '
    'tokens (padding not masked)',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(
        Encoder(
            ('tokenizer', 'tokenizer_2'), ('text_encoder', 'text_encoder_2'), ('prompt', 'prompt_2')
        ),
        Encoder(
            ('tokenizer_3',),
            ('text_encoder_3',),
            ('prompt_3',),
            max_length=length_of_call,
            start=_after_clip,
        ),
    ),
    denoiser_input=planes_and_text,
    block_groups=TRANSFORMER_GROUPS,
)

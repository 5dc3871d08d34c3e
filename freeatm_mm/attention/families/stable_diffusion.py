"""Stable Diffusion 1, 2 and XL, and latent diffusion: cross-attention to CLIP or BERT."""

from __future__ import annotations

from freeatm_mm.attention.families.base import (
    Encoder,
    Family,
    convert_textual_inversion,
    is_cross_attention,
)

__all__ = ['LATENT_DIFFUSION', 'STABLE_DIFFUSION', 'STABLE_DIFFUSION_XL']

STABLE_DIFFUSION = Family(
    name='Stable Diffusion 1.x, 2.x and LCM',
    pipelines=(
        'StableDiffusionPipeline',
        'StableDiffusionImg2ImgPipeline',
        'StableDiffusionInpaintPipeline',
        'StableDiffusionDepth2ImgPipeline',
        'StableDiffusionUpscalePipeline',
        'StableDiffusionLatentUpscalePipeline',
        'StableUnCLIPPipeline',
        'StableUnCLIPImg2ImgPipeline',
        'StableDiffusionControlNetPipeline',
        'StableDiffusionControlNetImg2ImgPipeline',
        'StableDiffusionControlNetInpaintPipeline',
        'StableDiffusionAdapterPipeline',
        'LatentConsistencyModelPipeline',
        'LatentConsistencyModelImg2ImgPipeline',
    ),
    is_text_attention=is_cross_attention,
    where='77 CLIP tokens',
    prepare_prompts=convert_textual_inversion,
)

STABLE_DIFFUSION_XL = Family(
    # Both tokenizers share one vocabulary; the second one pads with another token only.
    name='Stable Diffusion XL',
    pipelines=(
        'StableDiffusionXLPipeline',
        'StableDiffusionXLImg2ImgPipeline',
        'StableDiffusionXLInpaintPipeline',
        'StableDiffusionXLControlNetPipeline',
        'StableDiffusionXLControlNetImg2ImgPipeline',
        'StableDiffusionXLControlNetInpaintPipeline',
        'StableDiffusionXLControlNetUnionPipeline',
        'StableDiffusionXLControlNetUnionImg2ImgPipeline',
        'StableDiffusionXLControlNetUnionInpaintPipeline',
        'StableDiffusionXLAdapterPipeline',
    ),
    is_text_attention=is_cross_attention,
    where='77 tokens of two CLIPs, side by side in the channels',
    encoders=(
        Encoder(
            ('tokenizer', 'tokenizer_2'), ('text_encoder', 'text_encoder_2'), ('prompt', 'prompt_2')
        ),
    ),
    prepare_prompts=convert_textual_inversion,
)

LATENT_DIFFUSION = Family(
    name='latent diffusion (LDM) with BERT',
    pipelines=('LDMTextToImagePipeline',),
    is_text_attention=is_cross_attention,
    where='77 BERT tokens',
    encoders=(Encoder(text_encoders=('bert',), max_length=77),),
)

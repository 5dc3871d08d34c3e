"""Stable Diffusion 1, 2 and XL, and latent diffusion: cross-attention to CLIP or BERT."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from freeatm_mm.attention.families.base import (
    DenoiserInput,
    Encoder,
    Family,
    convert_textual_inversion,
    is_cross_attention,
    planes,
)
from freeatm_mm.attention.families.latents import WANTS_AN_IMAGE, Latents

__all__ = [
    'GLIGEN',
    'INSTRUCT_PIX2PIX',
    'LATENT_DIFFUSION',
    'LDM3D',
    'STABLE_DIFFUSION',
    'STABLE_DIFFUSION_XL',
    'TEXTLESS',
    'WITH_FURTHER_GUIDANCE',
]


def _own_channels(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Planes that end with those of the image to edit, which one part of a batch lacks."""
    layout = planes(denoiser, args, kwargs)
    config: Any = denoiser.config
    return layout._replace(sample=layout.sample[:, : config.out_channels])


STABLE_DIFFUSION = Family(
    name='Stable Diffusion 1.x, 2.x and LCM',
    pipelines=(
        'StableDiffusionPipeline',
        'StableDiffusionImg2ImgPipeline',
        'StableDiffusionInpaintPipeline',
        'StableDiffusionModelEditingPipeline',
        'StableDiffusionDepth2ImgPipeline',
        'StableDiffusionUpscalePipeline',
        'StableDiffusionLatentUpscalePipeline',
        'StableUnCLIPPipeline',
        'StableUnCLIPImg2ImgPipeline',
        'StableDiffusionControlNetPipeline',
        'StableDiffusionControlNetImg2ImgPipeline',
        'StableDiffusionControlNetInpaintPipeline',
        'StableDiffusionAdapterPipeline',
        'StableDiffusionPAGPipeline',
        'StableDiffusionPAGImg2ImgPipeline',
        'StableDiffusionPAGInpaintPipeline',
        'StableDiffusionControlNetPAGPipeline',
        'StableDiffusionControlNetPAGInpaintPipeline',
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
        'StableDiffusionXLPAGPipeline',
        'StableDiffusionXLPAGImg2ImgPipeline',
        'StableDiffusionXLPAGInpaintPipeline',
        'StableDiffusionXLControlNetPAGPipeline',
        'StableDiffusionXLControlNetPAGImg2ImgPipeline',
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

INSTRUCT_PIX2PIX = Family(
    name='InstructPix2Pix',
    pipelines=(
        'StableDiffusionInstructPix2PixPipeline',
        'StableDiffusionXLInstructPix2PixPipeline',
    ),
    is_text_attention=is_cross_attention,
    where='77 CLIP tokens, of two CLIPs for XL',
    encoders=STABLE_DIFFUSION_XL.encoders,
    guidance_parts=3,
    conditional_first=True,
    denoiser_input=_own_channels,
    prepare_prompts=convert_textual_inversion,
    latents=WANTS_AN_IMAGE,
)

LDM3D = Family(
    name='LDM3D',
    pipelines=('StableDiffusionLDM3DPipeline',),
    is_text_attention=is_cross_attention,
    where='77 CLIP tokens',
    prepare_prompts=convert_textual_inversion,
    latents='its VAE encodes an image together with its depth',
)

GLIGEN = Family(
    name='GLIGEN',
    pipelines=('StableDiffusionGLIGENPipeline', 'StableDiffusionGLIGENTextImagePipeline'),
    is_text_attention=is_cross_attention,
    where='77 CLIP tokens; phrases and images of boxes give no keys',
    repeated_levels=True,
    denoiser_input=_own_channels,
    prepare_prompts=convert_textual_inversion,
    latents='its call needs boxes to generate in',
)

WITH_FURTHER_GUIDANCE = Family(
    name='Stable Diffusion with safety, semantic or self-attention guidance',
    pipelines=(
        'StableDiffusionPipelineSafe',
        'SemanticStableDiffusionPipeline',
        'StableDiffusionSAGPipeline',
    ),
    is_text_attention=is_cross_attention,
    where='77 CLIP tokens; other texts to be guided by give no keys to the prompt',
    further_parts=True,
    repeated_levels=True,
    prepare_prompts=convert_textual_inversion,
    latents='StableDiffusionPipeline does, with the same weights',
)


def _scaled_vqvae(pipe: Any, latents: Tensor) -> Tensor:
    return latents * pipe.vqvae.config.scaling_factor


LATENT_DIFFUSION = Family(
    name='latent diffusion (LDM) with BERT',
    pipelines=('LDMTextToImagePipeline',),
    is_text_attention=is_cross_attention,
    where='77 BERT tokens',
    encoders=(Encoder(text_encoders=('bert',), max_length=77),),
    latents=Latents(vae='vqvae', scaled=_scaled_vqvae),
)

#: Pipelines whose network attends to what CLIP sees in an image, in the place of text.
TEXTLESS: dict[str, str] = dict.fromkeys(
    (
        'PaintByExamplePipeline',
        'StableDiffusionImageVariationPipeline',
        'UnCLIPImageVariationPipeline',
        'VersatileDiffusionImageVariationPipeline',
    ),
    'it generates from an image and takes no prompt',
)

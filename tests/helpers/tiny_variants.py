"""Tiny random pipelines of classes that share denoiser and text with one of tiny_generators."""

from __future__ import annotations

import inspect

import diffusers
import numpy as np
import torch
from packaging.version import Version

from helpers import numpy_attention
from helpers.tiny_generators import (
    like,
    rebuilt,
    tiny_flux,
    tiny_flux2_klein,
    tiny_qwen_image,
    tiny_sana,
    tiny_unclip,
    tiny_z_image,
)
from helpers.tiny_pipelines import (
    _seeded,
    _tiny_clip_text_config,
    tiny_clip_tokenizer,
    tiny_stable_diffusion,
    tiny_stable_diffusion_xl,
)


def settings_for(model: type, part):
    """Those settings of a part that a model of another class takes."""
    taken = inspect.signature(model.__init__).parameters
    return {name: value for name, value in part.config.items() if name in taken}


def another_class(pipe, name: str, **changes):
    """A pipeline of another class of diffusers from the components of this one."""
    return rebuilt(pipe, getattr(diffusers, name), **changes)


def with_values(module: torch.nn.Module):
    """The module with random weights where a ControlNet's are zero, so that it has an influence."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return module


@_seeded
def tiny_flux_variant(name: str):
    """One of Flux.1's pipelines that start from an image or take one to go by."""
    pipe = tiny_flux()
    changes = {}
    if 'ControlNet' in name:
        model = diffusers.FluxControlNetModel
        changes['controlnet'] = with_values(model(**settings_for(model, pipe.transformer)))
    elif 'Control' in name:  # the control image stands in the channels
        changes['transformer'] = like(pipe.transformer, in_channels=32, out_channels=16)
    return another_class(pipe, name, **changes)


@_seeded
def tiny_qwen_image_variant(name: str):
    """One of Qwen-Image's pipelines with a ControlNet."""
    pipe = tiny_qwen_image()
    settings = settings_for(diffusers.QwenImageControlNetModel, pipe.transformer)
    if 'Inpaint' in name:
        settings['extra_condition_channels'] = 4
    controlnet = with_values(diffusers.QwenImageControlNetModel(**settings))
    variant = another_class(pipe, name, controlnet=controlnet)
    variant.prompt_template_encode = pipe.prompt_template_encode
    variant.prompt_template_encode_start_idx = pipe.prompt_template_encode_start_idx
    return variant


def qwen_sequence(module, *args, **kwargs):
    """Attention of a block of Qwen-Image; versions before 0.40 don't use the mask."""
    length = kwargs['encoder_hidden_states'].shape[1]
    keep = kwargs.get('encoder_hidden_states_mask')
    if keep is not None and Version(diffusers.__version__) >= Version('0.40'):
        image = torch.ones(len(keep), kwargs['hidden_states'].shape[1], dtype=torch.bool)
        kwargs['attention_mask'] = torch.cat([keep.bool(), image], 1)
    return numpy_attention.sequence(module, *args, text=length, **kwargs)


def own_image(compute, pixels: int):
    """The rows of the image itself, where a reference image's stand behind them."""

    def first(*args, **kwargs) -> np.ndarray:
        return compute(*args, **kwargs)[:, :, :pixels]

    return first


@_seeded
def tiny_xl_union(name: str):
    """One of Stable Diffusion XL's pipelines with a ControlNet for several kinds of condition."""
    pipe = tiny_stable_diffusion_xl()
    controlnet = diffusers.ControlNetUnionModel(
        **settings_for(diffusers.ControlNetUnionModel, pipe.unet),
        conditioning_embedding_out_channels=(8, 8, 8),
        num_trans_channel=32,
        num_trans_head=2,
        num_proj_channel=32,
    )
    return another_class(pipe, name, controlnet=with_values(controlnet))


@_seeded
def tiny_stable_unclip(name: str):
    """A ``StableUnCLIPPipeline``, whose prior makes an image embedding, or one that is given it."""
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )
    from transformers import (
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    base, prior = tiny_stable_diffusion(), tiny_unclip()
    unet = like(base.unet, class_embed_type='projection', projection_class_embeddings_input_dim=64)
    tokenizer = tiny_clip_tokenizer()
    parts = dict(
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=32),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule='squaredcos_cap_v2'),
        unet=unet,
    )
    if 'Img2Img' in name:
        encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=32,
                patch_size=16,
                projection_dim=32,
            )
        )
        return another_class(base, name, feature_extractor=None, image_encoder=encoder, **parts)
    return another_class(
        base,
        name,
        prior_tokenizer=tokenizer,
        prior_text_encoder=CLIPTextModelWithProjection(
            _tiny_clip_text_config(tokenizer, projection_dim=32)
        ),
        prior=prior.prior,
        prior_scheduler=prior.prior_scheduler,
        **parts,
    )


@_seeded
def tiny_sana_sprint(name: str):
    """A ``SanaSprintPipeline``, or the one that starts from an image."""
    pipe = tiny_sana()
    transformer = like(pipe.transformer, guidance_embeds=True, qk_norm='rms_norm_across_heads')
    return another_class(pipe, name, transformer=transformer, scheduler=diffusers.SCMScheduler())


@_seeded
def tiny_flux2_klein_inpaint():
    """A ``Flux2KleinInpaintPipeline``."""
    return another_class(tiny_flux2_klein(), 'Flux2KleinInpaintPipeline')


@_seeded
def tiny_z_image_control(name: str):
    """One of Z-Image's pipelines with a ControlNet."""
    pipe = tiny_z_image()
    controlnet = diffusers.ZImageControlNetModel(
        control_layers_places=[0, 1],
        control_refiner_layers_places=[0],
        control_in_dim=9 if 'Inpaint' in name else 4,
        add_control_noise_refiner=None,
        dim=32,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )
    return another_class(pipe, name, controlnet=with_values(controlnet))


@_seeded
def tiny_latent_upscaler():
    """A ``StableDiffusionLatentUpscalePipeline``: latents of 8x8 or more become twice as large."""
    base = tiny_stable_diffusion()
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=5,
        layers_per_block=1,
        block_out_channels=(32, 32, 64, 64),
        norm_num_groups=None,
        cross_attention_dim=32,
        down_block_types=('KDownBlock2D', *['KCrossAttnDownBlock2D'] * 3),
        up_block_types=(*['KCrossAttnUpBlock2D'] * 3, 'KUpBlock2D'),
        mid_block_type=None,
        attention_head_dim=8,
        act_fn='gelu',
        time_cond_proj_dim=128 + 32,
        time_embedding_type='fourier',
        timestep_post_act='gelu',
        resnet_time_scale_shift='scale_shift',
        conv_in_kernel=1,
        conv_out_kernel=1,
        only_cross_attention=False,
    )
    return another_class(
        base,
        'StableDiffusionLatentUpscalePipeline',
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type='sample'),
    )


@_seeded
def tiny_stable_diffusion_as(name: str):
    """Another pipeline of Stable Diffusion 1 from the tiny one's components."""
    return another_class(tiny_stable_diffusion(), name, requires_safety_checker=False)


@_seeded
def tiny_gligen(name: str = 'StableDiffusionGLIGENPipeline'):
    """A pipeline of GLIGEN, whose U-Net attends to boxes with phrases as well."""
    base = tiny_stable_diffusion()
    with_images = 'TextImage' in name
    kind = 'gated-text-image' if with_images else 'gated'
    unet = like(base.unet, attention_type=kind, attention_head_dim=8)
    for module in unet.modules():
        if hasattr(module, 'alpha_attn'):
            module.alpha_attn.data.fill_(0.5)
    for_images = ('processor', 'image_encoder', 'image_project') if with_images else ()
    return another_class(
        base, name, unet=unet, requires_safety_checker=False, **dict.fromkeys(for_images)
    )


@_seeded
def tiny_ldm3d():
    """A `StableDiffusionLDM3DPipeline`, whose VAE decodes three channels more, of depth."""
    base = tiny_stable_diffusion()
    return another_class(
        base,
        'StableDiffusionLDM3DPipeline',
        vae=like(base.vae, in_channels=6, out_channels=6),
        requires_safety_checker=False,
    )

"""Tiny random pipelines of further transformers in which text and image are one sequence."""

from __future__ import annotations

import torch

from helpers.tiny_generators import (
    _QWEN_CHAT,
    QWEN_TEMPLATE,
    SMALL_FLUX,
    SMALL_TEXT,
    _tiny_flow_vae,
    _tiny_flux2_parts,
    _tiny_qwen3,
    tiny_qwen_image,
    tiny_word_tokenizer,
)
from helpers.tiny_pipelines import (
    _seeded,
    _tiny_clip_text_config,
    _tiny_vae,
    tiny_clip_tokenizer,
    tiny_t5,
    tiny_t5_tokenizer,
)

# Like Qwen's, for a message that is a list of contents.
_CONTENT_CHAT = _QWEN_CHAT.replace('message.content', 'message.content[0].text')


@_seeded
def tiny_aura_flow():
    """An ``AuraFlowPipeline`` of one double and two single blocks: 64x64 images are 8x8 tokens."""
    import diffusers

    tokenizer = tiny_t5_tokenizer()
    return diffusers.AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(tokenizer),
        vae=_tiny_flow_vae(),
        transformer=diffusers.AuraFlowTransformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_projection_dim=24,
            joint_attention_dim=32,
            pos_embed_max_size=256,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


@_seeded
def tiny_cogview3():
    """A ``CogView3PlusPipeline``: 64x64 images are 8x8 tokens."""
    import diffusers

    tokenizer = tiny_t5_tokenizer()
    return diffusers.CogView3PlusPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(tokenizer),
        vae=_tiny_flow_vae(),
        transformer=diffusers.CogView3PlusTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=32,
            time_embed_dim=8,
            condition_dim=2,
            pos_embed_max_size=16,
            sample_size=16,
        ),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )


@_seeded
def tiny_cogview4(pipeline: str = 'CogView4Pipeline', padding_side: str = 'left'):
    """A ``CogView4Pipeline``, or that with an image to go by: 64x64 images are 8x8 tokens."""
    import diffusers
    from transformers import GlmConfig, GlmModel

    tokenizer = tiny_word_tokenizer(first='<sop>', padding_side=padding_side)
    text_encoder = GlmModel(
        GlmConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            pad_token_id=0,
        )
    )
    return getattr(diffusers, pipeline)(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=_tiny_flow_vae(),
        transformer=diffusers.CogView4Transformer2DModel(
            patch_size=2,
            in_channels=8 if 'Control' in pipeline else 4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=32,
            time_embed_dim=8,
            condition_dim=4,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            use_dynamic_shifting=True,
            time_shift_type='linear',
        ),
    )


def _tiny_video_vae():
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


class _Unchecked:
    """In the place of Cosmos' safety checker, which is a package of its own."""

    def to(self, device):
        return self

    def check_text_safety(self, prompt):
        return True

    def check_video_safety(self, video):
        return video


@_seeded
def tiny_cosmos2():
    """A ``Cosmos2TextToImagePipeline``: 64x96 images are 4x6 tokens."""
    import diffusers

    tokenizer = tiny_t5_tokenizer()
    return diffusers.Cosmos2TextToImagePipeline(
        text_encoder=tiny_t5(tokenizer),
        tokenizer=tokenizer,
        transformer=diffusers.CosmosTransformer3DModel(
            in_channels=16,
            out_channels=16,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            mlp_ratio=2,
            text_embed_dim=32,
            adaln_lora_dim=4,
            max_size=(4, 32, 32),
            rope_scale=(2.0, 1.0, 1.0),
            extra_pos_embed_type=None,
        ),
        vae=_tiny_video_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=_Unchecked(),
    )


@_seeded
def tiny_wan():
    """A ``WanPipeline``: a frame of 64x96 is 4x6 tokens."""
    import diffusers

    tokenizer = tiny_t5_tokenizer()
    return diffusers.WanPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(tokenizer),
        vae=_tiny_video_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        transformer=diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        ),
    )


# Newer than diffusers 0.35 -----------------------------------------------------------------------


def _flux_like(cls, width: int, **changes):
    settings = dict(
        **SMALL_FLUX,
        joint_attention_dim=width,
        axes_dims_rope=(4, 6, 6),
    )
    return cls(**{**settings, **changes})


@_seeded
def tiny_bria():
    """A ``BriaPipeline``: 64x64 images are 8x8 tokens."""
    import diffusers

    tokenizer = tiny_t5_tokenizer()
    return diffusers.BriaPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(tokenizer),
        vae=_tiny_flow_vae(),
        transformer=_flux_like(diffusers.BriaTransformer2DModel, 32),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


@_seeded
def tiny_bria_fibo(padding_side: str = 'right'):
    """A ``BriaFiboPipeline``: 64x64 images are 4x4 tokens."""
    import diffusers

    tokenizer = tiny_word_tokenizer('<s>', padding_side=padding_side)
    return diffusers.BriaFiboPipeline(
        transformer=_flux_like(diffusers.BriaFiboTransformer2DModel, 32, text_encoder_dim=16),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKLWan(
            base_dim=3,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            in_channels=12,
            out_channels=12,
            patch_size=2,
        ),
        text_encoder=_tiny_qwen3(len(tokenizer)),
        tokenizer=tokenizer,
    )


@_seeded
def tiny_ovis_image(padding_side: str = 'right'):
    """An ``OvisImagePipeline`` with an instruction of its own: 64x64 images are 8x8 tokens."""
    import diffusers

    tokenizer = tiny_word_tokenizer(
        special=('<|im_start|>', '<|im_end|>'), padding_side=padding_side
    )
    tokenizer.chat_template = _QWEN_CHAT
    pipe = diffusers.OvisImagePipeline(
        tokenizer=tokenizer,
        text_encoder=_tiny_qwen3(len(tokenizer)).model,
        vae=_tiny_flow_vae(),
        transformer=_flux_like(diffusers.OvisImageTransformer2DModel, 16, out_channels=16),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    pipe.system_prompt = 'be kind to a photo of: '
    return pipe


@_seeded
def tiny_longcat_image(padding_side: str = 'right'):
    """A ``LongCatImagePipeline``: 64x64 images are 8x8 tokens."""
    import diffusers

    base = tiny_qwen_image(padding_side)
    return diffusers.LongCatImagePipeline(
        tokenizer=base.tokenizer,
        text_encoder=base.text_encoder,
        text_processor=None,
        vae=_tiny_flow_vae(latent_channels=16),  # the pipeline takes it to have 16 channels
        transformer=_flux_like(
            diffusers.LongCatImageTransformer2DModel,
            16,
            in_channels=64,
            pooled_projection_dim=16,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def _tiny_qwen3_vl(vocabulary: int):
    from transformers import Qwen3VLConfig, Qwen3VLModel

    return Qwen3VLModel(
        Qwen3VLConfig(
            text_config=dict(
                vocab_size=vocabulary,
                **SMALL_TEXT,
                rope_scaling=dict(
                    rope_type='default', mrope_section=[2, 1, 1], mrope_interleaved=True
                ),
            ),
            vision_config=dict(
                depth=1,
                hidden_size=16,
                intermediate_size=16,
                num_heads=2,
                out_hidden_size=16,
                deepstack_visual_indexes=[0],
            ),
        )
    )


@_seeded
def tiny_krea2(padding_side: str = 'right'):
    """A ``Krea2Pipeline`` with a short template of its own: 64x64 images are 8x8 tokens."""
    import diffusers

    tokenizer = tiny_word_tokenizer(
        special=('<|im_start|>', '<|im_end|>'), padding_side=padding_side
    )
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=16,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    for parameter in transformer.parameters():
        if not parameter.any():  # its tables and norms begin at zero
            torch.nn.init.normal_(parameter, std=0.3)
    pipe = diffusers.Krea2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=tiny_qwen_image().vae,
        text_encoder=_tiny_qwen3_vl(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=transformer,
        text_encoder_select_layers=(1, 2),
    )
    pipe.prompt_template_encode_prefix = '<|im_start|>be kind to a photo<|im_end|>\n<|im_start|>\n'
    pipe.prompt_template_encode_suffix = '<|im_end|>\n<|im_start|>a cat\n'
    pipe.prompt_template_encode_start_idx = len(
        tokenizer(pipe.prompt_template_encode_prefix).input_ids
    )
    pipe.prompt_template_encode_num_suffix_tokens = len(
        tokenizer(pipe.prompt_template_encode_suffix).input_ids
    )
    return pipe


@_seeded
def tiny_ideogram4():
    """An ``Ideogram4Pipeline`` that reads two layers of its text encoder; 64x64 is 8x8 tokens.

    Its module's ``QWEN3_VL_ACTIVATION_LAYERS`` must be ``(0, 1)``.
    """
    import diffusers

    tokenizer = tiny_word_tokenizer(special=('<|im_start|>', '<|im_end|>'))
    tokenizer.chat_template = _CONTENT_CHAT

    def transformer():
        return diffusers.Ideogram4Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            intermediate_size=16,
            adaln_dim=8,
            llm_features_dim=32,
            mrope_section=(4, 2, 2),
        )

    parts = _tiny_flux2_parts(16, False)
    return diffusers.Ideogram4Pipeline(
        scheduler=parts['scheduler'],
        vae=parts['vae'],
        text_encoder=_tiny_qwen3_vl(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=transformer(),
        unconditional_transformer=transformer(),
    )


@_seeded
def tiny_ernie_image():
    """An ``ErnieImagePipeline``: 64x64 images are 8x8 tokens."""
    import diffusers
    from transformers import MistralConfig, MistralModel

    tokenizer = tiny_word_tokenizer(first='<s>')
    transformer = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        patch_size=1,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    for parameter in transformer.parameters():
        if not parameter.any():  # gates and output begin at zero
            torch.nn.init.normal_(parameter, std=0.3)
    parts = _tiny_flux2_parts(16, False)
    return diffusers.ErnieImagePipeline(
        transformer=transformer,
        vae=parts['vae'],
        text_encoder=MistralModel(
            MistralConfig(
                vocab_size=len(tokenizer),
                **SMALL_TEXT,
            )
        ),
        tokenizer=tokenizer,
        scheduler=parts['scheduler'],
    )


class _TextProcessor:
    """A processor of text and images that gets text alone."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, text, images=None, videos=None, **options):
        return self.tokenizer(text, **options)


@_seeded
def tiny_kandinsky5(padding_side: str = 'right'):
    """A ``Kandinsky5T2IPipeline`` with a short template of its own: 64x96 images are 4x6 tokens."""
    import diffusers
    from transformers import CLIPTextModel

    base = tiny_qwen_image(padding_side)
    tokenizer_2 = tiny_clip_tokenizer()
    pipe = diffusers.Kandinsky5T2IPipeline(
        transformer=diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=32,
            time_dim=16,
            model_dim=32,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 6, 6),
        ),
        vae=_tiny_vae(4),
        text_encoder=base.text_encoder,
        tokenizer=_TextProcessor(base.tokenizer),
        text_encoder_2=CLIPTextModel(_tiny_clip_text_config(tokenizer_2)),
        tokenizer_2=tokenizer_2,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    for parameter in pipe.transformer.parameters():
        if not parameter.any():  # modulations begin at zero
            torch.nn.init.normal_(parameter, std=0.3)
    pipe.resolutions = [(96, 64)]
    pipe.prompt_template = QWEN_TEMPLATE.rstrip()
    pipe.prompt_template_encode_start_idx = len(
        base.tokenizer(QWEN_TEMPLATE.split('{}')[0]).input_ids
    )
    return pipe

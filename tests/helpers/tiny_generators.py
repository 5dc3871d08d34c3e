"""Tiny random pipelines of the families beyond Stable Diffusion and DeepFloyd IF's stage I.

Like `tiny_pipelines`: the real diffusers classes, built from configs in the process. Every
word of ``WORDS`` is one token of every tokenizer, so a test can tell a noun's column by counting.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterable
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from packaging.version import Version

from helpers.tiny_pipelines import (
    UNCHECKED,
    WORDS,
    _quiet,
    _seeded,
    _tiny_clip_text_config,
    _tiny_if_parts,
    _tiny_pixel_unet,
    _tiny_vae,
    tiny_clip_tokenizer,
    tiny_stable_diffusion,
    tiny_stable_diffusion_xl,
    tiny_t5,
    tiny_t5_tokenizer,
)

_QWEN_SPECIAL = (
    *('<|im_start|>', '<|im_end|>', '<|vision_start|>', '<|vision_end|>'),
    *('<|image_pad|>', '<|video_pad|>'),
)
QWEN_TEMPLATE = '<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n'
# A language model, and FLUX's blocks, as small as they come.
SMALL_TEXT = dict(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    pad_token_id=0,
)
SMALL_FLUX = dict(
    patch_size=1,
    in_channels=16,
    num_layers=1,
    num_single_layers=2,
    attention_head_dim=16,
    num_attention_heads=2,
)

loads_unclip = pytest.mark.skipif(
    not hasattr(diffusers.pipelines, 'unclip'),
    reason=f"diffusers {diffusers.__version__} can't load a folder of UnCLIP: it doesn't find the "
    'class UnCLIPTextProjModel by name',
)


needs_own_tokenizer = pytest.mark.skipif(
    Version(transformers.__version__) < Version('5'),
    reason='the processors of transformers 4 take no tokenizer of another class',
)


def tiny_word_tokenizer(
    first: str | None = None,
    last: str | None = None,
    special: Iterable[str] = (),
    padding_side: str = 'right',
):
    """A fast tokenizer of whole words, for text encoders that take any.

    Args:
        first: Special token that begins every text.
        last: Special token that ends every text.
        special: Other special tokens that a text may hold.
        padding_side: Where it pads.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = [('<pad>', 0.0), ('<unk>', 0.0), ('\u2581', -6.0)]
    vocabulary += [('\u2581' + word, -4.0) for word in WORDS]
    vocabulary += [(chr(code), -8.0) for code in range(33, 127)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    frame = [token for token in (first, last) if token]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in [*frame, *special]])
    if frame:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=' '.join(filter(None, (first, '$A', last))),
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in frame],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token='<pad>',
        unk_token='<unk>',
        bos_token=first,
        eos_token=last,
        model_max_length=512,
        padding_side=padding_side,
    )


def _tiny_movq(levels: int = 2):
    from diffusers import VQModel

    return VQModel(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=12,
        block_out_channels=(32,) * levels,
        layers_per_block=1,
        norm_num_groups=8,
        norm_type='spatial',
        down_block_types=('DownEncoderBlock2D',) * levels,
        up_block_types=('UpDecoderBlock2D',) * levels,
    )


@_seeded
def tiny_pixart(sigma: bool = False):
    """A ``PixArtAlphaPipeline`` or ``PixArtSigmaPipeline``: latents 4x16x16, tokens 8x8."""
    from diffusers import (
        DDIMScheduler,
        PixArtAlphaPipeline,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )

    tokenizer = tiny_t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn='gelu-approximate',
        num_embeds_ada_norm=1000,
        norm_type='ada_norm_single',
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    pipeline = PixArtSigmaPipeline if sigma else PixArtAlphaPipeline
    return pipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(tokenizer),
        vae=_tiny_vae(),
        transformer=transformer,
        scheduler=DDIMScheduler(),
    )


@_seeded
def tiny_sana(qk_norm: str | None = None):
    """A ``SanaPipeline``: latents 4x8x8, tokens 8x8, one cross-attention module."""
    from diffusers import (
        AutoencoderDC,
        FlowMatchEulerDiscreteScheduler,
        SanaPipeline,
        SanaTransformer2DModel,
    )

    tokenizer = tiny_word_tokenizer(first='<bos>')
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=8,
        qk_norm=qk_norm,
    )
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=('ResBlock', 'EfficientViTBlock'),
        decoder_block_types=('ResBlock', 'EfficientViTBlock'),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type='conv',
        upsample_block_type='interpolate',
        decoder_norm_types='rms_norm',
        decoder_act_fns='silu',
    )
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=_tiny_gemma(tokenizer, 8, 1),
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


@_seeded
def tiny_unclip():
    """An ``UnCLIPPipeline``: the decoder generates 32x32 pixels, attention at 16x16."""
    from diffusers import PriorTransformer, UnCLIPPipeline, UnCLIPScheduler, UNet2DModel
    from transformers import CLIPTextModelWithProjection

    projection = inspect.getmodule(UnCLIPPipeline).UnCLIPTextProjModel  # it has moved
    tokenizer = tiny_clip_tokenizer()

    def super_resolution():
        return UNet2DModel(
            sample_size=64,
            layers_per_block=1,
            block_out_channels=(32, 64),
            in_channels=6,
            out_channels=3,
            norm_num_groups=8,
            down_block_types=('ResnetDownsampleBlock2D',) * 2,
            up_block_types=('ResnetUpsampleBlock2D',) * 2,
        )

    def scheduler(variance, prediction='epsilon'):
        return UnCLIPScheduler(
            variance_type=variance, prediction_type=prediction, num_train_timesteps=1000
        )

    return UnCLIPPipeline(
        prior=PriorTransformer(
            num_attention_heads=2, attention_head_dim=8, embedding_dim=32, num_layers=1
        ),
        decoder=_tiny_pixel_unet(class_embed_type='identity'),
        text_encoder=CLIPTextModelWithProjection(
            _tiny_clip_text_config(tokenizer, projection_dim=32)
        ),
        tokenizer=tokenizer,
        text_proj=projection(clip_embeddings_dim=32, time_embed_dim=128, cross_attention_dim=32),
        super_res_first=super_resolution(),
        super_res_last=super_resolution(),
        prior_scheduler=scheduler('fixed_small_log', 'sample'),
        decoder_scheduler=scheduler('learned_range'),
        super_res_scheduler=scheduler('fixed_small_log'),
    )


@_seeded
def tiny_kandinsky():
    """A ``KandinskyPipeline`` (2.1): latents 4x32x32, attention at 16x16."""
    from diffusers import DDIMScheduler, KandinskyPipeline
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    tokenizer = tiny_word_tokenizer('<s>', '</s>')
    text_encoder = MultilingualCLIP(
        MCLIPConfig(
            numDims=32,
            transformerDimensions=32,
            hidden_size=32,
            intermediate_size=37,
            num_attention_heads=4,
            num_hidden_layers=1,
            vocab_size=len(tokenizer),
            pad_token_id=0,
            max_position_embeddings=80,
        )
    )
    unet = _tiny_pixel_unet(
        in_channels=4,
        out_channels=8,
        addition_embed_type='text_image',
        encoder_hid_dim=32,
        encoder_hid_dim_type='text_image_proj',
        attention_head_dim=4,
    )
    return KandinskyPipeline(
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(prediction_type='epsilon', thresholding=False),
        movq=_tiny_movq(),
    )


@_seeded
def tiny_kandinsky3():
    """A ``Kandinsky3Pipeline``: latents 4x16x16, attention to text at 8x8 and 4x4."""
    from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet

    tokenizer = tiny_t5_tokenizer()
    unet = Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=4,
        groups=2,
        attention_head_dim=4,
        layers_per_block=2,
        block_out_channels=(16, 16, 16),
        cross_attention_dim=8,
        encoder_hid_dim=32,
    )
    return Kandinsky3Pipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(tokenizer),
        unet=unet,
        scheduler=DDPMScheduler(beta_schedule='squaredcos_cap_v2'),
        movq=_tiny_movq(4),
    )


@_seeded
def tiny_stable_diffusion_3(t5: bool = True, qk_norm: str | None = 'rms_norm'):
    """A ``StableDiffusion3Pipeline``: latents 4x16x16, tokens 8x8, the first block dual (3.5)."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection

    tokenizer, tokenizer_3 = tiny_clip_tokenizer(), tiny_t5_tokenizer() if t5 else None
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        out_channels=4,
        qk_norm=qk_norm,
        dual_attention_layers=(0,),
    )
    config = _tiny_clip_text_config(tokenizer, projection_dim=32)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_tiny_flow_vae(),
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=tiny_clip_tokenizer(),
        text_encoder_3=tiny_t5(tokenizer_3, 64) if t5 else None,
        tokenizer_3=tokenizer_3,
    )


def _tiny_flow_vae(**changes):
    settings = dict(
        shift_factor=0.1, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False
    )
    return _tiny_vae(**settings | changes)


@_seeded
def tiny_flux(pipeline: str = 'FluxPipeline'):
    """A ``FluxPipeline`` (Flux.1), or another of its classes: 64x64 images are 8x8 tokens."""
    import diffusers
    from transformers import CLIPTextModel

    tokenizer, tokenizer_2 = tiny_clip_tokenizer(), tiny_t5_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        **SMALL_FLUX,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=False,
    )
    config = _tiny_clip_text_config(tokenizer)
    return getattr(diffusers, pipeline)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_tiny_flow_vae(),
        text_encoder=CLIPTextModel(config),
        tokenizer=tokenizer,
        text_encoder_2=tiny_t5(tokenizer_2),
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


@_seeded
def tiny_qwen_image(padding_side: str = 'right', layers: int = 1):
    """A ``QwenImagePipeline``: 64x64 images are 8x8 tokens; a short template of its own."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = tiny_word_tokenizer(special=_QWEN_SPECIAL, padding_side=padding_side)
    start, image, video = tokenizer.convert_tokens_to_ids(
        ['<|vision_start|>', '<|image_pad|>', '<|video_pad|>']
    )
    config = Qwen2_5_VLConfig(
        text_config=dict(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=len(tokenizer),
            rope_theta=1e6,
            pad_token_id=0,
            rope_scaling=dict(
                mrope_section=[1, 1, 2], rope_type='default', type='default', rope_theta=1e6
            ),
        ),
        vision_config=dict(
            depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=16
        ),
        hidden_size=16,
        vocab_size=len(tokenizer),
        vision_start_token_id=start,
        image_token_id=image,
        video_token_id=video,
    )
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    pipe = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        tokenizer=tokenizer,
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        transformer=transformer,
    )
    pipe.prompt_template_encode = QWEN_TEMPLATE
    pipe.prompt_template_encode_start_idx = len(tokenizer(QWEN_TEMPLATE.split('{}')[0]).input_ids)
    return pipe


@_seeded
def tiny_if_super_resolution():
    """An ``IFSuperResolutionPipeline`` (stage II): 32x32 pixels from an image of 16x16."""
    from diffusers import DDPMScheduler, IFSuperResolutionPipeline

    return IFSuperResolutionPipeline(
        scheduler=DDPMScheduler(
            beta_schedule='squaredcos_cap_v2', thresholding=True, variance_type='learned_range'
        ),
        image_noising_scheduler=DDPMScheduler(beta_schedule='squaredcos_cap_v2'),
        **_tiny_if_parts(in_channels=6, class_embed_type='timestep', time_embedding_act_fn='gelu'),
    )


@_seeded
def tiny_upscaler():
    """A ``StableDiffusionUpscalePipeline``, what DeepFloyd IF uses as stage III."""
    from diffusers import DDPMScheduler, StableDiffusionUpscalePipeline

    base = tiny_stable_diffusion()
    unet = like(base.unet, in_channels=7, num_class_embeds=1000)
    return rebuilt(
        base, StableDiffusionUpscalePipeline, unet=unet, low_res_scheduler=DDPMScheduler()
    )


@_seeded
def tiny_latent_consistency():
    """A ``LatentConsistencyModelPipeline``: guidance inside the UNet, no doubled batch."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    base = tiny_stable_diffusion()
    unet = like(base.unet, time_cond_proj_dim=32)
    scheduler = LCMScheduler.from_config(base.scheduler.config)
    return rebuilt(base, LatentConsistencyModelPipeline, unet=unet, scheduler=scheduler)


def like(part, **changes):
    """A model of the same class and settings but for these, with weights of its own."""
    settings = {name: value for name, value in part.config.items() if name[0] != '_'}
    return type(part)(**settings | changes)


def rebuilt(pipe, pipeline: type, **changes):
    """A pipeline of another class from the parts of one, as far as it takes them."""
    taken = inspect.signature(pipeline.__init__).parameters
    parts = {name: part for name, part in pipe.components.items() if name in taken}
    if 'requires_safety_checker' in taken:
        parts['requires_safety_checker'] = False
    if 'add_watermarker' in taken:
        parts['add_watermarker'] = False
    return _quiet(pipeline(**parts | changes))


@_seeded
def tiny_controlnet():
    """A ``StableDiffusionControlNetPipeline``."""
    from diffusers import StableDiffusionControlNetPipeline

    base = tiny_stable_diffusion()
    return rebuilt(base, StableDiffusionControlNetPipeline, controlnet=controlnet_for(base.unet))


def controlnet_for(unet):
    """A control network for a UNet of two resolutions."""
    from diffusers import ControlNetModel

    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8)).eval()


@_seeded
def tiny_pix2pix(kind: str = ''):
    """A ``StableDiffusion(XL)InstructPix2PixPipeline``: a UNet with the image's channels too.

    Args:
        kind: ``''`` or ``'XL'``.
    """
    import diffusers

    base = tiny_stable_diffusion_xl() if kind else tiny_stable_diffusion()
    pipeline = getattr(diffusers, f'StableDiffusion{kind}InstructPix2PixPipeline')
    return rebuilt(base, pipeline, unet=like(base.unet, in_channels=8))


@_seeded
def tiny_chroma(pipeline: str = 'ChromaPipeline'):
    """A ``ChromaPipeline``, or another of its classes: 64x64 images are 8x8 tokens."""
    import diffusers

    tokenizer = tiny_t5_tokenizer()
    transformer = diffusers.ChromaTransformer2DModel(
        **SMALL_FLUX,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    if pipeline == 'ChromaInpaintPipeline':  # of diffusers 0.42 asks for what its network lacks
        transformer.register_to_config(guidance_embeds=False)
    return getattr(diffusers, pipeline)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_tiny_flow_vae(),
        text_encoder=tiny_t5(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def tiny_chatglm_tokenizer():
    """A ``ChatGLMTokenizer``, which pads on the left, on a SentencePiece model of whole words."""
    import io

    import sentencepiece
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([' '.join(WORDS)] * 2),
        model_writer=model,
        model_type='word',
        vocab_size=len(WORDS) + 3,
        minloglevel=2,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'tokenizer.model'
        path.write_bytes(model.getvalue())
        return ChatGLMTokenizer(str(path))


@_seeded
def tiny_kolors(pipeline: str = 'KolorsPipeline'):
    """A ``KolorsPipeline``, or another of its classes: latents 4x16x16, attention at 8 only."""
    import diffusers
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    tokenizer = tiny_chatglm_tokenizer()
    base = tiny_stable_diffusion_xl()
    unet = like(
        base.unet,
        encoder_hid_dim=16,
        encoder_hid_dim_type='text_proj',
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    text_encoder = ChatGLMModel(
        ChatGLMConfig(
            padded_vocab_size=tokenizer.vocab_size,
            num_layers=2,
            hidden_size=16,
            ffn_hidden_size=16,
            kv_channels=8,
            num_attention_heads=2,
            seq_length=256,
            multi_query_attention=True,
            multi_query_group_num=1,
            add_qkv_bias=True,
            original_rope=True,
            use_cache=False,
        ),
        empty_init=False,
    )
    for name, parameter in text_encoder.named_parameters():
        if 'layernorm' in name:  # made without values
            torch.nn.init.ones_(parameter)
    return rebuilt(
        base,
        getattr(diffusers, pipeline),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
    )


@_seeded
def tiny_cascade(kind: str):
    """A combined pipeline of Stable Cascade or Wuerstchen: a prior of 3x4 for 128x160.

    Args:
        kind: ``'StableCascade'`` or ``'Wuerstchen'``.
    """
    import diffusers
    from diffusers.models import StableCascadeUNet
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    pipeline = getattr(diffusers, f'{kind}CombinedPipeline')
    paella = inspect.getmodule(getattr(diffusers, f'{kind}DecoderPipeline')).PaellaVQModel
    tokenizer = tiny_clip_tokenizer()

    def unet(**changes):
        settings = dict(
            conditioning_dim=32,
            block_out_channels=(32, 32),
            num_attention_heads=(2, 2),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            clip_text_pooled_in_channels=32,
            switch_level=(False,),
        )
        return StableCascadeUNet(**settings | changes)

    if kind == 'StableCascade':
        prior = unet(clip_text_in_channels=32, clip_image_in_channels=16)
        decoder = unet(
            in_channels=4, out_channels=4, patch_size=2, effnet_in_channels=16, clip_seq=1
        )
        clip = CLIPTextModelWithProjection(_tiny_clip_text_config(tokenizer, projection_dim=32))
    else:
        module = inspect.getmodule(diffusers.WuerstchenPriorPipeline)
        prior = module.WuerstchenPrior(c_in=16, c=32, c_cond=32, c_r=64, depth=2, nhead=2)
        decoder = inspect.getmodule(diffusers.WuerstchenDecoderPipeline).WuerstchenDiffNeXt(
            c_in=4,
            c_out=4,
            c_r=64,
            c_cond=32,
            c_hidden=[32, 32],
            nhead=[-1, 2],
            blocks=[1, 1],
            level_config=['CT', 'CTA'],
            inject_effnet=[False, True],
            effnet_embd=16,
            clip_embd=32,
        )
        clip = CLIPTextModel(_tiny_clip_text_config(tokenizer))
    return pipeline(
        tokenizer=tokenizer,
        text_encoder=clip,
        decoder=decoder,
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=paella(bottleneck_blocks=1, num_vq_embeddings=16, embed_dim=16),
        prior_prior=prior,
        prior_text_encoder=clip,
        prior_tokenizer=tokenizer,
        prior_scheduler=diffusers.DDPMWuerstchenScheduler(),
    )


@_seeded
def tiny_hunyuan_dit():
    """A ``HunyuanDiTPipeline`` of four blocks; tokens are of 16x16 pixels."""
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
    from transformers import BertConfig, BertModel

    tokenizer = tiny_word_tokenizer('<s>', '</s>')
    tokenizer_2 = tiny_t5_tokenizer()
    return HunyuanDiTPipeline(
        tokenizer=tokenizer,
        text_encoder=BertModel(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=37,
                num_attention_heads=4,
                num_hidden_layers=1,
            )
        ),
        tokenizer_2=tokenizer_2,
        text_encoder_2=tiny_t5(tokenizer_2),
        vae=_tiny_vae(4),  # the pipeline takes its factor to be 8
        transformer=HunyuanDiT2DModel(
            sample_size=16,
            num_layers=4,
            patch_size=2,
            attention_head_dim=16,
            num_attention_heads=2,
            in_channels=4,
            cross_attention_dim=32,
            cross_attention_dim_t5=32,
            pooled_projection_dim=16,
            hidden_size=32,
            mlp_ratio=2.0,
        ),
        scheduler=DDPMScheduler(prediction_type='v_prediction'),
        **UNCHECKED,
    )


@_seeded
def tiny_lumina(padding_side: str = 'right'):
    """A ``LuminaPipeline`` with three heads to each key; tokens are of 16x16 pixels."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LuminaNextDiT2DModel, LuminaPipeline

    tokenizer = tiny_word_tokenizer('<bos>', padding_side=padding_side)
    transformer = LuminaNextDiT2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        norm_eps=1e-5,
        cross_attention_dim=32,
    )
    for block in transformer.layers:  # zero, as they begin, shut the text out
        block.gate.data.fill_(0.5)
    return LuminaPipeline(
        tokenizer=tokenizer,
        text_encoder=_tiny_gemma(tokenizer),
        vae=_tiny_vae(4),  # the pipeline takes its factor to be 8
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


@_seeded
def tiny_lumina2():
    """A ``Lumina2Pipeline`` with two heads to each key; tokens are of 16x16 pixels."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        Lumina2Pipeline,
        Lumina2Transformer2DModel,
    )

    tokenizer = tiny_word_tokenizer('<bos>')
    vae = _tiny_vae(4)  # the pipeline takes its factor to be 8
    vae.register_to_config(shift_factor=0.1)
    pipe = Lumina2Pipeline(
        tokenizer=tokenizer,
        text_encoder=_tiny_gemma(tokenizer),
        vae=vae,
        transformer=Lumina2Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(300, 32, 32),
            cap_feat_dim=32,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipe.system_prompt = 'a photo of the sky'
    return pipe


@_seeded
def tiny_hidream():
    """A ``HiDreamImagePipeline``: 64x64 pixels or as many in another shape, tokens of 8x8."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HiDreamImagePipeline,
        HiDreamImageTransformer2DModel,
    )
    from transformers import CLIPTextModelWithProjection, LlamaConfig, LlamaForCausalLM

    tokenizers = [tiny_clip_tokenizer(), tiny_clip_tokenizer()]
    tokenizer_3, tokenizer_4 = tiny_t5_tokenizer(), tiny_word_tokenizer('<bos>', special=['<eos>'])
    tokenizer_4.eos_token = '<eos>'  # the pipeline pads with it
    clips = [
        CLIPTextModelWithProjection(
            _tiny_clip_text_config(tokenizer, projection_dim=32, max_position_embeddings=218)
        )
        for tokenizer in tokenizers
    ]
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer_4),
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=3,
            num_attention_heads=4,
            pad_token_id=0,
            attn_implementation='eager',
        )
    )
    pipe = HiDreamImagePipeline(
        tokenizer=tokenizers[0],
        text_encoder=clips[0],
        tokenizer_2=tokenizers[1],
        text_encoder_2=clips[1],
        tokenizer_3=tokenizer_3,
        text_encoder_3=tiny_t5(tokenizer_3),
        tokenizer_4=tokenizer_4,
        text_encoder_4=llama,
        vae=_tiny_flow_vae(),
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[32, 32],
            text_emb_dim=64,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(16, 16),
            llama_layers=[0, 2, 1],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipe.default_sample_size = 16
    return pipe


def _tiny_gemma(tokenizer, width: int = 32, layers: int = 2):
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            pad_token_id=0,
        )
    )


# Newer than diffusers 0.35 -----------------------------------------------------------------------

# What Qwen's chat template does, for one message and with or without thinking.
_QWEN_CHAT = (
    '{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n'
    '{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n'
    '{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}'
)
# What Mistral's does.
_MISTRAL_CHAT = (
    '<s>{% for message in messages %}{% if message.role == "system" %}[SYSTEM_PROMPT]'
    '{{ message.content[0].text }}[/SYSTEM_PROMPT]{% else %}[INST]{{ message.content[0].text }}'
    '[/INST]{% endif %}{% endfor %}'
)


def _tiny_qwen3(vocabulary: int):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            **SMALL_TEXT,
        )
    )


def _tiny_flux2_parts(width: int, guidance_embeds: bool):
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        **SMALL_FLUX,
        joint_attention_dim=width,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        mlp_ratio=2.0,
        guidance_embeds=guidance_embeds,
    )
    vae = _tiny_vae(kind='AutoencoderKLFlux2', use_quant_conv=False, use_post_quant_conv=False)
    return dict(transformer=transformer, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler())


@_seeded
def tiny_flux2_klein(padding_side: str = 'right'):
    """A ``Flux2KleinPipeline``: 64x64 images are 8x8 tokens."""
    from diffusers import Flux2KleinPipeline

    tokenizer = tiny_word_tokenizer(
        special=('<|im_start|>', '<|im_end|>'), padding_side=padding_side
    )
    tokenizer.chat_template = _QWEN_CHAT
    return Flux2KleinPipeline(
        text_encoder=_tiny_qwen3(len(tokenizer)),
        tokenizer=tokenizer,
        **_tiny_flux2_parts(32, False),
    )


@_seeded
def tiny_flux2():
    """A ``Flux2Pipeline``, whose tokenizer pads on the left: 64x64 images are 8x8 tokens."""
    from diffusers import Flux2Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    tokenizer = tiny_word_tokenizer(
        special=('<s>', '[SYSTEM_PROMPT]', '[/SYSTEM_PROMPT]', '[INST]', '[/INST]'),
        padding_side='left',
    )
    tokenizer.chat_template = _MISTRAL_CHAT
    config = Mistral3Config(
        text_config=dict(
            model_type='mistral',
            vocab_size=len(tokenizer),
            **SMALL_TEXT,
        ),
        vision_config=dict(
            model_type='pixtral',
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
    )
    return Flux2Pipeline(
        text_encoder=Mistral3ForConditionalGeneration(config),
        tokenizer=tokenizer,
        **_tiny_flux2_parts(32, True),
    )


def _tiny_z_image_parts(**changes):
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel

    tokenizer = tiny_word_tokenizer(
        special=('<|im_start|>', '<|im_end|>', '<|vision_start|>', '<|vision_end|>')
    )
    tokenizer.chat_template = _QWEN_CHAT
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
        **changes,
    )
    for name, parameter in transformer.named_parameters():
        if name.endswith('pad_token'):  # made without values
            torch.nn.init.normal_(parameter)
    return dict(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_tiny_flow_vae(),
        text_encoder=_tiny_qwen3(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=transformer,
    )


@_seeded
def tiny_z_image():
    """A ``ZImagePipeline``: 48x64 images are 6x8 tokens, filled up to 64."""
    from diffusers import ZImagePipeline

    return ZImagePipeline(**_tiny_z_image_parts())


@_seeded
def tiny_z_image_omni():
    """A ``ZImageOmniPipeline``: as `tiny_z_image`; images to go by are 4x4 for SigLIP."""
    from diffusers import ZImageOmniPipeline
    from transformers import Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel

    siglip = Siglip2VisionModel(
        Siglip2VisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_patches=16,
            patch_size=8,
        )
    )
    return ZImageOmniPipeline(
        siglip=siglip,
        siglip_processor=Siglip2ImageProcessor(patch_size=8, max_num_patches=16),
        **_tiny_z_image_parts(siglip_feat_dim=16),
    )


@_seeded
def tiny_hunyuan_image(guidance: float | None = None):
    """A ``HunyuanImagePipeline``: 64x64 images are 16x16 tokens; a short template of its own."""
    from diffusers import (
        AdaptiveProjectedMixGuidance,
        AutoencoderKLHunyuanImage,
        FlowMatchEulerDiscreteScheduler,
        HunyuanImagePipeline,
        HunyuanImageTransformer2DModel,
    )

    base, tokenizer_2 = tiny_qwen_image(layers=3), tiny_t5_tokenizer()
    guider = None if guidance is None else AdaptiveProjectedMixGuidance(guidance_scale=guidance)
    pipe = HunyuanImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32, 32),
            layers_per_block=1,
            spatial_compression_ratio=4,
            sample_size=64,
            scaling_factor=1.0,
        ),
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        text_encoder_2=tiny_t5(tokenizer_2),
        tokenizer_2=tokenizer_2,
        transformer=HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=2,
            num_refiner_layers=1,
            patch_size=(1, 1),
            text_embed_dim=16,
            text_embed_2_dim=32,
            rope_axes_dim=(4, 4),
        ),
        guider=guider,
        ocr_guider=guider,
    )
    pipe.tokenizer_max_length = 40
    pipe.tokenizer_2_max_length = 16
    pipe.prompt_template_encode = QWEN_TEMPLATE
    pipe.prompt_template_encode_start_idx = base.prompt_template_encode_start_idx
    return pipe


# What Qwen3-VL's does, of messages without images.
_QWEN_VISION_CHAT = (
    '{% for message in messages %}<|im_start|>{{ message.role }}\n'
    '{% if message.content is string %}{{ message.content }}'
    '{% else %}{{ message.content[0].text }}{% endif %}<|im_end|>\n'
    '{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


def _tiny_qwen3_vision(padding_side: str = 'right', layers: int = 2):
    """A ``Qwen3VLForConditionalGeneration`` and its processor."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = tiny_word_tokenizer(special=_QWEN_SPECIAL, padding_side=padding_side)
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=8, merge_size=2, min_pixels=256),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=_QWEN_VISION_CHAT,
    )
    start, image, video = tokenizer.convert_tokens_to_ids(
        ['<|vision_start|>', '<|image_pad|>', '<|video_pad|>']
    )
    config = Qwen3VLConfig(
        text_config=dict(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=len(tokenizer),
            pad_token_id=0,
            rope_parameters=dict(rope_type='default', rope_theta=1e6, mrope_section=[1, 1, 2]),
        ),
        vision_config=dict(
            depth=1,
            hidden_size=16,
            intermediate_size=16,
            num_heads=2,
            patch_size=8,
            out_hidden_size=16,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0],
        ),
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
    )
    return Qwen3VLForConditionalGeneration(config), processor


def tiny_qwen_image_edit(name: str):
    """A pipeline of Qwen-Image-Edit's: images of 48x32 become six tokens of the text."""
    import diffusers
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    base = tiny_qwen_image()
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=56**2, max_pixels=56**2),
        tokenizer=base.tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
    )
    pipe = rebuilt(base, getattr(diffusers, name), processor=processor)
    system, user = '<|im_start|>system\nbe kind<|im_end|>\n', '<|im_start|>user\n{}<|im_end|>\n'
    picture = '' if 'Plus' in name else '<|vision_start|><|image_pad|><|vision_end|>'
    pipe.prompt_template_encode = system + user.format(picture + '{}')
    pipe.prompt_template_encode_start_idx = len(base.tokenizer(system).input_ids)
    return pipe


@_seeded
def tiny_qwen_image_21():
    """A ``QwenImage21Pipeline``: tokens of 16x16 pixels."""
    from diffusers import (
        AutoencoderKLQwenImage21,
        FlowMatchEulerDiscreteScheduler,
        QwenImage21Pipeline,
        QwenImage21Transformer2DModel,
    )

    text_encoder, processor = _tiny_qwen3_vision()
    return QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLQwenImage21(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=text_encoder,
        processor=processor,
        transformer=QwenImage21Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
    )


@_seeded
def tiny_nucleus(padding_side: str = 'right'):
    """A ``NucleusMoEImagePipeline``: 64x64 images are 8x8 tokens, two heads to each key."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        NucleusMoEImagePipeline,
        NucleusMoEImageTransformer2DModel,
    )

    text_encoder, processor = _tiny_qwen3_vision(padding_side)
    pipe = NucleusMoEImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=tiny_qwen_image().vae,
        text_encoder=text_encoder,
        processor=processor,
        transformer=NucleusMoEImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
            moe_enabled=False,
        ),
    )
    pipe.default_return_index = -2
    return pipe


def _tiny_prx_parts(width: int, **changes):
    from diffusers import FlowMatchEulerDiscreteScheduler, PRXTransformer2DModel

    transformer = PRXTransformer2DModel(
        **{
            **dict(
                patch_size=2,
                in_channels=4,
                context_in_dim=width,
                hidden_size=16,
                mlp_ratio=2.0,
                num_heads=2,
                depth=2,
                axes_dim=[4, 4],
            ),
            **changes,
        }
    )
    return dict(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler())


@_seeded
def tiny_prx():
    """A ``PRXPipeline``: 64x64 images are 8x8 tokens."""
    from diffusers import PRXPipeline

    tokenizer = tiny_word_tokenizer(first='<bos>')
    tokenizer.model_max_length = 64
    return PRXPipeline(
        text_encoder=tiny_t5(tokenizer),
        tokenizer=tokenizer,
        vae=_tiny_flow_vae(),
        **_tiny_prx_parts(32),
    )


@_seeded
def tiny_prx_pixel():
    """A ``PRXPixelPipeline``: 32x32 images are 16x16 tokens."""
    from diffusers import PRXPixelPipeline

    tokenizer = tiny_word_tokenizer()
    return PRXPixelPipeline(
        text_encoder=_tiny_qwen3(len(tokenizer)).model,
        tokenizer=tokenizer,
        prompt_max_tokens=48,
        **_tiny_prx_parts(16, in_channels=3, bottleneck_size=8),
    )


# Unknown to the recorder -------------------------------------------------------------------------


@_seeded
def tiny_latent_diffusion():
    """An ``LDMTextToImagePipeline``, whose text encoder is a small BERT: latents 4x8x8 of 64x64."""
    from diffusers import DDIMScheduler, LDMTextToImagePipeline, UNet2DConditionModel
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
        LDMBertConfig,
        LDMBertModel,
    )
    from transformers import BertTokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'vocab.txt'
        path.write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *WORDS]))
        tokenizer = BertTokenizer(str(path), model_max_length=77)
    bert = LDMBertModel(
        LDMBertConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=77,
            encoder_layers=1,
            encoder_ffn_dim=32,
            encoder_attention_heads=2,
            head_dim=16,
            d_model=32,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        block_out_channels=(32, 32),
        cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
    )
    return LDMTextToImagePipeline(
        vqvae=_tiny_vae(4),
        bert=bert,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False),
    )


@_seeded
def tiny_vq_diffusion():
    """A ``VQDiffusionPipeline``: 24x24 images from 12x12 codes; takes one generator only."""
    from diffusers import Transformer2DModel, VQDiffusionPipeline, VQDiffusionScheduler
    from transformers import CLIPTextModel

    embeddings = inspect.getmodule(VQDiffusionPipeline).LearnedClassifierFreeSamplingEmbeddings
    tokenizer = tiny_clip_tokenizer()
    return VQDiffusionPipeline(
        vqvae=_tiny_codebook(12),
        text_encoder=CLIPTextModel(_tiny_clip_text_config(tokenizer)),
        tokenizer=tokenizer,
        transformer=Transformer2DModel(
            attention_bias=True,
            cross_attention_dim=32,
            num_attention_heads=1,
            attention_head_dim=16,
            num_vector_embeds=13,
            num_embeds_ada_norm=12,
            norm_type='ada_norm',
            sample_size=12,
            activation_fn='geglu-approximate',
        ),
        scheduler=VQDiffusionScheduler(num_vec_classes=13, num_train_timesteps=12),
        learned_classifier_free_sampling_embeddings=embeddings(learnable=False),
    )


def _tiny_codebook(codes: int, **changes):
    from diffusers import VQModel

    return VQModel(
        in_channels=3,
        out_channels=3,
        latent_channels=3,
        vq_embed_dim=3,
        num_vq_embeddings=codes,
        block_out_channels=(8, 8),
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
        norm_num_groups=4,
        **changes,
    )


@_seeded
def tiny_amused(downsample: bool = False):
    """An ``AmusedPipeline``: 32x32 images from 16x16 tokens; takes one generator only."""
    from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel
    from transformers import CLIPTextModelWithProjection

    tokenizer = tiny_clip_tokenizer()
    return AmusedPipeline(
        vqvae=_tiny_codebook(12, lookup_from_codebook=True),
        tokenizer=tokenizer,
        text_encoder=CLIPTextModelWithProjection(
            _tiny_clip_text_config(tokenizer, projection_dim=16)
        ),
        transformer=UVit2DModel(
            hidden_size=32,
            cond_embed_dim=16,
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=10,
            encoder_hidden_size=32,
            vocab_size=16,
            codebook_size=12,
            in_channels=16,
            block_out_channels=16,
            num_res_blocks=1,
            downsample=downsample,
            upsample=downsample,
            block_num_heads=2,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            sample_size=16,
        ),
        scheduler=AmusedScheduler(mask_token_id=15),
    )

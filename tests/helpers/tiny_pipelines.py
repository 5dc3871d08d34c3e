"""Tiny random pipelines of the real diffusers classes, for tests.

Built in the process from configs and a few words: no file, no network. A few
steps take well under a second on one CPU core. The same seed gives the same
weights.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

# Whole words for both tokenizers; any other word is split into pieces.
WORDS = (
    'a the on in with and of is are photo red blue dog cat bird dress shirt bag tree '
    'apple sand beach table street sky'
).split()
CLIP_MAX_LENGTH = 77
#: Arguments of pipelines that would look for what isn't safe.
UNCHECKED = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def _byte_alphabet() -> list[str]:
    """The 256 printable characters that stand for bytes in CLIP's byte-pair encoding."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = range(256, 256 + 256 - len(printable))
    return [chr(code) for code in [*printable, *shifted]]


def _clip_files(folder: Path, words: Iterable[str]) -> None:
    """Writes ``vocab.json`` and ``merges.txt`` in which each of ``words`` is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words = list(words)
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix='</w>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # Pairs that are equally frequent are merged in the order of their ids, and the ids of last
    # characters come in the order of a hash table unless they are given.
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=2,
        end_of_word_suffix='</w>',
        special_tokens=sorted({word[-1] + '</w>' for word in words}),
        show_progress=False,
    )
    tokenizer.train_from_iterator([' '.join(words)] * 2, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())['model']['merges']]
    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(character + '</w>' for character in alphabet)]
    tokens += [first + second for first, second in merges]
    tokens += ['<|startoftext|>', '<|endoftext|>']
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / 'vocab.json').write_text(json.dumps(vocabulary), encoding='utf-8')
    lines = ['#version: 0.2', *(' '.join(pair) for pair in merges)]
    (folder / 'merges.txt').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def tiny_clip_tokenizer(fast: bool = False, words: Iterable[str] = WORDS):
    """A ``CLIPTokenizer`` (or ``CLIPTokenizerFast``) that knows ``words`` as single tokens."""
    from transformers import CLIPTokenizer, CLIPTokenizerFast

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _clip_files(folder, words)
        tokenizer_class = CLIPTokenizerFast if fast else CLIPTokenizer
        return tokenizer_class(
            str(folder / 'vocab.json'), str(folder / 'merges.txt'), model_max_length=CLIP_MAX_LENGTH
        )


def tiny_t5_tokenizer(words: Iterable[str] = WORDS):
    """A ``T5TokenizerFast`` on a Unigram model that knows ``words`` as single tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    vocabulary = [('<pad>', 0.0), ('</s>', 0.0), ('<unk>', 0.0), ('\u2581', -6.0)]
    vocabulary += [('\u2581' + word, -4.0) for word in words]
    vocabulary += [(chr(code), -8.0) for code in range(33, 127)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single='$A </s>', special_tokens=[('</s>', 1)]
    )
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=512)


def _tiny_clip_text_config(tokenizer, **changes):
    from transformers import CLIPTextConfig

    settings = dict(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextConfig(**{**settings, **changes})


def _tiny_vae(levels: int = 3, kind: str = 'AutoencoderKL', **changes):
    import diffusers

    settings = dict(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8,) * levels,
        down_block_types=('DownEncoderBlock2D',) * levels,
        up_block_types=('UpDecoderBlock2D',) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
    )
    return getattr(diffusers, kind)(**settings | changes)


def _quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _seeded(build):
    """Makes the weights that ``build`` draws depend on its ``seed`` alone."""

    def seeded(*args, seed: int = 0, **options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipe = build(*args, **options)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        return _quiet(pipe)

    seeded.__doc__ = build.__doc__
    return seeded


@_seeded
def tiny_stable_diffusion(fast_tokenizer: bool = False):
    """A ``StableDiffusionPipeline``: 64x64 images, latents 4x16x16, attention at 16 and 8.

    Args:
        fast_tokenizer: Whether the CLIP tokenizer is the fast one.

    Returns:
        The pipeline, float32 on the CPU, progress bar off. Its UNet has seven cross-attention
        modules: one down and two up at 16x16; one down, one in the middle and two up at 8x8.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    tokenizer = tiny_clip_tokenizer(fast_tokenizer)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 32),
        norm_num_groups=8,
        cross_attention_dim=32,
        down_block_types=('CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'),
        attention_head_dim=4,
    )
    return StableDiffusionPipeline(
        vae=_tiny_vae(),
        text_encoder=CLIPTextModel(_tiny_clip_text_config(tokenizer)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule='scaled_linear',
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        **UNCHECKED,
    )


@_seeded
def tiny_stable_diffusion_xl(width_2: int = 32):
    """A ``StableDiffusionXLPipeline``: 64x64 images, latents 4x16x16, attention at 8 only.

    Args:
        width_2: Channels of the second text encoder; the first has 32.
    """
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = tiny_clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        cross_attention_dim=32 + width_2,
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type='text_time',
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    return StableDiffusionXLPipeline(
        vae=_tiny_vae(),
        text_encoder=CLIPTextModel(_tiny_clip_text_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(
            _tiny_clip_text_config(tokenizer, hidden_size=width_2, projection_dim=32)
        ),
        tokenizer=tokenizer,
        tokenizer_2=tiny_clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear', steps_offset=1
        ),
        add_watermarker=False,
    )


def tiny_t5(tokenizer, width: int = 32):
    """A ``T5EncoderModel`` of two layers, for the tokens of a tokenizer."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=8,
            d_ff=37,
            num_layers=2,
            num_heads=4,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


def _tiny_pixel_unet(**changes):
    from diffusers import UNet2DConditionModel

    settings = dict(
        sample_size=32,
        in_channels=3,
        out_channels=6,
        layers_per_block=1,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=('ResnetDownsampleBlock2D', 'SimpleCrossAttnDownBlock2D'),
        mid_block_type='UNetMidBlock2DSimpleCrossAttn',
        up_block_types=('SimpleCrossAttnUpBlock2D', 'ResnetUpsampleBlock2D'),
        cross_attention_dim=32,
        attention_head_dim=8,
        resnet_time_scale_shift='scale_shift',
    )
    return UNet2DConditionModel(**{**settings, **changes})


def _tiny_if_parts(**changes):
    """What the first two stages of DeepFloyd IF share; changes of the UNet."""
    tokenizer = tiny_t5_tokenizer()
    return dict(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(tokenizer),
        unet=_tiny_pixel_unet(
            encoder_hid_dim=32,
            addition_embed_type='text',
            addition_embed_type_num_heads=2,
            cross_attention_norm='group_norm',
            act_fn='gelu',
            **changes,
        ),
        watermarker=None,
        **UNCHECKED,
    )


@_seeded
def tiny_if():
    """A DeepFloyd ``IFPipeline`` (stage I): 32x32 pixels, joint text and spatial keys at 16x16.

    Returns:
        The pipeline, float32 on the CPU, progress bar off; the UNet predicts variances too.
    """
    from diffusers import DDPMScheduler, IFPipeline

    return IFPipeline(
        scheduler=DDPMScheduler(
            beta_schedule='squaredcos_cap_v2',
            thresholding=True,
            dynamic_thresholding_ratio=0.95,
            sample_max_value=1.0,
            prediction_type='epsilon',
            variance_type='learned_range',
        ),
        **_tiny_if_parts(),
    )


def save_tiny_lora(unet, path: Path) -> None:
    """Write a LoRA of a UNet's attention, whose second matrices aren't zero; the UNet gets one."""
    import peft
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=['to_q', 'to_v']))
    torch.manual_seed(0)
    state = {
        f'unet.{name}': torch.randn_like(value) * 0.3
        for name, value in get_peft_model_state_dict(unet).items()
    }
    save_file(state, path)

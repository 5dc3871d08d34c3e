"""Which pipeline keeps its text keys where: one row of :data:`FAMILIES` for each family.

A new family of pipelines is a new row. What a row can say covers the three ways in which diffusers
models look at text (:class:`TextKeys`); the recorder does the rest. ``docs/generators.md`` shows
the table as it is.
"""
from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ['FAMILIES', 'TEXTLESS', 'Call', 'DenoiserInput', 'Encoder', 'Family', 'TextKeys',
           'find_family', 'known_pipelines']


# Stands for the prompt in a chat template; a character that no prompt holds.
_MESSAGE = '\ue000'


class TextKeys(enum.Enum):
    """How an attention module gets its text keys."""

    #: ``to_k`` projects the text alone: the softmax is over text keys.
    ALONE = 'cross-attention'
    #: ``add_k_proj`` projects the text, ``to_k`` the pixels: one softmax, text keys first.
    ADDED = 'text and pixels, one softmax'
    #: Text and image are one sequence that attends to itself, with norms and rotary embeddings
    #: between projection and softmax: recorded as they reach ``scaled_dot_product_attention``.
    SEQUENCE = 'one sequence of text and image'


class DenoiserInput(NamedTuple):
    """What one call of a denoiser is about.

    Args:
        sample: The noisy images, one row for each image of the batch.
        size: Height and width of the largest feature map, in pixels of it or in tokens.
        text_length: Text tokens in a sequence of text and image; 0 where they stand apart.
        text_start: Place of the first text token in that sequence.
        image_start: Place of the first image token.
        length: Tokens of the whole sequence.
    """

    sample: Tensor
    size: tuple[int, int]
    text_length: int = 0
    text_start: int = 0
    image_start: int = 0
    length: int = 0


def _sequence(sample: Tensor, size: tuple[int, int], text: int, *,
              text_first: bool = True) -> DenoiserInput:
    """The layout of text and image side by side, with nothing between or after them."""
    image = size[0] * size[1]
    return DenoiserInput(sample, size, text, 0 if text_first else image, text if text_first else 0,
                         text + image)


class Call:
    """A pipeline and the arguments it is called with.

    Args:
        pipe: The pipeline.
        options: Arguments of its call that differ from their defaults.

    Raises:
        ValueError: If the pipeline's call doesn't take one of ``options``.
    """

    def __init__(self, pipe: Any, options: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.pipe = pipe
        self._options = dict(options)
        self._parameters = inspect.signature(type(pipe).__call__).parameters
        for name in self._options:
            if name not in self._parameters:
                raise ValueError(f'{type(pipe).__name__} is called without an argument {name!r}')

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments given."""
        return tuple(self._options)

    def given(self, name: str) -> Any:
        """An argument's value as given; ``None`` if it wasn't."""
        return self._options.get(name)

    def replace(self, name: str, value: Any) -> Call:
        """The same call with one more argument, where the pipeline takes it."""
        if name not in self._parameters:
            return self
        return Call(self.pipe, self._options | {name: value})

    def option(self, name: str, default: Any = None) -> Any:
        """An argument's value: as given, or else its default in the pipeline's signature."""
        if name in self._options:
            return self._options[name]
        parameter = self._parameters.get(name)
        return default if parameter is None else parameter.default


def argument(args: tuple, kwargs: dict, position: int, name: str) -> Any:
    """An argument of a call, however it was passed; ``None`` if it wasn't."""
    if name in kwargs:
        return kwargs[name]
    return args[position] if len(args) > position else None


# What a denoiser is called with ----------------------------------------------------------------

def _planes(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """``sample`` (or ``hidden_states``) of shape (batch, channels, height, width)."""
    sample = argument(args, kwargs, 0, 'sample')
    if sample is None:
        sample = kwargs['hidden_states']
    return DenoiserInput(sample, tuple(sample.shape[-2:]))


def _planes_and_text(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Planes that become one sequence with the text: SD3."""
    sample, size = _planes(denoiser, args, kwargs)[:2]
    text = kwargs['encoder_hidden_states']
    patch = denoiser.config.patch_size
    return _sequence(sample, (size[0] // patch, size[1] // patch), text.shape[1],
                     text_first=False)


def _planes_and_text_before(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Planes that become one sequence behind the text: PRX."""
    layout = _planes_and_text(denoiser, args, kwargs)
    return _sequence(layout.sample, layout.size, layout.text_length)


def _packed_with_ids(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Packed latents (batch, height * width, channels), their places in ``img_ids``: Flux."""
    sample = argument(args, kwargs, 0, 'hidden_states')
    text = argument(args, kwargs, 1, 'encoder_hidden_states')
    places = kwargs['img_ids']
    places = places[0] if places.ndim == 3 else places
    # Images to go by stand behind the one that is drawn, with another first coordinate.
    drawn = places[places[:, 0] == places[0, 0]]
    rows, columns = (int(last) + 1 for last in drawn[-1, 1:3].tolist())
    layout = _sequence(sample, (rows, columns), text.shape[1])
    return layout._replace(length=text.shape[1] + len(places))


def _packed_with_shapes(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Packed latents, their (frames, height, width) in ``img_shapes``: Qwen-Image."""
    sample = argument(args, kwargs, 0, 'hidden_states')
    text = argument(args, kwargs, 1, 'encoder_hidden_states')
    shape = kwargs['img_shapes'][0]
    shape = shape[0] if isinstance(shape, list) else shape
    return _sequence(sample, tuple(shape[-2:]), text.shape[1])


def _lists(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """A list of (channels, frames, height, width) and one of captions: Z-Image.

    Image and caption are each filled up to a multiple of tokens; the image stands first.
    """
    sample = torch.stack(list(argument(args, kwargs, 0, 'x')))
    captions = argument(args, kwargs, 2, 'cap_feats')
    patch = kwargs.get('patch_size', 2)
    multiple = inspect.getmodule(type(denoiser)).SEQ_MULTI_OF
    size = (sample.shape[-2] // patch, sample.shape[-1] // patch)
    image = -(-size[0] * size[1] // multiple) * multiple
    text = max(-(-len(caption) // multiple) * multiple for caption in captions)
    return DenoiserInput(sample, size, text, image, 0, image + text)


# Prompts as the tokenizer gets them ------------------------------------------------------------

def _keep_prompts(call: Call, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    return list(prompts)


def _convert_textual_inversion(call: Call, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    convert = getattr(call.pipe, 'maybe_convert_prompt', None)
    return list(prompts) if convert is None else list(convert(list(prompts), tokenizer))


def _clean_like_deepfloyd(call: Call, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    clean = call.option('clean_caption')
    return list(call.pipe._text_preprocessing(list(prompts), clean_caption=clean))


def _no_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    return '', ''


def _qwen_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    before, after = call.pipe.prompt_template_encode.split('{}')
    return before, after


def _chat_frame(render: Callable[[str], str]) -> tuple[str, str]:
    """What a chat template puts before and after a message."""
    before, found, after = render(_MESSAGE).partition(_MESSAGE)
    if not found:
        raise ValueError("the tokenizer's chat template leaves the prompt out")
    return before, after


def _chat(call: Call, tokenizer: Any, **options: Any) -> tuple[str, str]:
    return _chat_frame(lambda message: tokenizer.apply_chat_template(
        [{'role': 'user', 'content': message}], tokenize=False, add_generation_prompt=True,
        **options))


def _z_image_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    return _chat(call, tokenizer, enable_thinking=True)


def _klein_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    return _chat(call, tokenizer, enable_thinking=False)


def _flux2_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    def message(role: str, text: str) -> dict:
        return {'role': role, 'content': [{'type': 'text', 'text': text}]}

    return _chat_frame(lambda text: call.pipe.tokenizer.apply_chat_template(
        [message('system', call.pipe.system_message), message('user', text)], tokenize=False,
        add_generation_prompt=False))


def _clean_like_prx(call: Call, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    cleaner = call.pipe.text_preprocessor
    clean = cleaner.basic_clean if call.option('skip_text_cleaning') else cleaner.clean_text
    return [clean(prompt) for prompt in prompts]


def _clean_lightly(call: Call, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    return [inspect.getmodule(type(call.pipe))._basic_clean(prompt) for prompt in prompts]


# Tokens that become keys -----------------------------------------------------------------------

def _length_of_tokenizer(call: Call, tokenizer: Any) -> int:
    return tokenizer.model_max_length


def _length_of_call(call: Call, tokenizer: Any) -> int:
    return call.option('max_sequence_length')


def _length_of_prx(call: Call, tokenizer: Any) -> int:
    return call.option('tokenizer_max_length') or tokenizer.model_max_length


def _length_of_prx_pixel(call: Call, tokenizer: Any) -> int:
    return call.pipe.config.prompt_max_tokens


def _instruction_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    return '\n'.join(call.option('complex_human_instruction') or ()), ''


# Tokens that never become keys -----------------------------------------------------------------

def _drop_none(call: Call, tokenizer: Any) -> int:
    return 0


def _drop_qwen_template(call: Call, tokenizer: Any) -> int:
    return call.pipe.prompt_template_encode_start_idx


def _drop_instruction(call: Call, tokenizer: Any) -> int:
    # SanaPipeline keeps the start token and the last tokens, as many as there would be without an
    # instruction.
    instruction, _ = _instruction_frame(call, tokenizer)
    return len(tokenizer.encode(instruction)) - 2 if instruction else 0


# Keys before the text --------------------------------------------------------------------------

def _start_at_zero(pipe: Any) -> int:
    return 0


def _after_unclip_image(pipe: Any) -> int:
    return pipe.text_proj.config.clip_extra_context_tokens


def _after_kandinsky_image(pipe: Any) -> int:
    return pipe.unet.encoder_hid_proj.num_image_text_embeds


def _after_clip(pipe: Any) -> int:
    return pipe.tokenizer_max_length


# Attention modules -----------------------------------------------------------------------------

def is_cross_attention(name: str, module: nn.Module) -> bool:
    """Tells whether a module attends from pixels to text alone (``attn2`` of most denoisers)."""
    return (getattr(module, 'to_q', None) is not None
            and getattr(module, 'to_k', None) is not None
            and getattr(module, 'added_kv_proj_dim', None) is None
            and bool(getattr(module, 'is_cross_attention', False)))


def is_added_key_attention(name: str, module: nn.Module) -> bool:
    """Tells whether a module attends to text keys and pixel keys in one softmax."""
    return (getattr(module, 'to_q', None) is not None
            and getattr(module, 'add_k_proj', None) is not None)


def is_kandinsky3_cross_attention(name: str, module: nn.Module) -> bool:
    """Tells whether a module of ``Kandinsky3UNet`` attends to text.

    All its attention modules call themselves cross-attention. The first of a block attends to
    pixels, the others to text; the one that pools the text into the time embedding has no pixels.
    """
    return re.search(r'\.attentions\.[1-9]\d*\.attention$', name) is not None


def is_block_attention(name: str, module: nn.Module) -> bool:
    """Tells whether a module is the attention of a transformer block: ``blocks.3.attn``."""
    return re.search(r'blocks\.\d+\.att(n|ention)$', name) is not None


def is_z_image_attention(name: str, module: nn.Module) -> bool:
    """Tells whether a module of Z-Image attends to text and image; its refiners see one of them."""
    return re.search(r'^layers\.\d+\.attention$', name) is not None


@dataclass(frozen=True)
class Encoder:
    """One text encoder whose tokens are keys, or several whose tokens share their keys.

    Args:
        tokenizers: Attributes of the pipeline that may hold the tokenizer. More than one where
            several text encoders' tokens stand side by side in the channels of one key: their
            tokenizers share one vocabulary, and a noun has a key only where all have it.
        text_encoders: The text encoder of each of ``tokenizers``.
        prompts: The argument of the pipeline's call that each of them reads; where that is left
            out, ``prompt``. A pipeline without one of ``tokenizers`` gives the others the first.
        max_length: Tokens that become keys, special ones included: a number, or
            ``(call, tokenizer) -> number``.
        start: ``pipe -> keys that stand before this encoder's first token``.
        frame: ``(call, tokenizer) -> texts`` before and after the prompt that the pipeline puts
            round it for the tokenizer.
        dropped: ``(call, tokenizer) -> tokens`` at the front that never become keys.
        padding: What becomes of padding tokens: ``'right'``: they stand behind the text;
            ``'either'``: on the tokenizer's side, up to ``max_length``; ``'removed'``: the pipeline
            takes them out before it makes keys; ``'set right'``: the pipeline itself has the
            tokenizer put them behind the text, whichever side it was made for.
        special_tokens: Whether the tokenizer adds its own special tokens to the text.
    """

    tokenizers: tuple[str, ...] = ('tokenizer', )
    text_encoders: tuple[str, ...] = ('text_encoder', )
    prompts: tuple[str, ...] = ('prompt', )
    max_length: int | Callable[[Call, Any], int] = _length_of_tokenizer
    start: Callable[[Any], int] = _start_at_zero
    frame: Callable[[Call, Any], tuple[str, str]] = _no_frame
    dropped: Callable[[Call, Any], int] = _drop_none
    padding: str = 'right'
    special_tokens: bool = True


_UNET_GROUPS = {'down_blocks': 'down', 'mid_block': 'mid', 'up_blocks': 'up'}
_TRANSFORMER_GROUPS = {'transformer_blocks': 'transformer'}


@dataclass(frozen=True)
class Family:
    """Where a family of diffusers pipelines keeps its text keys.

    Args:
        name: What to call the family in messages.
        pipelines: Names of the pipeline classes that belong to it; subclasses belong too.
        is_text_attention: ``(name, module) -> bool`` picks the modules of the denoiser that have
            text keys.
        where: Where the text keys stand, in words, for the table in the documentation.
        text_keys: How the modules get their text keys.
        denoiser: Attribute of the pipeline that holds the network called at every step.
        encoders: The text encoders whose tokens are keys.
        two_passes: Whether classifier-free guidance calls the denoiser twice a step on the same
            tensor, first with the prompt and then without; otherwise once with twice the batch.
        conditional_first: Whether the conditional half stands first in that doubled batch.
        denoiser_input: ``(denoiser, args, kwargs) -> DenoiserInput`` reads a call.
        prepare_prompts: ``(call, tokenizer, prompts) -> prompts`` as the pipeline cleans them.
        block_groups: First part of a module's name, and the group its maps are summed in.
    """

    name: str
    pipelines: tuple[str, ...]
    is_text_attention: Callable[[str, nn.Module], bool]
    where: str
    text_keys: TextKeys = TextKeys.ALONE
    denoiser: str = 'unet'
    encoders: tuple[Encoder, ...] = (Encoder(), )
    two_passes: bool = False
    conditional_first: bool = False
    denoiser_input: Callable[[nn.Module, tuple, dict], DenoiserInput] = _planes
    prepare_prompts: Callable[[Call, Any, Sequence[str]], list[str]] = _keep_prompts
    block_groups: dict[str, str] = field(default_factory=lambda: dict(_UNET_GROUPS))


FAMILIES: tuple[Family, ...] = (
    Family(
        name='Stable Diffusion 1.x, 2.x and LCM',
        pipelines=(
            'StableDiffusionPipeline', 'StableDiffusionImg2ImgPipeline',
            'StableDiffusionInpaintPipeline', 'StableDiffusionDepth2ImgPipeline',
            'StableDiffusionUpscalePipeline', 'StableDiffusionControlNetPipeline',
            'StableDiffusionControlNetImg2ImgPipeline',
            'StableDiffusionControlNetInpaintPipeline', 'StableDiffusionAdapterPipeline',
            'LatentConsistencyModelPipeline', 'LatentConsistencyModelImg2ImgPipeline'),
        is_text_attention=is_cross_attention,
        where='77 CLIP tokens',
        prepare_prompts=_convert_textual_inversion),
    Family(
        # Both tokenizers share one vocabulary; the second one pads with another token only.
        name='Stable Diffusion XL',
        pipelines=(
            'StableDiffusionXLPipeline', 'StableDiffusionXLImg2ImgPipeline',
            'StableDiffusionXLInpaintPipeline', 'StableDiffusionXLControlNetPipeline',
            'StableDiffusionXLControlNetImg2ImgPipeline',
            'StableDiffusionXLControlNetInpaintPipeline', 'StableDiffusionXLAdapterPipeline'),
        is_text_attention=is_cross_attention,
        where='77 tokens of two CLIPs, side by side in the channels',
        encoders=(Encoder(('tokenizer', 'tokenizer_2'), ('text_encoder', 'text_encoder_2'),
                          ('prompt', 'prompt_2')), ),
        prepare_prompts=_convert_textual_inversion),
    Family(
        name='latent diffusion (LDM) with BERT',
        pipelines=('LDMTextToImagePipeline', ),
        is_text_attention=is_cross_attention,
        where='77 BERT tokens',
        encoders=(Encoder(text_encoders=('bert', ), max_length=77), )),
    Family(
        name='DeepFloyd IF',
        pipelines=(
            'IFPipeline', 'IFImg2ImgPipeline', 'IFInpaintingPipeline', 'IFSuperResolutionPipeline',
            'IFImg2ImgSuperResolutionPipeline', 'IFInpaintingSuperResolutionPipeline'),
        is_text_attention=is_added_key_attention,
        where='77 T5 tokens (padding not masked), then the pixels',
        text_keys=TextKeys.ADDED,
        encoders=(Encoder(max_length=77), ),
        prepare_prompts=_clean_like_deepfloyd),
    Family(
        name='UnCLIP (the DALL-E 2 type)',
        pipelines=('UnCLIPPipeline', ),
        is_text_attention=is_added_key_attention,
        where='4 tokens of the image embedding, 77 CLIP tokens (padding masked), then the pixels',
        text_keys=TextKeys.ADDED,
        denoiser='decoder',
        encoders=(Encoder(start=_after_unclip_image), )),
    Family(
        name='Kandinsky 2.1',
        pipelines=('KandinskyPipeline', 'KandinskyImg2ImgPipeline', 'KandinskyInpaintPipeline',
                   'KandinskyCombinedPipeline', 'KandinskyImg2ImgCombinedPipeline',
                   'KandinskyInpaintCombinedPipeline'),
        is_text_attention=is_added_key_attention,
        where='10 tokens of the image embedding, 77 XLM-R tokens (padding not masked), then the '
              'pixels',
        text_keys=TextKeys.ADDED,
        encoders=(Encoder(max_length=77, start=_after_kandinsky_image), )),
    Family(
        name='Kandinsky 3',
        pipelines=('Kandinsky3Pipeline', 'Kandinsky3Img2ImgPipeline'),
        is_text_attention=is_kandinsky3_cross_attention,
        where='up to 128 T5 tokens, cut to the longest prompt (padding masked)',
        encoders=(Encoder(max_length=128), )),
    Family(
        name='PixArt-alpha and PixArt-sigma',
        pipelines=('PixArtAlphaPipeline', 'PixArtSigmaPipeline'),
        is_text_attention=is_cross_attention,
        where='120 (alpha) or 300 (sigma) T5 tokens (padding masked)',
        denoiser='transformer',
        encoders=(Encoder(max_length=_length_of_call), ),
        prepare_prompts=_clean_like_deepfloyd,
        block_groups=_TRANSFORMER_GROUPS),
    Family(
        name='Sana',
        pipelines=('SanaPipeline', 'SanaSprintPipeline', 'SanaControlNetPipeline'),
        is_text_attention=is_cross_attention,
        where='the start token and the last 299 Gemma tokens, which leaves out the instruction '
              'before the prompt (padding masked)',
        denoiser='transformer',
        encoders=(Encoder(max_length=_length_of_call, frame=_instruction_frame,
                          dropped=_drop_instruction, padding='set right'), ),
        prepare_prompts=_clean_like_deepfloyd,
        block_groups=_TRANSFORMER_GROUPS),
    Family(
        name='Stable Diffusion 3 and 3.5',
        pipelines=('StableDiffusion3Pipeline', 'StableDiffusion3Img2ImgPipeline',
                   'StableDiffusion3InpaintPipeline', 'StableDiffusion3ControlNetPipeline',
                   'StableDiffusion3ControlNetInpaintingPipeline'),
        is_text_attention=is_block_attention,
        where='the image, then 77 tokens of two CLIPs side by side in the channels, then 256 T5 '
              'tokens (padding not masked)',
        text_keys=TextKeys.SEQUENCE,
        denoiser='transformer',
        encoders=(
            Encoder(('tokenizer', 'tokenizer_2'), ('text_encoder', 'text_encoder_2'),
                    ('prompt', 'prompt_2')),
            Encoder(('tokenizer_3', ), ('text_encoder_3', ), ('prompt_3', ),
                    max_length=_length_of_call, start=_after_clip)),
        denoiser_input=_planes_and_text,
        block_groups=_TRANSFORMER_GROUPS),
    Family(
        name='Flux.1',
        pipelines=('FluxPipeline', 'FluxImg2ImgPipeline', 'FluxInpaintPipeline',
                   'FluxControlNetPipeline', 'FluxControlPipeline', 'FluxFillPipeline'),
        is_text_attention=is_block_attention,
        where='512 T5 tokens (padding not masked), then the image; CLIP gives no keys',
        text_keys=TextKeys.SEQUENCE,
        denoiser='transformer',
        encoders=(Encoder(('tokenizer_2', ), ('text_encoder_2', ), ('prompt_2', ),
                          max_length=_length_of_call), ),
        two_passes=True,
        denoiser_input=_packed_with_ids,
        prepare_prompts=_convert_textual_inversion,
        block_groups={'transformer_blocks': 'double', 'single_transformer_blocks': 'single'}),
    Family(
        name='Qwen-Image',
        pipelines=('QwenImagePipeline', 'QwenImageImg2ImgPipeline', 'QwenImageInpaintPipeline'),
        is_text_attention=is_block_attention,
        where='up to 512 Qwen tokens after the template\'s first 34, then the image',
        text_keys=TextKeys.SEQUENCE,
        denoiser='transformer',
        encoders=(Encoder(max_length=_length_of_call, frame=_qwen_frame,
                          dropped=_drop_qwen_template, padding='removed'), ),
        two_passes=True,
        denoiser_input=_packed_with_shapes,
        block_groups=_TRANSFORMER_GROUPS),
    Family(
        name='Flux.2',
        pipelines=('Flux2Pipeline', ),
        is_text_attention=is_block_attention,
        where='512 Mistral tokens with the chat template\'s (padding not masked), then the image',
        text_keys=TextKeys.SEQUENCE,
        denoiser='transformer',
        encoders=(Encoder(max_length=_length_of_call, frame=_flux2_frame, padding='either',
                          special_tokens=False), ),
        denoiser_input=_packed_with_ids,
        block_groups={'transformer_blocks': 'double', 'single_transformer_blocks': 'single'}),
    Family(
        name='Flux.2 Klein',
        pipelines=('Flux2KleinPipeline', ),
        is_text_attention=is_block_attention,
        where='512 Qwen tokens with the chat template\'s (padding not masked), then the image',
        text_keys=TextKeys.SEQUENCE,
        denoiser='transformer',
        encoders=(Encoder(max_length=_length_of_call, frame=_klein_frame, padding='either'), ),
        two_passes=True,
        denoiser_input=_packed_with_ids,
        block_groups={'transformer_blocks': 'double', 'single_transformer_blocks': 'single'}),
    Family(
        name='Z-Image',
        pipelines=('ZImagePipeline', 'ZImageImg2ImgPipeline', 'ZImageInpaintPipeline'),
        is_text_attention=is_z_image_attention,
        where='the image, then up to 512 Qwen tokens with the chat template\'s, both filled up to '
              'a multiple of 32',
        text_keys=TextKeys.SEQUENCE,
        denoiser='transformer',
        encoders=(Encoder(max_length=_length_of_call, frame=_z_image_frame, padding='removed'), ),
        conditional_first=True,
        denoiser_input=_lists,
        block_groups={'layers': 'transformer'}),
    Family(
        name='PRX',
        pipelines=('PRXPipeline', ),
        is_text_attention=is_block_attention,
        where='256 Gemma tokens (padding masked), then the image',
        text_keys=TextKeys.SEQUENCE,
        denoiser='transformer',
        encoders=(Encoder(max_length=_length_of_prx, padding='either'), ),
        denoiser_input=_planes_and_text_before,
        prepare_prompts=_clean_like_prx,
        block_groups={'blocks': 'transformer'}),
    Family(
        name='PRX in pixels',
        pipelines=('PRXPixelPipeline', ),
        is_text_attention=is_block_attention,
        where='256 Qwen tokens (padding masked), then the image',
        text_keys=TextKeys.SEQUENCE,
        denoiser='transformer',
        encoders=(Encoder(max_length=_length_of_prx_pixel, padding='either'), ),
        denoiser_input=_planes_and_text_before,
        prepare_prompts=_clean_lightly,
        block_groups={'blocks': 'transformer'}),
)

#: Pipelines that draw from text although the network that draws has no text keys, and why.
TEXTLESS: dict[str, str] = dict.fromkeys(
    ('KandinskyV22Pipeline', 'KandinskyV22CombinedPipeline', 'KandinskyV22Img2ImgPipeline',
     'KandinskyV22Img2ImgCombinedPipeline', 'KandinskyV22InpaintPipeline',
     'KandinskyV22InpaintCombinedPipeline'),
    'the decoder of Kandinsky 2.2 sees an image embedding and no text')


def known_pipelines() -> str:
    """The families and their pipeline classes in one line, for messages."""
    return '; '.join(f'{family.name}: {", ".join(family.pipelines)}' for family in FAMILIES)


def find_family(pipe: Any) -> Family:
    """Finds the row of :data:`FAMILIES` a pipeline belongs to.

    Args:
        pipe: A diffusers pipeline.

    Returns:
        The family whose class, or a base class of whose, ``pipe`` is.

    Raises:
        ValueError: If no row names the pipeline's class or one of its base classes, if it is one
            of perturbed-attention guidance, or if its drawing network has no text keys.
    """
    names = [base.__name__ for base in type(pipe).__mro__]
    if 'PAGMixin' in names:
        raise ValueError(
            f'{type(pipe).__name__} draws each prompt once more with perturbed attention, which '
            'must not be recorded: use the pipeline without PAG')
    for name in names:
        if name in TEXTLESS:
            raise ValueError(
                f'{type(pipe).__name__} gives no masks of nouns: {TEXTLESS[name]}. Draw images '
                'without masks, or use Kandinsky 2.1 or 3')
        for family in FAMILIES:
            if name in family.pipelines:
                return family
    raise ValueError(
        f'{type(pipe).__name__} is not a pipeline whose text attention is known. Known are: '
        f'{known_pipelines()}. To add one, add a row to FAMILIES in '
        'freeatm_mm/attention/families.py; to do without masks, draw images only.')

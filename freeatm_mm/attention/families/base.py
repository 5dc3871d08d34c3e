"""What a row of the table of families can say, and the ways of reading that several rows share."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from freeatm_mm.attention.families.latents import Latents

__all__ = [
    'TRANSFORMER_GROUPS',
    'UNET_GROUPS',
    'Call',
    'CallNames',
    'DenoiserInput',
    'Encoder',
    'Family',
    'Place',
    'TextKeys',
    'argument',
    'call_parameters',
    'chat',
    'chat_frame',
    'clean_like_deepfloyd',
    'convert_textual_inversion',
    'drop_none',
    'drop_template',
    'head_count',
    'is_added_key_attention',
    'is_block_attention',
    'is_cross_attention',
    'keep_prompts',
    'length_of_call',
    'length_of_tokenizer',
    'no_frame',
    'packed_with_ids',
    'pipeline_template',
    'planes',
    'planes_and_text',
    'planes_behind_text',
    'sequence',
    'start_at_zero',
    'tokens',
]


class TextKeys(enum.Enum):
    """How an attention module gets its text keys."""

    #: ``to_k`` projects the text alone: the softmax is over text keys.
    ALONE = 'cross-attention'
    #: ``add_k_proj`` projects the text, ``to_k`` the pixels: one softmax, text keys first.
    ADDED = 'text and pixels, one softmax'
    #: ``to_k`` projects pixels and, behind them, text: one softmax.
    BEHIND = 'pixels, then text, one softmax'
    #: Text and image are one sequence that attends to itself, with norms and rotary embeddings
    #: between projection and softmax: recorded as they reach ``scaled_dot_product_attention``.
    SEQUENCE = 'one sequence of text and image'


class Place(NamedTuple):
    """Where text and image stand in the sequence of one row of a batch.

    Args:
        text_start: Place of the first text token.
        text_length: Number of text tokens.
        image_start: Place of the first image token.
    """

    text_start: int
    text_length: int
    image_start: int


class DenoiserInput(NamedTuple):
    """What one call of a denoiser is about.

    Args:
        sample: The noisy images, one row for each image of the batch.
        size: Height and width of the largest feature map, in pixels of it or in tokens.
        text_length: Text tokens in a sequence of text and image; 0 where they stand apart.
        text_start: Place of the first text token in that sequence.
        image_start: Place of the first image token.
        length: Tokens of the whole sequence, that of the longest row.
        places: For each row of the batch, where they stand, if that differs between rows; the
            three numbers above then say nothing.
    """

    sample: Tensor
    size: tuple[int, int]
    text_length: int = 0
    text_start: int = 0
    image_start: int = 0
    length: int = 0
    places: tuple[Place, ...] = ()


def sequence(
    sample: Tensor, size: tuple[int, int], text: int, *, text_first: bool = True
) -> DenoiserInput:
    """The layout of text and image side by side, with nothing between or after them."""
    image = size[0] * size[1]
    return DenoiserInput(
        sample, size, text, 0 if text_first else image, text if text_first else 0, text + image
    )


def call_parameters(pipeline: type[Any]) -> dict[str, inspect.Parameter]:
    """Find the arguments that a pipeline class is called with.

    Args:
        pipeline: The class. Where its call hands further arguments on (`**kwargs`), they are those
            of the class that it is derived from.

    Returns:
        Each argument by its name.
    """
    found: dict[str, inspect.Parameter] = {}
    for base in pipeline.__mro__:
        if '__call__' not in vars(base):
            continue
        own = inspect.signature(vars(base)['__call__']).parameters
        found = {**own, **found}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in own.values()):
            break
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: found[name] for name in found if found[name].kind not in variable}


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
        self._parameters = call_parameters(type(pipe))
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


def planes(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """``sample`` (or ``hidden_states``) of shape (batch, channels, height, width)."""
    sample = argument(args, kwargs, 0, 'sample')
    if sample is None:
        sample = kwargs['hidden_states']
    return DenoiserInput(sample, tuple(sample.shape[-2:]))


def tokens(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Tokens of a codebook, ``input_ids`` of shape (batch, height, width): aMUSEd."""
    sample = argument(args, kwargs, 0, 'input_ids')
    return DenoiserInput(sample, tuple(sample.shape[-2:]))


def planes_and_text(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Planes that become one sequence with the text: SD3."""
    sample, size = planes(denoiser, args, kwargs)[:2]
    text = argument(args, kwargs, 1, 'encoder_hidden_states')
    config: Any = denoiser.config
    patch = config.patch_size
    return sequence(sample, (size[0] // patch, size[1] // patch), text.shape[1], text_first=False)


def planes_behind_text(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Planes that become one sequence behind the text: PRX, CogView."""
    layout = planes_and_text(denoiser, args, kwargs)
    return sequence(layout.sample, layout.size, layout.text_length)


def packed_with_ids(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Packed latents (batch, height * width, channels), places in ``img_ids``: Flux and its kin."""
    sample = argument(args, kwargs, 0, 'hidden_states')
    text = argument(args, kwargs, 1, 'encoder_hidden_states')
    places = kwargs['img_ids']
    places = places[0] if places.ndim == 3 else places
    # Images to go by stand behind the one that is generated, with another first coordinate.
    own = places[places[:, 0] == places[0, 0], 1:3]
    rows, columns = (int(side) + 1 for side in (own[-1] - own[0]).tolist())
    layout = sequence(sample, (rows, columns), text.shape[1])
    return layout._replace(length=text.shape[1] + len(places))


def keep_prompts(call: Call, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """The prompts as they are."""
    return list(prompts)


def convert_textual_inversion(call: Call, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Prompts with the placeholders of textual inversion spelt out, a word a vector."""
    convert = getattr(call.pipe, 'maybe_convert_prompt', None)
    return list(prompts) if convert is None else list(convert(list(prompts), tokenizer))


def clean_like_deepfloyd(call: Call, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Prompts as DeepFloyd's cleaning leaves them."""
    clean = call.option('clean_caption')
    return list(call.pipe._text_preprocessing(list(prompts), clean_caption=clean))


def no_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    """Nothing around a prompt."""
    return '', ''


def pipeline_template(call: Call, tokenizer: Any) -> tuple[str, str]:
    """What the pipeline's own template puts before and behind a prompt."""
    before, after = call.pipe.prompt_template_encode.split('{}')
    return before, after


_MESSAGE = '\ue000'


def chat_frame(render: Callable[[str], str]) -> tuple[str, str]:
    """What a chat template puts before and after a message."""
    before, found, after = render(_MESSAGE).partition(_MESSAGE)
    if not found:
        raise ValueError("the tokenizer's chat template leaves the prompt out")
    return before, after


def chat(call: Call, tokenizer: Any, **options: Any) -> tuple[str, str]:
    """What a chat template puts before and behind a prompt."""
    return chat_frame(
        lambda message: tokenizer.apply_chat_template(
            [{'role': 'user', 'content': message}],
            tokenize=False,
            add_generation_prompt=True,
            **options,
        )
    )


def length_of_tokenizer(call: Call, tokenizer: Any) -> int:
    """The tokenizer's own maximum of tokens."""
    return tokenizer.model_max_length


def length_of_call(call: Call, tokenizer: Any) -> int:
    """The maximum of tokens that the call asks for."""
    return call.option('max_sequence_length')


def drop_none(call: Call, tokenizer: Any) -> int:
    """No token is dropped."""
    return 0


def drop_template(call: Call, tokenizer: Any) -> int:
    """Tokens at the template's beginning that the pipeline drops."""
    return call.pipe.prompt_template_encode_start_idx


def start_at_zero(call: Call) -> int:
    """Text tokens come first."""
    return 0


def head_count(module: Any) -> int:
    """How many heads an attention module has, by either of the names that diffusers has for it."""
    return int(getattr(module, 'heads', None) or module.num_heads)


def is_cross_attention(name: str, module: nn.Module) -> bool:
    """Tell whether a module attends from pixels to text alone (``attn2`` of most denoisers)."""
    return (
        getattr(module, 'to_q', None) is not None
        and getattr(module, 'to_k', None) is not None
        and getattr(module, 'added_kv_proj_dim', None) is None
        and bool(getattr(module, 'is_cross_attention', False))
    )


def is_added_key_attention(name: str, module: nn.Module) -> bool:
    """Tell whether a module attends to text keys and pixel keys in one softmax."""
    return (
        getattr(module, 'to_q', None) is not None
        and getattr(module, 'add_k_proj', None) is not None
    )


def is_block_attention(name: str, module: nn.Module) -> bool:
    """Tell whether a module is the attention of a transformer block: ``blocks.3.attn``."""
    return re.search(r'blocks\.\d+\.att(n|ention)$', name) is not None


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
        start: ``call -> keys that stand before this encoder's first token``.
        frame: ``(call, tokenizer) -> texts`` before and after the prompt that the pipeline puts
            round it for the tokenizer.
        dropped: ``(call, tokenizer) -> tokens`` at the front that never become keys.
        padding: What becomes of padding tokens: ``'right'``: they stand behind the text;
            ``'either'``: on the tokenizer's side, up to ``max_length``; ``'removed'``: the pipeline
            takes them out before it makes keys; ``'set right'``: the pipeline itself has the
            tokenizer put them behind the text, whichever side it was made for; ``'before'``: the
            pipeline itself puts what is missing in front, up to ``multiple`` or ``max_length``.
        padding_token: What pads, where that isn't the tokenizer's own padding token.
        multiple: The prompts are padded to the longest of them, rounded up to a multiple of this;
            0: to ``max_length``.
        image_token: The token that stands for an image in what is put before the prompt; the text
            encoder gets one for each piece of the image.
        special_tokens: Whether the tokenizer adds its own special tokens to the text.
        outside: ``(call, tokenizer) -> texts`` that the encoder reads before and after the padded
            prompt, tokenized by themselves; those before it become no keys.
        parts: ``(call, text) -> parts`` of a text that are tokenized one by one, where the whole
            isn't.
        reads: Name of the module inside the text encoder that gets the tokens, where the pipeline
            doesn't call the encoder itself.
    """

    tokenizers: tuple[str, ...] = ('tokenizer',)
    text_encoders: tuple[str, ...] = ('text_encoder',)
    prompts: tuple[str, ...] = ('prompt',)
    max_length: int | Callable[[Call, Any], int] = length_of_tokenizer
    start: Callable[[Call], int] = start_at_zero
    frame: Callable[[Call, Any], tuple[str, str]] = no_frame
    dropped: Callable[[Call, Any], int] = drop_none
    padding: str = 'right'
    multiple: int = 0
    padding_token: int | None = None
    image_token: str = ''
    special_tokens: bool = True
    outside: Callable[[Call, Any], tuple[str, str]] = no_frame
    parts: Callable[[Call, str], list[str]] | None = None
    reads: str = ''


@dataclass(frozen=True)
class CallNames:
    """What the pipelines of a family call the things that all can be told.

    Args:
        steps: The argument of the call with the number of denoising steps; of several the first
            that the call has.
        guidance: The argument with the guidance scale, in the same way.
        negative_prompt: What to give as negative prompt where guidance is off without one; `None`:
            it needs none.
        scheduler: The attribute with the scheduler of the network that generates.
        inner: The attribute with an inner pipeline that has a scheduler of its own, where there is
            one.
        guiders: The attributes with components that hold the guidance scale in place of the call,
            where there are any.
        unguided: The guidance scale at which the network is called for the prompt alone.
        always: Arguments that every call of theirs is given.
        one_generator: Whether a call takes one generator for all its images, so that an image has
            noise of its own only if it is generated alone.
    """

    steps: tuple[str, ...] = ('num_inference_steps',)
    guidance: tuple[str, ...] = ('guidance_scale', 'decoder_guidance_scale')
    negative_prompt: str | None = None
    scheduler: str = 'scheduler'
    inner: str = 'decoder_pipe'
    guiders: tuple[str, ...] = ()
    unguided: float = 1.0
    always: Mapping[str, Any] = field(default_factory=dict)
    one_generator: bool = False


UNET_GROUPS = {'down_blocks': 'down', 'mid_block': 'mid', 'up_blocks': 'up'}


TRANSFORMER_GROUPS = {'transformer_blocks': 'transformer'}


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
        watched: Whether queries and keys of cross-attention are taken as they reach
            ``scaled_dot_product_attention``, since the model rotates them after projecting them,
            or projects them by modules of other names.
        denoiser: Attribute of the pipeline that holds the network called at every step.
        encoders: The text encoders whose tokens are keys.
        two_passes: Whether classifier-free guidance calls the denoiser twice a step on the same
            tensor, first with the prompt and then without; otherwise once with a larger batch.
        guidance_parts: How many times the images stand in that batch.
        further_parts: Whether they may stand there more often, behind these, to be led towards or
            away from other texts.
        repeated_levels: Whether a step may call the denoiser again for the same timestep, to
            compare with: only the first call generates the prompt.
        conditional_first: Whether the part with the prompt stands first in that batch.
        images_in_turn: Whether several images of each prompt come prompt after prompt (a, b, a, b)
            rather than side by side (a, a, b, b).
        denoiser_input: ``(denoiser, args, kwargs) -> DenoiserInput`` reads a call.
        texts: The arguments of that call with embeddings whose tokens are nouns' keys, and along
            which dimension each has the rows of the batch. A list of tensors has its length as
            dimension 0.
        prepare_prompts: ``(call, tokenizer, prompts) -> prompts`` as the pipeline cleans them.
        block_groups: First part of a module's name, and the group its maps are summed in.
        call_names: What its pipelines call the number of steps, the guidance scale and so on.
        latents: How its pipelines take an image that exists, or why they can't be shown one.
    """

    name: str
    pipelines: tuple[str, ...]
    is_text_attention: Callable[[str, nn.Module], bool]
    where: str
    text_keys: TextKeys = TextKeys.ALONE
    watched: bool = False
    denoiser: str = 'unet'
    encoders: tuple[Encoder, ...] = (Encoder(),)
    two_passes: bool = False
    guidance_parts: int = 2
    further_parts: bool = False
    repeated_levels: bool = False
    conditional_first: bool = False
    images_in_turn: bool = False
    denoiser_input: Callable[[nn.Module, tuple, dict], DenoiserInput] = planes
    texts: Mapping[str, int] = field(default_factory=lambda: {'encoder_hidden_states': 0})
    prepare_prompts: Callable[[Call, Any, Sequence[str]], list[str]] = keep_prompts
    block_groups: dict[str, str] = field(default_factory=lambda: dict(UNET_GROUPS))
    call_names: CallNames = CallNames()
    latents: Latents | str = Latents()

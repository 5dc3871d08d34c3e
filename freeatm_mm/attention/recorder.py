"""Record where each image attends to the nouns of its prompt while a pipeline generates it.

Equation 1 of the paper, ``A = softmax(QK^T / sqrt(d))``, for the columns of the nouns only,
averaged over heads, layers and steps. The queries and keys are those that the model projects for
itself: forward hooks see them pass, the attention processors stay as they are, and the images are
bit for bit those without a recorder.

Shape suffixes: B images, N queries (pixels of a feature map), K keys, H heads, C channels of a
head, T noun tokens; h and w are the sides of a feature map.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from freeatm_mm.attention import refine
from freeatm_mm.attention.caches import uses_step_cache
from freeatm_mm.attention.compiled import Region, compiled_regions
from freeatm_mm.attention.embeddings import EmbeddingWatch, differ
from freeatm_mm.attention.families import Call, TextKeys, argument, find_family, head_count
from freeatm_mm.attention.guidance import is_perturbing, prompt_part
from freeatm_mm.attention.nouns import MERGE_RULES, merge_tokens
from freeatm_mm.attention.outputs import add_output_products, output_projection
from freeatm_mm.attention.parts import (
    MAX_SIDE,
    Heads,
    Part,
    Size,
    block_names,
    check_heads,
    check_steps,
    choose_parts,
    heads_of,
    named_parts,
    separate_names,
    sizes,
    whole_number,
)
from freeatm_mm.attention.recording import Recording, generated_images
from freeatm_mm.attention.sequence import AttentionCall, watched_backends
from freeatm_mm.attention.shown import ShownTap, make_shown_self_tap, make_shown_tap
from freeatm_mm.attention.softmax import add_affinity, noun_attention
from freeatm_mm.attention.taps import (
    SelfTap,
    SequenceTap,
    Sink,
    Tap,
    WatchedTap,
    make_self_tap,
    make_tap,
    own_hook,
    self_attention_modules,
    text_attention_modules,
)
from freeatm_mm.attention.text import TextColumns, find_columns
from freeatm_mm.attention.words import (
    AUTO,
    noun_name,
    span_of,
    spans_of_prompts,
    word_spans,
)
from freeatm_mm.errors import counted
from freeatm_mm.ops.masks import minmax, resize

__all__ = ['AttentionRecorder', 'NothingRecorded']

MAPS = ('attention', 'output')
"""What maps may be made of."""
HEAD_WEIGHTS = (None, 'contribution')
"""What a layer's heads may count."""
RESCALE = (None, 'words')
"""What maps may be divided by."""
MAX_IMAGES = 2**16
"""Generated at once."""
MAX_PROMPT = 10_000
"""Characters; text encoders keep 77 to some hundred tokens, and following a noun through cleaning
takes time that grows with the square."""
_LEAST = 1e-12  # of the sum over words that maps are divided by
MAX_TEXT_KEYS = 2**20
"""More tokens than any text encoder keeps."""


class NothingRecorded(RuntimeError):
    """No attention was recorded, or none of the steps, blocks and resolutions asked for."""


class AttentionRecorder:
    """Records one soft mask for each noun of each image that a pipeline generates.

    It can call the pipeline itself::

        recorder = AttentionRecorder(pipe)
        result = recorder.generate('a dog with a ball', ['dog', 'ball'], num_inference_steps=50)
        result.images, result.masks

    Or use it as a context manager round calls of the pipeline, or of its text encoder and denoiser
    (`pipe.unet(...)`), with the same batch of prompts::

        with AttentionRecorder(pipe, prompts, nouns) as recorder:
            images = pipe(prompts).images
        masks = recorder.masks()

    Only running float32 sums of the noun columns are kept, one for each block group and
    resolution, so memory does not grow with the number of steps. Under classifier-free guidance
    the conditional half of the batch is recorded. Several calls inside one ``with`` are averaged.

    Args:
        pipe: A diffusers pipeline of a class listed in
            `freeatm_mm.attention.families.FAMILIES`.
        prompts: The prompts as given to the pipeline, in the same order, or one prompt; for use as
            a context manager only, as are `nouns`, `columns`, `num_images_per_prompt`,
            `clean_caption`, `call_options` and `check_prompts`: `generate` is told the rest
            with the call.
        nouns: The nouns of the prompt, or of several prompts a list of nouns each. A noun is a
            word or several as the prompt writes them (`'dog'`); where they stand more than once,
            with the number of the occurrence from 1 (`('dog', 2)`); the characters `(start, end)`;
            or an object with `start` and `end`. `'auto'`, for all prompts or for one: nouns that
            name something one can see, found by textblob. A prompt may have none.
        columns: For embeddings made elsewhere (``prompt_embeds``): for each noun of the prompt, or
            of several prompts a list of these each, the places of its tokens among all text keys,
            counted from 0. Taken as they are: neither prompts nor nouns are looked at.
        num_images_per_prompt: As given to the pipeline.
        probability: ``'joint'`` (default): the model's own probabilities. ``'text'``:
            renormalised over the text keys; differs only where the keys of text and image share
            one softmax (DeepFloyd IF, and transformers such as Stable Diffusion 3 and Flux).
        merge: How the maps of a noun's tokens become one: ``'mean'``, ``'sum'``, ``'max'`` or
            ``'last'``; see `freeatm_mm.attention.nouns.merge_tokens`.
        truncated: What to do about a noun that the tokenizer cuts off: ``'raise'``, or ``'skip'``
            to give it a zero map and list it in `truncated`.
        clean_caption: As given to the pipeline, where it takes that (DeepFloyd IF, PixArt, Sana);
            ``None``: the pipeline's default.
        call_options: Other arguments given to the pipeline that decide which tokens become keys:
            ``prompt_2`` and ``prompt_3``, what the other text encoders read in place of
            ``prompts``; ``max_sequence_length``; ``complex_human_instruction`` for Sana. Those left
            out have the pipeline's defaults.
        text_encoders: Which text encoders' keys to record where there are several (Stable
            Diffusion 3), by their attributes of the pipeline: ``['text_encoder_3']`` is T5 alone.
            ``None``: all; a noun's map is then the mean of its maps from each that read the noun.
            Where two share their keys (two CLIPs), a noun must stand at the same place of both
            texts, unless one of the two is chosen here.
        blocks: Parts of the network to record: ``'all'``, ``'down'``, ``'mid'``, ``'up'``, the
            name of a module of the denoiser (``'up_blocks.1'``), or several of these.
        resolutions: Feature map sizes to record: an integer is the shorter side, a pair is
            (height, width). ``None``: all.
        steps: Which calls of the denoiser to record, counted from 0, for example
            ``range(10, 50, 2)``. ``None``: all.
        heads: Which heads to record: numbers, the same for all layers, or a mapping from layers
            or blocks to numbers (``{'up_blocks.1': [0, 3]}``; others are left out). ``None``: all.
        separate: What to keep apart, so that `masks` can choose among it afterwards:
            ``'layers'``, ``'steps'``, ``'heads'``, or several. Costs a sum for each.
        self_attention: Record also how pixels attend to pixels, for ``masks(propagate=...)``, at
            the largest feature map whose shorter side is at most this; 32 is a good choice. Costs
            one float32 matrix (pixels, pixels) an image: 4 MiB at 32x32. ``None``: don't.
        maps: ``'attention'``: the paper's, of attention probabilities. ``'output'``, for models in
            which text and image attend to each other as one sequence: of the outputs of the same
            attention calls. Each word's output is multiplied with each pixel's (scalar product,
            divided by the square root of the channels, mean over layers and steps), and the words
            of the prompt compete by a softmax at each pixel, as in ConceptAttention (2025). Costs a
            map for each word, and needs two words at least.
        head_weights: ``None``: the heads of a layer count the same. ``'contribution'``: at each
            pixel a head counts what it contributes to the layer's output there, which needs no
            labels (`freeatm_mm.attention.outputs.head_weights`).
        rescale: ``None``: as they are. ``'words'``: each pixel's maps divided by their sum over
            the words of the prompt, so that words compete for pixels and special tokens don't.
            Costs a map for each word.
        check_prompts: Whether to stop if a text encoder reads anything else than the recorder was
            told, or nothing at all: embeddings made outside the ``with`` can't be checked. With
            ``False`` they are taken to be what the pipeline itself makes of ``prompts``.

    Attributes:
        layers: The layers recorded, by their names in the denoiser, with their number of heads;
            known from the first ``with`` on.
        prompts: The prompts.
        names: For each prompt the names of its nouns, as the prompt writes them.
        truncated: Pairs (prompt index, noun index) of nouns that the tokenizer cut off.
        left_out: Triples (prompt index, noun index, reason) of nouns whose maps leave out one of
            several text encoders, because it cut the noun off or read a text without it.
        flat: Pairs (image index, noun index) whose map was flat in the last `masks` call
            with ``normalize='minmax'``, and so came back as zeros.
        num_steps: Calls of the denoiser so far whose attention was recorded.
        layer_steps: For each layer, in how many of these it was computed and so recorded; fewer
            under a step cache.

    Raises:
        ValueError: If the pipeline's class is unknown, an option is, ``prompts`` and ``nouns``
            differ in length, a word stands nowhere in its prompt or more than once, or a span lies
            outside its prompt.
        TypeError: If a noun is none of these.
        ImportError: If nouns are to be found and textblob is not installed.
        NounTruncatedError: If a noun is cut off and ``truncated`` is ``'raise'``.
        NounAlignmentError: If a noun can't be found among the tokens, or shares its keys with
            another word of another prompt (``prompt_2``).
    """

    def __init__(
        self,
        pipe: Any,
        prompts: str | Sequence[str] | None = None,
        nouns: Any = AUTO,
        *,
        columns: Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]] | None = None,
        num_images_per_prompt: int = 1,
        probability: str = 'joint',
        merge: str = 'mean',
        truncated: str = 'raise',
        clean_caption: bool | None = None,
        call_options: Mapping[str, Any] | None = None,
        text_encoders: Iterable[str] | None = None,
        blocks: str | Iterable[str] = 'all',
        resolutions: Iterable[int | Size] | None = None,
        steps: Container[int] | None = None,
        heads: Heads | None = None,
        separate: str | Iterable[str] = (),
        self_attention: int | None = None,
        maps: str = 'attention',
        head_weights: str | None = None,
        rescale: str | None = None,
        check_prompts: bool = True,
    ) -> None:
        if probability not in ('joint', 'text'):
            raise ValueError(f"probability must be 'joint' or 'text', got {probability!r}")
        if merge not in MERGE_RULES:
            raise ValueError(f'merge must be one of {MERGE_RULES}, got {merge!r}')
        if head_weights not in HEAD_WEIGHTS:
            raise ValueError(f'head_weights must be one of {HEAD_WEIGHTS}, got {head_weights!r}')
        if rescale not in RESCALE:
            raise ValueError(f'rescale must be one of {RESCALE}, got {rescale!r}')
        if maps not in MAPS:
            raise ValueError(f'maps must be one of {MAPS}, got {maps!r}')
        if maps == 'output' and (head_weights or rescale or probability != 'joint'):
            raise ValueError(
                "maps='output' are made of no probabilities: leave head_weights, rescale and "
                'probability out'
            )
        self._maps = maps
        self._head_weights = head_weights
        self._rescale = rescale
        self._pipe = pipe
        self._family = find_family(pipe)
        if maps == 'output' and self._family.text_keys is not TextKeys.SEQUENCE:
            raise ValueError(
                f"maps='output' needs text that attends to the image, and that of the family "
                f'{self._family.name} does not; record attention'
            )
        self._probability = probability
        self._merge = merge
        self._denoiser = self._denoising_network()
        self._blocks = self._block_names(blocks)
        self._resolutions = sizes(resolutions)
        check_steps(steps)
        self._steps = steps
        # An iterator would be used up at the first layer.
        heads = list(heads) if isinstance(heads, Iterator) else heads
        if heads is not None:
            check_heads(
                heads,
                {
                    name: head_count(module)
                    for name, module, _ in text_attention_modules(
                        self._denoiser, self._family, self._blocks
                    )
                },
            )
        self._heads = heads
        if head_weights is not None:
            for name, module, _ in text_attention_modules(
                self._denoiser, self._family, self._blocks
            ):
                output_projection(module, name)
        self._separate = separate_names(separate)
        if self_attention is not None:
            whole_number(self_attention, 'self_attention', 1, MAX_SIDE)
        self._self_attention = self_attention
        self.layers: dict[str, int] = {}
        self._text_encoders = text_encoders if text_encoders is None else [*_names(text_encoders)]
        if truncated not in ('raise', 'skip'):
            raise ValueError(f"truncated must be 'raise' or 'skip', got {truncated!r}")
        self._truncated = truncated
        self.prompts: list[str] = []
        self.names: list[list[str]] = []
        self.truncated: list[tuple[int, int]] = []
        self.left_out: list[tuple[int, int, str]] = []
        self.flat: list[tuple[int, int]] = []
        call = Call(pipe, {} if call_options is None else call_options)
        if clean_caption is not None:
            call = call.replace('clean_caption', clean_caption)
        if prompts is not None:
            self._tell(prompts, nouns, call, num_images_per_prompt, columns, check_prompts)
        elif columns is not None or call.names or num_images_per_prompt != 1 or nouns != AUTO:
            raise TypeError(
                'prompts are missing: give them with their nouns, or give both, and how the '
                'pipeline is to be called, to generate()'
            )
        self._hooks: ExitStack | None = None
        self._regions: list[Region] = []
        self._reset()

    def _tell(
        self,
        prompts: str | Sequence[str],
        nouns: Any,
        call: Call,
        images_per_prompt: int,
        columns: Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]] | None = None,
        check_prompts: bool = True,
    ) -> None:
        """Find the nouns of some prompts among the text keys of a call."""
        one_prompt = isinstance(prompts, str)
        if not isinstance(prompts, Iterable):
            raise TypeError(f'prompts must be a text or a list of texts, got {prompts!r}')
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        _check_prompts(prompts)
        whole_number(images_per_prompt, 'num_images_per_prompt', 1, MAX_IMAGES)
        whole_number(len(prompts) * images_per_prompt, 'the number of images', 1, MAX_IMAGES)
        _check_call(call, prompts, images_per_prompt)
        if columns is None:
            nouns = spans_of_prompts(prompts, nouns, one_prompt)
            found = find_columns(
                call,
                self._family,
                prompts,
                nouns,
                text_encoders=self._text_encoders,
                truncated=self._truncated,
            )
            words = self._words_of(call, prompts, nouns)
        else:
            if self._words_compete:
                raise ValueError(
                    "rescale='words' and maps='output' need the places of all words: give prompts "
                    'and nouns rather than columns='
                )
            words = [[] for _ in prompts]
            if isinstance(nouns, str):
                raise ValueError(
                    'columns= says where the keys of each noun are: give the nouns too, in '
                    'the same order'
                )
            nouns = [nouns] if one_prompt else nouns
            places: Any = [columns] if one_prompt else columns
            found = TextColumns(_given_columns(places, nouns))
        self._images_per_prompt = images_per_prompt
        self._num_images = len(prompts) * images_per_prompt
        if (
            not check_prompts
            and columns is None
            and any(encoder.image_token for encoder in self._family.encoders)
        ):
            raise ValueError(
                f'check_prompts=False does not go with {type(self._pipe).__name__}, which puts '
                "images among the text: what its text encoder gets says where the nouns' keys are"
            )
        self._watches = found.watches if check_prompts else ()
        self.prompts, self._nouns = prompts, [list(row) for row in nouns]
        self.names = [
            [noun_name(prompt, noun) for noun in row] for prompt, row in zip(prompts, nouns)
        ]
        self.truncated = list(found.truncated)
        self.left_out = list(found.left_out)
        self.flat = []
        self._positions = found.positions
        self._words = words
        # Each image's token columns once, however many nouns share a token.
        self._columns = [
            sorted({column for noun in row for columns in noun for column in columns} | set(others))
            for row, others in zip(self._positions, words)
        ]
        self._columns_BT = _pad_columns(self._columns, images_per_prompt)
        self._last_column = max((columns[-1] for columns in self._columns if columns), default=-1)

    @property
    def _words_compete(self) -> bool:
        return self._rescale is not None or self._maps == 'output'

    def _words_of(
        self, call: Call, prompts: Sequence[str], nouns: Sequence[Sequence[Any]]
    ) -> list[list[int]]:
        """Find the columns of each prompt's words, where maps are to be rescaled."""
        if not self._words_compete:
            return [[] for _ in prompts]
        found = find_columns(
            call,
            self._family,
            prompts,
            [word_spans(prompt) if row else [] for prompt, row in zip(prompts, nouns)],
            text_encoders=self._text_encoders,
            truncated='skip',
            missing='skip',
        )
        return [
            sorted({column for word in row for columns in word for column in columns})
            for row in found.positions
        ]

    def generate(
        self,
        prompts: str | Sequence[str] | None = None,
        nouns: Any = AUTO,
        *,
        prompt: str | Sequence[str] | None = None,
        **call: Any,
    ) -> Recording:
        """Call the pipeline and record the nouns of its prompts.

        `masks` then gives other choices of what was recorded.

        Args:
            prompts: One prompt, or several.
            nouns: As in the constructor.
            prompt: The same as `prompts`, as the pipeline's call names it.
            **call: Further arguments of the pipeline's call, passed on as they are.

        Returns:
            The images with a mask for each noun.

        Raises:
            RuntimeError: If the recorder is in use by a ``with`` block.
            TypeError: If there are no prompts, or `prompts` and `prompt`.
            ValueError: If the pipeline has no such argument, or as the constructor.
            NounTruncatedError: As the constructor.
            NounAlignmentError: As the constructor.
            NothingRecorded: If no step was recorded.
        """
        self._check_free()
        if (prompts is None) == (prompt is None):
            raise TypeError('generate() takes the prompts once: first, or as prompt=')
        prompts = prompt if prompts is None else prompts
        assert prompts is not None
        asked = Call(self._pipe, call)
        prompts = list(prompts) if isinstance(prompts, Iterator) else prompts
        images_per_prompt = asked.option(
            'num_images_per_prompt', asked.option('num_videos_per_prompt', 1)
        )
        self._tell(prompts, nouns, asked, 1 if images_per_prompt is None else images_per_prompt)
        missing = [watch.name for watch in self._watches if watch.encoder is None]
        if missing:
            raise ValueError(
                f'{type(self._pipe).__name__} was loaded without its {missing[0]}, so it reads no '
                'prompts: load it whole, or use the recorder as a context manager and say with '
                "columns=... where the nouns' keys are in its embeddings"
            )
        with self:
            output = self._pipe(
                prompt=prompts if isinstance(prompts, str) else list(prompts), **call
            )
        images = generated_images(output)
        if len(images) != self._num_images:
            raise ValueError(
                f'{type(self._pipe).__name__} returned {counted(len(images), "image")}, where '
                f'the call was for {self._num_images}'
            )
        masks, each = self.masks('minmax'), self._images_per_prompt
        return Recording(
            images,
            masks,
            [prompt for prompt in self.prompts for _ in range(each)],
            [names for names in self.names for _ in range(each)],
            [[span_of(noun) for noun in row] for row in self._nouns for _ in range(each)],
            list(self.flat),
            [(each * row + k, noun) for row, noun in self.truncated for k in range(each)],
            [(each * row + k, noun, why) for row, noun, why in self.left_out for k in range(each)],
            output,
            self.num_steps,
        )

    def __repr__(self) -> str:
        nouns = sum(map(len, self.names))
        return (
            f'AttentionRecorder({type(self._pipe).__name__}, prompts: {len(self.prompts)}, '
            f'nouns: {nouns}, steps recorded: {self.num_steps})'
        )

    def _reset(self) -> None:
        self._sums: dict[Part, _Sum] = {}
        self._affinities: dict[Size, _Sum] = {}
        self._calls = 0
        self.num_steps = 0
        self._sink = Sink(
            self._family.text_keys,
            self._accumulate,
            self._accumulate_affinity,
            self._resolutions,
            self._self_attention,
            outputs=self._maps == 'output',
        )
        self.layer_steps = self._sink.layer_steps
        self._affinity_steps: dict[str, int] = {}
        self._parts_apart = self._separate
        self._first_row, self._last_row = 0, 0
        self._image_tokens = 0
        self._last_sample: Tensor | None = None
        self._last_timestep: Any = None
        self._last_text: Any = None
        self._pair_checked = False
        self._embeddings = EmbeddingWatch()

    def __enter__(self) -> AttentionRecorder:
        """Installs the hooks and forgets what was recorded before.

        Raises:
            RuntimeError: If the recorder is in use already, or was made without prompts.
            ValueError: If the denoiser has a hook of diffusers that changes its attention, or both
                a step cache and compiled code, has no module of the family's kind, or is compiled
                where heads are weighted or outputs compared.
        """
        self._check_free()
        if not self.prompts:
            raise RuntimeError(
                'this AttentionRecorder was made without prompts: make it with prompts and nouns, '
                'or call generate()'
            )
        denoiser = self._denoiser = self._denoising_network()
        self._regions = compiled_regions(denoiser)
        modules = text_attention_modules(denoiser, self._family, self._blocks)
        check_heads(self._heads, {name: head_count(module) for name, module, _ in modules})
        pixels = (
            [] if self._self_attention is None else self_attention_modules(denoiser, self._family)
        )
        if uses_step_cache(denoiser) and self._regions:
            raise ValueError(
                'a compiled denoiser with a step cache cannot be recorded: leave out one of the two'
            )
        self._reset()
        taps: list[Tap] = []
        for name, module, group in modules:
            make = make_shown_tap if self._is_compiled(name) else make_tap
            wanted = _wanted_heads(self._heads, name, module)
            taps.append(make(self._sink, self._family, module, group, name, wanted))
        taps = [tap for tap in taps if tap.heads]
        self.layers = {tap.layer: head_count(tap.module) for tap in taps}
        outputs = self._head_weights is not None or self._maps == 'output'
        if outputs and any(isinstance(tap, ShownTap) for tap in taps):
            raise ValueError(
                "head_weights and maps='output' need what a compiled denoiser does not show: "
                'record it as it was before torch.compile'
            )
        for name, module in pixels:
            make_self = make_shown_self_tap if self._is_compiled(name) else make_self_tap
            taps.append(make_self(self._sink, self._family, module, name))
        blocks = dict(named_parts(denoiser))
        with ExitStack() as hooks:
            if all(region.name for region in self._regions):
                # Run as it is, also where the denoiser is compiled after this.
                before = torch.compiler.disable(own_hook(denoiser, self._before_denoiser))
                handle = denoiser.register_forward_pre_hook(before, with_kwargs=True)
                hooks.callback(handle.remove)
            for tap in taps:
                hooks.callback(tap.stop)
                block = blocks[tap.layer.rpartition('.')[0]]
                for handle in [*tap.install(), *tap.watch_block(block)]:
                    hooks.callback(handle.remove)
                if self._head_weights and not isinstance(tap, SelfTap):
                    hooks.callback(tap.watch_projection().remove)
            # In compiled code the change of a backend would be a reason to compile again.
            if not self._regions and any(isinstance(tap, WatchedTap) for tap in taps):
                hooks.callback(watched_backends())
            for undo in self._watch_regions([tap for tap in taps if isinstance(tap, ShownTap)]):
                hooks.callback(undo)
            for watch in self._watches:
                hooks.callback(watch.install())
            self._hooks = hooks.pop_all()
        return self

    def _is_compiled(self, layer: str) -> bool:
        return any(region.holds(layer) for region in self._regions)

    def _watch_regions(self, taps: Sequence[ShownTap]) -> Iterator[Callable[[], None]]:
        """Have the compiled parts of the denoiser show their attention to taps."""
        if not self._regions:
            return
        # Those of all recorders of the same kind, so that one compilation serves them all.
        names = [name for name, *_ in text_attention_modules(self._denoiser, self._family, None)]
        if self._self_attention is not None:
            names += [name for name, _ in self_attention_modules(self._denoiser, self._family)]
        layers = frozenset(
            region.inside(name) for region in self._regions for name in names if region.holds(name)
        )
        for region in self._regions:
            inside = [tap for tap in taps if region.holds(tap.layer)]
            if inside or not region.name:
                yield self._watch_region(region, layers, inside)

    def _watch_region(
        self, region: Region, layers: frozenset[str], taps: Sequence[ShownTap]
    ) -> Callable[[], None]:
        by_layer: dict[str, list[ShownTap]] = {}
        for tap in taps:
            by_layer.setdefault(tap.layer, []).append(tap)

        def before(args: tuple, kwargs: dict) -> None:
            if not region.name:
                self._before_denoiser(region.module, args, kwargs)
            for tap in taps:
                tap.start()

        def look(layer: str, call: AttentionCall) -> None:
            for tap in by_layer.get(layer, ()):
                tap.look(call)

        def after() -> None:
            for tap in taps:
                tap.finish()

        return region.watch(layers, before, look, after)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Removes every hook, also after an exception."""
        self._last_sample = self._last_timestep = self._last_text = self._sink.input = None
        self._embeddings.forget()
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.close()

    def _check_free(self) -> None:
        if self._hooks is not None:
            raise RuntimeError('this AttentionRecorder is in use already; make a second one')

    @torch.inference_mode(False)
    def masks(
        self,
        normalize: str | None = None,
        *,
        blocks: str | Iterable[str] = 'all',
        resolutions: Iterable[int | Size] | None = None,
        weights: str | Mapping[int | Size, float] | None = None,
        steps: Container[int] | None = None,
        heads: Heads | None = None,
        propagate: int = 0,
        size: Size | None = None,
    ) -> list[Tensor]:
        """Averages what was recorded into one map for each noun of each image.

        The default is the paper's: the mean over all steps and all blocks, each layer counting
        the same, of maps resized to the largest resolution (section 3.1 and figure 5). Where a
        step cache left layers out of some steps, a layer's mean is over those in which it was
        computed (`layer_steps`), and each layer counts the same.

        Args:
            normalize: ``None``: raw attention probabilities. ``'minmax'``: each map stretched to
                [0, 1]; flat maps become zeros and are listed in `flat`.
            blocks: As in the constructor, to use part of what was recorded.
            resolutions: As in the constructor, to use part of what was recorded.
            weights: ``None``: each layer counts the same. ``'resolution'``: each resolution counts
                the same, however many layers it has. A mapping from resolution (an integer or a
                pair) to a number: what a layer of that resolution counts; others count nothing.
            steps: As in the constructor, where steps were kept apart.
            heads: As in the constructor, where heads were kept apart.
            propagate: How often to pass the maps on along the self-attention, where that was
                recorded; see `freeatm_mm.attention.refine.propagate`.
            size: ``(h, w)`` of the maps. The default is the largest resolution used, that of the
                self-attention included where maps are propagated.

        Returns:
            For each image, prompt by prompt, a float32 CPU tensor of shape (nouns, h, w).

        Raises:
            NothingRecorded: If nothing was recorded.
            ValueError: If an option is unknown or leaves nothing of what was recorded, or layers
                that weren't kept apart were computed in different numbers of steps.
        """
        if normalize not in (None, 'minmax'):
            raise ValueError(f"normalize must be None or 'minmax', got {normalize!r}")
        if not self._sums:
            if self._sink.seen:
                sizes_seen = ', '.join(f'{h}x{w}' for h, w in sorted(self._sink.seen))
                raise NothingRecorded(
                    f'nothing was recorded: no layer has one of the resolutions asked for, but '
                    f'{sizes_seen}'
                )
            taken = counted(self._calls, 'step')
            advice = f', for more than the {taken} it took, or with other steps or blocks'
            raise NothingRecorded(
                'nothing was recorded: call the pipeline (or its denoiser) inside the with block'
                + (advice if self._calls else '')
            )
        self._check_layer_steps()
        whole_number(propagate, 'propagate', 0, refine.MAX_PROPAGATE)
        if propagate and not self._affinities:
            raise ValueError(
                f'propagate={propagate} needs a recorder made with self_attention=32, say'
            )
        check_steps(steps)
        check_heads(heads, self.layers)
        if size is not None:
            (checked,) = sizes([size], 'size') or ()
            if isinstance(checked, int):
                raise ValueError(f'size must be (height, width), got {checked!r}')
            size = checked
        chosen = choose_parts(
            {part: total.count for part, total in self._sums.items()},
            groups=self._family.block_groups.values(),
            blocks=self._block_names(blocks),
            resolutions=sizes(resolutions),
            steps=steps,
            heads=heads,
            weights=weights,
        )
        affinity = max(self._affinities, key=math.prod) if propagate else None
        if affinity and len(set(self._affinity_steps.values())) > 1:
            raise ValueError(
                'some layers of the self-attention were left out of some steps, by a '
                'step cache perhaps, so the masks cannot be propagated evenly'
            )
        if size is None:
            size = max([part.size for part in chosen] + [affinity or (0, 0)], key=math.prod)
        divisor = sum(weight * self._sums[part].count for part, weight in chosen.items())
        # Resizing is linear, so once at the end gives the mean of the resized maps.
        by_size: dict[Size, Tensor] = {}
        for part, weight in chosen.items():
            total_BTN = self._sums[part].total_BTN.cpu() * (weight / divisor)
            by_size[part.size] = by_size.get(part.size, 0) + total_BTN
        sides = affinity or size
        average_BThw = torch.zeros(*self._columns_BT.shape, *sides)
        for native, total_BTN in by_size.items():
            average_BThw += resize(total_BTN.unflatten(-1, native), sides)
        if affinity:
            total = self._affinities[affinity]
            affinity_BNN = total.total_BTN.cpu() / total.count
            average_BThw = resize(refine.propagate(average_BThw, affinity_BNN, propagate), size)
        return self._merged(average_BThw, normalize)

    def _check_layer_steps(self) -> None:
        """Refuses what no mean over layers is: sums in which some layers have more maps."""
        counts = self.layer_steps
        never = [layer for layer, count in counts.items() if not count]
        if never:
            raise ValueError(
                f'{never[0]} was never computed, only taken from a step cache; record '
                'without the cache'
            )
        if len(set(counts.values())) > 1 and any(part.layer is None for part in self._sums):
            raise ValueError(
                f'some layers were computed in {counted(min(counts.values()), "step")} and '
                f'others in {max(counts.values())}, as with a step cache: make the recorder with '
                "separate='layers', so that each layer counts the same"
            )

    def _denoising_network(self) -> nn.Module:
        name = self._family.denoiser
        network = getattr(self._pipe, name, None)
        if network is None:
            raise ValueError(
                f'{type(self._pipe).__name__} was loaded without its {name}, which is what is '
                'recorded: load it whole'
            )
        if not isinstance(network, nn.Module):
            raise ValueError(
                f'the {name} of this {type(self._pipe).__name__} is no network of PyTorch but '
                f'{type(network).__name__}, of which no attention can be recorded'
            )
        return network

    def _block_names(self, blocks: str | Iterable[str]) -> frozenset[str] | None:
        return block_names(blocks, self._family.block_groups.values(), self._denoiser)

    def _merged(self, average_BThw: Tensor, normalize: str | None) -> list[Tensor]:
        """Makes each noun's map from its tokens' maps."""
        self.flat = []
        masks = []
        for image in range(self._num_images):
            prompt = image // self._images_per_prompt
            place = {column: index for index, column in enumerate(self._columns[prompt])}
            positions, words = self._positions[prompt], self._words[prompt]
            if words:
                own = [place[column] for column in words]
                if self._maps == 'output':
                    average_BThw[image, own] = average_BThw[image, own].softmax(0)
                else:
                    average_BThw[image] /= average_BThw[image, own].sum(0).clamp_min(_LEAST)
            maps = average_BThw.new_zeros(len(positions), *average_BThw.shape[-2:])
            for noun, encoders in enumerate(positions):
                for columns in encoders:
                    rows = [place[column] for column in columns]
                    merged = merge_tokens(average_BThw[image, rows], self._merge)
                    maps[noun] += merged / len(encoders)
            if normalize == 'minmax':
                maps, flat = minmax(maps)
                self.flat += [(image, noun) for noun in flat.nonzero().flatten().tolist()]
            masks.append(maps)
        return masks

    def _before_denoiser(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Counts a step and finds out which rows of the batch are conditional."""
        if not self._calls:
            self._check_still_compiled()
        called_with = self._family.denoiser_input(module, args, kwargs)
        if any([watch.check() for watch in self._watches]):
            self._embeddings.forget()
        self._image_tokens = max((watch.image_tokens for watch in self._watches), default=0)
        if self._is_extra_pass(module, args, kwargs, called_with.sample):
            self._sink.recording = False
            return
        if not self._calls and uses_step_cache(module):
            self._parts_apart = self._separate | {'layers'}
        index, self._calls = self._calls, self._calls + 1
        self._sink.recording = self._steps is None or index in self._steps
        self._first_row, self._last_row = self._conditional_rows(called_with.sample)
        if self._watches:
            self._embeddings.check(
                {name: _call_argument(module, args, kwargs, name) for name in self._family.texts},
                self._family.texts,
                slice(self._first_row, self._last_row),
                called_with.sample.shape[0],
            )
        self._sink.input = called_with
        self.num_steps += self._sink.recording

    def _check_still_compiled(self) -> None:
        """Refuses a denoiser that was compiled inside the ``with``."""
        now = compiled_regions(getattr(self._pipe, self._family.denoiser))
        if [region.holder for region in now] != [region.holder for region in self._regions]:
            raise ValueError(
                'the denoiser was compiled, or replaced, while it was being recorded: call '
                'torch.compile before the with block'
            )

    def _is_extra_pass(self, module: nn.Module, args: tuple, kwargs: dict, sample: Tensor) -> bool:
        """Whether this call isn't the one that draws the prompt, but one to compare it with.

        Guidance that takes several passes gives them one tensor at one noise level. Pipelines that
        take another tensor for each step, or a caller who takes the same, change the level.

        Raises:
            ValueError: If another pass isn't known of the family.
        """
        timestep = _call_argument(module, args, kwargs, 'timestep')
        text = _call_argument(module, args, kwargs, 'encoder_hidden_states')
        last_text = self._last_text
        again = sample is self._last_sample and _is_same_level(timestep, self._last_timestep)
        self._last_sample, self._last_timestep, self._last_text = sample, timestep, text
        # Skip-layer guidance (SD3) draws the prompt again with some layers left out.
        if kwargs.get('skip_layers') is not None:
            return True
        if self._family.two_passes:
            return again
        if again and timestep is not None and differ(text, last_text):
            raise ValueError(
                f'{type(self._pipe).__name__} called its {self._family.denoiser} twice for one '
                'step, with different embeddings, and which of them belong to the prompts is not '
                'known: guide by one batch of both, as the pipelines of diffusers do'
            )
        return False

    def _conditional_rows(self, sample: Tensor) -> tuple[int, int]:
        images, rows = self._num_images, sample.shape[0]
        self._sink.batches = (rows,)
        if rows == images:
            return 0, images
        parts, rest = divmod(rows, images)
        perturbing = is_perturbing(self._pipe)
        part = None if rest else prompt_part(self._family, parts, perturbing)
        advice = 'give the recorder the same prompts and num_images_per_prompt as the pipeline'
        if part is None:
            guided = self._family.guidance_parts * images
            raise ValueError(
                f'the denoiser got a batch of {rows}, but the recorder is for '
                f'{counted(images, "image")}, or {counted(guided, "row")} with classifier-free '
                f'guidance; {advice}'
            )
        # Guidance runs the same noisy images several times. Different parts are more images, and
        # some of them would be mistaken for the others. Once is enough, for on an accelerator the
        # comparison waits for all work before it.
        if not self._pair_checked:
            if not all(torch.equal(sample[:images], other) for other in sample.split(images)[1:]):
                raise ValueError(
                    f'the denoiser got a batch of {rows} different images, but the recorder '
                    f'is for {images}; {advice}'
                )
            self._pair_checked = True
        first, last = part * images, (part + 1) * images
        if perturbing:
            # Processors that perturb attend with the other rows first, in a call of their own.
            self._sink.batches = (rows, last)
        return first, last

    def _accumulate(self, tap: Tap) -> None:
        """Adds one module's head-mean noun maps to the running sums."""
        rows = slice(self._first_row, self._last_row)
        seen = tap.attention(rows)
        query_BNHC, key_BKHC, bias_BNK = seen.query_BNHC, seen.key_BKHC, seen.bias_BNK
        first, num_text_keys = seen.text_start, seen.text_length
        if self._last_column + self._image_tokens >= num_text_keys:
            raise ValueError(
                f'a noun stands at token {self._last_column + self._image_tokens}, but the prompt '
                f'embeddings hold only {num_text_keys} text keys; give the recorder the prompts '
                "that were encoded, and in call_options the max_sequence_length of the pipeline's "
                'call'
            )
        if self._probability == 'text':
            text = slice(first, first + num_text_keys)
            key_BKHC, first = key_BKHC[:, text], 0
            bias_BNK = None if bias_BNK is None else bias_BNK[..., text]
        # The prompt stands behind the images, whose tokens were not counted.
        columns_BT = self._columns_BT.to(query_BNHC.device) + (first + self._image_tokens)
        part = Part(
            tap.group,
            tap.size,
            tap.layer if 'layers' in self._parts_apart else None,
            self._calls - 1 if 'steps' in self._parts_apart else None,
        )
        self.layer_steps[tap.layer] += 1
        weights_BNH = tap.head_weights(rows) if self._head_weights else None
        pieces: dict[Part, Sequence[int]]
        if 'heads' in self._parts_apart:
            pieces = {part._replace(head=head): [head] for head in tap.heads}
        else:
            pieces = {part: tap.heads}
        for part, heads in pieces.items():
            total = self._sums.get(part)
            if total is None:
                total = self._sums[part] = _Sum(
                    _zeros(*columns_BT.shape, query_BNHC.shape[1], device=query_BNHC.device)
                )
            if self._maps == 'output':
                assert isinstance(tap, SequenceTap)
                pixels_BNX, text_BKX = tap.outputs(rows)
                add_output_products(
                    pixels_BNX,
                    text_BKX,
                    self._columns_BT.to(pixels_BNX.device),
                    total.total_BTN,
                    heads=head_count(tap.module),
                    some=heads,
                )
                total.count += 1
                continue
            some = slice(None) if len(heads) == head_count(tap.module) else list(heads)
            noun_attention(
                query_BNHC[:, :, some],
                key_BKHC[:, :, some],
                columns_BT,
                seen.scale,
                bias_BNK=bias_BNK,
                weights_BNH=_weights_of(weights_BNH, heads, tap.heads),
                out_BTN=total.total_BTN,
            )
            total.count += 1

    def _accumulate_affinity(self, tap: SelfTap) -> None:
        """Adds one module's head-mean self-attention to the running sum of its resolution."""
        rows = slice(self._first_row, self._last_row)
        size = max([tap.size, *self._affinities], key=math.prod)
        if size != tap.size:
            return  # a smaller map than one that was seen already
        query_BNHC, key_BNHC = tap.affinity(rows)
        total = self._affinities.get(size)
        if total is None:
            images, pixels = query_BNHC.shape[:2]
            self._affinities = {
                size: _Sum(_zeros(images, pixels, pixels, device=query_BNHC.device))
            }
            self._affinity_steps = {}
            total = self._affinities[size]
        add_affinity(query_BNHC, key_BNHC, tap.module.scale, total.total_BTN)
        total.count += 1
        self._affinity_steps[tap.layer] = self._affinity_steps.get(tap.layer, 0) + 1


@dataclass
class _Sum:
    """Running sum of maps of one block group and resolution."""

    total_BTN: Tensor
    count: int = 0


def _zeros(*shape: int, device: torch.device) -> Tensor:
    """Zeros to add to, inside `torch.inference_mode` and after it."""
    with torch.inference_mode(False):
        return torch.zeros(*shape, device=device)


def _weights_of(
    weights_BNH: Tensor | None, some: Sequence[int], heads: Sequence[int]
) -> Tensor | None:
    """The weights of some heads, such that the mean of maps kept apart is the weighted mean."""
    if weights_BNH is None or len(some) == len(heads):
        return weights_BNH
    places = [heads.index(head) for head in some]
    return weights_BNH[..., places] * (len(heads) / len(some))


def _call_argument(module: nn.Module, args: tuple, kwargs: dict, name: str) -> Any:
    """An argument of a network's call, however it was passed; `None` if it isn't known."""
    if name in kwargs or not args:
        return kwargs.get(name)
    names = list(inspect.signature(module.forward).parameters)
    return argument(args, kwargs, names.index(name), name) if name in names else None


def _is_same_level(timestep: Any, other: Any) -> bool:
    """Tell whether two calls of a denoiser are given the same timestep, or none."""
    if isinstance(timestep, Tensor) and isinstance(other, Tensor):
        return timestep is other or (
            timestep.shape == other.shape and bool((timestep == other).all())
        )
    return timestep is other or bool(timestep == other)


def _wanted_heads(heads: Heads | None, layer: str, module: Any) -> tuple[int, ...]:
    wanted = heads_of(heads, layer)
    return tuple(range(head_count(module)) if wanted is None else sorted(wanted))


def _names(names: str | Iterable[str]) -> Iterable[str]:
    return [names] if isinstance(names, str) else names


def _check_prompts(prompts: Sequence[Any]) -> None:
    if not prompts:
        raise ValueError('no prompts were given')
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f'prompts must be strings, got {prompt!r}')
        if len(prompt) > MAX_PROMPT:
            raise ValueError(
                f'a prompt has {len(prompt)} characters, at most {MAX_PROMPT} are '
                f'taken; it begins {prompt[:40]!r}'
            )


def _check_call(call: Call, prompts: Sequence[str], images: int) -> None:
    """Refuses options of a pipeline's call that say something else than the recorder was told."""
    for name, told in (
        ('prompt', [list(prompts), *prompts[: 1 if len(prompts) == 1 else 0]]),
        ('num_images_per_prompt', [images]),
    ):
        value = call.given(name)
        if value is not None and all(value != other for other in told):
            raise ValueError(
                f'call_options have {name}={value!r}, but the recorder was given {told[0]!r}'
            )
    embeddings = [
        name
        for name in call.names
        if 'embeds' in name and 'negative' not in name and name.startswith('prompt')
    ]
    for name in embeddings:
        if call.given(name) is not None:
            raise ValueError(
                f"the pipeline's call has {name}, in which the nouns can't be looked for: leave it "
                'out, or use the recorder as a context manager and say with columns=... where '
                'they stand'
            )


def _given_columns(
    columns: Sequence[Sequence[Sequence[int]]], nouns: Sequence[Sequence[Any]]
) -> tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]:
    """Places of the nouns' tokens as the caller knows them, as one group of keys each."""
    if [len(row) for row in columns] != [len(row) for row in nouns]:
        raise ValueError(
            'columns must hold places for each noun of each prompt: got '
            f'{[len(row) for row in columns]} for {[len(row) for row in nouns]} nouns'
        )
    for row in columns:
        for places in row:
            if not places or not all(
                isinstance(place, int)
                and not isinstance(place, bool)
                and 0 <= place < MAX_TEXT_KEYS
                for place in places
            ):
                raise ValueError(
                    f'columns must be numbers of text keys from 0, at least one for '
                    f'each noun, got {places!r}'
                )
    return tuple(tuple((tuple(sorted(set(places))),) for places in row) for row in columns)


def _pad_columns(columns: Sequence[Sequence[int]], images_per_prompt: int) -> Tensor:
    """Token columns as one rectangle, a row for each image; unused places hold column 0."""
    width = max(len(row) for row in columns)
    columns_BT = torch.zeros(len(columns), width, dtype=torch.long)
    for index, row in enumerate(columns):
        columns_BT[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return columns_BT.repeat_interleave(images_per_prompt, dim=0)

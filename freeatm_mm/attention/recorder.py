"""Record where each image attends to the nouns of its prompt while a pipeline generates it.

Equation 1 of the paper, ``A = softmax(QK^T / sqrt(d))``, for the columns of the nouns only,
averaged over heads, layers and steps. The queries and keys are those that the model projects for
itself: forward hooks see them pass, the attention processors stay as they are, and the images are
bit for bit those without a recorder.

Shape suffixes: B images, N queries (pixels of a feature map), K keys, H heads, C channels of a
head, T noun tokens; h and w are the sides of a feature map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from freeatm_mm.attention import refine
from freeatm_mm.attention.caches import uses_step_cache
from freeatm_mm.attention.compiled import Region, compiled_regions
from freeatm_mm.attention.families import Call, TextKeys, find_family, head_count
from freeatm_mm.attention.guidance import PromptRows
from freeatm_mm.attention.hooks import of_this_thread, own_hook
from freeatm_mm.attention.maps import (
    RunningSum,
    average,
    check_layer_steps,
    noun_maps,
    running_sum,
)
from freeatm_mm.attention.nouns import MERGE_RULES
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
    is_wrapper,
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
    self_attention_modules,
    text_attention_modules,
)
from freeatm_mm.attention.targets import check_not_cropped, find_targets
from freeatm_mm.attention.words import AUTO, span_of
from freeatm_mm.errors import counted
from freeatm_mm.ops.masks import minmax, resize

__all__ = ['AttentionRecorder', 'NothingRecorded']

PROBABILITIES = ('joint', 'text')
"""Over which keys the softmax may be taken: all of them, or those of the text."""
TRUNCATED = ('raise', 'skip')
"""What may be done about a noun that the tokenizer cuts off."""
MAPS = ('attention', 'output')
"""What maps may be made of."""
HEAD_WEIGHTS = (None, 'contribution')
"""What a layer's heads may count."""
RESCALE = (None, 'words')
"""What maps may be divided by."""
_COMPILED = (
    'the denoiser was compiled while it was being recorded: call torch.compile before the with '
    'block'
)


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
            ``range(10, 50, 2)``; samplers of second order call it twice in a step. ``None``: all.
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
        for name, value, known in (
            ('probability', probability, PROBABILITIES),
            ('merge', merge, MERGE_RULES),
            ('head_weights', head_weights, HEAD_WEIGHTS),
            ('rescale', rescale, RESCALE),
            ('maps', maps, MAPS),
            ('truncated', truncated, TRUNCATED),
        ):
            if value not in known:
                raise ValueError(f'{name} must be one of {known}, got {value!r}')
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
        self._heads = heads
        if heads is not None or head_weights is not None:
            modules = text_attention_modules(self._denoiser, self._family, self._blocks)
            check_heads(heads, {name: head_count(module) for name, module, _ in modules})
            if head_weights is not None:
                for name, module, _ in modules:
                    output_projection(module, name)
        self._separate = separate_names(separate)
        if self_attention is not None:
            whole_number(self_attention, 'self_attention', 1, MAX_SIDE)
        self._self_attention = self_attention
        self.layers: dict[str, int] = {}
        self._text_encoders = text_encoders if text_encoders is None else [*_names(text_encoders)]
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
            self._tell(
                call,
                prompts,
                nouns,
                images_per_prompt=num_images_per_prompt,
                columns=columns,
                check_prompts=check_prompts,
            )
        elif columns is not None or call.names or num_images_per_prompt != 1 or nouns != AUTO:
            raise TypeError(
                'prompts are missing: give them with their nouns, or give both, and how the '
                'pipeline is to be called, to generate()'
            )
        self._hooks: ExitStack | None = None
        self._regions: list[Region] = []
        self._holders: list[tuple[Any, str, Any]] = []
        self._reset()

    def _tell(self, call: Call, prompts: str | Sequence[str], nouns: Any, **options: Any) -> None:
        """Find the nouns of some prompts among the text keys of a call."""
        self._call = call
        self._targets = find_targets(
            call,
            self._family,
            prompts,
            nouns,
            text_encoders=self._text_encoders,
            truncated=self._truncated,
            words_compete=self._rescale is not None or self._maps == 'output',
            **options,
        )
        self.prompts, self.names = self._targets.prompts, self._targets.names
        self.truncated, self.left_out = self._targets.truncated, self._targets.left_out
        self.flat = []

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
        self._tell(
            asked,
            prompts,
            nouns,
            images_per_prompt=1 if images_per_prompt is None else images_per_prompt,
        )
        targets = self._targets
        missing = [watch.name for watch in targets.watches if watch.encoder is None]
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
        if len(images) != targets.num_images:
            raise ValueError(
                f'{type(self._pipe).__name__} returned {counted(len(images), "image")}, where '
                f'the call was for {targets.num_images}'
            )
        masks, drawn = self.masks('minmax'), targets.prompt_of_image
        return Recording(
            images,
            masks,
            [self.prompts[prompt] for prompt in drawn],
            [self.names[prompt] for prompt in drawn],
            [[span_of(noun) for noun in targets.nouns[prompt]] for prompt in drawn],
            list(self.flat),
            [
                (k, noun)
                for k, prompt in enumerate(drawn)
                for of, noun in self.truncated
                if of == prompt
            ],
            [
                (k, noun, why)
                for k, prompt in enumerate(drawn)
                for of, noun, why in self.left_out
                if of == prompt
            ],
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
        self._sums: dict[Part, RunningSum] = {}
        self._affinities: dict[Size, RunningSum] = {}
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
        self._image_tokens = 0

    def __enter__(self) -> AttentionRecorder:
        """Install the hooks and forget what was recorded before.

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
        self._holders = self._find_holders()
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
        self._rows = PromptRows(self._pipe, self._family, self._targets)
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
            for watch in self._targets.watches:
                hooks.callback(watch.install(self._check_parts))
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

        return region.watch(
            layers, of_this_thread(before), of_this_thread(look), of_this_thread(after)
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove every hook, also after an exception.

        Raises:
            ValueError: If the denoiser was replaced or compiled inside the ``with``, so that what
                it generated since then was not recorded.
        """
        self._sink.input = None
        self._rows.forget()
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.close()
        if error is None:
            self._check_parts()
            self._check_still_compiled()

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
        """Average what was recorded into one map for each noun of each image.

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
            For each image, in the pipeline's order, a float32 CPU tensor of shape (nouns, h, w).

        Raises:
            NothingRecorded: If nothing was recorded.
            ValueError: If an option is unknown or leaves nothing of what was recorded, a layer
                never ran, or layers that weren't kept apart were computed in different numbers of
                steps.
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
                'nothing was recorded: call the pipeline (or its denoiser) inside the with block, '
                'in the same thread' + (advice if self._calls else '')
            )
        idle = [layer for layer in self.layers if layer not in self._sink.ran]
        if idle:
            raise ValueError(
                f'{idle[0]} of the network never ran, so it is missing from the mean: it, or a '
                'block that holds it, was replaced inside the with, or something leaves it out; '
                'choose the others by blocks=...'
            )
        check_layer_steps(self.layer_steps, self._sums)
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
        average_BThw = average(self._sums, chosen, affinity or size)
        if affinity:
            total = self._affinities[affinity]
            affinity_BNN = total.total_BTN.cpu() / total.count
            average_BThw = resize(refine.propagate(average_BThw, affinity_BNN, propagate), size)
        masks = noun_maps(
            average_BThw, self._targets, merge=self._merge, softmax=self._maps == 'output'
        )
        self.flat = []
        if normalize == 'minmax':
            for image, maps in enumerate(masks):
                masks[image], flat = minmax(maps)
                self.flat += [(image, noun) for noun in flat.nonzero().flatten().tolist()]
        return masks

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
        inside, part = self._family.call_names.inner, name.removeprefix('prior_')
        if getattr(getattr(self._pipe, inside, None), part, network) not in (network, None):
            raise ValueError(
                f'the {name} of this {type(self._pipe).__name__} is not the {part} of its '
                f'{inside}, which generates: put the same network into both'
            )
        return network

    def _block_names(self, blocks: str | Iterable[str]) -> frozenset[str] | None:
        return block_names(blocks, self._family.block_groups.values(), self._denoiser)

    def _before_denoiser(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Count a step and find out which rows of the batch are conditional."""
        self._check_parts()
        called_with = self._family.denoiser_input(module, args, kwargs)
        watches = self._targets.watches
        starts = any([watch.check() for watch in watches])
        if starts:
            self._rows.forget_text()
        if starts or not self._calls:
            self._check_still_compiled()
            check_not_cropped(self._call, called_with.size)
        self._image_tokens = max((watch.image_tokens for watch in watches), default=0)
        if self._rows.is_extra_pass(module, args, kwargs, called_with.sample):
            self._sink.recording = False
            return
        if (starts or not self._calls) and uses_step_cache(module) and not self._calls:
            self._parts_apart = self._separate | {'layers'}
        index, self._calls = self._calls, self._calls + 1
        self._sink.recording = self._steps is None or index in self._steps
        self._sink.batches = self._rows.find(module, args, kwargs, called_with.sample)
        if watches:
            self._rows.check_text(module, args, kwargs, called_with.sample.shape[0])
        self._sink.input = called_with
        self.num_steps += self._sink.recording

    def _find_holders(self) -> list[tuple[Any, str, Any]]:
        """Find where the pipeline, and one inside it, keep the parts that are watched.

        Returns:
            Pipeline, attribute and part.
        """
        watched = [self._denoiser] + [
            getattr(self._pipe, watch.name, None) for watch in self._targets.watches
        ]
        inner = getattr(self._pipe, self._family.call_names.inner, None)
        return [
            (pipe, name, part)
            for pipe in (self._pipe, inner)
            for name, part in getattr(pipe, '__dict__', {}).items()
            if part is not None and any(part is other for other in watched)
        ]

    def _check_parts(self) -> None:
        """Refuse a denoiser or text encoder that took the place of one that is recorded."""
        for pipe, name, part in self._holders:
            now = getattr(pipe, name, None)
            # One that was let go of, to save memory, is not called again.
            if now is None or now is part:
                continue
            if is_wrapper(now):
                raise ValueError(_COMPILED)
            raise ValueError(
                f'the {name} of {type(pipe).__name__} was replaced while it was being recorded, '
                'and of what the new one generates nothing is recorded: end the with block first, '
                'and record the new one in another'
            )

    def _check_still_compiled(self) -> None:
        """Refuse a denoiser that was compiled inside the ``with``."""
        now = compiled_regions(self._denoiser)
        if [region.holder for region in now] != [region.holder for region in self._regions]:
            raise ValueError(_COMPILED)

    def _accumulate(self, tap: Tap) -> None:
        """Add one module's head-mean noun maps to the running sums."""
        rows = self._rows.rows
        seen = tap.attention(rows)
        query_BNHC, key_BKHC, bias_BNK = seen.query_BNHC, seen.key_BKHC, seen.bias_BNK
        first, num_text_keys = seen.text_start, seen.text_length
        last_column = self._targets.last_column + self._image_tokens
        if last_column >= num_text_keys:
            raise ValueError(
                f'a noun stands at token {last_column}, but the prompt '
                f'embeddings hold only {num_text_keys} text keys; give the recorder the prompts '
                "that were encoded, and in call_options the max_sequence_length of the pipeline's "
                'call'
            )
        if self._probability == 'text':
            text = slice(first, first + num_text_keys)
            key_BKHC, first = key_BKHC[:, text], 0
            bias_BNK = None if bias_BNK is None else bias_BNK[..., text]
        # The prompt stands behind the images, whose tokens were not counted.
        columns_BT = self._targets.columns_BT.to(query_BNHC.device) + (first + self._image_tokens)
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
                total = self._sums[part] = running_sum(
                    *columns_BT.shape, query_BNHC.shape[1], device=query_BNHC.device
                )
            if self._maps == 'output':
                assert isinstance(tap, SequenceTap)
                pixels_BNX, text_BKX = tap.outputs(rows)
                add_output_products(
                    pixels_BNX,
                    text_BKX,
                    self._targets.columns_BT.to(pixels_BNX.device),
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
        """Add one module's head-mean self-attention to the running sum of its resolution."""
        rows = self._rows.rows
        size = max([tap.size, *self._affinities], key=math.prod)
        if size != tap.size:
            return  # a smaller map than one that was seen already
        query_BNHC, key_BNHC = tap.affinity(rows)
        total = self._affinities.get(size)
        if total is None:
            images, pixels = query_BNHC.shape[:2]
            total = running_sum(images, pixels, pixels, device=query_BNHC.device)
            self._affinities, self._affinity_steps = {size: total}, {}
        add_affinity(query_BNHC, key_BNHC, tap.module.scale, total.total_BTN)
        total.count += 1
        self._affinity_steps[tap.layer] = self._affinity_steps.get(tap.layer, 0) + 1


def _weights_of(
    weights_BNH: Tensor | None, some: Sequence[int], heads: Sequence[int]
) -> Tensor | None:
    """The weights of some heads, such that the mean of maps kept apart is the weighted mean."""
    if weights_BNH is None or len(some) == len(heads):
        return weights_BNH
    places = [heads.index(head) for head in some]
    return weights_BNH[..., places] * (len(heads) / len(some))


def _wanted_heads(heads: Heads | None, layer: str, module: Any) -> tuple[int, ...]:
    wanted = heads_of(heads, layer)
    return tuple(range(head_count(module)) if wanted is None else sorted(wanted))


def _names(names: str | Iterable[str]) -> Iterable[str]:
    return [names] if isinstance(names, str) else names

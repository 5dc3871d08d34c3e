"""The samples of a run, shard by shard: what is due, and how it is generated.

What is exact. A sample's noise comes from its own seed and nothing else, so the *same sample* is
generated whatever the batch size, the number of workers or the order. Its *bytes* are the same
whenever it is generated in a batch of the same composition with the same software and hardware
(number of threads included): batches are formed inside a shard, a shard is written whole or not at
all, so a run that was killed ends with the bytes of one that wasn't, whatever the number of
workers. With another batch size, matrix products round differently: on a CPU, five steps of a
tiny Stable Diffusion differed by at most 2e-6 in a pixel's value (0 to 1), that is one pixel in
10,000 by one level.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image

from freeatm_mm.addresses import is_address, local_folder
from freeatm_mm.attention import (
    AttentionRecorder,
    NothingRecorded,
    NounAlignmentError,
    NounTruncatedError,
    dense_crf,
    find_family,
    mask_trust,
    minmax,
    quantize,
    resize,
)
from freeatm_mm.attention.families import call_names, call_parameters
from freeatm_mm.attention.recording import generated_images
from freeatm_mm.errors import RunError, counted
from freeatm_mm.generation.cascade import Cascade, check_first_stage
from freeatm_mm.generation.limits import check_settings
from freeatm_mm.generation.pipelines import (
    LoadedPipeline,
    load_pipeline,
    on_hub,
    sampling_defaults,
    sampling_options,
    scheduler_of,
)
from freeatm_mm.generation.plan import Plan, PromptFile, sample_key, sample_seed
from freeatm_mm.prompts import Noun, PromptRecord
from freeatm_mm.store import Sample, StoreError
from freeatm_mm.store.layout import (
    MANIFEST,
    STORE_FORMAT,
    left_out_keys,
    load_manifest,
    name_differences,
    read_manifest,
)
from freeatm_mm.store.sample import IMAGE_FORMATS, encode_image
from freeatm_mm.store.verify import shard_entries

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_LOG = logging.getLogger(__name__)

__all__ = [
    'MASK_OPTIONS',
    'Counts',
    'GenerationError',
    'GenerationJob',
    'Outcome',
    'Picture',
    'Recorded',
    'ShardSource',
    'StorePlan',
    'TooManyFailed',
    'quiet',
    'read_manifest_of_run',
]

#: Longer negative prompts are refused.
_MOST_NEGATIVE = 10_000

#: What masks to store, by name; all but the last three are the recorder's own options.
MASK_OPTIONS = (
    'blocks',
    'resolutions',
    'steps',
    'heads',
    'probability',
    'merge',
    'maps',
    'head_weights',
    'rescale',
    'propagate',
    'crf',
    'stage',
)

_PACKAGES = ('freeatm_mm', 'torch', 'diffusers', 'transformers')


@dataclass
class Counts:
    """What was seen while generating.

    Args:
        lost_nouns: Nouns left out because the tokenizer cut them off, or because they aren't
            found among the tokens; the samples' ``meta`` lists them with the reason.
        partial_nouns: Nouns whose masks leave out one of several text encoders, because it cut them
            off; the samples' ``meta`` lists them with the reason.
        flat_masks: Masks with the same attention everywhere (stored, but they show nothing).
        hidden_images: Images that the pipeline's safety checker blacked out.
        cut_prompts: Prompts longer than the 77 tokens of CLIP, whose ends it doesn't see.
        split_batches: Batches that failed, so that their samples were generated one by one.
        left_out: The samples that aren't in the store, each with its ``key`` and ``kind``:
            ``'hidden'``, or ``'failed'`` with ``prompt_id``, ``image_number`` and ``reason``.
    """

    lost_nouns: int = 0
    partial_nouns: int = 0
    flat_masks: int = 0
    hidden_images: int = 0
    cut_prompts: int = 0
    split_batches: int = 0
    left_out: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Number of samples that could not be generated."""
        return sum(item.get('kind') == 'failed' for item in self.left_out)


class GenerationError(RunError):
    """Nothing can be generated with these settings, or on this device."""


class TooManyFailed(GenerationError):
    """More samples could not be generated than a run may leave out."""


@dataclass
class Outcome:
    """What became of a sample: it is there, or there is a reason why it isn't."""

    sample: Sample | None = None
    lost_nouns: int = 0
    partial_nouns: int = 0
    flat_masks: int = 0
    hidden: bool = False
    kind: str = ''
    reason: str = ''


@dataclass
class Picture:
    """An image of a sample.

    Args:
        image: The picture.
        data: Its bytes as they are to be stored; ``None``: to be encoded.
        image_format: The format of ``data``.
        meta: What the sample's ``meta`` says of it besides.
    """

    image: Image.Image
    data: bytes | None = None
    image_format: str = ''
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass
class Recorded:
    """Which nouns of one prompt are recorded, and what is wrong with them.

    Args:
        nouns: Numbers of the nouns that the recorder was given, in its order.
        lost: Number of a noun that has no mask -> why.
        partial: Number of a noun whose mask leaves out a text encoder -> why.
    """

    nouns: list[int] = field(default_factory=list)
    lost: dict[int, str] = field(default_factory=dict)
    partial: dict[int, str] = field(default_factory=dict)


class ShardSource:
    """Generates the samples of any shard of a run.

    Args:
        pipeline: A text-to-image pipeline; for masks, of a family that the recorder knows.
        prompts: The prompts, a list or a `freeatm_mm.generation.PromptFile`; or a
            `freeatm_mm.generation.Plan` of them made with the same ``images_per_prompt``
            and ``samples_per_shard``.
        steps: Denoising steps; the default is 50, and a few-step model's own
            (`freeatm_mm.generation.pipelines.sampling_defaults`).
        guidance: Classifier-free guidance scale; 1 or less switches guidance off. The default is
            7.5, and a few-step model's own.
        batch_size: Images generated at once. Changes the speed, and the samples by rounding only.
        seed: Seed of the run; a sample's seed is a hash of it, the prompt's id and the number of
            the image.
        samples_per_shard: Samples in a shard, the unit of work and of resuming.
        images_per_prompt: Images generated from each prompt.
        height: Height of the images in pixels, together with ``width``; the default is the
            pipeline's.
        width: Width of the images in pixels.
        image_format: ``'jpg'`` or ``'png'``.
        quality: JPEG quality, 1 to 100.
        lost_nouns: What to do with a noun that the tokenizer cut off or that isn't found among
            the tokens: ``'skip'`` keeps the sample without it, lists it under ``lost_nouns`` in
            the sample's ``meta`` and counts it; ``'raise'`` stops.
        masks: ``True``: the paper's masks. ``False``: none; any text-to-image pipeline generates,
            and samples have a caption but no nouns. Other masks by a mapping of some of
            `MASK_OPTIONS`, JSON values only: ``blocks``, ``resolutions``, ``heads``,
            ``probability``, ``merge``, ``maps``, ``head_weights`` and ``rescale`` as
            `freeatm_mm.attention.AttentionRecorder` takes them; ``steps`` as start, stop
            and maybe stride; ``propagate``, how often to pass them on along the self-attention at
            32x32 or below; ``crf``, the shorter side in pixels at which
            `freeatm_mm.attention.dense_crf` draws their edges, at most 96; ``stage``, the
            stage of a cascade that is recorded, from 1.
        stages: The further stages of a cascade, of which ``pipeline`` is the first (see
            `freeatm_mm.generation.cascade.Cascade`); ``height`` and ``width`` are then
            those of the last one's images.
        stage_steps: Denoising steps of each further stage; the default is the pipelines' own.
        stage_guidance: Guidance scale of each further stage; the default is the pipelines' own.
        negative_prompt: What the images should not show, the same for all; guidance leads away from
            it.
        loras: What the pipeline's weights hold beside its own, for the records
            (`freeatm_mm.generation.LoadedPipeline.loras`).
        keep_hidden: Store images that the safety checker blacked out, with
            ``hidden_by_safety_checker`` in their ``meta``, rather than leave them out.
        max_failed: How many samples may fail, and be left out, before the run stops: below 1 a
            share of the run's samples, from 1 on a number of them; ``None``: 10, or a tenth of the
            samples if that is more.
        name: Name of the pipeline for the records; the default is its class.
        revision: Revision of the pipeline for the records.

    Attributes:
        plan: Which sample stands where.
        config: What the store's samples depend on, for its ``store.json``.
        notes: What each shard remembers of how it was generated.
        samples_per_shard: Samples in each shard but the last.
        num_samples: Samples in the whole run.

    Raises:
        ValueError: If an argument is out of range, the pipeline's family is unknown or a prompt id
            can't be used.
    """

    #: Counts what is seen while a shard is made.
    counts_class: type[Counts] = Counts
    #: What is being done to the samples of a batch, for messages that go on with their names.
    doing = 'generating from the prompts'
    #: The steps and guidance of a few-step model that nobody named, in words.
    chosen: str | None = None

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        prompts: Sequence[PromptRecord] | Plan,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        batch_size: int = 8,
        seed: int = 0,
        samples_per_shard: int = 5000,
        images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        image_format: str = 'jpg',
        quality: int = 95,
        lost_nouns: str = 'skip',
        masks: bool | Mapping[str, Any] = True,
        stages: Sequence[LoadedPipeline] = (),
        stage_steps: Sequence[int] | None = None,
        stage_guidance: Sequence[float] | None = None,
        negative_prompt: str | None = None,
        loras: Sequence[Mapping[str, Any]] = (),
        keep_hidden: bool = False,
        max_failed: float | None = None,
        name: str | None = None,
        revision: str | None = None,
    ) -> None:
        check_settings(
            {
                'steps': steps,
                'guidance': guidance,
                'batch_size': batch_size,
                'seed': seed,
                'samples_per_shard': samples_per_shard,
                'images_per_prompt': images_per_prompt,
                'height': height,
                'width': width,
                'quality': quality,
                'masks': masks,
                'stage_steps': stage_steps,
                'stage_guidance': stage_guidance,
            }
        )
        if image_format not in IMAGE_FORMATS:
            raise ValueError(
                f'image_format must be one of {", ".join(IMAGE_FORMATS)}, got {image_format!r}'
            )
        if lost_nouns not in ('skip', 'raise'):
            raise ValueError(f'lost_nouns must be "skip" or "raise", got {lost_nouns!r}')
        defaults = sampling_defaults(pipeline)
        if defaults.reason and (steps is None or guidance is None):
            self.chosen = (
                f'{defaults.reason}: '
                + ', '.join(
                    f'{name} {value:g}'
                    for name, given, value in (
                        ('steps', steps, defaults.steps),
                        ('guidance', guidance, defaults.guidance),
                    )
                    if given is None
                )
                + ' (the default of such models)'
            )
        steps = defaults.steps if steps is None else steps
        guidance = defaults.guidance if guidance is None else guidance
        if negative_prompt is not None:
            _check_negative_prompt(pipeline, negative_prompt, guidance, bool(stages))
        self._cascade: Cascade | None = None
        if stages:
            self._cascade = Cascade(
                pipeline,
                stages,
                steps=stage_steps,
                guidance=stage_guidance,
                height=height,
                width=width,
            )
        elif stage_steps is not None or stage_guidance is not None:
            raise ValueError('stage_steps and stage_guidance need further stages')
        else:
            check_first_stage(pipeline, height, width)
        self._pipes: list[Any] = self._cascade.pipes if self._cascade else [pipeline]
        self._mask_stage = masks.get('stage', 1) if isinstance(masks, Mapping) else 1
        if self._mask_stage not in range(1, len(self._pipes) + 1):
            raise ValueError(
                f'masks can be taken from stages 1 to {len(self._pipes)}, not {self._mask_stage}'
            )
        if masks:
            # Refuses a family that can't be recorded, before anything is written.
            find_family(self._mask_pipe)
        self.pipeline: Any = pipeline
        self.plan = (
            prompts
            if isinstance(prompts, Plan)
            else Plan(prompts, images_per_prompt, samples_per_shard)
        )
        self.samples_per_shard = samples_per_shard
        self.num_samples = self.plan.num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.image_format = image_format
        self.quality = quality
        self.lost_nouns = lost_nouns
        settings: dict[str, Any] = {
            'pipeline': name or type(pipeline).__name__,
            'revision': revision,
            'pipeline_class': type(pipeline).__name__,
            'scheduler': type(scheduler_of(pipeline)).__name__,
            'steps': steps,
            'guidance': guidance,
            'height': height,
            'width': width,
            'dtype': str(self._pipes[0].dtype).removeprefix('torch.'),
        }
        if self._cascade:
            settings['stages'] = self._cascade.settings
        self.config: dict[str, Any] = settings | {
            'seed': seed,
            'images_per_prompt': images_per_prompt,
            'image_format': image_format,
            'quality': quality if image_format == 'jpg' else None,
            'prompts_sha256': self.plan.fingerprint,
            'num_samples': self.num_samples,
        }
        self.settings = settings | {'versions': _versions()}
        if isinstance(masks, Mapping) and masks:
            self.config['masks'] = json.loads(json.dumps(dict(masks)))
        elif masks is False:
            self.config['masks'] = False
        if keep_hidden:
            self.config['keep_hidden'] = True
        if negative_prompt is not None:
            self.config['negative_prompt'] = negative_prompt
        if loras:
            self.config['loras'] = json.loads(json.dumps(list(map(dict, loras))))
        self._negative_prompt = negative_prompt
        self.keep_hidden = keep_hidden
        self.max_failed = _number_allowed(max_failed, self.num_samples)
        #: Samples that failed in shards that are finished.
        self.failed_before = 0
        self.masks = masks is not False
        self.notes: dict[str, Any] = {'batch_size': batch_size}
        if self._cascade:
            height, width = self._cascade.first_size
        self.call_options = sampling_options(
            pipeline, steps=steps, guidance=guidance, height=height, width=width
        )
        self.call_options['output_type'] = 'pil'
        self.recorder_options: dict[str, Any] = {
            'truncated': lost_nouns,
            'call_options': self.call_options
            if self._cascade is None or self._mask_stage == 1
            else self._cascade.call_options[self._mask_stage - 2],
            # Stage II gets the embeddings that stage I makes of the same prompts.
            'check_prompts': self._mask_stage != 2,
        }
        self._propagate, self._crf = 0, 0
        if isinstance(masks, Mapping):
            self._choose_masks(masks)

    def tell_chosen(self) -> None:
        """Say in one line what was chosen because nobody named it, if anything was."""
        if self.chosen:
            _LOG.warning('%s', self.chosen)

    def _choose_masks(self, masks: Mapping[str, Any]) -> None:
        unknown = sorted(masks.keys() - set(MASK_OPTIONS))
        if unknown:
            raise ValueError(
                f'masks can be told {", ".join(MASK_OPTIONS)}, not {", ".join(unknown)}'
            )
        options = dict(masks)
        options.pop('stage', None)
        self._propagate, self._crf = options.pop('propagate', 0), options.pop('crf', 0)
        if 'steps' in options:
            options['steps'] = range(*options['steps'])
            count = (
                self.config
                if self._mask_stage == 1
                else self.config['stages'][self._mask_stage - 2]
            )['steps']
            if not set(options['steps']).intersection(range(count)):
                raise ValueError(
                    f'masks of the steps {masks["steps"]} are none of the '
                    f'{counted(count, "step")}, counted from 0'
                )
        if self._propagate:
            options['self_attention'] = 32
        self.recorder_options |= options
        # Refuses a name that is unknown, before anything is written.
        AttentionRecorder(self._mask_pipe, ['a photo'], [[]], **self.recorder_options)

    @property
    def _mask_pipe(self) -> Any:
        """The pipeline whose attention is recorded."""
        return self._pipes[self._mask_stage - 1]

    def keys(self, shard: int) -> list[str]:
        """The keys that a shard holds, in order."""
        return _keys(self.plan, shard)

    def size(self, shard: int) -> int:
        """Number of samples in a shard."""
        return min(self.samples_per_shard, self.num_samples - shard * self.samples_per_shard)

    def samples(
        self, shard: int, counts: Counts, on_batch: Callable[[int], None] | None = None
    ) -> Iterator[Sample]:
        """Yield the samples of a shard, generated in batches that depend on the shard alone.

        A sample that can't be generated is left out and listed in ``counts``: a batch that fails is
        generated again one by one, and what fails alone, or has an image or masks that are not
        numbers, is that sample's own failure.

        Args:
            shard: Number of the shard.
            counts: Counts what is seen on the way.
            on_batch: Called after each batch with the number of samples generated of this shard.

        Raises:
            ValueError: If nothing can be generated as asked, naming the prompts, or (with
                ``lost_nouns='raise'``) a noun is lost.
            FloatingPointError: If all that the pipeline generates is not a number.
            GenerationError: If generating fails in another way, whatever the prompt, or more
                samples fail than ``max_failed``.
        """
        work = self.plan.shard(shard)
        with quiet(self._pipes):
            for first in range(0, len(work), self.batch_size):
                batch = work[first : first + self.batch_size]
                for (record, number), outcome in zip(batch, self._outcomes(batch, counts)):
                    counts.lost_nouns += outcome.lost_nouns
                    counts.partial_nouns += outcome.partial_nouns
                    counts.flat_masks += outcome.flat_masks
                    counts.hidden_images += outcome.hidden
                    counts.cut_prompts += self._is_cut(record.prompt)
                    if outcome.sample is not None:
                        yield outcome.sample
                        continue
                    gone: dict[str, Any] = {
                        'key': sample_key(record.id, number, self.plan.images_per_prompt),
                        'kind': outcome.kind,
                    }
                    if outcome.kind == 'failed':  # of the others there may be very many
                        gone |= {
                            'prompt_id': record.id,
                            'image_number': number,
                            'reason': outcome.reason,
                        }
                    counts.left_out.append(gone)
                    self._check_failed(counts)
                if on_batch is not None:
                    on_batch(first + len(batch))

    def generate(
        self, shard: int, rows: Sequence[int], notes: dict[str, Any], *, strict: bool = True
    ) -> dict[int, Sample]:
        """Generate some samples of a shard again, in the batches in which they were generated.

        Args:
            shard: Number of the shard.
            rows: The samples' numbers among those that are in it.
            notes: What the shard remembers: ``batch_size``, ``left_out``.
            strict: Raise if a sample can't be generated, rather than leave it out.

        Returns:
            Number in the shard -> sample.

        Raises:
            ValueError: If a sample can't be generated and ``strict`` is true; and what `samples`
                raises.
        """
        gone = left_out_keys(notes)
        work = self.plan.shard(shard)
        kept = [place for place, key in enumerate(_keys(self.plan, shard)) if key not in gone]
        wanted = {kept[row]: row for row in rows}
        size = int(notes.get('batch_size', self.batch_size))
        found: dict[int, Sample] = {}
        with quiet(self._pipes):
            for first in range(0, len(work), size):
                batch = range(first, min(first + size, len(work)))
                if not wanted.keys() & set(batch):
                    continue
                outcomes = self._outcomes([work[place] for place in batch], Counts())
                for place, outcome in zip(batch, outcomes):
                    if place not in wanted:
                        continue
                    if outcome.sample is not None:
                        found[wanted[place]] = outcome.sample
                    elif strict:
                        raise ValueError(
                            f'the prompt {work[place][0].id} was generated before and '
                            f"can't be now: {outcome.reason}"
                        )
        return found

    def generate_alone(self, shard: int, keys: Sequence[str]) -> dict[str, Sample | str]:
        """Generate samples of a shard one by one.

        Args:
            shard: Number of the shard.
            keys: The samples' keys.

        Returns:
            Key -> the sample, or why it can't be generated.
        """
        work = dict(zip(_keys(self.plan, shard), self.plan.shard(shard)))
        found: dict[str, Sample | str] = {}
        with quiet(self._pipes):
            for key in keys:
                (outcome,) = self._outcomes([work[key]], Counts())
                found[key] = outcome.reason if outcome.sample is None else outcome.sample
        return found

    def _is_cut(self, prompt: str) -> bool:
        """Whether CLIP sees the beginning of a prompt only, and no other encoder sees it all."""
        tokenizers = [
            item
            for name, item in vars(self.pipeline).items()
            if name.startswith('tokenizer') and callable(item)
        ]
        return bool(tokenizers) and all(
            type(item).__name__.startswith('CLIPTokenizer')
            and len(prompt) > item.model_max_length - 2  # a token has a character at least
            and len(item(prompt).input_ids) > item.model_max_length
            for item in tokenizers
        )

    def _check_failed(self, counts: Counts) -> None:
        failed = self.failed_before + counts.failed
        if failed > self.max_failed:
            last = [item for item in counts.left_out if item['kind'] == 'failed'][-3:]
            some = '; '.join(f'{item["key"]}: {item["reason"]}' for item in last)
            raise TooManyFailed(
                f'{counted(failed, "sample")} could not be generated, and {self.max_failed} may '
                f'fail (max_failed) before the run stops; the last: {some}'
            )

    def _outcomes(self, batch: Sequence[tuple[PromptRecord, int]], counts: Counts) -> list[Outcome]:
        """What becomes of the samples of a batch, in order."""
        first: Exception | None = None
        try:
            outcomes = self._generate_together(batch)
        except Exception as error:  # of a pipeline, a scheduler, a tokenizer, the device
            if self.lost_nouns == 'raise' and isinstance(
                error, (NounAlignmentError, NounTruncatedError)
            ):
                raise self._about(batch, error) from None
            first, outcomes = error, []
        if first is not None:
            if len(batch) > 1:
                counts.split_batches += 1
                if _is_out_of_memory(first) and torch.cuda.is_available():
                    torch.cuda.empty_cache()
            for item in batch:
                try:
                    if len(batch) == 1:
                        raise first
                    outcomes += self._generate_together([item])
                except Exception as error:
                    if _is_out_of_memory(error):
                        raise self._about([item], error) from None  # the device's, not the sample's
                    outcomes.append(Outcome(kind='failed', reason=_reason(error)))
        if all(outcome.kind == 'failed' for outcome in outcomes):
            # Whatever the prompt, it is the settings, or the device.
            try:
                works = self._generate_together([(_PROOF, 0)])[0].kind != 'failed'
            except Exception:
                works = False
            if not works:
                raise self._about(batch, first or ValueError(outcomes[0].reason)) from None
        return outcomes

    def _generate_together(self, batch: Sequence[tuple[PromptRecord, int]]) -> list[Outcome]:
        """Generate a batch at once; raises whatever goes wrong on the way."""
        if self.masks:
            recorder, recorded = self._recorder(batch)
        else:
            recorder, recorded = None, [Recorded() for _ in batch]
        # Casting what is not a number to a pixel would give black; errstate makes it an error.
        with np.errstate(invalid='raise'):
            output = self._call(batch, recorder or nullcontext())
        images = generated_images(output)
        self._check_images(images, len(batch))
        masks = (
            [torch.zeros(0, 1, 1) for _ in batch]
            if recorder is None
            else recorder.masks(propagate=self._propagate)
        )
        return [
            self._outcome(record, number, Picture(image), *generated)
            for (record, number), image, generated in zip(
                batch,
                images,
                zip(_hidden(self._pipes[-1], output), masks, recorded, strict=True),
                strict=True,
            )
        ]

    def _call(
        self, batch: Sequence[tuple[PromptRecord, int]], recorder: AbstractContextManager
    ) -> Any:
        """Call the pipeline, or the stages of a cascade, with a recorder round it."""
        prompts = [record.prompt for record, _ in batch]
        generators = [
            # Noise from the CPU is the same on every device.
            [
                torch.Generator().manual_seed(sample_seed(self.seed, record.id, number, stage))
                for record, number in batch
            ]
            for stage in range(1, len(self._pipes) + 1)
        ]
        if self._cascade:
            return self._cascade.generate(
                prompts, generators, self.call_options, recorder, self._mask_stage
            )
        options = self._options(len(batch))
        # Some pipelines that the recorder doesn't know take one generator only.
        alone = len(batch) == 1 and not self.masks
        options['generator'] = generators[0][0] if alone else generators[0]
        with recorder:
            return self.pipeline(prompt=prompts, **options)

    def _options(self, count: int) -> dict[str, Any]:
        """Arguments of the pipeline's call for a batch, beside its prompts and its noise."""
        options = dict(self.call_options)
        negative = self._negative_prompt
        if negative is None:
            negative = call_names(self.pipeline).negative_prompt
        if negative is not None:
            options['negative_prompt'] = [negative] * count
        return options

    def _check_images(self, images: Sequence[Image.Image], count: int) -> None:
        """Refuse images of another number or size than was asked for."""
        name = type(self.pipeline).__name__
        if len(images) != count:
            raise ValueError(
                f'{name} drew {counted(len(images), "image")} from {counted(count, "prompt")}'
            )
        wanted = (self.settings['width'], self.settings['height'])
        if wanted != (None, None) and images[0].size != wanted:
            raise ValueError(
                f'{name} drew images of size {images[0].size} (width, height), not {wanted}'
            )

    def _outcome(
        self,
        record: PromptRecord,
        number: int,
        picture: Picture,
        hidden: bool,
        raw: torch.Tensor,
        recorded: Recorded,
    ) -> Outcome:
        """Make a sample of an image and its masks, or say why it is left out."""
        if hidden and not self.keep_hidden:
            reason = "blacked out by the pipeline's safety checker"
            return Outcome(hidden=True, kind='hidden', reason=reason)
        if not torch.isfinite(raw).all():
            return Outcome(hidden=hidden, kind='failed', reason='its masks are not numbers')
        kept = [row for row, index in enumerate(recorded.nouns) if index not in recorded.lost]
        maps = *quantize(self._sharpened(raw, picture.image)), minmax(raw)[1]
        levels, scales, flat = (tensor.numpy()[kept] for tensor in maps)
        meta: dict[str, Any] = {
            'prompt_id': record.id,
            'source': record.source,
            'image_number': number,
            'seed': sample_seed(self.seed, record.id, number),
            **self.settings,
            'hidden_by_safety_checker': hidden,
            **picture.meta,
        }
        for name, reasons in (
            ('lost_nouns', recorded.lost),
            ('partial_nouns', recorded.partial),
        ):
            if reasons:
                meta[name] = [
                    record.nouns[index].to_json() | {'reason': reason}
                    for index, reason in sorted(reasons.items())
                ]
        meta['mask_trust'] = [trust.to_json() for trust in mask_trust(raw[kept])]
        data, image_format = picture.data, picture.image_format
        if data is None:
            image_format = self.image_format
            data = encode_image(picture.image, image_format, self.quality)
        sample = Sample(
            sample_key(record.id, number, self.plan.images_per_prompt),
            data,
            image_format,
            caption=record.prompt,
            nouns=tuple(record.nouns[recorded.nouns[row]] for row in kept),
            masks=levels,
            scales=scales,
            meta=meta,
        )
        return Outcome(
            sample,
            lost_nouns=len(recorded.lost),
            partial_nouns=len(recorded.partial),
            flat_masks=int(flat.sum()),
            hidden=hidden,
        )

    def _sharpened(self, masks: torch.Tensor, image: Image.Image) -> torch.Tensor:
        """The masks of an image with its edges, if asked for."""
        if not (self._crf and len(masks)):
            return masks
        scale = self._crf / min(masks.shape[-2:])
        height, width = (round(side * scale) for side in masks.shape[-2:])
        soft, _ = minmax(resize(masks, (height, width)))
        return torch.from_numpy(dense_crf(soft, np.asarray(image.convert('RGB'))))

    def _recorder(
        self, batch: Sequence[tuple[PromptRecord, int]]
    ) -> tuple[AttentionRecorder, list[Recorded]]:
        """A recorder for a batch, and for each prompt which nouns it records."""
        recorded = [Recorded(list(range(len(record.nouns)))) for record, _ in batch]
        try:
            recorder = self._recorder_of(batch, recorded)
        except NounAlignmentError:
            if self.lost_nouns == 'raise':
                raise
            for item, nouns in zip(batch, recorded):
                for index in list(nouns.nouns):
                    try:
                        self._recorder_of([item], [Recorded([index])])
                    except NounAlignmentError:
                        nouns.lost[index] = 'not found among the tokens'
                        nouns.nouns.remove(index)
            recorder = self._recorder_of(batch, recorded)
        for place, row in recorder.truncated:
            recorded[place].lost[recorded[place].nouns[row]] = 'cut off by the tokenizer'
        for place, row, reason in recorder.left_out:
            recorded[place].partial[recorded[place].nouns[row]] = reason
        return recorder, recorded

    def _recorder_of(
        self, batch: Sequence[tuple[PromptRecord, int]], recorded: Sequence[Recorded]
    ) -> AttentionRecorder:
        prompts = [record.prompt for record, _ in batch]
        nouns = [
            [record.nouns[index] for index in chosen.nouns]
            for (record, _), chosen in zip(batch, recorded)
        ]
        return AttentionRecorder(self._mask_pipe, prompts, nouns, **self.recorder_options)

    def _about(self, batch: Sequence[tuple[PromptRecord, int]], error: Exception) -> Exception:
        """The error with the names of the prompts; of a kind that callers know."""
        names = ', '.join(record.id for record, _ in batch[:4])
        more = ', ...' if len(batch) > 4 else ''
        message = f'{self.doing} {names}{more} failed: {_reason(error)}'
        if isinstance(error, NothingRecorded):
            return ValueError(message)
        if isinstance(error, (NounAlignmentError, NounTruncatedError, FloatingPointError)):
            return type(error)(message)
        return (ValueError if isinstance(error, ValueError) else GenerationError)(message)


#: Generated where all of a batch fails, to tell whether it is the prompts or the settings.
_PROOF = PromptRecord('proof', 'a photo of a dog', (Noun('dog', 13, 16, 'dog'),))


def _number_allowed(max_failed: float | None, num_samples: int) -> int:
    """How many of a run's samples may fail."""
    if max_failed is None:
        return max(10, num_samples // 10)
    if isinstance(max_failed, bool) or not 0 <= max_failed <= 1e12:  # NaN is neither
        raise ValueError(
            'max_failed must be a share of the samples below 1, or a number of them, '
            f'got {max_failed}'
        )
    return int(max_failed * num_samples if 0 < max_failed < 1 else max_failed)


def _hidden(pipeline: DiffusionPipeline, output: Any) -> list[bool]:
    """Which images the safety checker blacked out."""
    for name in ('nsfw_content_detected', 'nsfw_detected'):
        found = getattr(output, name, None)
        if found is not None:
            return [bool(value) for value in found]
    images = generated_images(output)
    if getattr(pipeline, 'safety_checker', None) is None:
        return [False] * len(images)
    return [image.convert('L').getextrema() == (0, 0) for image in images]


def _reason(error: Exception) -> str:
    """What an error says, in a line that is the same each time."""
    if isinstance(error, FloatingPointError):
        return (
            'its image is not a number (NaN): too large for the number format; float32, or '
            'bfloat16, holds it'
        )
    text = ' '.join(str(error).split()) or type(error).__name__
    text = re.sub(r'0x[0-9a-fA-F]+', '0x...', text)
    if not isinstance(error, (ValueError, RuntimeError)):
        text = f'{type(error).__name__}: {text}'
    return text if len(text) <= 300 else f'{text[:297]}...'


def _is_out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or isinstance(error, RuntimeError)
        and ('out of memory' in str(error) or "can't allocate memory" in str(error))
    )


class StorePlan:
    """The samples that a store should hold, from its prompts alone: it generates nothing.

    Args:
        path: The store's folder.
        prompts: The prompt file that it was generated from.

    Raises:
        StoreError: If ``store.json`` isn't readable or says nothing of prompts.
        ValueError: If these are not the prompts that the store was generated from.
    """

    def __init__(self, path: str | Path, prompts: str | Path) -> None:
        manifest = read_manifest_of_run(path)
        try:
            self.config: dict[str, Any] = dict(manifest['config'])
            self.samples_per_shard: int = manifest['samples_per_shard']
            self.num_samples: int = self.config['num_samples']
            each, fingerprint = self.config['images_per_prompt'], self.config['prompts_sha256']
            records = PromptFile(prompts, self.num_samples // each)
        except (KeyError, TypeError):
            raise StoreError(
                f"{Path(path) / MANIFEST} doesn't say from which prompts the store was generated"
            ) from None
        self.plan = Plan(records, each, self.samples_per_shard)
        if self.plan.fingerprint != fingerprint:
            raise ValueError(
                f'the prompts in {prompts} are not those that {path} was generated from'
            )

    def keys(self, shard: int) -> list[str]:
        """The keys that a shard holds, in order."""
        return _keys(self.plan, shard)

    def generate(self, shard: int, rows: Sequence[int], notes: dict[str, Any]) -> dict[int, Sample]:
        """Refused: generating takes a `ShardSource`."""
        raise StoreError('samples can only be generated again with their pipeline')


def _keys(plan: Plan, shard: int) -> list[str]:
    return [
        sample_key(record.id, number, plan.images_per_prompt)
        for record, number in plan.shard(shard)
    ]


def read_manifest_of_run(path: str | Path) -> dict[str, Any]:
    """Read the records of a store that a run made.

    Raises:
        StoreError: If there are none, or they can't be read.
    """
    try:
        return read_manifest(path)
    except FileNotFoundError:
        raise StoreError(
            f'{path}/{MANIFEST} is missing, and with it the settings of the '
            'run: start the command that made the store once more with the same arguments'
        ) from None


@dataclass(frozen=True)
class GenerationJob:
    """All that a worker needs to take part in a run, small enough to be sent to it.

    Args:
        pipeline: Folder of a pipeline, its id on the hub, or a single file of a checkpoint.
        prompts: The prompt file, or its address.
        limit: Use its first ``limit`` records only.
        revision: Branch, tag or commit on the hub.
        scheduler: A diffusers scheduler class in place of the pipeline's own.
        dtype: ``'float32'``, ``'float16'`` or ``'bfloat16'``.
        device: Where to run; ``None`` for a GPU if there is one. ``cuda`` becomes this worker's
            own GPU where several workers share a machine.
        variant: The weights' variant, such as ``'fp16'``.
        stages: The further stages of a cascade: folders, or ids on the hub, which may end in
            ``@`` and a branch, tag or commit.
        loras: Files of LoRAs, as `freeatm_mm.generation.load_pipeline` takes them.
        model_config: Of a pipeline that is a single file, where its configs are.
        offload: One of `freeatm_mm.generation.pipelines.OFFLOADS`.
        options: The further arguments of `ShardSource`.
    """

    pipeline: str
    prompts: str
    limit: int | None = None
    revision: str | None = None
    scheduler: str | None = None
    dtype: str = 'float32'
    device: str | None = None
    variant: str | None = None
    stages: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    model_config: str | None = None
    offload: str = 'none'
    options: dict[str, Any] = field(default_factory=dict)

    #: What makes the samples.
    source_class: ClassVar[type[ShardSource]] = ShardSource
    #: The options that a store's config holds as they were given.
    kept_options: ClassVar[tuple[str, ...]] = (
        'steps',
        'guidance',
        'seed',
        'images_per_prompt',
        'image_format',
        'samples_per_shard',
        'height',
        'width',
    )
    #: Those that it holds only where they aren't these.
    optional_options: ClassVar[Mapping[str, Any]] = {
        'masks': True,
        'keep_hidden': False,
        'negative_prompt': None,
    }

    def records(self) -> PromptFile:
        """Open the prompt file.

        Raises:
            FileNotFoundError: If it is missing.
            ValueError: If a line is not a valid record.
        """
        return PromptFile(self.prompts, self.limit)

    @property
    def settings(self) -> dict[str, Any]:
        """The options, those left out by their defaults."""
        parameters = inspect.signature(self.source_class).parameters
        defaults = {name: parameter.default for name, parameter in parameters.items()}
        return {'images_per_prompt': 1, **defaults, **self.options}

    def check(self, out: str | Path | None = None) -> Plan:
        """Check all that can be checked before weights are loaded.

        Args:
            out: The folder of the store that will be generated.

        Returns:
            The plan, for `source`.

        Raises:
            FileNotFoundError: If the prompts are missing.
            ValueError: If a setting is out of range, or the prompts can't be used.
            StoreError: If ``out`` holds a store made with other settings.
        """
        settings = self.settings
        check_settings(settings)
        plan = Plan(self.records(), settings['images_per_prompt'], settings['samples_per_shard'])
        _number_allowed(settings['max_failed'], plan.num_samples)
        if out is not None:
            self._check_store(local_folder(out), plan, settings)
        return plan

    def _check_store(self, out: Path, plan: Plan, settings: dict[str, Any]) -> None:
        """Refuse a store made with other settings, as far as these are known by now."""
        if not next(place for place in (out, *out.parents) if place.exists()).is_dir():
            raise StoreError(f"{out} can't be a store: it is a file, or lies in one")
        try:
            manifest = load_manifest(out / MANIFEST, STORE_FORMAT)
        except FileNotFoundError:
            return
        if not manifest.get('complete') and not any(out.glob('shard-*')):
            return
        known = {name: settings[name] for name in self.kept_options}
        for name in ('steps', 'guidance'):  # those of the pipeline, which isn't loaded yet
            if known.get(name, ...) is None:
                del known[name]
        known |= {'prompts_sha256': plan.fingerprint, 'num_samples': plan.num_samples}
        if self.scheduler:
            known['scheduler'] = self.scheduler
        config = manifest.get('config')
        found = (config if isinstance(config, dict) else {}) | {
            'samples_per_shard': manifest.get('samples_per_shard')
        }
        differences = name_differences({name: found.get(name) for name in known}, known)
        if differences:
            raise StoreError(
                f'{out} holds a store made otherwise: {"; ".join(differences)}. Use '
                'the same settings to go on, or another folder'
            )

    def source(self, local_rank: int | None = None, plan: Plan | None = None) -> ShardSource:
        """Read the prompts and load the pipeline.

        Args:
            local_rank: Number of this worker on its machine, where there are several.
            plan: What `check` returned.

        Raises:
            FileNotFoundError: If prompts or pipeline are missing.
            ValueError: If one of them can't be used, saying why.
        """
        plan = self.check() if plan is None else plan
        device = self.device
        if local_rank is not None and device in (None, 'cuda') and torch.cuda.is_available():
            device = f'cuda:{local_rank % torch.cuda.device_count()}'
        loaded = load_pipeline(
            self.pipeline,
            revision=self.revision,
            scheduler=self.scheduler,
            dtype=self.dtype,
            device=device,
            variant=self.variant,
            loras=self.loras,
            model_config=self.model_config,
            offload=self.offload,
        )
        stages = []
        for number, stage in enumerate(self.stages):
            place, _, revision = (stage, '', '') if Path(stage).is_dir() else stage.partition('@')
            stages.append(
                load_pipeline(
                    place,
                    revision=revision or None,
                    dtype=self.dtype,
                    device=device,
                    variant=self.variant,
                    # Stage II gets the embeddings of stage I, whose encoder has 5 billion weights.
                    without=('text_encoder',) if number == 0 else (),
                    offload=self.offload,
                )
            )
        options: dict[str, Any] = {'name': loaded.name, 'revision': loaded.revision}
        if stages:
            options['stages'] = stages
        if loaded.loras:
            options['loras'] = loaded.loras
        options |= self.options
        source = self.source_class(loaded.pipe, plan, **options, **self.further_options())
        if not local_rank:
            source.tell_chosen()
        return source

    def absolute(self) -> GenerationJob:
        """Return the same job with paths that hold from anywhere; ids on the hub as they are."""

        def absolute(place: str) -> str:
            return str(Path(place).absolute())

        def whole(place: str) -> str:
            return absolute(place) if Path(place).exists() else place

        def whole_lora(lora: str) -> str:  # or FILE:WEIGHT
            name = lora if lora.endswith('.safetensors') else lora.rpartition(':')[0]
            of_hub = not Path(name).is_file() and on_hub(name)
            return lora if of_hub else absolute(lora)

        return replace(
            self,
            prompts=self.prompts if is_address(self.prompts) else absolute(self.prompts),
            pipeline=whole(self.pipeline),
            stages=tuple(whole(stage) for stage in self.stages),
            loras=tuple(whole_lora(lora) for lora in self.loras),
            model_config=None if self.model_config is None else whole(self.model_config),
        )

    def further_options(self) -> dict[str, Any]:
        """What `source_class` is told besides."""
        return {}

    @classmethod
    def of_store(
        cls, path: str | Path, pipeline: str, prompts: str, **changes: Any
    ) -> GenerationJob:
        """The job that made a store, from the store's own records.

        Args:
            path: The store's folder.
            pipeline: Where the pipeline lies now.
            prompts: Where the prompt file lies now.
            **changes: Fields of the job, and options, to set otherwise.

        Raises:
            StoreError: If there is no readable ``store.json``, or it says nothing of a pipeline.
        """
        file, manifest = Path(path) / MANIFEST, read_manifest_of_run(path)
        try:
            config = dict(manifest['config'])
            whole = config | {'samples_per_shard': manifest['samples_per_shard']}
            options = {name: whole[name] for name in cls.kept_options}
            options |= {name: config.get(name, own) for name, own in cls.optional_options.items()}
            options |= {'name': config['pipeline'], 'quality': config['quality'] or 95}
            if config.get('loras') and 'loras' not in changes:
                names = [f'{lora["name"]}:{lora["weight"]}' for lora in config['loras']]
                if not all(on_hub(lora['name']) for lora in config['loras']):
                    raise StoreError(f'{file} was made with LoRAs: give them ({", ".join(names)})')
                changes['loras'] = tuple(names)
            # An unfinished store lists no shards yet, but those that are there have notes.
            entries = manifest['shards'] or [
                entry for _, entry in sorted(shard_entries(Path(path))[0].items())
            ]
            notes = entries[0].get('notes', {}) if entries else {}
            if 'batch_size' in notes:
                options['batch_size'] = notes['batch_size']
            # A folder's revision is a hash, to compare with; the hub's is one to ask for.
            revision = config['revision']
            stages = config.get('stages', [])
            if stages:
                options |= {
                    'stage_steps': [stage['steps'] for stage in stages],
                    'stage_guidance': [stage['guidance'] for stage in stages],
                }
                if 'stages' not in changes:
                    if any('/' not in stage['pipeline'] for stage in stages):
                        raise StoreError(
                            f'{file} names further stages that were folders: give them'
                        )
                    changes['stages'] = tuple(
                        f'{stage["pipeline"]}@{stage["revision"]}' for stage in stages
                    )
            job = cls(
                pipeline,
                prompts,
                limit=config['num_samples'] // config['images_per_prompt'],
                revision=None if str(revision).startswith('sha256:') else revision,
                scheduler=config.get('scheduler'),
                dtype=config['dtype'],
            )
        except (KeyError, TypeError, IndexError, AttributeError):
            raise StoreError(
                f"{file} doesn't say how it was generated, so nothing in it can be made again"
            ) from None
        own = {item.name for item in fields(cls)}
        options |= {name: value for name, value in changes.items() if name not in own}
        return replace(
            job, options=options, **{name: value for name, value in changes.items() if name in own}
        )


def _check_negative_prompt(pipeline: Any, text: str, guidance: float, cascade: bool) -> None:
    """Refuse a negative prompt that would have no effect.

    Raises:
        ValueError: Saying why it would have none.
    """
    kind = type(pipeline).__name__
    parameters = call_parameters(type(pipeline))
    if not isinstance(text, str) or len(text) > _MOST_NEGATIVE:
        raise ValueError(f'negative_prompt must be a text of at most {_MOST_NEGATIVE} characters')
    if cascade or 'negative_prompt' not in parameters:
        raise ValueError(f'{"a cascade" if cascade else kind} takes no negative prompt here')
    if 'true_cfg_scale' in parameters and 'true_cfg_scale' not in call_names(pipeline).guidance:
        raise ValueError(
            f'{kind} follows a negative prompt by true_cfg_scale alone, not by guidance'
        )
    unet = getattr(pipeline, 'unet', None)
    if unet is not None and unet.config.get('time_cond_proj_dim') is not None:
        raise ValueError(
            f'a negative prompt has no effect in this {kind}: guidance is an input of its U-Net'
        )
    if guidance <= 1:
        raise ValueError(f'a negative prompt needs guidance above 1, got {guidance}')


@contextmanager
def quiet(pipes: Sequence[Any]) -> Iterator[None]:
    """Keep the pipelines' own bars, and what they say of every long prompt, off the screen."""
    before = [getattr(pipe, '_progress_bar_config', {}) for pipe in pipes]
    handlers = [
        handler
        for name in ('diffusers', 'transformers')
        for handler in logging.getLogger(name).handlers
    ]
    for pipe, config in zip(pipes, before):
        pipe.set_progress_bar_config(**config | {'disable': True})
    for handler in handlers:
        handler.addFilter(_says_more)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_says_more)
        for pipe, config in zip(pipes, before):
            pipe.set_progress_bar_config(**config)


def _says_more(record: logging.LogRecord) -> bool:
    """Whether a message isn't about a prompt that is too long: `cut_prompts` counts these."""
    text = record.getMessage()
    return not ('part of your input was truncated' in text or 'sequence length is longer' in text)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # imported from a checkout
            continue
    return found

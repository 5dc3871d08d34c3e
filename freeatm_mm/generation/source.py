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

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from freeatm_mm.attention import (
    AttentionRecorder,
    NothingRecorded,
    NounAlignmentError,
    NounTruncatedError,
    find_family,
    mask_trust,
    minmax,
    quantize,
)
from freeatm_mm.attention.families import call_names
from freeatm_mm.attention.recording import generated_images
from freeatm_mm.errors import counted
from freeatm_mm.generation.calls import (
    check_negative_prompt,
    hidden_images,
    quiet,
    sampling_defaults,
    sampling_options,
    scheduler_of,
)
from freeatm_mm.generation.cascade import Cascade, check_first_stage
from freeatm_mm.generation.limits import check_settings
from freeatm_mm.generation.masks import MaskRecorder, Recorded
from freeatm_mm.generation.outcomes import (
    Counts,
    GenerationError,
    Outcome,
    Picture,
    SourceError,
    TooManyFailed,
    is_out_of_memory,
    number_allowed,
    reason_of,
)
from freeatm_mm.generation.pipelines import LoadedPipeline
from freeatm_mm.generation.plan import Plan, sample_key, sample_seed
from freeatm_mm.prompts import Noun, PromptRecord
from freeatm_mm.store import Sample, StoreError
from freeatm_mm.store.layout import left_out_keys
from freeatm_mm.store.sample import IMAGE_FORMATS, encode_image

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ['ShardSource']

_LOG = logging.getLogger(__name__)

_PACKAGES = ('freeatm_mm', 'torch', 'diffusers', 'transformers')


class ShardSource:
    """Generates the samples of any shard of a run.

    Args:
        pipeline: A text-to-image pipeline; for masks, of a family that the recorder knows.
        prompts: The prompts, a list or a `freeatm_mm.generation.PromptFile`; or a
            `freeatm_mm.generation.Plan` of them made with the same ``images_per_prompt``
            and ``samples_per_shard``.
        steps: Denoising steps; the default is 50, and a few-step model's own
            (`freeatm_mm.generation.calls.sampling_defaults`).
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
            `freeatm_mm.generation.masks.MASK_OPTIONS`, JSON values only: ``blocks``,
            ``resolutions``, ``heads``, ``probability``, ``merge``, ``maps``, ``head_weights`` and
            ``rescale`` as `freeatm_mm.attention.AttentionRecorder` takes them; ``steps`` as start,
            stop and maybe stride, or ``None`` for all; ``propagate``, how often to pass them on
            along the self-attention at 32x32 or below; ``crf``, the shorter side in pixels at which
            `freeatm_mm.attention.dense_crf` draws their edges, at most 96; ``stage``, the stage of
            a cascade that is recorded, from 1.
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
            samples if that is more. Of several workers' samples those count that are in finished
            shards.
        name: Name of the pipeline for the records; the default is its class.
        revision: Revision of the pipeline for the records.

    Attributes:
        plan: Which sample stands where.
        config: What the store's samples depend on, for its ``store.json``.
        notes: What each shard remembers of how it was generated.
        samples_per_shard: Samples in each shard but the last.
        num_samples: Samples in the whole run.
        chosen: The steps and guidance of a few-step model that nobody named, in words.
        in_format: Loads the same with weights of another number format (``'float32'``, ...), in
            which `generate` then makes samples that `redo_failed` made so; None if nothing can.

    Raises:
        ValueError: If an argument is out of range, the pipeline's family is unknown or a prompt id
            can't be used.
    """

    #: Counts what is seen while a shard is made.
    counts_class: type[Counts] = Counts
    #: What is being done to the samples of a batch, for messages that go on with their names.
    doing = 'generating from the prompts'
    #: Whether a step calls the denoiser once, whatever the pipeline's scheduler.
    called_once = False

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
        self.chosen = defaults.chosen(steps, guidance)
        steps = defaults.steps if steps is None else steps
        guidance = defaults.guidance if guidance is None else guidance
        if batch_size > 1 and call_names(pipeline).one_generator:
            raise ValueError(
                f'{type(pipeline).__name__} takes one generator a call, and each sample has a seed '
                f'of its own: generate one at a time (batch_size=1, --batch-size 1), not '
                f'{batch_size}'
            )
        if negative_prompt is not None:
            check_negative_prompt(pipeline, negative_prompt, guidance, bool(stages))
        self._cascade = _cascade(pipeline, stages, stage_steps, stage_guidance, height, width)
        self._pipes: list[Any] = self._cascade.pipes if self._cascade else [pipeline]
        self._mask_stage = masks.get('stage', 1) if isinstance(masks, Mapping) else 1
        if self._mask_stage not in range(1, len(self._pipes) + 1):
            raise ValueError(
                f'masks can be taken from stages 1 to {len(self._pipes)}, not {self._mask_stage}'
            )
        if masks:
            # Refuses a family that can't be recorded, before anything is written.
            find_family(self._pipes[self._mask_stage - 1])
        self.pipeline: Any = pipeline
        self.in_format: Callable[[str], ShardSource] | None = None
        self._formats: dict[str, ShardSource] = {}
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
        self.max_failed = number_allowed(max_failed, self.num_samples)
        #: Samples that failed in the shards of the run that are finished, whoever generated them.
        self.failed_before = 0
        self.notes: dict[str, Any] = {'batch_size': batch_size}
        if self._cascade:
            height, width = self._cascade.first_size
        self.call_options = sampling_options(
            pipeline, steps=steps, guidance=guidance, height=height, width=width
        )
        self.call_options['output_type'] = 'pil'
        self._masks = None if masks is False else self._mask_recorder(masks, steps)

    def _mask_recorder(self, masks: bool | Mapping[str, Any], steps: int) -> MaskRecorder:
        """What records the masks of the stage that they are taken from."""
        call_options = self.call_options
        if self._cascade and self._mask_stage > 1:
            steps = self._cascade.settings[self._mask_stage - 2]['steps']
            call_options = self._cascade.call_options[self._mask_stage - 2]
        return MaskRecorder(
            self._pipes[self._mask_stage - 1],
            masks if isinstance(masks, Mapping) else None,
            steps=steps,
            lost_nouns=self.lost_nouns,
            call_options=call_options,
            # Stage II gets the embeddings that stage I makes of the same prompts.
            check_prompts=self._mask_stage != 2,
            called_once=self.called_once,
        )

    def tell_chosen(self) -> None:
        """Say in one line what was chosen because nobody named it, if anything was."""
        if self.chosen:
            _LOG.warning('%s', self.chosen)

    def keys(self, shard: int) -> list[str]:
        """The keys that a shard holds, in order."""
        return self.plan.keys(shard)

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
        self._check_failed(counts)
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
                    counts.left_out.append(self._gone(record, number, outcome))
                    self._check_failed(counts)
                if on_batch is not None:
                    on_batch(first + len(batch))

    def _gone(self, record: PromptRecord, number: int, outcome: Outcome) -> dict[str, Any]:
        """What the records say of a sample that is left out."""
        gone = {
            'key': sample_key(record.id, number, self.plan.images_per_prompt),
            'kind': outcome.kind,
        }
        if outcome.kind != 'failed':  # of these there may be very many
            return gone
        return gone | {'prompt_id': record.id, 'image_number': number, 'reason': outcome.reason}

    def generate(
        self, shard: int, rows: Sequence[int], notes: dict[str, Any], *, strict: bool = True
    ) -> dict[int, Sample]:
        """Generate some samples of a shard again, in the batches in which they were generated.

        Those that `redo_failed` generated are generated alone, as they were there, and in their
        number format if it is another and `in_format` can load it.

        Args:
            shard: Number of the shard.
            rows: The samples' numbers among those that are in it.
            notes: What the shard remembers: ``batch_size``, ``left_out``, ``redone``.
            strict: Raise if a sample can't be generated, rather than leave it out.

        Returns:
            Number in the shard -> sample.

        Raises:
            StoreError: If a sample can't be generated and ``strict`` is true: names it.
            ValueError: What `samples` raises, as do the others.
        """
        gone, redone = left_out_keys(notes), _redone_dtypes(notes)
        work, keys = self.plan.shard(shard), self.plan.keys(shard)
        kept = [place for place, key in enumerate(keys) if key not in gone]
        wanted = {kept[row]: row for row in rows}
        size = notes.get('batch_size')
        if type(size) is not int or size < 1:
            size = self.batch_size
        # What was generated again was so alone.
        alone = [place for place in wanted if keys[place] in redone]
        together = wanted.keys() - set(alone)
        batches: list[Sequence[int]] = [
            range(first, min(first + size, len(work))) for first in range(0, len(work), size)
        ]
        found: dict[int, Sample] = {}
        for maker, batch, chosen in [
            *((self, batch, together.intersection(batch)) for batch in batches),
            *((self._maker(redone[keys[place]]), [place], {place}) for place in alone),
        ]:
            if not chosen:
                continue
            try:
                with quiet(maker._pipes):
                    outcomes = maker._outcomes([work[place] for place in batch], Counts())
            except (NounAlignmentError, NounTruncatedError) as error:
                if not strict:
                    raise
                raise StoreError(str(error)) from None  # of these prompts alone
            for place, outcome in zip(batch, outcomes):
                if place not in chosen:
                    continue
                if outcome.sample is not None:
                    found[wanted[place]] = outcome.sample
                elif strict:
                    raise StoreError(
                        f"sample {keys[place]!r} was made before and can't be now: "
                        f'{outcome.reason}{self._redone_hint(redone.get(keys[place]))}'
                    )
        return found

    def _maker(self, dtype: str) -> ShardSource:
        """What generates samples of a number format: this one, unless the other can be loaded."""
        if dtype == self.config['dtype'] or self.in_format is None:
            return self
        if dtype not in self._formats:
            _LOG.info('loading the pipeline once more, as %s: a lost sample was made so', dtype)
            self._formats[dtype] = self.in_format(dtype)
        return self._formats[dtype]

    def _redone_hint(self, dtype: str | None) -> str:
        """How a sample comes back that was generated in another number format than the rest."""
        if dtype in (None, self.config['dtype']) or self.in_format is not None:
            return ''
        return (
            f'; it was generated again as {dtype}, and this pipeline is {self.config["dtype"]}: '
            "remove the shard's tar, index and JSON, then start the command that made the store, "
            f'and once more with --redo-failed --dtype {dtype}'
        )

    def generate_alone(self, shard: int, keys: Sequence[str]) -> dict[str, Sample | str]:
        """Generate samples of a shard one by one.

        Args:
            shard: Number of the shard.
            keys: The samples' keys.

        Returns:
            Key -> the sample, or why it can't be generated.
        """
        work = dict(zip(self.plan.keys(shard), self.plan.shard(shard)))
        found: dict[str, Sample | str] = {}
        with quiet(self._pipes):
            for key in keys:
                (outcome,) = self._outcomes([work[key]], Counts())
                found[key] = outcome.reason if outcome.sample is None else outcome.sample
        return found

    def _is_cut(self, prompt: str) -> bool:
        """Whether no text encoder reads a prompt to its end; known of CLIP's tokenizers alone."""
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
            told = f'the last: {some}' if last else "the shards' notes (left_out) say which"
            raise TooManyFailed(
                f'{counted(failed, "sample")} could not be generated, and {self.max_failed} may '
                f'fail (max_failed) before the run stops; {told}'
            )

    def _outcomes(self, batch: Sequence[tuple[PromptRecord, int]], counts: Counts) -> list[Outcome]:
        """What becomes of the samples of a batch, in order."""
        first: Exception | None = None
        try:
            outcomes = self._generate_together(batch)
        except SourceError:  # nothing of the samples: the next ones would fail as well
            raise
        except Exception as error:  # of a pipeline, a scheduler, a tokenizer, the device
            if self.lost_nouns == 'raise' and isinstance(
                error, (NounAlignmentError, NounTruncatedError)
            ):
                raise self._about(batch, error) from None
            first, outcomes = error, []
        if first is not None:
            if len(batch) > 1:
                counts.split_batches += 1
                if is_out_of_memory(first) and torch.cuda.is_available():
                    torch.cuda.empty_cache()
            for item in batch:
                try:
                    if len(batch) == 1:
                        raise first
                    outcomes += self._generate_together([item])
                except SourceError:
                    raise
                except Exception as error:
                    if is_out_of_memory(error):
                        raise self._about([item], error) from None  # the device's, not the sample's
                    outcomes.append(Outcome(kind='failed', reason=reason_of(error)))
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
        recorder: AttentionRecorder | None = None
        recorded = [Recorded() for _ in batch]
        if self._masks:
            recorder, recorded = self._masks.recorder([record for record, _ in batch])
        # Casting what is not a number to a pixel would give black; errstate makes it an error.
        with np.errstate(invalid='raise'):
            output = self._call(batch, recorder or nullcontext())
        images = generated_images(output)
        self._check_images(images, len(batch))
        masks = (
            self._masks.masks(recorder)
            if self._masks and recorder is not None
            else [torch.zeros(0, 1, 1) for _ in batch]
        )
        return [
            self._outcome(record, number, Picture(image), *generated)
            for (record, number), image, generated in zip(
                batch,
                images,
                zip(hidden_images(self._pipes[-1], output), masks, recorded, strict=True),
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
        # Some pipelines take one generator only.
        alone = len(batch) == 1 and (not self._masks or call_names(self.pipeline).one_generator)
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
                f'{name} generated {counted(len(images), "image")} from {counted(count, "prompt")}'
            )
        wanted = (self.settings['width'], self.settings['height'])
        if wanted != (None, None) and images[0].size != wanted:
            raise ValueError(
                f'{name} generated images of size {images[0].size} (width, height), not {wanted}'
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
        sharp = self._masks.sharpened(raw, picture.image) if self._masks else raw
        maps = *quantize(sharp), minmax(raw)[1]
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

    def _about(self, batch: Sequence[tuple[PromptRecord, int]], error: Exception) -> Exception:
        """The error with the names of the prompts; of a kind that callers know."""
        names = ', '.join(record.id for record, _ in batch[:4])
        more = ', ...' if len(batch) > 4 else ''
        message = f'{self.doing} {names}{more} failed: {reason_of(error)}'
        if isinstance(error, NothingRecorded):
            return ValueError(message)
        if isinstance(error, (NounAlignmentError, NounTruncatedError, FloatingPointError)):
            return type(error)(message)
        return (ValueError if isinstance(error, ValueError) else GenerationError)(message)


def _cascade(
    pipeline: Any,
    stages: Sequence[LoadedPipeline],
    steps: Sequence[int] | None,
    guidance: Sequence[float] | None,
    height: int | None,
    width: int | None,
) -> Cascade | None:
    """The cascade of a pipeline and its further stages; `None` if there are none."""
    if stages:
        return Cascade(pipeline, stages, steps=steps, guidance=guidance, height=height, width=width)
    if steps is not None or guidance is not None:
        raise ValueError('stage_steps and stage_guidance need further stages')
    check_first_stage(pipeline, height, width)
    return None


def _redone_dtypes(notes: Mapping[str, Any]) -> dict[str, str]:
    """Key of each sample of a shard that `redo_failed` generated -> in which number format."""
    listed = notes.get('redone')
    return {
        item['key']: item['dtype']
        for item in (listed if isinstance(listed, list) else [])
        if isinstance(item, dict)
        and isinstance(item.get('key'), str)
        and isinstance(item.get('dtype'), str)
    }


#: Generated where all of a batch fails, to tell whether it is the prompts or the settings.
_PROOF = PromptRecord('proof', 'a photo of a dog', (Noun('dog', 13, 16, 'dog'),))


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # imported from a checkout
            continue
    return found

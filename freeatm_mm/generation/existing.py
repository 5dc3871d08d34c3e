"""Masks for images that exist already: the generator looks at them, noised, in place of generating.

The shards, their order, workers, interruptions and failures are those of generating
(`freeatm_mm.generation.source`); what differs is where an image comes from and how long the
network looks: once at each of a few noise levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image

from freeatm_mm.attention.families import call_names, call_parameters
from freeatm_mm.errors import InputError
from freeatm_mm.files import file_sha256
from freeatm_mm.generation.generate import GenerationSummary, generate_store
from freeatm_mm.generation.images import ImageReader
from freeatm_mm.generation.job import GenerationJob, absolute_place
from freeatm_mm.generation.levels import ShownImages
from freeatm_mm.generation.limits import check_settings
from freeatm_mm.generation.listing import ImageFile, ImageRecord, list_path
from freeatm_mm.generation.masks import Recorded
from freeatm_mm.generation.outcomes import Counts, Outcome, Picture
from freeatm_mm.generation.plan import Plan, PromptFile, read_manifest_of_run, sample_seed
from freeatm_mm.generation.source import ShardSource
from freeatm_mm.prompts import PromptRecord
from freeatm_mm.store import Sample, StoreError
from freeatm_mm.store.pictures import decode_picture

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ['LEVELS', 'MaskJob', 'MaskSource', 'add_masks', 'job_of_store']

#: The noise levels to look at, of 1,000: docs/masks.md says what they were chosen by.
LEVELS = (50, 100)


@dataclass
class LookedCounts(Counts):
    """What was seen while looking.

    Args:
        reencoded_images: Images whose bytes couldn't be kept.
    """

    reencoded_images: int = 0


class MaskSource(ShardSource):
    """Adds masks to the images of any shard of a list.

    The network sees the whole image, scaled (see
    `freeatm_mm.generation.levels.ShownImages.seen`), and a mask covers the whole image, in
    the image's own frame. Images are stored byte for byte as they came where they are JPEG or PNG
    in RGB or grey; others are encoded anew.

    Args:
        pipeline: A text-to-image pipeline of a family that the recorder knows, and whose call can
            be given latents.
        images: The images' records, or a `freeatm_mm.generation.Plan` of them.
        reader: Reads them.
        levels: Noise levels, as timesteps of training.
        size: Side of a square with as many pixels as the network sees of an image; the default is
            what the pipeline generates.
        batch_size: Images at once; those of one size look at once.
        seed: As of `freeatm_mm.generation.ShardSource`, like all that follow.
        samples_per_shard: As there.
        image_format: Of images that are encoded anew.
        quality: Of these, if JPEG.
        lost_nouns: As there.
        masks: As there; ``steps`` are the levels by their number, from 0.
        loras: As there.
        max_failed: As there; an image that can't be read has failed.
        name: As there.
        revision: As there.

    Raises:
        ValueError: If an argument is out of range, or the pipeline can't be shown images.
    """

    counts_class = LookedCounts
    doing = 'adding masks to the images'
    called_once = True  # for each level

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        images: Sequence[ImageRecord] | Plan,
        reader: ImageReader,
        *,
        levels: Sequence[int] = LEVELS,
        size: int | None = None,
        batch_size: int = 8,
        seed: int = 0,
        samples_per_shard: int = 5000,
        image_format: str = 'jpg',
        quality: int = 95,
        lost_nouns: str = 'skip',
        masks: bool | Mapping[str, Any] = True,
        loras: Sequence[Mapping[str, Any]] = (),
        max_failed: float | None = None,
        name: str | None = None,
        revision: str | None = None,
    ) -> None:
        if not masks or (isinstance(masks, Mapping) and masks.get('stage', 1) != 1):
            raise InputError('adding masks records masks, and those of the first stage')
        levels = list(levels)
        self._shown = ShownImages(pipeline, levels, size)
        super().__init__(
            pipeline,
            images,
            steps=len(levels),
            guidance=_no_guidance(pipeline),
            batch_size=batch_size,
            seed=seed,
            samples_per_shard=samples_per_shard,
            image_format=image_format,
            quality=quality,
            lost_nouns=lost_nouns,
            masks=masks,
            loras=loras,
            max_failed=max_failed,
            name=name,
            revision=revision,
        )
        self._reader = reader
        self.call_options.pop('output_type')
        own = {'levels': levels, 'size': size}
        for settings in (self.config, self.settings):
            for other in ('steps', 'guidance', 'height', 'width', 'scheduler'):
                del settings[other]
            settings |= own
        path = getattr(self.plan.prompts, 'path', None)
        if path is not None:
            self.config['images_sha256'] = file_sha256(path)

    def samples(
        self, shard: int, counts: Counts, on_batch: Callable[[int], None] | None = None
    ) -> Iterator[Sample]:
        """Yield the samples of a shard, as of `freeatm_mm.generation.ShardSource`."""
        for sample in super().samples(shard, counts, on_batch):
            if isinstance(counts, LookedCounts):
                counts.reencoded_images += 'encoded_anew' in sample.meta
            yield sample

    def _generate_together(self, batch: Sequence[tuple[PromptRecord, int]]) -> list[Outcome]:
        """Look at a batch; an image that can't be read is its own failure alone."""
        assert self._masks is not None  # of a source that adds masks
        outcomes: dict[int, Outcome] = {}
        pictures: dict[int, Picture] = {}
        by_size: dict[tuple[int, int], list[int]] = {}
        for place, (record, number) in enumerate(batch):
            try:
                picture = self._picture(record)
            except (InputError, OSError) as error:
                outcomes[place] = Outcome(kind='failed', reason=str(error))
                continue
            pictures[place] = picture
            if record.nouns:
                by_size.setdefault(self._shown.seen(*picture.image.size), []).append(place)
            else:
                none = torch.zeros(0, 1, 1)
                outcomes[place] = self._outcome(record, number, picture, False, none, Recorded())
        for (height, width), places in by_size.items():
            part = [batch[place] for place in places]
            recorder, recorded = self._masks.recorder([record for record, _ in part])
            pixels = torch.stack(
                [_pixels(pictures[place].image, height, width) for place in places]
            )
            generators = [
                torch.Generator().manual_seed(sample_seed(self.seed, record.id, number))
                for record, number in part
            ]
            with recorder:
                self._shown.show(
                    pixels,
                    [record.prompt for record, _ in part],
                    generators,
                    self._options(len(part)),
                )
            masks = self._masks.masks(recorder)
            for place, (record, number), raw, nouns in zip(places, part, masks, recorded):
                outcomes[place] = self._outcome(record, number, pictures[place], False, raw, nouns)
        return [outcomes[place] for place in range(len(batch))]

    def _picture(self, record: PromptRecord) -> Picture:
        """Read a record's image, whole and upright.

        Raises:
            InputError: If it can't be read, or has more pixels than an image may have.
        """
        if not isinstance(record, ImageRecord):  # what is tried where all else fails
            return Picture(Image.new('RGB', (self._shown.size, self._shown.size), 'gray'))
        data = self._reader.read(record.place)
        return read_picture(data, record.name)


def read_picture(data: bytes, name: str = '') -> Picture:
    """Read an encoded image, whole and upright, as RGB or grey.

    Args:
        data: A picture in one of `freeatm_mm.store.pictures.PICTURE_FORMATS`.
        name: What its ``meta`` says of where it is.

    Returns:
        The picture, with its own bytes if they can be stored as they are.

    Raises:
        InputError: If it is no picture, or has more pixels than an image may have.
    """
    decoded = decode_picture(data)
    meta = {'image': name} if name else {}
    if decoded.kept:
        return Picture(decoded.image, data, decoded.kept, meta)
    return Picture(decoded.image, meta=meta | {'encoded_anew': decoded.changed})


def _pixels(image: Image.Image, height: int, width: int) -> torch.Tensor:
    """The whole picture scaled to this size: float32 (3, height, width), from -1 to 1."""
    scaled = image.convert('RGB').resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(scaled, np.float32) / 127.5 - 1).permute(2, 0, 1)


def _no_guidance(pipeline: Any) -> float:
    """The guidance scale at which the network is called once, for the prompt alone.

    Where guidance was distilled into the network it is no second call but an input of its own: the
    one that the pipeline's call gives by default.
    """
    names = call_names(pipeline)
    transformer = getattr(pipeline, 'transformer', None)
    if transformer is not None and transformer.config.get('guidance_embeds'):
        parameters = call_parameters(type(pipeline))
        for name in names.guidance:
            default = parameters[name].default if name in parameters else None
            if isinstance(default, (int, float)):
                return float(default)
    return names.unguided


@dataclass(frozen=True)
class MaskJob(GenerationJob):
    """All that a worker needs to take part in adding masks; ``prompts`` is the list of images.

    Args:
        images: The source of the images.
    """

    images: str = ''

    source_class: ClassVar[type[ShardSource]] = MaskSource
    kept_options: ClassVar[tuple[str, ...]] = (
        'levels',
        'size',
        'seed',
        'image_format',
        'samples_per_shard',
    )
    optional_options: ClassVar[Mapping[str, Any]] = {'masks': True}

    def records(self) -> PromptFile:
        """Open the list of images."""
        return ImageFile(self.prompts, self.limit)

    @property
    def settings(self) -> dict[str, Any]:
        """The options, those left out by their defaults."""
        settings = super().settings
        return settings | {'levels': list(settings['levels'])}

    def absolute(self) -> GenerationJob:
        """Return the same job with paths that hold from anywhere."""
        return super(MaskJob, replace(self, images=absolute_place(self.images))).absolute()

    def further_options(self) -> dict[str, Any]:
        """What reads the images."""
        return {'reader': ImageReader(self.images)}


def add_masks(
    pipeline: DiffusionPipeline,
    images: Sequence[ImageRecord],
    reader: ImageReader,
    out: str | Path,
    *,
    rank: int = 0,
    world: int = 1,
    take_over: bool = True,
    wait: bool = False,
    progress: bool = True,
    **options: Any,
) -> GenerationSummary:
    """Store images that exist with one attention mask per noun.

    Args:
        pipeline: As of `MaskSource`.
        images: The images' records, such as an
            `freeatm_mm.generation.listing.ImageFile`.
        reader: Reads them.
        out: The store's folder.
        rank: As of `freeatm_mm.generation.generate`, like all that follow.
        world: As there.
        take_over: As there.
        wait: As there.
        progress: As there.
        **options: Levels, size, ...: see `MaskSource`.

    Raises:
        ValueError: If an argument is out of range, or the pipeline can't be shown images.
        StoreError: If ``out`` holds a store made with other settings; says which differ.
        GenerationError: If looking fails whatever the image, or more images fail than may.
    """
    check_settings(options)
    return generate_store(
        MaskSource(pipeline, images, reader, **options),
        out,
        rank=rank,
        world=world,
        take_over=take_over,
        wait=wait,
        progress=progress,
    )


def job_of_store(
    path: str | Path,
    pipeline: str,
    prompts: str | None = None,
    *,
    images: str | None = None,
    **changes: Any,
) -> GenerationJob:
    """Return the job that made a store, whether its images were generated or existed already.

    Args:
        path: The store's folder.
        pipeline: Where the pipeline lies now.
        prompts: Where the prompt file lies now. Where masks were added to images, the list of these
            images, by default the one beside the store.
        images: The source of these images.
        **changes: Fields of the job, and options, to set otherwise.

    Raises:
        StoreError: If there is no readable ``store.json``, if it says nothing of a pipeline, or if
            what the store was made of is not given, or something else.
    """
    path = Path(path)
    config = read_manifest_of_run(path)['config']
    if not isinstance(config, dict) or 'levels' not in config:
        if images is not None:
            raise StoreError(f'the images in {path} were generated: give prompts, and no images')
        if prompts is None:
            raise StoreError(f'the images in {path} were generated: give the prompts of the run')
        return GenerationJob.of_store(path, pipeline, prompts, **changes)
    if images is None:
        raise StoreError(
            f'{path} holds masks that were added to images: give the source of these images '
            '(--images)'
        )
    if prompts is None:
        prompts = str(list_path(path))
    return MaskJob.of_store(path, pipeline, prompts, images=images, **changes)

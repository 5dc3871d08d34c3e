"""The caption processor that joins position prompts; the image processor that keeps its geometry.

Both are LAVIS's own where nothing of this is asked for: same text, same pixels, same draws.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np
from lavis.common.registry import registry
from lavis.processors.blip_processors import (
    BlipCaptionProcessor,
    BlipImageEvalProcessor,
    BlipImageTrainProcessor,
)
from lavis.processors.randaugment import RandomAugment, arg_dict, func_dict
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

from freeatm_mm.errors import InputError
from freeatm_mm.lavis_ext.settings import (
    Check,
    check_entries,
    check_values,
    count,
    number,
    plain,
    text,
    truth,
)
from freeatm_mm.ops.position import (
    WHOLE_VIEW,
    PlacedObject,
    PositionPrompts,
    crop_matrix,
    flip_matrix,
    pixel_matrix,
    preset_prompts,
)

__all__ = ['FreeATMCaptionProcessor', 'FreeATMImageTrainProcessor', 'WholeView']


def _options(cfg, known: Sequence[str], checks: Mapping[str, Check], name: str) -> dict:
    """The options of a processor's config, without its name and those that are null.

    Raises:
        InputError: If there is one that the processor doesn't know or can't use.
    """
    options = plain(cfg, name)
    options.pop('name', None)
    check_entries(options, known, name)
    check_values(options, checks, name)
    return {option: value for option, value in options.items() if value is not None}


def _channels(value: object) -> str | None:
    fits = isinstance(value, list) and len(value) == 3 and not any(map(number(), value))
    return None if fits else 'a list of three numbers'


@registry.register_processor('freeatm_caption')
class FreeATMCaptionProcessor(BlipCaptionProcessor):
    """LAVIS's `blip_caption` that joins position prompts to the caption.

    Cleaned as LAVIS does (lower case, most punctuation to spaces). It cuts nothing: the one limit
    of a text's length is the model's `max_txt_len`, and what that cuts is counted.

    Args:
        prompts: The position prompts; ``None`` for none.
        prompt: What stands before every caption.
    """

    OPTIONS = ('preset', 'prompt', *PositionPrompts.__dataclass_fields__)
    CHECKS = {
        'preset': text,
        'prompt': lambda value: None if isinstance(value, str) else 'text',
        'template': text,
        'order': text,
        'positions': text,
        'track': truth,
        'min_visible': number(),
        **dict.fromkeys(('grid', 'index_base', 'max_objects'), number(integer=True)),
    }

    def __init__(self, prompts: PositionPrompts | None = None, prompt: str = '') -> None:
        super().__init__(prompt=prompt, max_words=sys.maxsize)
        self.prompts = prompts

    @property
    def wants_objects(self) -> bool:
        """Whether it makes anything of objects; without, they needn't be loaded."""
        return self.prompts is not None

    @property
    def wants_view(self) -> bool:
        """Whether it must know what the view shows."""
        return self.prompts is not None and self.prompts.track

    @property
    def wants_others(self) -> bool:
        """Whether it must be given the objects of another image as well."""
        return self.prompts is not None and self.prompts.positions == 'others'

    def __call__(
        self,
        caption: str,
        objects: Sequence[PlacedObject] = (),
        view: np.ndarray = WHOLE_VIEW,
        others: Sequence[PlacedObject] = (),
    ) -> str:
        """The text for the model.

        Args:
            caption: The caption.
            objects: The objects of its image.
            view: (3, 3) matrix from the image to the view that the model is shown.
            others: The objects of another image, for the option `positions: others`.
        """
        return self.with_spans(caption, objects, view, others)[0]

    def with_spans(
        self,
        caption: str,
        objects: Sequence[PlacedObject] = (),
        view: np.ndarray = WHOLE_VIEW,
        others: Sequence[PlacedObject] = (),
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text for the model, and where it is the caption or an object's name.

        Args:
            caption: As for a call, and so are the others.
            objects: As there.
            view: As there.
            others: As there.

        Returns:
            The text, and the start and end of each such part of it; elsewhere are the template's
            own words, blocks' numbers, and what stands before every caption.
        """
        pieces = [(caption, True)]
        if self.prompts is not None:
            pieces = self.prompts.pieces(caption, objects, view, others)
        text = super().__call__(''.join(piece for piece, _ in pieces))
        # Cleaning moves and drops spaces alone: all else is in the text as often as in its pieces.
        written = [
            place for place in range(len(self.prompt), len(text)) if not text[place].isspace()
        ]
        spans, done = [], 0
        for piece, named in pieces:
            size = len(''.join(self.pre_caption(piece).split()))
            if named and size:
                spans.append((written[done], written[done + size - 1] + 1))
            done += size
        return text, spans

    @classmethod
    def from_config(cls, cfg=None) -> FreeATMCaptionProcessor:
        """From a yaml's options: `preset` (freeatm, ptp or none) and changes to it.

        Raises:
            ValueError: If an option is unknown or out of range.
        """
        options = _options(cfg, cls.OPTIONS, cls.CHECKS, 'freeatm_caption')
        prompt = options.pop('prompt', '')
        return cls(preset_prompts(options.pop('preset', 'freeatm'), **options), prompt)


class _TrackedAugment(RandomAugment):
    """LAVIS's `RandomAugment` of PIL images, draw for draw, that keeps the geometry."""

    def apply(self, image: Image.Image, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The augmented picture (h, w, 3) uint8, and the matrix that now leads to it."""
        pixels = np.array(image)
        for name, chance, level in self.get_random_ops():
            if np.random.random() > chance:
                continue
            arguments = arg_dict[name](level)
            pixels = func_dict[name](pixels, *arguments)
            affine = _affine(name, arguments, image.size)
            if affine is not None:
                view = pixel_matrix(affine, image.size) @ view
        return pixels, view


def _affine(name: str, arguments: tuple, size: tuple[int, int]) -> np.ndarray | None:
    """The (2, 3) pixel map of one of LAVIS's augmentations; ``None`` if it moves no pixel."""
    if name == 'Rotate':
        import cv2

        return cv2.getRotationMatrix2D((size[0] / 2, size[1] / 2), arguments[0], 1)
    matrices = {
        'ShearX': lambda by: [[1, by, 0], [0, 1, 0]],
        'ShearY': lambda by: [[1, 0, 0], [by, 1, 0]],
        'TranslateX': lambda by: [[1, 0, -by], [0, 1, 0]],
        'TranslateY': lambda by: [[1, 0, 0], [0, 1, -by]],
    }
    return np.array(matrices[name](arguments[0]), float) if name in matrices else None


@registry.register_processor('freeatm_image_train')
class FreeATMImageTrainProcessor(BlipImageTrainProcessor):
    """LAVIS's `blip_image_train` that can say what its view shows.

    Called as LAVIS's it gives the same tensor from the same random numbers; `with_view` gives
    the matrix as well.

    Args:
        image_size: Side of the view in pixels.
        mean: Of the three channels; CLIP's if not given.
        std: Likewise.
        min_scale: Least share of the image's area in the crop.
        max_scale: Largest share.
        hflip: Whether views are flipped from left to right, half of them.
        augment: Whether to use LAVIS's RandomAugment (2 operations of strength 5).

    Raises:
        InputError: If the least share is more than the largest.
    """

    OPTIONS = ('image_size', 'mean', 'std', 'min_scale', 'max_scale', 'hflip', 'augment')
    CHECKS = {
        'image_size': count(),
        'mean': _channels,
        'std': _channels,
        'min_scale': number(0, 1, above=True),
        'max_scale': number(0, 1, above=True),
        'hflip': truth,
        'augment': truth,
    }

    def __init__(
        self,
        image_size: int = 384,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        min_scale: float = 0.5,
        max_scale: float = 1.0,
        hflip: bool = True,
        augment: bool = True,
    ) -> None:
        if min_scale > max_scale:
            raise InputError(
                f'freeatm_image_train: min_scale {min_scale} must not be more than max_scale '
                f'{max_scale}'
            )
        super().__init__(image_size, mean, std, min_scale, max_scale)
        self.crop, self.flip, augmentation, *self.finish = self.transform.transforms
        self.augmentation = None
        if augment:
            self.augmentation = _TrackedAugment(
                augmentation.N, augmentation.M, True, augmentation.augs
            )
        if not hflip:
            self.flip.p = 0.0

    def with_view(self, image: Image.Image) -> tuple[Tensor, np.ndarray]:
        """A view of an image.

        Args:
            image: RGB picture.

        Returns:
            The view, float tensor (3, image_size, image_size), and the (3, 3) matrix from places
            in the image to places in the view.
        """
        box = self.crop.get_params(image, self.crop.scale, self.crop.ratio)
        view = crop_matrix(box, image.size)
        picture = functional.resized_crop(
            image, *box, self.crop.size, self.crop.interpolation, antialias=self.crop.antialias
        )
        flipped = self.flip(picture)
        if flipped is not picture:
            view = flip_matrix() @ view
        if self.augmentation is not None:
            flipped, view = self.augmentation.apply(flipped, view)
        for step in self.finish:
            flipped = step(flipped)
        return flipped, view

    def __call__(self, item: Image.Image) -> Tensor:
        """The view alone, as LAVIS's processors give it."""
        return self.with_view(item)[0]

    @classmethod
    def from_config(cls, cfg=None) -> FreeATMImageTrainProcessor:
        """From a yaml's options, which are the arguments.

        Raises:
            ValueError: If an option is unknown.
        """
        return cls(**_options(cfg, cls.OPTIONS, cls.CHECKS, 'freeatm_image_train'))


class WholeView(BlipImageEvalProcessor):
    """LAVIS's `blip_image_eval`, the whole picture, that says so as `freeatm_image_train` does."""

    def with_view(self, image: Image.Image) -> tuple[Tensor, np.ndarray]:
        """The view, float tensor (3, image_size, image_size), and the matrix that changes nothing.

        Args:
            image: RGB picture.
        """
        return self(image), WHOLE_VIEW

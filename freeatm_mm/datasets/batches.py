"""Whole batches made at once from pictures in memory, for the pretraining of small networks.

A pipeline that takes one small picture after another costs as much time as a small network's step.
Here the pictures are decoded once, and the views of a batch are cut, coloured and flipped together.
There is one set of parameters: the config's own transforms, which are read and not run.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import RandomApply
from mmpretrain.datasets.transforms import ColorJitter, PackInputs
from torch import Tensor

from freeatm_mm.datasets.samplers import seeded_uniforms
from freeatm_mm.datasets.transforms import (
    FreeATMColorJitter,
    FreeATMMultiView,
    FreeATMRandomFlip,
    FreeATMRandomResizedCrop,
    LoadFromStore,
    PackFreeATMInputs,
)
from freeatm_mm.ops.geometry import WHOLE, ViewMasks, choose_object, crop_window, object_boxes

__all__ = ['BatchPipeline']

#: The most that decoded pictures may take.
MOST_BYTES = 8 * 2**30

_APART = 1 << 20  # from here on the numbers of a seed that no view draws
_GREY = (0.114, 0.587, 0.299)  # of blue, green and red, as OpenCV weighs them


class _Draws:
    """The random numbers of a batch: each sample's follow from its own seed alone."""

    def __init__(self, seeds: np.ndarray) -> None:
        self.seeds, self.used = seeds, 0

    def __call__(self, count: int = 1) -> np.ndarray:
        """(B, count) numbers in [0, 1), not given before."""
        self.used += count
        return seeded_uniforms(self.seeds, count, self.used - count)


class BatchPipeline:
    """What a pipeline makes of samples, for a whole batch at once.

    Its random choices are distributed as the pipeline's own; which they are follows from each
    draw's seed alone, whatever the batch. Pixels equal those of mmcv's OpenCV backend for the same
    choices, up to rounding (1 of 255 levels a step).

    Args:
        transforms: The pipeline: `LoadFromStore`; one `FreeATMMultiView`, or the transforms of one
            view; `PackFreeATMInputs`. A view is `FreeATMRandomResizedCrop` (bilinear, backend
            'cv2') and then any of
            `FreeATMRandomFlip` (horizontal), `ColorJitter` (brightness and saturation, backend
            'cv2') and `RandomApply` around it.
        samples: What `LoadFromStore` made of all samples, one after the other.
        count: How many there are.
        device: Where the pictures are kept and the views are made.

    Raises:
        ValueError: If a transform is of another kind, the pictures or the masks differ in size, or
            they would take more than 8 GiB.
    """

    def __init__(
        self,
        transforms: Sequence[Any],
        samples: Sequence[dict] | Any,
        count: int,
        device: str = 'cpu',
    ) -> None:
        kinds = [type(transform) for transform in transforms]
        if kinds[:1] != [LoadFromStore] or kinds[-1] is not PackFreeATMInputs:
            raise ValueError(
                'in_memory needs a pipeline from LoadFromStore to PackFreeATMInputs, not '
                f'{", ".join(kind.__name__ for kind in kinds)}.'
            )
        middle, self.pack = list(transforms[1:-1]), transforms[-1]
        self.several = len(middle) == 1 and isinstance(middle[0], FreeATMMultiView)
        views = [view.transforms for view in middle[0].transforms] if self.several else [middle]
        self.views = [_read_view(list(view)) for view in views]
        self.object_crops = middle[0].object_crops if self.several else 0.0
        self.device = device
        self._keep(samples, count)

    def _keep(self, samples: Any, count: int) -> None:
        """Take the pictures and masks of all samples over."""
        self.rest: list[dict] = []  # what else is known of each sample
        masks: list[np.ndarray] = []
        images, end = torch.empty(0, 1, 1, 3, dtype=torch.uint8), 0
        for number, sample in enumerate(samples):
            image = sample.pop('img')
            if not number:
                if image.nbytes * count > MOST_BYTES:
                    raise ValueError(
                        f'in_memory: {count} pictures of {image.shape[1]}x{image.shape[0]} take '
                        f'{image.nbytes * count / 2**30:.1f} GiB, more than the '
                        f'{MOST_BYTES / 2**30:.0f} GiB allowed: take fewer samples, or leave '
                        'in_memory out.'
                    )
                images = torch.empty(count, *image.shape, dtype=torch.uint8)
            stored = sample.pop('stored_masks', None)
            if image.shape != images.shape[1:] or (
                stored is not None and masks and stored.shape[1:] != masks[0].shape[1:]
            ):
                raise ValueError(
                    f'in_memory: pictures and masks must have one size, and those of sample '
                    f'{sample["img_path"]!r} differ from the ones before: leave in_memory out.'
                )
            images[number] = torch.from_numpy(image)
            if stored is not None:
                masks.append(stored)
            sample['instances'] = range(end, end := end + (0 if stored is None else len(stored)))
            self.rest.append(sample)
        self.images = images.permute(0, 3, 1, 2).contiguous().to(self.device)
        self.masks = np.concatenate(masks) if masks else np.zeros((0, 1, 1), np.uint8)
        scales = [sample['mask_scales'] for sample in self.rest if 'mask_scales' in sample]
        self.scales = np.concatenate(scales) if scales else np.zeros((0, 2), np.float32)

    def __call__(self, numbers: Sequence[int], seeds: Sequence[int]) -> list[dict]:
        """Return what the pipeline would, sample by sample.

        Args:
            numbers: Which samples.
            seeds: The seed of each draw.
        """
        draws = _Draws(np.asarray(seeds, np.uint64))
        images = self.images[torch.as_tensor(numbers, device=self.device)].float()
        pictures, windows = [], []
        weights = self._objects(numbers, draws.seeds) if self.object_crops else None
        for crop, steps in self.views:
            view, window = self._view(images, crop, steps, draws, weights)
            pictures.append(view)
            windows.append(window)
        masks = self._masks(numbers, np.stack(windows)) if self.pack.with_masks else None
        ones = seeded_uniforms(draws.seeds, 1, _APART + 1)[:, 0] if self.pack.one_noun else None
        items = []
        for place, number in enumerate(numbers):
            sample = self.rest[number]
            packed = PackInputs.transform(self.pack, dict(sample))  # without a picture
            views = [picture[place] for picture in pictures]
            # In this order, as mmpretrain's preprocessor goes by it.
            packed = {'inputs': views if self.several else views[0], **packed}
            if masks is not None and 'noun_ids' in sample:
                self.pack.add_instances(
                    packed['data_samples'],
                    masks[place],
                    sample['noun_ids'],
                    sample.get('mask_trust'),
                    0.0 if ones is None else float(ones[place]),
                )
            items.append(packed)
        return items

    def _view(
        self,
        images: Tensor,
        crop: FreeATMRandomResizedCrop,
        steps: list[tuple[float, ColorJitter | None]],
        draws: _Draws,
        weights: np.ndarray | None,
    ) -> tuple[Tensor, np.ndarray]:
        """One view of each picture, (B, 3, h, w) uint8, and its window, (B, 4)."""
        size = images.shape[2], images.shape[3]
        boxes = crop_boxes(crop, size, draws(4 * crop.max_attempts))
        if weights is not None:
            boxes = object_boxes(boxes, size, weights)
        flipped = np.zeros(len(images), bool)
        colours = []
        for probability, jitter in steps:
            chosen = draws()[:, 0] < probability
            if jitter is None:
                flipped ^= chosen
            else:
                colours.append(_factors(jitter, chosen, draws(3)))
        rows = _resampling(boxes[:, 0], boxes[:, 2], size[0], crop.scale[0])
        columns = _resampling(boxes[:, 1], boxes[:, 3], size[1], crop.scale[1])
        columns[flipped] = columns[flipped, ::-1]
        across = self._here(columns).transpose(1, 2)
        view = self._here(rows)[:, None] @ (images.flatten(1, 2) @ across).unflatten(1, (3, -1))
        view = view.round_()
        for brightness, saturation, first in colours:
            view = self._coloured(view, brightness, saturation, first)
        window = np.stack(np.broadcast_arrays(*crop_window(WHOLE, tuple(boxes.T), size)), 1)
        window[flipped, 2:] = window[flipped, :1:-1]
        return view.clamp_(0, 255).to(torch.uint8), window

    def _coloured(
        self, view: Tensor, brightness: np.ndarray, saturation: np.ndarray, first: np.ndarray
    ) -> Tensor:
        """Change both, the brightness first where `first` says so, rounded as mmcv does."""
        weights = view.new_tensor(_GREY)[:, None, None]
        for turn in (first, ~first):
            bright, colour = (
                self._here(np.where(now, factor, 1.0))[:, None, None, None]
                for now, factor in ((turn, brightness), (~turn, saturation))
            )
            grey = (view * weights).sum(1, keepdim=True).round_()
            view = torch.lerp(grey, view, colour).round_().clamp_(0, 255)
            view = view.mul_(bright).floor_().clamp_(0, 255)
        return view

    def _objects(self, numbers: Sequence[int], seeds: np.ndarray) -> np.ndarray:
        """(B, h, w) where the object is that each picture's views are cropped around, or 0."""
        weights = np.zeros((len(numbers), *self.masks.shape[1:]), np.uint8)
        draws = seeded_uniforms(seeds, 1, _APART)[:, 0]
        for place, (number, draw) in enumerate(zip(numbers, draws)):
            part = self.rest[number]['instances']
            chosen = choose_object(self.masks[part.start : part.stop], draw, self.object_crops)
            if chosen is not None:
                weights[place] = chosen
        return weights

    def _masks(self, numbers: Sequence[int], windows: np.ndarray) -> list[ViewMasks]:
        """The masks of each sample of the batch on all of its views; windows (V, B, 4)."""
        ranges = [self.rest[number]['instances'] for number in numbers]
        counts = np.array([part.stop - part.start for part in ranges])
        owner = np.repeat(np.arange(len(ranges)), counts)
        first = np.cumsum(counts) - counts
        picked = np.arange(counts.sum()) + np.repeat(
            [part.start for part in ranges] - first, counts
        )
        found = self.pack.on_views(self.masks[picked], windows[:, owner], self.scales[picked])
        within = found.kept - first[owner[found.kept]]
        ends = np.searchsorted(owner[found.kept], np.arange(len(ranges) + 1))
        return [
            ViewMasks(
                np.ascontiguousarray(found.values[:, start:stop]),
                np.ascontiguousarray(found.visible[:, start:stop]),
                within[start:stop],
            )
            for start, stop in zip(ends, ends[1:])
        ]

    def _here(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self.device)


def _read_view(transforms: list[Any]) -> tuple[FreeATMRandomResizedCrop, list]:
    """The crop of a view and its further steps: how likely each is, and its jitter or a flip."""
    crop = transforms.pop(0) if transforms else None
    if type(crop) is not FreeATMRandomResizedCrop or crop.interpolation != 'bilinear':
        raise ValueError(
            'in_memory needs views that begin with a bilinear FreeATMRandomResizedCrop.'
        )
    if crop.backend != 'cv2':
        raise ValueError(
            f"in_memory resizes as backend='cv2' of {type(crop).__name__} does, not as "
            f'{crop.backend!r}: set that, or leave in_memory out.'
        )
    steps: list[tuple[float, ColorJitter | None]] = []
    for transform in transforms:
        probability, step = 1.0, transform
        if isinstance(step, RandomApply) and len(step.transforms.transforms) == 1:
            probability, step = step.prob, step.transforms.transforms[0]
        if type(step) is FreeATMRandomFlip and step is transform and _is_plain_flip(step):
            steps.append((step.prob, None))
        elif type(step) in (ColorJitter, FreeATMColorJitter) and _is_plain_jitter(step):
            steps.append((probability, step))
        else:
            raise ValueError(f'in_memory cannot do {transform!r} for whole batches: leave it out.')
    return crop, steps


def _is_plain_flip(flip: FreeATMRandomFlip) -> bool:
    return isinstance(flip.prob, float) and flip.direction == 'horizontal'


def _is_plain_jitter(jitter: ColorJitter) -> bool:
    return jitter.backend == 'cv2' and jitter.contrast is None and jitter.hue is None


def _factors(
    jitter: ColorJitter, chosen: np.ndarray, draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Brightness and saturation of each view, 1 where not chosen; and which comes first."""
    brightness, saturation = (
        np.where(chosen, low + (high - low) * draw, 1.0)
        for (low, high), draw in zip(
            (jitter.brightness or (1.0, 1.0), jitter.saturation or (1.0, 1.0)), draws.T
        )
    )
    return brightness, saturation, draws[:, 2] < 0.5


def crop_boxes(
    crop: FreeATMRandomResizedCrop, size: tuple[int, int], draws: np.ndarray
) -> np.ndarray:
    """Draw crops as mmpretrain's `RandomResizedCrop` does, for many pictures of one size.

    Args:
        crop: The transform.
        size: (height, width) of the pictures.
        draws: (B, 4 * crop.max_attempts) numbers in [0, 1).

    Returns:
        (B, 4) int64: top, left, height, width.
    """
    height, width = size
    draws = draws.reshape(len(draws), crop.max_attempts, 4)
    (least, most), ratios = crop.crop_ratio_range, np.log(crop.aspect_ratio_range)
    area = (least + (most - least) * draws[..., 0]) * height * width
    ratio = np.exp(ratios[0] + (ratios[1] - ratios[0]) * draws[..., 1])
    wide, high = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (0 < wide) & (wide <= width) & (0 < high) & (high <= height)
    chosen = np.arange(len(draws)), fits.argmax(1)
    top = np.floor(draws[..., 2] * (height - high + 1))
    left = np.floor(draws[..., 3] * (width - wide + 1))
    boxes = np.stack([part[chosen] for part in (top, left, high, wide)], 1)
    without_attempts = copy.copy(crop)
    without_attempts.max_attempts = 0
    boxes[~fits.any(1)] = without_attempts.rand_crop_params(np.empty((height, width, 0)))
    return boxes.astype(np.int64)


def _resampling(start: np.ndarray, length: np.ndarray, pixels: int, wanted: int) -> np.ndarray:
    """Matrices that cut and resize one side of pictures as OpenCV's bilinear `resize` does.

    Args:
        start: (B,) first pixel of each cut.
        length: (B,) its number of pixels.
        pixels: Of the picture along this side.
        wanted: Pixels of the result along this side.

    Returns:
        (B, wanted, pixels) float32; rows sum to 1.
    """
    places = (np.arange(wanted) + 0.5) * (length[:, None] / wanted) - 0.5
    places = start[:, None] + np.clip(places, 0, length[:, None] - 1)
    before = np.floor(places)
    matrices = np.zeros((*places.shape, pixels), np.float32)
    # Of what lies between two pixels, as of the last pixel, where the next one weighs nothing.
    for pixel in (np.minimum(before + 1, pixels - 1), before):
        weights = 1 - np.abs(places - pixel)
        np.put_along_axis(matrices, pixel.astype(np.int64)[..., None], weights[..., None], 2)
    return matrices

"""Soft masks against exact ones, beside three controls that know nothing of the noun.

Each noun of an image has a soft mask (from attention) and an exact one (from the miniature world,
or annotated). Scored are the IoU of the binarised mask, at the paper's fixed threshold 0.45
(section 4) and over a sweep of thresholds, and two measures that need no threshold: the pointing
game (is the highest cell on the object? Zhang et al., ECCV 2016) and the share of the mask's mass
on the object. A mask only shows that the *noun* was found if it beats

* another noun's mask of the same image (knows where objects are, not which),
* a centred box of the mean object size (knows how photographers compose),
* the whole image (knows nothing).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from freeatm_mm.ops.masks import THRESHOLD, box_of, minmax, resize

__all__ = [
    'THRESHOLDS',
    'MaskQuality',
    'centred_box',
    'mask_quality',
    'match_regions',
    'mean_box_size',
    'summarise',
]

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""The default sweep: 0.05, 0.10, ... 0.95, which holds the paper's threshold."""


@dataclass(frozen=True)
class MaskQuality:
    """Scores of the K nouns of one image at T thresholds. A noun without an exact pixel is NaN.

    Attributes:
        thresholds: (T,) the thresholds of the sweep.
        intersection: (K, T) pixels in the binarised mask and the exact one.
        union: (K, T) pixels in either.
        other_iou: (K, T) IoU of the *other* nouns' masks with this noun's exact mask, their mean;
            NaN where the image has no other noun.
        pointing: (K,) 1 where the highest pixel lies on the object, 0 where not; where several
            pixels are highest, the share of them on the object.
        mass: (K,) share of the min-max normalised mask's sum that lies on the object.
        area: (K,) share of the image that the object covers: the IoU of the whole image, and what
            a random point or an even mask would score in ``pointing`` and ``mass``.
        box_iou: (K,) IoU of the centred box; NaN where no box size was given.
        found_box_iou: (K, T) IoU of the binarised mask's box with the exact mask's box; 0 where the
            binarised mask is empty.
    """

    thresholds: np.ndarray
    intersection: np.ndarray
    union: np.ndarray
    other_iou: np.ndarray
    pointing: np.ndarray
    mass: np.ndarray
    area: np.ndarray
    box_iou: np.ndarray
    found_box_iou: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """(K, T) intersection over union, NaN for a noun without an exact pixel."""
        return self.intersection / self.union

    def __len__(self) -> int:
        return len(self.area)


def mean_box_size(exact_masks: Iterable[np.ndarray]) -> tuple[float, float]:
    """Mean height and width of the objects' bounding boxes, as shares of the image.

    Args:
        exact_masks: For each image, (K, H, W) booleans. Empty masks are left out.

    Returns:
        Height and width in (0, 1].

    Raises:
        ValueError: If no mask holds a pixel.
    """
    sizes = []
    for masks in exact_masks:
        for mask in np.asarray(masks, dtype=bool):
            box = box_of(mask)
            if box is not None:
                left, top, right, bottom = box
                sizes.append((bottom - top, right - left))
    if not sizes:
        raise ValueError('mean_box_size: none of the exact masks holds a pixel.')
    height, width = np.mean(sizes, axis=0)
    return float(height), float(width)


def centred_box(shape: tuple[int, int], size: tuple[float, float]) -> np.ndarray:
    """A box in the middle of the image.

    Args:
        shape: Height and width of the image in pixels.
        size: Height and width of the box as shares of the image, in (0, 1].

    Returns:
        ``shape`` booleans; at least one pixel is true.
    """
    mask = np.zeros(shape, dtype=bool)
    spans = []
    for length, share in zip(shape, size):
        side = min(max(round(length * share), 1), length)
        start = (length - side) // 2
        spans.append(slice(start, start + side))
    mask[tuple(spans)] = True
    return mask


def mask_quality(
    masks: np.ndarray,
    exact: np.ndarray,
    thresholds: Sequence[float] = THRESHOLDS,
    box_size: tuple[float, float] | None = None,
) -> MaskQuality:
    """Score each noun's soft mask against its exact mask.

    The soft masks are stretched to [0, 1], as the store keeps them, and resized bilinearly to the
    exact masks' size; a pixel belongs to the binary mask where it is at least the threshold. A
    flat mask is empty at every threshold.

    Args:
        masks: (K, h, w) soft masks of the K nouns, any scale.
        exact: (K, H, W) booleans, the same nouns in the same order.
        thresholds: Where to binarise, each in (0, 1].
        box_size: Of the control box (from `mean_box_size` over the whole data set); without
            it that control is NaN.

    Returns:
        The scores of the K nouns.

    Raises:
        ValueError: If shapes do not belong together or a soft mask is not finite.
    """
    masks, exact = np.asarray(masks, dtype=np.float64), np.asarray(exact)
    if masks.ndim != 3 or exact.ndim != 3 or len(masks) != len(exact):
        raise ValueError(
            'mask_quality needs masks (K, h, w) and exact (K, H, W) of the same '
            f'nouns, got {masks.shape} and {exact.shape}.'
        )
    if exact.dtype != bool:
        raise ValueError(f'mask_quality needs boolean exact masks, got {exact.dtype}.')
    if not np.isfinite(masks).all():
        bad = np.flatnonzero(~np.isfinite(masks).all(axis=(1, 2))).tolist()
        raise ValueError(f'mask_quality: the masks of nouns {bad} are not finite.')
    levels = np.asarray(thresholds, dtype=np.float64)
    if levels.ndim != 1 or not ((levels > 0) & (levels <= 1)).all():
        raise ValueError(f'mask_quality needs thresholds in (0, 1], got {levels.tolist()}.')

    count = len(masks)
    height, width = exact.shape[1:]
    soft = resize(minmax(masks)[0], (height, width))
    pixels = height * width
    binary = (soft[:, None] >= levels[:, None, None]).reshape(count, len(levels), pixels)
    flat, truth = soft.reshape(count, pixels), exact.reshape(count, pixels)
    # crossed[i, j, t]: pixels in noun i's binary mask and in noun j's exact mask
    crossed = np.einsum('itp,jp->ijt', binary.astype(np.float32), truth.astype(np.float32))
    unions = binary.sum(axis=2)[:, None] + truth.sum(axis=1)[None, :, None] - crossed
    own = np.arange(count)
    present = truth.any(axis=1)
    blank = np.where(present, 1.0, np.nan)

    other = np.full((count, len(thresholds)), np.nan)
    if count > 1:
        iou = crossed / np.maximum(unions, 1)
        other = (iou.sum(axis=0) - iou[own, own]) / (count - 1)
    highest = flat == flat.max(axis=1, keepdims=True, initial=0.0)
    mass = flat.sum(axis=1)
    area = truth.mean(axis=1)
    box_iou = np.full(count, np.nan)
    if box_size is not None:
        box = centred_box((height, width), box_size).ravel()
        box_iou = (truth & box).sum(axis=1) / (truth | box).sum(axis=1)
    return MaskQuality(
        thresholds=levels,
        intersection=crossed[own, own].astype(np.float64) * blank[:, None],
        union=unions[own, own].astype(np.float64) * blank[:, None],
        other_iou=other * blank[:, None],
        pointing=(highest & truth).sum(axis=1) / np.maximum(highest.sum(axis=1), 1) * blank,
        # a flat mask has no mass after min-max: it says as much as an even one
        mass=np.where(mass > 0, (flat * truth).sum(axis=1) / np.where(mass > 0, mass, 1), area)
        * blank,
        area=area * blank,
        box_iou=box_iou * blank,
        found_box_iou=_found_box_iou(
            binary.reshape(count, len(thresholds), *exact.shape[1:]), exact
        )
        * blank[:, None],
    )


def match_regions(labels: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Give each noun the region of an unnamed segmentation that is its own at best.

    The assignment is the one of the largest mean IoU, no region to two nouns. Whoever names
    regions so knows the exact masks: scores of it are an upper bound, and more regions make it
    easier to reach.

    Args:
        labels: (H, W) integers, equal within a region.
        exact: (K, H, W) booleans.

    Returns:
        (K, H, W) booleans; all false for a noun that no region is left for.

    Raises:
        ValueError: If shapes do not belong together.
    """
    from scipy.optimize import linear_sum_assignment

    labels, exact = np.asarray(labels), np.asarray(exact, bool)
    if exact.ndim != 3 or labels.shape != exact.shape[1:]:
        raise ValueError(
            f'match_regions needs labels (H, W) and exact (K, H, W), got {labels.shape} and '
            f'{exact.shape}.'
        )
    regions = labels[None] == np.unique(labels)[:, None, None]
    flat, truth = (each.reshape(len(each), -1).astype(np.int64) for each in (regions, exact))
    both = truth @ flat.T
    union = truth.sum(1)[:, None] + flat.sum(1) - both
    matched = np.zeros_like(exact)
    for noun, region in zip(*linear_sum_assignment(both / union, maximize=True)):
        matched[noun] = regions[region]
    return matched


def _found_box_iou(binary: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """IoU of the boxes round (K, T, H, W) binary masks with those round (K, H, W) exact ones."""
    found, truth = _boxes(binary), _boxes(exact)[:, None]
    both = np.stack(
        [
            np.maximum(found[..., 0], truth[..., 0]),
            np.maximum(found[..., 1], truth[..., 1]),
            np.minimum(found[..., 2], truth[..., 2]),
            np.minimum(found[..., 3], truth[..., 3]),
        ],
        axis=-1,
    )
    common = _box_area(both)
    return common / np.maximum(_box_area(found) + _box_area(truth) - common, 1)


def _boxes(masks: np.ndarray) -> np.ndarray:
    """(..., 4) outer edges (left, top, right, bottom) in pixels; zeros where a mask is empty."""
    edges = []
    for axis in (-2, -1):  # columns, then rows
        line = np.any(masks, axis=axis)
        edges.append((line.argmax(-1), line.shape[-1] - line[..., ::-1].argmax(-1)))
    boxes = np.stack([edges[0][0], edges[1][0], edges[0][1], edges[1][1]], axis=-1)
    return boxes * np.any(masks, axis=(-2, -1))[..., None]


def _box_area(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[..., 2] - boxes[..., 0], 0) * np.maximum(
        boxes[..., 3] - boxes[..., 1], 0
    )


def summarise(
    qualities: Sequence[MaskQuality],
    threshold: float = THRESHOLD,
    categories: Sequence[Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Means over a data set, each beside its controls, ready for JSON.

    Args:
        qualities: One for each image, all at the same thresholds.
        threshold: The fixed threshold to report; one of the sweep.
        categories: For each image the K nouns' categories; adds the IoU per category by OVAM's
            and DAAM's rule (pixels summed over the data set, then divided) and its mean.

    Returns:
        ``images``, ``nouns`` (scored) and ``nouns_without_pixels`` (left out);
        ``iou`` (mean over nouns at ``threshold``), ``best_iou`` at ``best_threshold`` (the one of
        the sweep that is best over the data set) and ``sweep``; ``found_box_iou`` at ``threshold``
        and ``best_found_box_iou`` over the sweep; ``pointing`` and ``mass``;
        ``controls``: ``other_noun`` (with ``own_iou``, the noun's own mask on the same images,
        those with two nouns or more; its best threshold is its own), ``centred_box`` (None where
        not measured), ``whole_image``, ``random_point``; with ``categories`` also ``class_iou``
        and ``mean_class_iou``.

    Raises:
        ValueError: If there is nothing to score, sweeps differ, or the threshold is not in them.
    """
    qualities = list(qualities)
    nouns = sum(int(np.isfinite(quality.area).sum()) for quality in qualities)
    if not nouns:
        raise ValueError('summarise: no noun has an exact mask with a pixel in it.')
    thresholds = qualities[0].thresholds
    if any(not np.array_equal(quality.thresholds, thresholds) for quality in qualities):
        raise ValueError('summarise needs the same thresholds for every image.')
    matches = np.flatnonzero(np.isclose(thresholds, threshold))
    if not len(matches):
        raise ValueError(
            f'summarise: threshold {threshold} is not in the sweep {thresholds.tolist()}.'
        )
    fixed = int(matches[0])

    def gather(name: str) -> np.ndarray:
        return np.concatenate([getattr(quality, name) for quality in qualities])

    iou, other = gather('iou'), gather('other_iou')
    sweep = np.nanmean(iou, axis=0)
    best = int(sweep.argmax())
    shared = np.isfinite(other).all(axis=1)
    other_noun = None
    if shared.any():
        other_sweep = other[shared].mean(axis=0)
        other_best = int(other_sweep.argmax())
        other_noun = {
            'nouns': int(shared.sum()),
            'iou': float(other_sweep[fixed]),
            'best_iou': float(other_sweep[other_best]),
            'best_threshold': float(thresholds[other_best]),
            'own_iou': float(iou[shared].mean(axis=0)[fixed]),
            'own_best_iou': float(iou[shared].mean(axis=0).max()),
        }
    box = gather('box_iou')
    area = float(np.nanmean(gather('area')))
    summary = {
        'images': len(qualities),
        'nouns': nouns,
        'nouns_without_pixels': sum(len(quality) for quality in qualities) - nouns,
        'threshold': float(threshold),
        'iou': float(sweep[fixed]),
        'best_threshold': float(thresholds[best]),
        'best_iou': float(sweep[best]),
        'sweep': {f'{t:g}': float(value) for t, value in zip(thresholds, sweep)},
        'found_box_iou': float(np.nanmean(gather('found_box_iou')[:, fixed])),
        'best_found_box_iou': float(np.nanmean(gather('found_box_iou'), axis=0).max()),
        'pointing': float(np.nanmean(gather('pointing'))),
        'mass': float(np.nanmean(gather('mass'))),
        'controls': {
            'other_noun': other_noun,
            'centred_box': float(np.nanmean(box)) if np.isfinite(box).any() else None,
            'whole_image': area,
            'random_point': area,
        },
    }
    if categories is not None:
        summary.update(_class_iou(qualities, categories, fixed))
    return summary


def _class_iou(
    qualities: Sequence[MaskQuality], categories: Sequence[Sequence[str]], fixed: int
) -> dict[str, Any]:
    if [len(quality) for quality in qualities] != [len(names) for names in categories]:
        raise ValueError('summarise: categories must name each noun of each image.')
    totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for quality, names in zip(qualities, categories):
        for noun, name in enumerate(names):
            if np.isfinite(quality.area[noun]):
                totals[name] += (quality.intersection[noun, fixed], quality.union[noun, fixed])
    each = {name: float(hit / union) for name, (hit, union) in sorted(totals.items())}
    return {'class_iou': each, 'mean_class_iou': float(np.mean(list(each.values())))}

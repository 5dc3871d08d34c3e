"""Other masks on the same images: regions of equal colour, or clusters of colours or features.

What contrastive learning with masks from elsewhere takes: the heuristic of Felzenszwalb and
Huttenlocher (as DetCon, arXiv 2103.10957), or k-means (as ODIN, arXiv 2203.08777, of features).
Images, keys and their order stay; so a pretraining differs by the masks alone.

A region has no noun. It is called 'region 1', 'region 2' ..., the largest first, which
`freeatm_mm.ops.noun_id` takes for no noun at all; the caption lists these names, and the caption
and the nouns that the sample had are kept in ``meta['before']``.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from freeatm_mm.errors import InputError, counted, pip_install
from freeatm_mm.ops.nouns import region_name
from freeatm_mm.prompts import Noun
from freeatm_mm.store.edit import content_digest
from freeatm_mm.store.errors import StoreError
from freeatm_mm.store.importing import shrink_mask, stretch_masks
from freeatm_mm.store.reader import Store
from freeatm_mm.store.sample import RawSample, Sample, decode_sample
from freeatm_mm.store.writer import StoreWriter

__all__ = [
    'RegionReport',
    'Segmenter',
    'colour_clusters',
    'felzenszwalb_regions',
    'kmeans',
    'make_regions',
]

#: Makes label maps (H, W) of RGB images (H, W, 3) uint8 of any sizes, and their samples' keys.
Segmenter = Callable[[Sequence[np.ndarray], Sequence[str]], list[np.ndarray]]

_BATCH = 64  # images that a segmenter is given at once
#: Larger images are shrunk before they are cut into regions: longer side, in pixels.
_MOST_SIDE = 256
_CLUSTERED_SIDE = 64  # and before pixels are clustered
_STARTS = 3  # of k-means, of which the best is taken
#: What a position counts beside a colour, each measured by its own spread over the image.
_POSITION = 0.5


@dataclass(frozen=True)
class RegionReport:
    """What the samples of a store of regions have.

    Attributes:
        samples: In the store.
        regions: Masks of all samples.
        small: Regions left out as they are smaller than wanted.
        surplus: Regions left out as the sample has more than are wanted: the smallest.
        bare: Samples without any region.
    """

    samples: int
    regions: int
    small: int
    surplus: int
    bare: int

    def __str__(self) -> str:
        lines = [f'{counted(self.samples, "sample")} with {counted(self.regions, "region")}']
        for count, noun, text in (
            (self.small, 'region', 'left out: smaller than --min-area'),
            (self.surplus, 'region', 'left out: the smallest of samples that have many (--most)'),
            (self.bare, 'sample', 'without a region'),
        ):
            if count:
                lines.append(f'{counted(count, noun)} {text}')
        return '\n'.join(lines)


def felzenszwalb_regions(min_area: float = 0.02) -> Segmenter:
    """Cut images into regions of even colour (Felzenszwalb and Huttenlocher, 2004).

    Args:
        min_area: Share of the image that a region has at least, in (0, 1); the scale of the
            segmentation is that many pixels, too. DetCon's 1,000 pixels are 0.02 of 224x224.

    Raises:
        InputError: If scikit-image is missing.
    """
    try:
        from skimage.segmentation import felzenszwalb
    except ImportError:
        raise InputError(f'felzenszwalb needs scikit-image: {pip_install("regions")}') from None

    def segment(images: Sequence[np.ndarray], keys: Sequence[str]) -> list[np.ndarray]:
        pixels = [max(min_area * image.shape[0] * image.shape[1], 1) for image in images]
        return [
            felzenszwalb(image, scale=size, sigma=0.8, min_size=round(size))
            for image, size in zip(images, pixels)
        ]

    return segment


def colour_clusters(clusters: int = 5, seed: int = 0) -> Segmenter:
    """Cut images into clusters of pixels that are alike in colour and place, by k-means.

    Args:
        clusters: How many of each image, at most.
        seed: Of the first centres.
    """

    def segment(images: Sequence[np.ndarray], keys: Sequence[str]) -> list[np.ndarray]:
        return [
            kmeans(_colours_and_places(_shrunk(image, _CLUSTERED_SIDE)), clusters, seed, key)
            for image, key in zip(images, keys)
        ]

    return segment


def kmeans(features: np.ndarray, clusters: int, seed: int, key: str) -> np.ndarray:
    """Cluster the cells of one image.

    Args:
        features: (h, w, D).
        clusters: How many, at most: no more than there are different cells.
        seed: Of the first centres, together with the key: other samples have others.
        key: The sample's.

    Returns:
        (h, w) int labels from 0.

    Raises:
        InputError: If SciPy is missing.
    """
    try:
        from scipy.cluster.vq import kmeans2
    except ImportError:
        raise InputError(f'kmeans needs SciPy: {pip_install("regions")}') from None
    rows: np.ndarray = features.reshape(-1, features.shape[2]).astype(np.float64)
    count = _different(rows, clusters)
    digest = hashlib.blake2b(f'{seed}/{key}'.encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, 'big'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # an empty cluster is one less
        found = [kmeans2(rows, count, iter=20, minit='++', rng=rng) for _ in range(_STARTS)]
    errors = [((rows - centres[labels]) ** 2).sum() for centres, labels in found]
    return found[int(np.argmin(errors))][1].reshape(features.shape[:2])


def _different(rows: np.ndarray, most: int) -> int:
    """How many rows differ, counted up to `most`."""
    seen = set()
    for row in rows:
        seen.add(row.tobytes())
        if len(seen) == most:
            break
    return len(seen)


def _colours_and_places(image: np.ndarray) -> np.ndarray:
    """(H, W, 5): colour, row and column of each pixel, each by its own spread."""
    height, width = image.shape[:2]
    colours = image / (image.reshape(-1, 3).std(0).mean() + 1e-6)
    places = np.moveaxis(np.mgrid[:height, :width], 0, -1) / max(height, width)
    places /= places.reshape(-1, 2).std(0).mean() + 1e-6
    return np.concatenate([colours, _POSITION * places], axis=2)


def make_regions(
    path: str | Path,
    out: str | Path,
    segment: Segmenter,
    made_by: dict[str, Any],
    *,
    samples: Sequence[int] | None = None,
    mask_size: int = 64,
    min_area: float = 0.02,
    most: int = 16,
    samples_per_shard: int | None = None,
) -> RegionReport:
    """Copy a store with regions in the place of its masks.

    Images are copied byte for byte. The same arguments give the same bytes, and a copy that was
    stopped goes on where it was.

    Args:
        path: The store.
        out: The new store's folder.
        segment: Cuts images into regions.
        made_by: What ``segment`` is, JSON values only, for the new store's ``store.json``.
        samples: Numbers of the samples to take, in this order, each once; None for all.
        mask_size: Longer side of the masks, in cells; a cell holds the share that is covered.
        min_area: Regions that cover a smaller share of the image are left out.
        most: Regions kept of a sample: the largest.
        samples_per_shard: Of the new store; the default is the old one's.

    Returns:
        What was found, in all shards.

    Raises:
        InputError: If a setting is out of range, or ``samples`` names one twice or one that isn't
            there.
        StoreError: If a sample can't be read, or ``out`` holds another store.
    """
    if min(mask_size, most) < 1 or not 0 <= min_area < 1:
        raise InputError(
            'mask_size and most must be at least 1 and min_area from 0 to below 1, got '
            f'{mask_size}, {most} and {min_area}'
        )
    if os.path.realpath(out) == os.path.realpath(path):
        raise StoreError(f"{out} is the source; a store isn't changed in place")
    store = Store(path)
    numbers: list[int] = list(range(len(store))) if samples is None else list(samples)
    if not numbers:
        raise InputError('no sample is asked for')
    beyond = [number for number in numbers if not 0 <= number < len(store)]
    if beyond:
        raise InputError(
            f'{path} has {counted(len(store), "sample")}, and number {beyond[0]} is asked for'
        )
    ((number, count),) = Counter(numbers).most_common(1)
    if count > 1:
        raise InputError(f'sample {number} is asked for {count} times: name each once')
    config = {
        'regions': made_by,
        'mask_size': mask_size,
        'min_area': min_area,
        'most': most,
        'num_samples': len(numbers),
        'selection_sha256': hashlib.sha256(np.array(numbers, '<i8').tobytes()).hexdigest(),
        'source': {'config': store.config, 'shards_sha256': content_digest(store)},
    }
    each = store.manifest['samples_per_shard'] if samples_per_shard is None else samples_per_shard
    writer = StoreWriter(out, each, config)
    total: Counter[str] = Counter()
    for shard, start in enumerate(range(0, len(numbers), each)):
        manifest = writer.shard_manifest(shard)
        if manifest is None:
            found: dict[str, int] = dict.fromkeys(('regions', 'small', 'surplus', 'bare'), 0)
            part = (store.read(number) for number in numbers[start : start + each])
            made = _with_regions(part, segment, found, mask_size, min_area, most)
            manifest = writer.write_shard(shard, made, {'found': found})
        total.update({'regions': manifest['nouns'], **manifest['notes'].get('found', {})})
    writer.finish(len(numbers))
    counts = {name: total[name] for name in ('regions', 'small', 'surplus', 'bare')}
    return RegionReport(samples=len(numbers), **counts)


def _with_regions(
    part: Iterator[RawSample],
    segment: Segmenter,
    found: dict[str, int],
    mask_size: int,
    min_area: float,
    most: int,
) -> Iterator[Sample]:
    """The samples of a shard with regions; what is found is counted."""
    while batch := list(islice(part, _BATCH)):
        decoded = [decode_sample(raw) for raw in batch]
        images = [_shrunk(sample.image.convert('RGB'), _MOST_SIDE) for sample in decoded]
        for raw, sample, labels in zip(batch, decoded, segment(images, [raw.key for raw in batch])):
            values, areas = np.unique(labels, return_counts=True)
            large = areas >= min_area * labels.size
            order = np.flatnonzero(large)[np.argsort(-areas[large], kind='stable')]
            masks = [shrink_mask(labels == values[place], mask_size) for place in order[:most]]
            found['small'] += int((~large).sum())
            found['surplus'] += len(order) - len(masks)
            found['regions'] += len(masks)
            found['bare'] += not masks
            yield _sample(raw, sample, masks)


def _shrunk(image: Image.Image | np.ndarray, side: int) -> np.ndarray:
    """An RGB image (h, w, 3) whose longer side is at most so many pixels."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.thumbnail((side, side), Image.Resampling.BOX)
    return np.asarray(picture)


def _sample(raw: RawSample, sample: Sample, masks: list[np.ndarray]) -> Sample:
    """A sample with these masks."""
    caption, nouns = '', []
    for number in range(1, len(masks) + 1):
        name = region_name(number)
        caption += ', ' if caption else ''
        nouns.append(Noun(name, len(caption), len(caption) + len(name)))
        caption += name
    values, scales = stretch_masks(masks)
    meta = {key: value for key, value in sample.meta.items() if key not in ('mask_trust', 'before')}
    before = sample.meta.get('before') or {
        'caption': sample.caption,
        'nouns': raw.info['nouns'],
    }
    return Sample(
        sample.key,
        sample.image_bytes,
        sample.image_format,
        caption=caption,
        nouns=tuple(nouns),
        masks=values,
        scales=scales,
        meta={**meta, 'before': before},
    )

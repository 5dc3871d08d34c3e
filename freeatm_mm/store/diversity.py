"""How different the samples of a store are: its nouns, near duplicates, and spread of its images.

Effective numbers are exponentials of entropies: of nouns, what as many equally frequent nouns would
give; of images, the Vendi score (Friedman and Dieng, 2023), what as many images without anything in
common would give. They compare stores of the same number of images, looked at in the same way.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from freeatm_mm.errors import InputError, counted
from freeatm_mm.prompts import Noun
from freeatm_mm.store.errors import StoreError, UnreachableStoreError
from freeatm_mm.store.reader import Store

__all__ = [
    'Diversity',
    'NounCoverage',
    'difference_hash',
    'effective_number',
    'near_duplicates',
    'noun_coverage',
    'pixel_features',
    'store_diversity',
]

#: Bits in which the hashes of near duplicates differ at most, of 64.
NEAR = 4
#: Images that are looked at in a larger store, evenly spread.
MOST_IMAGES = 20_000
_SIDE = 16  # of the downsampled pixels
_BATCH = 64


@dataclass(frozen=True)
class NounCoverage:
    """What the nouns of captions or prompts cover.

    Args:
        texts: Captions or prompts.
        distinct_texts: How many of them are different.
        nouns: Nouns in them.
        distinct_nouns: Different nouns, by category.
        effective_nouns: Equally frequent nouns that would have the same entropy.
        most_frequent: The most frequent nouns and their shares of all.
    """

    texts: int
    distinct_texts: int
    nouns: int
    distinct_nouns: int
    effective_nouns: float
    most_frequent: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        most = ', '.join(f'{noun} {share:.1%}' for noun, share in self.most_frequent)
        return (
            f'{counted(self.texts, "text")}, {self.distinct_texts:,} of them different; '
            f'{counted(self.nouns, "noun")}, {self.distinct_nouns:,} different, as varied as '
            f'{self.effective_nouns:,.1f} '
            f'equally frequent ones' + (f'; most frequent: {most}' if most else '')
        )


@dataclass(frozen=True)
class Diversity:
    """How different the samples of a store are.

    Args:
        samples: Samples in the store.
        nouns: Of all of them.
        images: Images that were looked at.
        near_duplicates: Those of them that another one is nearly the same as.
        effective_images: Images without anything in common that would have the same entropy.
        embedding: What their features are.
        unreadable: Images that can't be decoded, and were left out.
    """

    samples: int
    nouns: NounCoverage
    images: int
    near_duplicates: int
    effective_images: float
    embedding: str
    unreadable: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            str(self.nouns),
            f'{self.near_duplicates:,} of {self.images:,} images '
            f'({self.near_duplicates / max(1, self.images):.1%}) with a near duplicate '
            f'(64-bit difference hash, at most {NEAR} bits apart)',
            f'the images are as varied as {self.effective_images:,.1f} that have nothing in common '
            f'(Vendi score of {self.embedding}, at most {self.images:,})',
        ]
        if self.images < self.samples - self.unreadable:
            lines.append(f'images: {self.images:,} of {self.samples:,}, evenly spread')
        if self.unreadable:
            lines.append(f"{counted(self.unreadable, 'image')} left out: can't be decoded")
        return '\n'.join(lines)


def noun_coverage(texts: Iterable[tuple[str, Sequence[Noun]]]) -> NounCoverage:
    """Count the nouns of texts.

    Args:
        texts: Texts with their nouns.
    """
    counts: Counter[str] = Counter()
    hashes: set[bytes] = set()
    number = 0
    for text, nouns in texts:
        number += 1
        hashes.add(hashlib.blake2b(text.encode('utf-8', 'replace'), digest_size=8).digest())
        counts.update((noun.category or noun.text).lower() for noun in nouns)
    total = sum(counts.values())
    return NounCoverage(
        number,
        len(hashes),
        total,
        len(counts),
        effective_number(np.array(list(counts.values()), float)),
        tuple((noun, count / total) for noun, count in counts.most_common(5)),
    )


def effective_number(weights: np.ndarray) -> float:
    """The exponential of the entropy of weights (N,) that need not add up to 1; 0 without any."""
    weights = weights[weights > 0]
    if not len(weights):
        return 0.0
    shares = weights / weights.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def difference_hash(image: Image.Image) -> int:
    """A hash of 64 bits that stays nearly the same when a picture is scaled, encoded or toned."""
    grey = np.asarray(image.convert('L').resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = np.packbits((grey[:, 1:] > grey[:, :-1]).ravel())
    return int.from_bytes(bits.tobytes(), 'big')


def near_duplicates(hashes: Sequence[int], near: int = NEAR) -> np.ndarray:
    """Which hashes have another one at most ``near`` bits away.

    Args:
        hashes: Of 64 bits, N.
        near: Bits, from 0 to 7.

    Returns:
        Booleans (N,).

    Raises:
        ValueError: If ``near`` is out of range.
    """
    if not 0 <= near <= 7:
        raise InputError(f'near must be from 0 to 7 bits, got {near}')
    values = np.array(hashes, np.uint64)
    found = np.zeros(len(values), bool)
    # Equal hashes first: of many equal ones no two need be compared.
    distinct, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    near_of = counts > 1
    # Hashes that differ in `near` bits are equal in one of `near + 1` parts of them.
    edges = np.linspace(0, 64, near + 2).astype(int)
    for low, high in zip(edges, edges[1:]):
        part = (distinct >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(part, kind='stable')
        starts = np.flatnonzero(np.diff(part[order])) + 1
        for bucket in np.split(order, starts):
            for place, number in enumerate(bucket[:-1]):
                others = bucket[place + 1 :]
                apart = _count_bits(distinct[others] ^ distinct[number]) <= near
                if apart.any():
                    near_of[number] = True
                    near_of[others[apart]] = True
    found[:] = near_of[inverse]
    return found


def _count_bits(values: np.ndarray) -> np.ndarray:
    """The number of ones in each of some uint64."""
    return np.unpackbits(values[:, None].view(np.uint8), axis=1).sum(1)


def pixel_features(images: Sequence[Image.Image]) -> np.ndarray:
    """Downsampled pixels, the simplest features: float64 (N, 768)."""
    side = (_SIDE, _SIDE)
    return np.stack(
        [
            np.asarray(image.convert('RGB').resize(side, Image.Resampling.BOX), np.float64).ravel()
            for image in images
        ]
    )


def store_diversity(
    store: Store,
    *,
    limit: int = MOST_IMAGES,
    features: Callable[[Sequence[Image.Image]], np.ndarray] = pixel_features,
    embedding: str = f'pixels at {_SIDE}x{_SIDE}',
) -> Diversity:
    """Measure how different the samples of a store are.

    Args:
        store: The store.
        limit: Images to look at, evenly spread. Nouns are counted in all samples, of which the
            JSON alone is read.
        features: Returns features (N, D) of images.
        embedding: What these are, for the report.

    Raises:
        ValueError: If ``limit`` is below 2.
        StoreError: If the store is damaged, or no image can be decoded.
    """
    if limit < 2:
        raise InputError(f'limit must be at least 2, got {limit}')
    infos = (raw.info for raw in store.texts())
    nouns = noun_coverage(
        (info['caption'], [Noun.from_json(noun) for noun in info['nouns']]) for info in infos
    )
    numbers = np.unique(np.linspace(0, len(store) - 1, min(limit, len(store))).round().astype(int))
    hashes: list[int] = []
    parts: list[np.ndarray] = []
    unreadable = 0
    for batch in _batches(numbers.tolist()):
        images = []
        for number in batch:
            try:
                images.append(store[number].image.convert('RGB'))
            except UnreachableStoreError:  # says nothing of the image
                raise
            except StoreError:
                unreadable += 1
        if images:
            hashes += [difference_hash(image) for image in images]
            parts.append(np.asarray(features(images), np.float32))
    if not hashes:
        raise StoreError(f'no image of {store.path} can be decoded')
    return Diversity(
        len(store),
        nouns,
        len(hashes),
        int(near_duplicates(hashes).sum()),
        _vendi_score(np.concatenate(parts)),
        embedding,
        unreadable,
    )


def _batches(numbers: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(numbers), _BATCH):
        yield numbers[start : start + _BATCH]


def _vendi_score(features: np.ndarray) -> float:
    """The effective number of rows, by the cosines between them about their mean."""
    centred = features - features.mean(0)
    lengths = np.linalg.norm(centred, axis=1)
    # What lies at the mean, within rounding, has no direction: all such are one and the same.
    scale = float(np.abs(features).max()) or 1.0
    kept = lengths > 1e-5 * scale
    units = centred[kept] / lengths[kept, None]
    gram = units @ units.T if len(units) <= units.shape[1] else units.T @ units
    values = np.linalg.eigvalsh(gram.astype(np.float64))
    at_mean = float((~kept).sum())
    return effective_number(np.append(values.clip(0), at_mean))

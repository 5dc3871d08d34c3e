"""What is in a store: which nouns, how large, how trustworthy, and the samples that have them."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from freeatm_mm.paper import THRESHOLD
from freeatm_mm.store import RawSample

__all__ = ['ORDERS', 'StoreIndex']

#: How samples may be ordered.
ORDERS = ('store', 'least trusted', 'most trusted', 'smallest', 'largest')
#: Bins of the distributions of trust and size, over [0, 1].
_BINS = 20
_MOST_NOUNS = 40


class StoreIndex:
    """The nouns of samples, added one by one; a thread may add while others ask.

    Trust is the mask's peakedness as the store recorded it (`freeatm_mm.attention.mask_trust`),
    NaN where it recorded none; size is the share of the image that is foreground. 24 bytes a noun.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._nouns, self._samples = array('i'), array('q')
        self._trust, self._area = array('f'), array('f')
        self._counts = array('i')  # nouns of each sample, in order
        self._indices = array('q')  # and which sample of the store it is

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, index: int, raw: RawSample) -> None:
        """Add a sample.

        Args:
            index: Its number in the store.
            raw: What the store has of it.

        Raises:
            StoreError: If its masks can't be read; they are where no size was recorded.
        """
        names, measures = raw.names(), measures_of(raw)
        with self._lock:
            for name, (trust, area) in zip(names, measures):
                self._nouns.append(self._numbers.setdefault(name, len(self._numbers)))
                self._samples.append(len(self._counts))
                self._trust.append(trust)
                self._area.append(area)
            self._counts.append(len(names))
            self._indices.append(index)

    def find(self, text: str = '', trust: float = 0.0, order: str = 'store') -> np.ndarray:
        """Find the samples whose nouns fit.

        Args:
            text: A part of the noun's name, in any case; '' for any noun and for none.
            trust: The least trust of these nouns' masks; 0 also takes those that have none.
            order: One of `ORDERS`.

        Returns:
            (N,) int64 numbers of samples in the store.
        """
        with self._lock:
            nouns, samples = np.array(self._nouns), np.array(self._samples)
            trusts, areas = np.array(self._trust), np.array(self._area)
            indices, names = np.array(self._indices), list(self._numbers)
        wanted = text.strip().casefold()
        fits: np.ndarray = np.ones(len(nouns), bool)
        if wanted:
            fits = np.array([wanted in name.casefold() for name in names], bool)[nouns]
        found: np.ndarray = np.ones(len(indices), bool)
        if wanted:
            found = np.bincount(samples[fits], minlength=len(indices)) > 0
        if trust > 0:
            low = fits & ~(trusts >= trust)
            found &= np.bincount(samples[fits & ~low], minlength=len(indices)) > 0
            found &= np.bincount(samples[low], minlength=len(indices)) == 0
        places = np.flatnonzero(found)
        if order != 'store':
            values, sign = (trusts, 1) if 'trusted' in order else (areas, 1)
            sign = -1 if order in ('most trusted', 'largest') else 1
            least = np.full(len(indices), np.inf)
            known = fits & ~np.isnan(values)
            np.minimum.at(least, samples[known], sign * values[known])
            places = places[np.argsort(least[places], kind='stable')]
        return indices[places]

    def summary(self) -> dict[str, Any]:
        """Count: samples, nouns, the most frequent ones, distributions of trust, size and number.

        Returns:
            `samples`, `instances`, `nouns` (how many different), `top` (pairs of name and count),
            `trust` and `size` (counts in 20 bins of [0, 1]), `numbers` (images with 0, 1, 2 ...
            nouns).
        """
        with self._lock:
            nouns, counts = np.array(self._nouns), np.array(self._counts)
            trusts, areas = np.array(self._trust), np.array(self._area)
            names = list(self._numbers)
        frequent = np.bincount(nouns, minlength=len(names))
        top = np.argsort(-frequent, kind='stable')[:_MOST_NOUNS]

        def bins(values: np.ndarray) -> list[int]:
            return np.histogram(values[~np.isnan(values)], _BINS, (0, 1))[0].tolist()

        return {
            'samples': len(counts),
            'instances': len(nouns),
            'nouns': len(names),
            'top': [(names[number], int(frequent[number])) for number in top],
            'trust': bins(trusts),
            'size': bins(areas),
            'numbers': np.bincount(counts).tolist() if len(counts) else [],
        }


def measures_of(raw: RawSample) -> Sequence[tuple[float, float]]:
    """Return trust and size of each of a sample's masks; the trust is NaN where it isn't known."""
    recorded = raw.info.get('meta', {}).get('mask_trust')
    count = len(raw.info['nouns'])
    if isinstance(recorded, list) and len(recorded) == count:
        pairs = [_recorded(entry) for entry in recorded]
        if None not in pairs:
            return [pair for pair in pairs if pair]
    areas = (raw.masks() >= THRESHOLD * 255).reshape(count, -1).mean(1) if count else []
    return [(float('nan'), float(area)) for area in areas]


def _recorded(entry: Any) -> tuple[float, float] | None:
    """Peakedness and area as a store keeps them; None if it is something else."""
    if not isinstance(entry, dict):
        return None
    pair = entry.get('peakedness'), entry.get('area')
    if not all(isinstance(value, (int, float)) and 0 <= value <= 1 for value in pair):
        return None
    return float(pair[0]), float(pair[1])  # type: ignore[arg-type]  # numbers, as was looked at

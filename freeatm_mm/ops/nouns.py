"""Nouns as numbers, and how often they meet among negatives.

>>> import torch
>>> nouns = torch.tensor([noun_id(name) for name in ('dog', 'ball', 'dog')])
>>> same_noun(nouns, nouns)[0].tolist()
[True, False, True]
>>> same_noun_counts(nouns, nouns).tolist()
[2, 1, 2]
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

import torch
from torch import Tensor

__all__ = [
    'UNKNOWN_NOUN',
    'mean_of_known',
    'noun_id',
    'region_name',
    'same_noun',
    'same_noun_counts',
]

#: The noun of what stands for a whole image, or for a region that has no name; it is the same noun
#: as no other, not even as itself.
UNKNOWN_NOUN = -1

_REGION = re.compile(r'region [0-9]+')


def region_name(number: int) -> str:
    """Return what a region of an image is called that no noun belongs to, such as 'region 1'."""
    return f'region {number}'


@lru_cache(maxsize=65536)
def noun_id(name: str) -> int:
    """Return the number of a noun: equal for equal names, on every machine, without a list of all.

    Args:
        name: What the noun is called.

    Returns:
        The first 63 bits of the name's BLAKE2 hash, `UNKNOWN_NOUN` for a `region_name`. Two
        of a million nouns share a number with a probability of 5e-8.
    """
    if _REGION.fullmatch(name):
        return UNKNOWN_NOUN
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), 'big') >> 1


def same_noun(nouns: Tensor, others: Tensor) -> Tensor:
    """Tell which pairs are of the same, known noun.

    Args:
        nouns: (M,) int64.
        others: (N,) int64.

    Returns:
        (M, N) booleans.
    """
    return (nouns[:, None] != UNKNOWN_NOUN) & (nouns[:, None] == others)


def same_noun_counts(nouns: Tensor, among: Tensor) -> Tensor:
    """Count how often each noun is found.

    Counted in sorted order: comparing all pairs would cost their number.

    Args:
        nouns: (M,) nouns to look for.
        among: (N,) nouns to look in.

    Returns:
        (M,) int64; 0 for `UNKNOWN_NOUN`.
    """
    among = among.sort().values
    counts = torch.searchsorted(among, nouns, right=True) - torch.searchsorted(among, nouns)
    return counts * (nouns != UNKNOWN_NOUN)


def mean_of_known(values: Tensor, nouns: Tensor) -> Tensor:
    """Return the mean over the instances of a known noun; 0 without any.

    Args:
        values: (M,) one number for each instance.
        nouns: (M,) their nouns.
    """
    known = (nouns != UNKNOWN_NOUN).float()
    return (values * known).sum() / known.sum().clamp(min=1)

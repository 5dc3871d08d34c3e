"""Right or wrong, object by object, and what it says of two arms over seeds *and* objects."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import numpy as np

__all__ = ['CrossedDifference', 'crossed_difference', 'pack_outcomes', 'unpack_outcomes']


def pack_outcomes(right: np.ndarray) -> str:
    """Write (N,) booleans as text, eight to a byte, in base64."""
    return base64.b64encode(np.packbits(np.asarray(right, bool)).tobytes()).decode()


def unpack_outcomes(text: str, count: int) -> np.ndarray:
    """Read the (count,) booleans that :func:`pack_outcomes` wrote.

    Raises:
        ValueError: If the text isn't of so many.
    """
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except (binascii.Error, TypeError) as error:
        raise ValueError(f'outcomes cannot be read: {error}') from None
    if len(packed) != -(-count // 8):
        raise ValueError(f'outcomes are {len(packed)} bytes, not those of {count} objects')
    return np.unpackbits(packed, count=count).astype(bool)


@dataclass(frozen=True)
class CrossedDifference:
    """How much better one arm is than another, over seeds and objects.

    Attributes:
        seeds: How many seeds.
        objects: How many objects, the same ones for every seed.
        mean: Mean difference.
        error: Its standard error.
        p: Two-sided p-value.
        low: Lower end of the 95 % confidence interval.
        high: Upper end.
        error_seeds: The standard error if the objects were all there are.
        error_objects: The standard error if the seeds were all there are.
    """

    seeds: int
    objects: int
    mean: float
    error: float
    p: float
    low: float
    high: float
    error_seeds: float
    error_objects: float


def crossed_difference(differences: np.ndarray) -> CrossedDifference:
    """Test and estimate a mean difference that both seeds and objects were drawn for.

    The model is ``difference = mean + seed + object + rest``, all three random. Each mean square
    estimates the variance that it adds to the mean, the rest's is in both of the others and is
    taken off once; degrees of freedom are Satterthwaite's. With few seeds a bootstrap over both
    (Owen, 2007) gives the same standard error and, having no t, too short an interval.

    Args:
        differences: (S, N) arm minus reference, such as -1, 0 or 1 for each object.

    Raises:
        ValueError: If there are fewer than two seeds or objects.
    """
    from scipy import stats

    differences = np.asarray(differences, float)
    if differences.ndim != 2 or min(differences.shape) < 2:
        raise ValueError(
            f'crossed_difference needs two seeds and two objects or more, got {differences.shape}.'
        )
    seeds, objects = differences.shape
    mean = differences.mean()
    of_seeds, of_objects = differences.mean(1), differences.mean(0)
    rest = differences - of_seeds[:, None] - of_objects + mean
    freedom = np.array([seeds - 1, objects - 1, (seeds - 1) * (objects - 1)])
    # What each adds to the variance of the mean.
    parts = np.array([of_seeds.var(ddof=1) / seeds, of_objects.var(ddof=1) / objects, 0.0])
    parts[2] = (rest**2).sum() / freedom[2] / (seeds * objects)
    # Never below what either alone would give: the difference of estimates can come out too small.
    variance = max(parts[0] + parts[1] - parts[2], parts[0], parts[1])
    error = float(np.sqrt(variance))
    degrees = variance**2 / np.maximum((parts**2 / freedom).sum(), 1e-300)
    p = low = high = float('nan')
    if error > 1e-12:
        p = float(2 * stats.t.sf(abs(mean) / error, degrees))
        reach = error * float(stats.t.ppf(0.975, degrees))
        low, high = float(mean - reach), float(mean + reach)
    return CrossedDifference(
        seeds,
        objects,
        float(mean),
        error,
        p,
        low,
        high,
        *(float(np.sqrt(part)) for part in parts[:2]),
    )

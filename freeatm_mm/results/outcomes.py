"""Differences of two arms over seeds *and* objects, over seeds and heads, and in length."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from freeatm_mm.errors import counted

__all__ = [
    'CrossedDifference',
    'NestedDifference',
    'Shift',
    'crossed_difference',
    'length_shift',
    'nested_difference',
    'pack_outcomes',
    'unpack_outcomes',
]


def pack_outcomes(right: np.ndarray) -> str:
    """Write (N,) booleans as text, eight to a byte, in base64."""
    return base64.b64encode(np.packbits(np.asarray(right, bool)).tobytes()).decode()


def unpack_outcomes(text: str, count: int) -> np.ndarray:
    """Read the (count,) booleans that `pack_outcomes` wrote.

    Raises:
        ValueError: If the text isn't of so many.
    """
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except (binascii.Error, TypeError) as error:
        raise ValueError(f'outcomes cannot be read: {error}') from None
    if len(packed) != -(-count // 8):
        raise ValueError(
            f'outcomes are {counted(len(packed), "byte")}, not those of {counted(count, "object")}'
        )
    return np.unpackbits(packed, count=count).astype(bool)


def _errors_to_find(seeds: int) -> float:
    """How many standard errors a difference must have to be found four times out of five."""
    from scipy import stats

    return float(stats.t.ppf(0.975, seeds - 1)) + 0.8416


@dataclass(frozen=True)
class CrossedDifference:
    """How much better one arm is than another, over seeds and objects.

    Attributes:
        seeds: How many seeds.
        objects: How many objects, the same ones for every seed.
        mean: Mean difference.
        error: Its standard error.
        p: Two-sided p-value, the larger of two tests' (`crossed_difference`).
        low: Lower end of the 95 % confidence interval, the longer of theirs.
        high: Upper end.
        error_seeds: The standard error if the objects were all there are.
        error_objects: The standard error if the seeds were all there are.
        error_rest: What both of these have in them that is neither the seeds' nor the objects'.
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
    error_rest: float

    def found_by(self, seeds: int) -> float:
        """The difference that so many seeds, two or more, find four times out of five."""
        objects = max(self.error_objects**2 - self.error_rest**2, 0.0)
        error = (self.error_seeds**2 * self.seeds / seeds + objects) ** 0.5
        return _errors_to_find(seeds) * error


def crossed_difference(differences: np.ndarray) -> CrossedDifference:
    """Test and estimate a mean difference that both seeds and objects were drawn for.

    The model is ``difference = mean + seed + object + rest``, all three random. Each mean square
    estimates the variance that it adds to the mean, the rest's is in both of the others and is
    taken off once; degrees of freedom are Satterthwaite's. These rest on estimates of a few seeds,
    and are too many where seeds agree by chance, so that the paired t-test over the seeds is made
    as well, and the more cautious of the two holds: the larger p, the longer interval. With few
    seeds a bootstrap over both (Owen, 2007) gives the same standard error and, having no t, too
    short an interval.

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
        # Both means are the same, so that the longer interval holds the other.
        tests = [(error, degrees), (float(np.sqrt(parts[0])), seeds - 1)]
        p = max(float(2 * stats.t.sf(abs(mean) / max(e, 1e-12), d)) for e, d in tests)
        reach = max(e * float(stats.t.ppf(0.975, d)) for e, d in tests)
        low, high = float(mean - reach), float(mean + reach)
    return CrossedDifference(
        seeds,
        objects,
        float(mean),
        error,
        p,
        low,
        high,
        *(float(np.sqrt(part)) for part in parts),
    )


@dataclass(frozen=True)
class NestedDifference:
    """How much better one arm is than another, where pretrainings have several heads each.

    Attributes:
        seeds: How many pretrainings of each arm.
        heads: How many heads each of them has.
        mean: Mean difference.
        error: Its standard error.
        p: Two-sided p-value; NaN where all differences are equal.
        low: Lower end of the 95 % confidence interval; NaN likewise.
        high: Upper end.
        spread: Standard deviation over seeds of the paired differences, heads averaged.
        spread_pretraining: Its part that more heads would leave, 0 at least.
        spread_head: Standard deviation of a single head's difference within a seed; NaN for one.
    """

    seeds: int
    heads: int
    mean: float
    error: float
    p: float
    low: float
    high: float
    spread: float
    spread_pretraining: float
    spread_head: float

    def spread_with(self, heads: int) -> float:
        """The spread that so many heads a pretraining would have."""
        return float(np.hypot(self.spread_pretraining, self.spread_head / heads**0.5))

    def seeds_for(self, difference: float, heads: int) -> int:
        """How many seeds find a difference four times out of five, with so many heads each."""
        ratio = self.spread_with(heads) / difference
        for seeds in range(2, 10_000):
            if seeds >= (_errors_to_find(seeds) * ratio) ** 2:
                return seeds
        return 10_000


def nested_difference(differences: np.ndarray) -> NestedDifference:
    """Test and estimate a mean difference over pretrainings, and split what spreads it.

    Heads are averaged and seeds compared by a paired t-test: more heads make a seed's difference
    surer, never more seeds of it.

    Args:
        differences: (S, K) arm minus reference of each seed's K heads.

    Raises:
        ValueError: If there are fewer than two seeds, or no head.
    """
    from scipy import stats

    differences = np.asarray(differences, float)
    if differences.ndim != 2 or differences.shape[0] < 2 or differences.shape[1] < 1:
        raise ValueError(
            f'nested_difference needs two seeds and a head or more, got {differences.shape}.'
        )
    seeds, heads = differences.shape
    of_seeds = differences.mean(1)
    mean, spread = float(of_seeds.mean()), float(of_seeds.std(ddof=1))
    head = float(np.sqrt(differences.var(1, ddof=1).mean())) if heads > 1 else float('nan')
    rest = spread if heads == 1 else float(np.sqrt(max(spread**2 - head**2 / heads, 0.0)))
    error = spread / seeds**0.5
    p = low = high = float('nan')
    if error > 1e-12:
        p = float(2 * stats.t.sf(abs(mean) / error, seeds - 1))
        reach = error * float(stats.t.ppf(0.975, seeds - 1))
        low, high = mean - reach, mean + reach
    return NestedDifference(seeds, heads, mean, error, p, low, high, spread, rest, head)


@dataclass(frozen=True)
class Shift:
    """How many doublings of its length one arm is ahead of another.

    Attributes:
        seeds: How many seeds.
        objects: How many objects, the same ones for every seed.
        mean: The shift in doublings: 2 means that a quarter of the length is enough.
        p: Two-sided p-value of the hypothesis that was asked about.
        low: Lower end of the 95 % confidence interval; minus infinity where it has none.
        high: Upper end, likewise.
        level: How much better the arm is at the same length, on average.
        slope: What a doubling of the length gains, both arms together.
        slope_p: Two-sided p-value of no gain.
    """

    seeds: int
    objects: int
    mean: float
    p: float
    low: float
    high: float
    level: float
    slope: float
    slope_p: float


def length_shift(
    arm: np.ndarray, reference: np.ndarray, epochs: Sequence[float], against: float = 0.0
) -> Shift:
    """Estimate how much shorter an arm may be trained for what its reference reaches.

    Both are taken to rise by straight lines of one slope over the logarithm of the length; the
    shift is the level between them by the slope. A shift is tested by the difference that it leaves
    no room for, `level - shift * slope`, in the model of `crossed_difference`, and the interval
    holds the shifts that are not rejected (Fieller): it covers what it says with few seeds, too,
    where a bootstrap over seeds is too short, and has no end where the slope may be none.

    Args:
        arm: (S, L, N) right or wrong of each seed, length and object.
        reference: The same of the reference.
        epochs: The L lengths, two or more.
        against: The shift that p is of.
    """
    arm, reference = np.asarray(arm, float), np.asarray(reference, float)
    place = np.log2(np.asarray(epochs, float))
    place = place - place.mean()
    if arm.shape != reference.shape or arm.shape[1] != len(place) or len(place) < 2:
        raise ValueError(
            f'length_shift needs two lengths or more of both arms, got {arm.shape} and '
            f'{reference.shape} for {len(place)}.'
        )
    level = (arm - reference).mean(1)
    slope = np.einsum('sln,l->sn', (arm + reference) / 2, place) / (place**2).sum()
    gain = crossed_difference(slope)
    shift = level.mean() / gain.mean if gain.mean else float('nan')

    def p_of(value: float) -> float:
        return crossed_difference(level - value * slope).p

    def end(sign: int) -> float:
        inside, outside = shift, shift + sign
        while p_of(outside) >= 0.05:
            inside, outside = outside, outside + 2 * (outside - shift)
            if abs(outside - shift) > 1e3:
                return sign * float('inf')
        while abs(outside - inside) > 1e-3:
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if p_of(middle) >= 0.05 else (inside, middle)
        return (inside + outside) / 2

    bounded = gain.mean > 0 and gain.p < 0.05
    low, high = (end(-1), end(1)) if bounded else (-float('inf'), float('inf'))
    return Shift(
        level.shape[0],
        level.shape[1],
        float(shift),
        p_of(against),
        low,
        high,
        float(level.mean()),
        gain.mean,
        gain.p,
    )

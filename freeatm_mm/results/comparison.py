"""Runs that differ by their seed alone, their mean and spread, and differences between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from freeatm_mm.methods import method_title

__all__ = [
    'Group',
    'PairedDifference',
    'arm_name',
    'arm_names',
    'check_options',
    'comparisons',
    'epochs_to_match',
    'holm',
    'is_smoke',
    'is_untrained',
    'paired_difference',
    'runs_of',
    'summarise_rows',
]

#: Of the figures of some rows together: what each metric was measured with.
Options = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Group:
    """The runs that differ by nothing but their seed.

    Attributes:
        method: Such as ``mocov2``.
        regime: real, synthetic or mixed.
        masks: False, True or the name of a variant.
        epochs: Length of the pretraining.
        values: For each metric, its value for each seed.
    """

    method: str
    regime: str
    masks: bool | str
    epochs: float
    values: Mapping[str, Mapping[Any, float]]

    @property
    def seeds(self) -> list[Any]:
        """The seeds that any metric was measured with."""
        return sorted({seed for values in self.values.values() for seed in values}, key=str)

    def mean(self, metric: str) -> float:
        """Mean over seeds; NaN where the metric was not measured."""
        values = list(self.values.get(metric, {}).values())
        return float(np.mean(values)) if values else float('nan')

    def spread(self, metric: str) -> float:
        """Sample standard deviation over seeds (n - 1 below); NaN for fewer than two."""
        values = list(self.values.get(metric, {}).values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else float('nan')

    def text(self, metric: str, digits: int = 3, scale: float = 1.0) -> str:
        """Mean ± spread, for a table; with their number where some of `seeds` lack it.

        Empty where the metric was not measured.
        """
        values = self.values.get(metric, {})
        if not values:
            return ''
        text = f'{scale * self.mean(metric):.{digits}f}'
        if len(values) > 1:
            text += f' ± {scale * self.spread(metric):.{digits}f}'
        if len(values) < len(self.seeds):
            text += f', {len(values)} seed{"s" * (len(values) > 1)}'
        return text


def runs_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a result file that are runs, not benchmarks.

    Raises:
        ValueError: If one is of ``--smoke``.
    """
    runs = [row for row in results['rows'] if 'case' not in row]
    for row in runs:
        if is_smoke(row):
            raise ValueError(
                f'the row of {arm_name(row["method"], row["regime"], row["masks"])}, seed '
                f'{row["seed"]}, is of --smoke, a few images, and no result: leave it out'
            )
    return runs


def is_smoke(row: Mapping[str, Any]) -> bool:
    """Whether a row was made with ``--smoke``, by two steps and a few images."""
    return row.get('scale') == 'smoke'


def check_options(known: Options, row: Mapping[str, Any], metric: str, name: str) -> None:
    """Refuse to put figures together that were measured with unlike options.

    Args:
        known: What the metrics of the earlier rows were measured with; this one's is added.
        row: The row.
        metric: One of its metrics.
        name: Of the arm, for messages.

    Raises:
        ValueError: If an earlier row's figure had other options.
    """
    given = tuple(row.get('options', {}).get(metric, ()))
    found = known.setdefault(metric, given)
    if found != given:
        either = ' and '.join(' '.join(each) or 'none' for each in (found, given))
        raise ValueError(
            f'the rows of {name} differ in the options of {metric}, {either}: make a table of each'
        )


def summarise_rows(results: Mapping[str, Any]) -> list[Group]:
    """Gather the runs of a result file by method, regime, masks and epochs, in file order.

    Raises:
        ValueError: If two rows give the same number for one seed, or the rows of a group were
            measured with unlike options, or one with ``--smoke``.
    """
    groups: dict[tuple, dict[str, dict[Any, float]]] = {}
    options: dict[tuple, Options] = {}
    for row in runs_of(results):
        key = (row['method'], row['regime'], row['masks'], row['epochs'])
        values = groups.setdefault(key, {})
        for name, value in row['metrics'].items():
            if row['seed'] in values.setdefault(name, {}):
                raise ValueError(
                    f'Two rows give {name} for {arm_name(*key[:3])}, epochs {key[3]}, '
                    f'seed {row["seed"]}: name the variant in masks or keep it in another file.'
                )
            check_options(options.setdefault(key, {}), row, name, arm_name(*key[:3]))
            values[name][row['seed']] = value
    return [
        Group(method, regime, masks, epochs, values)
        for (method, regime, masks, epochs), values in groups.items()
    ]


def is_untrained(method: str) -> bool:
    """Whether a row is of weights that no training made: ``random``, ``random-vit``."""
    return method.split('-')[0] == 'random'


def arm_name(method: str, regime: str, masks: bool | str) -> str:
    """What an arm of an experiment is called, such as 'MoCo v2 + Free-ATM (synthetic)'.

    Args:
        method: Such as ``mocov2``; a method without a known title keeps its name.
        regime: What was pretrained on; left out for random weights, or where empty.
        masks: False, True or the name of a variant.
    """
    name = method_title(method)
    if masks is True:
        name += ' + Free-ATM'
    elif masks:
        name += f' + {masks}'
    return f'{name} ({regime})' if regime and not is_untrained(method) else name


def arm_names(groups: Sequence[Group]) -> list[str]:
    """The groups' names for one table or plot: without the regime where all share it."""
    shared = len({group.regime for group in groups if not is_untrained(group.method)}) < 2
    return [arm_name(group.method, '' if shared else group.regime, group.masks) for group in groups]


@dataclass(frozen=True)
class PairedDifference:
    """How much better one arm is than another, seed by seed.

    Attributes:
        metric: Name of the metric.
        seeds: The seeds that both arms have.
        differences: Arm minus reference for each of them.
        mean: Their mean.
        spread: Their sample standard deviation; NaN for one seed.
        t: Student's t of the paired test; NaN for one seed, or where all differences are equal.
        p: Its two-sided p-value; NaN likewise.
        low: Lower end of the 95 % confidence interval of the mean difference; NaN likewise.
        high: Upper end.
    """

    metric: str
    seeds: tuple[Any, ...]
    differences: tuple[float, ...]
    mean: float
    spread: float
    t: float
    p: float
    low: float
    high: float


def paired_difference(arm: Group, reference: Group, metric: str) -> PairedDifference:
    """Compare two arms over the seeds that both have (paired two-sided t-test).

    Args:
        arm: The arm that is asked about, such as with masks.
        reference: The arm that it is compared with, such as without.
        metric: Which metric.

    Raises:
        ValueError: If the arms share no seed for this metric.
    """
    from scipy import stats

    ours, theirs = arm.values.get(metric, {}), reference.values.get(metric, {})
    seeds = tuple(seed for seed in ours if seed in theirs)
    if not seeds:
        raise ValueError(
            f'No seed has {metric} for both '
            f'{arm_name(arm.method, arm.regime, arm.masks)} and '
            f'{arm_name(reference.method, reference.regime, reference.masks)}.'
        )
    differences = np.array([ours[seed] - theirs[seed] for seed in seeds])
    spread = t = p = low = high = float('nan')
    if len(seeds) > 1:
        spread = float(differences.std(ddof=1))
        # rounding alone makes equal differences differ by some 1e-17: that is no spread
        if spread > 1e-12:
            test = stats.ttest_1samp(differences, 0.0)
            interval = test.confidence_interval(0.95)
            t, p = float(test.statistic), float(test.pvalue)
            low, high = float(interval.low), float(interval.high)
    return PairedDifference(
        metric,
        seeds,
        tuple(map(float, differences)),
        float(differences.mean()),
        spread,
        t,
        p,
        low,
        high,
    )


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for being several, by Holm's method.

    Args:
        values: The p-values of one comparison's metrics; NaN where there is no test.

    Returns:
        The corrected ones: below a level, the chance that any of them is wrongly called a
        difference is below that level, too. NaN where there was no test.
    """
    order = sorted((p, place) for place, p in enumerate(values) if not np.isnan(p))
    corrected, largest = [float('nan')] * len(values), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(p * (len(order) - rank), 1.0))
        corrected[place] = largest
    return corrected


def comparisons(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Arms worth comparing: each arm with masks, and the one without that is the same otherwise.

    Where arms were evaluated after several numbers of epochs, only their longest is compared.
    """

    def rest(group: Group) -> tuple[str, str, float]:
        return group.method, group.regime, group.epochs

    baselines = {rest(group): group for group in groups if group.masks is False}
    pairs = [
        (group, baselines[rest(group)])
        for group in groups
        if group.masks is not False and rest(group) in baselines
    ]
    longest: dict[tuple, tuple[Group, Group]] = {}
    for arm, baseline in pairs:
        key = arm.method, arm.regime, arm.masks
        if key not in longest or arm.epochs > longest[key][0].epochs:
            longest[key] = arm, baseline
    return list(longest.values())


def epochs_to_match(
    arm: Sequence[Group], baseline: Sequence[Group], metric: str, share: float = 0.25
) -> tuple[float, float, float | None] | None:
    """How long a baseline needs for what an arm has after a share of its pretraining (Fig. 4).

    Args:
        arm: One arm after several numbers of epochs.
        baseline: What it is compared with, likewise.
        metric: Which metric, higher being better; means over seeds are compared.
        share: Of the arm's longest pretraining.

    Returns:
        The arm's epochs there and its value; and the epochs at which the baseline first has that
        value, on straight lines between those that were evaluated, or None if it never has. None
        instead if the arm wasn't evaluated there.
    """
    ours = {group.epochs: group.mean(metric) for group in arm if metric in group.values}
    theirs = sorted(
        (group.epochs, group.mean(metric)) for group in baseline if metric in group.values
    )
    at = share * max(ours, default=0)
    if at not in ours or not theirs:
        return None
    wanted, before = ours[at], None
    for epochs, value in theirs:
        if value >= wanted:
            if before is None:
                return at, wanted, epochs
            return (
                at,
                wanted,
                before[0] + (epochs - before[0]) * ((wanted - before[1]) / (value - before[1])),
            )
        before = epochs, value
    return at, wanted, None

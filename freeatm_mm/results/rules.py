"""What a rule is made of: arms, measures, looks; and what rows say by it.

A rule is written down before the runs that it decides. Verdicts follow from the rows alone: seeds
count from 0, and only whole ones, which all arms of the rule have.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from freeatm_mm.results.comparison import arm_name, holm, is_untrained, runs_of
from freeatm_mm.results.metrics import metric_title
from freeatm_mm.results.outcomes import (
    CrossedDifference,
    NestedDifference,
    Shift,
    crossed_difference,
    length_shift,
    nested_difference,
    unpack_outcomes,
)

__all__ = [
    'THREE_LOOKS',
    'TWO_LOOKS',
    'Ahead',
    'Arm',
    'Claim',
    'Comparison',
    'Condition',
    'Difference',
    'Finding',
    'Heads',
    'Lengths',
    'Measure',
    'Objects',
    'Rows',
    'decide_claim',
]

Masks = bool | str

THREE_LOOKS = (0.00052, 0.01411, 0.04507)
"""O'Brien and Fleming's bounds for looks at a third, two thirds and all of the seeds, two-sided 5 %
in all."""
TWO_LOOKS = (0.00517, 0.04799)
"""The same for looks at half and all of them."""


@dataclass(frozen=True)
class Arm:
    """Which rows are an arm's.

    Attributes:
        masks: As rows have them.
        regime: What was pretrained on.
        epochs: How long; None where all rows must have one length.
        method: Whose rows; empty for the claim's own.
    """

    masks: Masks
    regime: str = 'synthetic'
    epochs: float | None = None
    method: str = ''

    def fits(self, row: Mapping[str, Any], method: str) -> bool:
        """Whether a row is of this arm of a claim about a method."""
        return (
            row['method'] == (self.method or method)
            and row['masks'] == self.masks
            and type(row['masks']) is type(self.masks)
            and row['regime'] == self.regime
            and self.epochs in (None, row['epochs'])
        )

    def title(self, method: str) -> str:
        """What it is called."""
        regime = '' if self.regime == 'synthetic' else self.regime
        name = arm_name(self.method or method, regime, self.masks)
        return name if self.epochs is None else f'{name}, {self.epochs:g} epochs'


@dataclass(frozen=True)
class Comparison:
    """An arm and its reference.

    Attributes:
        arm: What is asked about.
        reference: What it is compared with.
        against: The difference that is tested against, of `Lengths` and `Objects`; the claim says
            that it is more.
        unit: Of that difference, for the title.
        gain_over: With it, of `Objects` alone, it is asked by how much the arm's gain over this one
            is above twice the reference's.
    """

    arm: Arm
    reference: Arm
    against: float = 0.0
    unit: str = ''
    gain_over: Arm | None = None

    def title(self, method: str) -> str:
        """What it is called."""
        arm, reference = self.arm.title(method), self.reference.title(method)
        if self.gain_over:
            over = self.gain_over.title(method)
            return f'gain of {arm} over {over}, above twice that of {reference}'
        name = f'{arm} against {reference}'
        return f'{name}, ahead by more than {self.against:g}{self.unit}' if self.against else name


Difference = CrossedDifference | NestedDifference | Shift
"""What comparisons come to: all have `seeds`, `mean`, `p`, `low` and `high`."""


class Rows:
    """The rows of a claim about one method, by arm and seed.

    Args:
        results: A result file's content.
        method: The method.
        cfg_options: What its config must have been changed by.

    Raises:
        ValueError: If a row of the method has a config that was changed otherwise.
    """

    def __init__(
        self, results: Mapping[str, Any], method: str, cfg_options: Sequence[str] = ()
    ) -> None:
        self.method = method
        self._rows = runs_of(results)
        for row in self._rows:
            given = row.get('cfg_options', [])
            if row['method'] == method and sorted(given) != sorted(cfg_options):
                raise ValueError(
                    f'The row of masks {row["masks"]}, seed {row["seed"]} has '
                    f'--cfg-options {" ".join(given) or "of none"}, and the claim is about '
                    f'{" ".join(cfg_options) or "the config as it is"}: keep it in another file.'
                )

    def row(self, arm: Arm, seed: int) -> Mapping[str, Any] | None:
        """The row of an arm and a seed; None if there is none.

        Raises:
            ValueError: If there are several.
        """
        found = [row for row in self._rows if row['seed'] == seed and arm.fits(row, self.method)]
        if len(found) > 1:
            raise ValueError(
                f'There are {len(found)} rows of {arm.title(self.method)}, seed {seed}: '
                'keep those that the claim does not compare in another file.'
            )
        return found[0] if found else None

    def __getitem__(self, key: tuple[Arm, int]) -> Mapping[str, Any]:
        row = self.row(*key)
        if row is None:
            raise KeyError(key)
        return row

    def whole_seeds(self, arms: Sequence[Arm]) -> int:
        """How many seeds, from 0, all of the arms have."""
        seed = 0
        while arms and all(self.row(arm, seed) is not None for arm in arms):
            seed += 1
        return seed

    def check_lengths(self, arms: Sequence[Arm]) -> None:
        """Refuse rows of several lengths of arms that name none.

        Raises:
            ValueError: If there are.
        """
        first: Mapping[str, Any] | None = None
        for row in self._rows:
            named = not any(arm.epochs is None and arm.fits(row, self.method) for arm in arms)
            if named or is_untrained(row['method']):
                continue
            first = first or row
            if row['epochs'] != first['epochs']:
                one, two = (
                    f'{arm_name(each["method"], each["regime"], each["masks"])}, seed '
                    f'{each["seed"]} was pretrained for {each["epochs"]:g}'
                    for each in (first, row)
                )
                raise ValueError(
                    f'{one} epochs, and {two}, where the claim compares one length: keep rows of '
                    'others in another file.'
                )

    def check_samples(self, comparison: Comparison, arms: Sequence[Arm], seeds: int) -> None:
        """Refuse arms of one seed that were pretrained on different samples of a pool.

        Lists of places in different stores can't be compared: there, one must say whose ids it
        has. Rows without a pool, as those of real images, are passed over.

        Args:
            comparison: Where its arms name different lengths, it is about the number of images.
            arms: The arms that it needs rows of.
            seeds: How many seeds, from 0.

        Raises:
            ValueError: If there are.
        """
        if comparison.arm.epochs != comparison.reference.epochs:
            return
        for seed in range(seeds):
            pools = [(arm, self[arm, seed].get('pool')) for arm in arms]
            known = [(arm, pool) for arm, pool in pools if pool]
            for arm, pool in known[1:]:
                other, first = known[0]
                if not _same_samples(first, pool):
                    raise ValueError(
                        f'{other.title(self.method)} and {arm.title(self.method)}, seed {seed}, '
                        f'were pretrained on different samples: run both with the same --pool and '
                        '--images (another store with --same-ids).'
                    )


def _same_samples(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    """Whether two rows' pools, as `choose_samples` notes them, can be of the same samples."""
    samples, lists, stores = (
        one.get(name) == two.get(name) for name in ('samples', 'list_sha256', 'config_sha256')
    )
    by_ids = not stores and bool(one.get('ids_of') or two.get('ids_of'))
    return samples and (lists or by_ids)


@dataclass(frozen=True)
class Measure(ABC):
    """What is measured, and how two arms are compared by it.

    Attributes:
        metric: Its name in rows.
    """

    metric: str

    def arms(self, comparison: Comparison) -> list[Arm]:
        """Return the arms that a comparison needs rows of."""
        arms = [comparison.arm, comparison.reference]
        return arms + ([comparison.gain_over] if comparison.gain_over else [])

    @abstractmethod
    def difference(self, rows: Rows, comparison: Comparison, seeds: int) -> Any:
        """Compare over the first seeds, two or more."""

    def obstacle(self, difference: Any) -> str:
        """Say why such a difference decides nothing; empty if it may."""
        return ''


class Objects(Measure):
    """Right or wrong, object by object: over seeds and objects."""

    def difference(self, rows: Rows, comparison: Comparison, seeds: int) -> CrossedDifference:
        """Compare over the first seeds, two or more."""
        found = [outcomes(rows, each, self.metric, seeds) for each in self.arms(comparison)]
        for each in found:
            _check_same(each, found[0], self.metric)
        arm, reference, *over = found
        # (arm - over) - 2 (reference - over)
        differences = arm - 2 * reference + over[0] if over else arm - reference
        tested = crossed_difference(differences - comparison.against)
        shifted = {
            name: getattr(tested, name) + comparison.against for name in ('mean', 'low', 'high')
        }
        return replace(tested, **shifted)


@dataclass(frozen=True)
class Heads(Measure):
    """One figure for each head that was trained on a pretraining: over seeds, heads averaged.

    Attributes:
        largest_spread: Nothing is decided while the paired differences of seeds spread by more.
    """

    largest_spread: float = float('inf')

    def difference(self, rows: Rows, comparison: Comparison, seeds: int) -> NestedDifference:
        """Compare over the first seeds, two or more."""
        pairs = [
            [self._heads(rows[arm, seed]) for arm in (comparison.arm, comparison.reference)]
            for seed in range(seeds)
        ]
        heads = min(len(values) for pair in pairs for values in pair)
        if heads == 0:
            raise ValueError(f'A row of {comparison.title(rows.method)} has no {self.metric}.')
        # Arms share the seeds of their heads: only heads that all pretrainings have are compared.
        values = np.array([[values[:heads] for values in pair] for pair in pairs])
        return nested_difference(values[:, 0] - values[:, 1])

    def _heads(self, row: Mapping[str, Any]) -> list[float]:
        heads = row.get('details', {}).get('heads', {}).get(self.metric)
        return heads or [row['metrics'][key] for key in [self.metric] if key in row['metrics']]

    def obstacle(self, difference: Any) -> str:
        """Say that seeds spread too much, if so."""
        if difference.spread <= self.largest_spread:
            return ''
        return (
            f'paired differences of seeds spread by {difference.spread:.4f}, and '
            f'{self.largest_spread:g} at most is asked for'
        )


@dataclass(frozen=True)
class Lengths(Measure):
    """How many doublings of its length a pretraining is ahead, from finished schedules.

    Its metric is kept object by object.

    Attributes:
        epochs: The schedules' lengths.
    """

    epochs: tuple[float, ...] = ()

    def arms(self, comparison: Comparison) -> list[Arm]:
        """Return the arms at each length."""
        return [
            replace(each, epochs=epochs)
            for each in (comparison.arm, comparison.reference)
            for epochs in self.epochs
        ]

    def difference(self, rows: Rows, comparison: Comparison, seeds: int) -> Shift:
        """Compare over the first seeds, two or more."""
        found = [outcomes(rows, arm, self.metric, seeds) for arm in self.arms(comparison)]
        for each in found:
            _check_same(each, found[0], self.metric)
        arm, reference = np.split(np.stack(found, 1), 2, 1)
        return length_shift(arm, reference, self.epochs, comparison.against)

    def obstacle(self, difference: Any) -> str:
        """Say that longer pretraining gains nothing, if so."""
        if difference.slope > 0 and difference.slope_p < 0.05:
            return ''
        return (
            f'longer pretraining gains nothing that can be seen ({difference.slope:+.4f} a '
            f'doubling, p {difference.slope_p:.2f}), so that there is nothing to accelerate'
        )


def outcomes(rows: Rows, arm: Arm, metric: str, seeds: int) -> np.ndarray:
    """Which objects an arm told right, (S, N) integers.

    Raises:
        ValueError: If a row keeps none, or of another number of objects.
    """
    found = []
    for seed in range(seeds):
        row = rows[arm, seed]
        details = row.get('details', {})
        if metric not in details.get('outcomes', {}):
            raise ValueError(
                f'The row of masks {row["masks"]}, seed {row["seed"]} keeps no outcomes of '
                f'{metric}: evaluate it with --on garments.'
            )
        found.append(unpack_outcomes(details['outcomes'][metric], details['garments']))
        _check_same(found[-1], found[0], metric)
    return np.stack(found).astype(int)


def _check_same(one: np.ndarray, two: np.ndarray, metric: str) -> None:
    if one.shape != two.shape:
        raise ValueError(f'The rows have outcomes of {metric} on different numbers of objects.')


@dataclass(frozen=True)
class Condition:
    """What must hold before anything is decided: every whole seed's figure is above a bound.

    Attributes:
        arm: The arm, a positive control.
        metric: The figure.
        above: The bound.
        text: What it means if it isn't.
    """

    arm: Arm
    metric: str
    above: float
    text: str

    @property
    def arms(self) -> list[Arm]:
        """The arms that a seed must have to be whole."""
        return [self.arm]

    def obstacle(self, rows: Rows, seeds: int) -> str:
        """Why nothing is decided; empty if the condition holds."""
        figures = [rows[self.arm, seed]['metrics'][self.metric] for seed in range(seeds)]
        if figures and min(figures) > self.above:
            return ''
        least = f'{min(figures):.3f}' if figures else 'unknown'
        return (
            f'{metric_title(self.metric)} of {self.arm.title(rows.method)} is {least}, not above '
            f'{self.above:g}: {self.text}'
        )


@dataclass(frozen=True)
class Ahead(Condition):
    """The same of a difference: the arm is ahead of another one by more than the bound.

    Over seeds and objects, p below 0.05; the figure is kept object by object.

    Attributes:
        reference: The other arm.
    """

    reference: Arm

    @property
    def arms(self) -> list[Arm]:
        """The arms that a seed must have to be whole."""
        return [self.arm, self.reference]

    def obstacle(self, rows: Rows, seeds: int) -> str:
        """Why nothing is decided; empty if the condition holds."""
        comparison = Comparison(self.arm, self.reference, against=self.above)
        name, found = comparison.title(rows.method), 'no figure yet'
        if seeds >= 2:
            difference = Objects(self.metric).difference(rows, comparison, seeds)
            if difference.mean > self.above and difference.p < 0.05:
                return ''
            found = f'{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})'
        return f'{name}, is not shown by {metric_title(self.metric)}, {found}: {self.text}'


@dataclass(frozen=True)
class Claim:
    """A claim with its rule.

    Attributes:
        text: The claim in one sentence.
        method: Whose rows decide it.
        comparisons: The primary ones.
        measure: The primary measure.
        looks: After how many seeds the rows are looked at, and below which corrected p they decide.
        others: Measures that are reported too and decide nothing.
        extra: Comparisons that are reported too and decide nothing.
        condition: What must hold besides.
        cfg_options: What the method's config is changed by, in all arms.
    """

    text: str
    method: str
    comparisons: tuple[Comparison, ...]
    measure: Measure
    looks: Mapping[int, float]
    others: tuple[Measure, ...] = ()
    extra: tuple[Comparison, ...] = ()
    condition: Condition | None = None
    cfg_options: tuple[str, ...] = ()

    @property
    def metric(self) -> str:
        """The primary measure's name."""
        return self.measure.metric

    @property
    def arms(self) -> list[Arm]:
        """The arms that a seed must have to be whole."""
        arms = [arm for each in self.comparisons for arm in self.measure.arms(each)]
        return list(dict.fromkeys(arms + (self.condition.arms if self.condition else [])))

    @property
    def all_arms(self) -> list[Arm]:
        """These, and those that are reported too."""
        extra = [arm for each in self.extra for arm in self.measure.arms(each)]
        return list(dict.fromkeys(self.arms + extra))


@dataclass(frozen=True)
class Finding:
    """What the rows say of one comparison by one measure.

    Attributes:
        name: What is compared.
        measure: By what.
        difference: Over all whole seeds; None for fewer than two.
        corrected: Its p by Holm's method, over the comparisons that it was looked at with.
        verdict: Of a primary comparison 'shown', 'opposite', 'not shown', 'undecidable' or
            'undecided'; else empty.
        seeds: How many seeds the verdict rests on.
        obstacle: Why nothing is decided whatever the difference, if so.
    """

    name: str
    measure: Measure
    difference: Difference | None
    corrected: float
    verdict: str
    seeds: int
    obstacle: str = ''

    @property
    def metric(self) -> str:
        """The measure's name."""
        return self.measure.metric

    @property
    def has_interval(self) -> bool:
        """Whether there is a difference with an interval to draw."""
        return self.difference is not None and math.isfinite(self.difference.low)


def decide_claim(results: Mapping[str, Any], claim: Claim) -> list[Finding]:
    """Apply a claim's rule to the rows there are.

    Args:
        results: A result file's content.
        claim: The claim.

    Returns:
        The primary comparisons on the primary measure; then what is reported besides.

    Raises:
        ValueError: If a row of the claim's lacks what is measured, there are two of one kind,
            its config was changed otherwise than the claim says, or rows that are compared differ
            in length or samples.
    """
    rows = Rows(results, claim.method, claim.cfg_options)
    rows.check_lengths(claim.all_arms)
    whole = rows.whole_seeds(claim.arms)
    decided: dict[Comparison, tuple[str, int]] = {}
    for look, bound in claim.looks.items():
        if look > whole:
            break
        # Holm's steps go over all primary comparisons, those decided before among them.
        found = _compare(rows, claim.comparisons, claim.measure, look)
        for comparison, (difference, corrected) in found.items():
            if comparison in decided or corrected >= bound or np.isnan(corrected):
                continue
            if not _obstacle(rows, claim, difference, look):
                above = difference.mean > comparison.against
                decided[comparison] = 'shown' if above else 'opposite', look
    last = max(claim.looks)
    findings = []
    primary = _compare(rows, claim.comparisons, claim.measure, whole)
    for comparison, (difference, corrected) in primary.items():
        obstacle = _obstacle(rows, claim, difference, whole)
        verdict = 'undecided', whole
        if whole >= last:
            verdict = 'undecidable' if obstacle else 'not shown', last
        findings.append(
            Finding(
                comparison.title(claim.method),
                claim.measure,
                difference,
                corrected,
                *decided.get(comparison, verdict),
                obstacle=obstacle,
            )
        )
    for measure in claim.others:
        findings += _reported(rows, claim.comparisons, measure, claim.arms)
    # Each over the whole seeds of its own arms, so that its p is not corrected yet.
    extra = [
        finding
        for comparison in claim.extra
        for finding in _reported(rows, (comparison,), claim.measure, ())
    ]
    together = holm([finding.corrected for finding in extra])
    return findings + [replace(finding, corrected=p) for finding, p in zip(extra, together)]


def _reported(
    rows: Rows, comparisons: tuple[Comparison, ...], measure: Measure, arms: Sequence[Arm]
) -> list[Finding]:
    """What is reported besides, where there are two whole seeds of it."""
    needed = [*arms, *(arm for each in comparisons for arm in measure.arms(each))]
    whole = rows.whole_seeds(list(dict.fromkeys(needed)))
    if whole < 2:
        return []
    return [
        Finding(comparison.title(rows.method), measure, *found, '', whole)
        for comparison, found in _compare(rows, comparisons, measure, whole).items()
    ]


def _obstacle(rows: Rows, claim: Claim, difference: Difference | None, seeds: int) -> str:
    condition = claim.condition
    if condition and difference is None:  # its arms may have been run first, alone
        seeds = rows.whole_seeds(condition.arms)
    stopped = condition.obstacle(rows, seeds) if condition and seeds >= 2 else ''
    return stopped or ('' if difference is None else claim.measure.obstacle(difference))


def _compare(
    rows: Rows, comparisons: tuple[Comparison, ...], measure: Measure, seeds: int
) -> dict[Comparison, tuple[Any, float]]:
    """The differences of the first seeds, and their p by Holm's method."""
    for each in comparisons:
        rows.check_samples(each, measure.arms(each), seeds)
    if seeds < 2:
        return {each: (None, float('nan')) for each in comparisons}
    found = [measure.difference(rows, each, seeds) for each in comparisons]
    corrected = holm([difference.p for difference in found])
    return {each: pair for each, *pair in zip(comparisons, found, corrected)}  # type: ignore[misc]

"""Claims, the rules that decide them, written down before the runs, and what the rows say so far.

A rule names one primary measure, the arms, how many seeds, and when to look. Verdicts follow from
the rows alone: seeds count from 0, and only whole ones, which all of its arms have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from freeatm_mm.results.comparison import arm_name, holm, is_untrained, runs_of
from freeatm_mm.results.file import validate_results
from freeatm_mm.results.metrics import metric_title
from freeatm_mm.results.outcomes import CrossedDifference, crossed_difference, unpack_outcomes

__all__ = ['CLAIMS', 'Claim', 'Finding', 'claim_page', 'decide_claim']

Masks = bool | str

#: O'Brien and Fleming's bounds for three looks, two-sided 5 % in all, by share of the seeds.
_THREE_LOOKS = (0.00052, 0.01411, 0.04507)


@dataclass(frozen=True)
class Claim:
    """A claim with its rule.

    Attributes:
        text: The claim in one sentence.
        method: Whose rows decide it.
        comparisons: The primary ones, each an arm and its reference as rows' `masks` have them.
        metric: The primary measure; rows keep its outcomes object by object.
        looks: After how many seeds the rows are looked at, and below which corrected p they decide.
        others: Measures that are reported too and decide nothing.
        extra: Comparisons that are reported too and decide nothing.
    """

    text: str
    method: str
    comparisons: tuple[tuple[Masks, Masks], ...]
    metric: str
    looks: Mapping[int, float]
    others: tuple[str, ...] = ()
    extra: tuple[tuple[Masks, Masks], ...] = ()

    @property
    def arms(self) -> tuple[Masks, ...]:
        """The arms that the primary comparisons need."""
        return tuple(dict.fromkeys(arm for pair in self.comparisons for arm in pair))


def _contrastive(method: str, title: str) -> Claim:
    return Claim(
        f'{title} learns to tell objects apart better with attention masks than without, and it is '
        "the masks that do it: another image's don't do as well",
        method,
        ((True, 'other_masks'), (True, False)),
        'linear_garment',
        dict(zip((4, 8, 12), _THREE_LOOKS)),
        ('knn_garment', 'linear_garment_whole', 'knn_garment_whole'),
        (('other_masks', False), ('box', False), (True, 'box'), ('normalized', True)),
    )


CLAIMS: dict[str, Claim] = {
    'contrastive-mocov2': _contrastive('mocov2', 'MoCo v2'),
    'contrastive-simclr': _contrastive('simclr', 'SimCLR'),
}
"""The claims with a rule, by the names of their result files."""


@dataclass(frozen=True)
class Finding:
    """What the rows say of one comparison on one measure.

    Attributes:
        arm: What is asked about.
        reference: What it is compared with.
        metric: On which measure.
        difference: Over all whole seeds; None for fewer than two.
        corrected: Its p by Holm's method, over the comparisons that it was looked at with.
        verdict: Of a primary comparison 'shown', 'opposite', 'not shown' or 'undecided'; else
            empty.
        seeds: How many seeds the verdict rests on.
    """

    arm: Masks
    reference: Masks
    metric: str
    difference: CrossedDifference | None
    corrected: float
    verdict: str
    seeds: int


def decide_claim(results: Mapping[str, Any], claim: Claim) -> list[Finding]:
    """Apply a claim's rule to the rows there are.

    Args:
        results: A result file's content.
        claim: The claim.

    Returns:
        The primary comparisons on the primary measure; then what is reported besides.

    Raises:
        ValueError: If a row of the claim's lacks outcomes, or those of two rows are of different
            objects.
    """
    rows = {
        (row['masks'], row['seed']): row
        for row in runs_of(results)
        if row['method'] == claim.method
    }
    whole = _whole_seeds(rows, claim.arms)
    decided: dict[tuple[Masks, Masks], tuple[str, int]] = {}
    for look, bound in claim.looks.items():
        open_ones = [pair for pair in claim.comparisons if pair not in decided]
        if look > whole or not open_ones:
            break
        # Holm's steps go over all primary comparisons, those decided before among them.
        found = _compare(rows, claim.comparisons, claim.metric, look)
        for pair in open_ones:
            difference, corrected = found[pair]
            if corrected < bound:
                decided[pair] = 'shown' if difference.mean > 0 else 'opposite', look
    last = max(claim.looks)
    findings = []
    for pair, (difference, corrected) in _compare(
        rows, claim.comparisons, claim.metric, whole
    ).items():
        rest = ('not shown', last) if whole >= last else ('undecided', whole)
        findings.append(
            Finding(*pair, claim.metric, difference, corrected, *decided.get(pair, rest))
        )
    for metric in claim.others:
        for pair, found_ in _compare(rows, claim.comparisons, metric, whole).items():
            findings.append(Finding(*pair, metric, *found_, '', whole))
    for pair in claim.extra:
        count = _whole_seeds(rows, pair)
        if count > 1:
            (found_,) = _compare(rows, (pair,), claim.metric, count).values()
            findings.append(Finding(*pair, claim.metric, *found_, '', count))
    return findings


def _whole_seeds(rows: Mapping[tuple[Masks, int], Any], arms: tuple[Masks, ...]) -> int:
    """How many seeds, from 0, all of the arms have."""
    seed = 0
    while all((arm, seed) in rows for arm in arms):
        seed += 1
    return seed


def _compare(
    rows: Mapping[tuple[Masks, int], Mapping[str, Any]],
    pairs: tuple[tuple[Masks, Masks], ...],
    metric: str,
    seeds: int,
) -> dict[tuple[Masks, Masks], tuple[Any, float]]:
    """The differences of the first seeds, and their p by Holm's method."""
    if seeds < 2:
        return {pair: (None, float('nan')) for pair in pairs}
    right = {
        (arm, seed): _outcomes(rows[arm, seed], metric)
        for arm in {arm for pair in pairs for arm in pair}
        for seed in range(seeds)
    }
    if len({len(each) for each in right.values()}) > 1:
        raise ValueError(f'The rows have outcomes of {metric} on different numbers of objects.')
    found = [
        crossed_difference(
            np.stack([right[arm, s].astype(int) - right[reference, s] for s in range(seeds)])
        )
        for arm, reference in pairs
    ]
    corrected = holm([difference.p for difference in found])
    return {pair: each for pair, *each in zip(pairs, found, corrected)}  # type: ignore[misc]


def _outcomes(row: Mapping[str, Any], metric: str) -> np.ndarray:
    details = row.get('details', {})
    if metric not in details.get('outcomes', {}):
        raise ValueError(
            f'The row of masks {row["masks"]}, seed {row["seed"]} keeps no outcomes of {metric}: '
            'evaluate it with --on garments.'
        )
    return unpack_outcomes(details['outcomes'][metric], details['garments'])


def claim_page(results: Mapping[str, Any], name: str) -> str:
    """Write a claim's rule and what the rows say of it as Markdown.

    Args:
        results: A result file's content.
        name: Of the claim in :data:`CLAIMS`.

    Raises:
        ValueError: If the content is not a result file's, or cannot be compared.
    """
    validate_results(results)
    claim = CLAIMS[name]
    findings = decide_claim(results, claim)
    primary = findings[: len(claim.comparisons)]
    lines = [f'# {claim.text}', '', '**' + verdict_line(primary, claim) + '**', '']
    looks = ', '.join(f'{look} (p below {bound:.4f})' for look, bound in claim.looks.items())
    lines += [
        f'Rule: {metric_title(claim.metric)}; '
        + '; '.join(_pair_name(claim, pair) for pair in claim.comparisons)
        + f"; looks at {looks} whole seeds, p by Holm's method; see "
        '[decision-rules.md](../decision-rules.md).',
        '',
        f'`{results["command"]}`',
        '',
        f'{results["date"]}; {results["hardware"]}.',
        '',
        '| comparison | measure | difference, 95 % interval | p (Holm) | seeds | verdict |',
        '| --- | --- | --- | ---: | ---: | --- |',
    ]
    for finding in findings:
        difference = finding.difference
        lines.append(
            f'| {_pair_name(claim, (finding.arm, finding.reference))} | '
            f'{metric_title(finding.metric)} | {_interval(difference)} | '
            f'{_p(finding.corrected)} | {difference.seeds if difference else finding.seeds} | '
            f'{finding.verdict} |'
        )
    means: dict[str, list[float]] = {}
    for row in runs_of(results):
        mine = row['method'] == claim.method or is_untrained(row['method'])
        if mine and claim.metric in row['metrics']:
            arm = arm_name(row['method'], '', row['masks'])
            means.setdefault(arm, []).append(row['metrics'][claim.metric])
    lines += ['', f'Means of {metric_title(claim.metric)} over seeds:', '']
    lines += [
        f'- {arm}: {np.mean(values):.4f} ({len(values)} seed{"s" * (len(values) > 1)})'
        for arm, values in means.items()
    ]
    errors = [each.difference for each in primary if each.difference]
    if errors:
        lines += ['', *_power(errors[0], claim)]
    return '\n'.join(lines) + '\n'


def verdict_line(primary: list[Finding], claim: Claim) -> str:
    """The verdicts of the primary comparisons in one line."""
    parts = []
    for finding in primary:
        name = _pair_name(claim, (finding.arm, finding.reference))
        verdict = finding.verdict
        if verdict == 'undecided':
            verdict += f': {finding.seeds} of {max(claim.looks)} seeds'
        elif verdict in ('shown', 'opposite'):
            verdict += f' (at {finding.seeds} seeds)'
        parts.append(f'{name}: {verdict}, {_interval(finding.difference)}')
    return '; '.join(parts)


def _power(difference: CrossedDifference, claim: Claim) -> list[str]:
    """What the spread that was found lets the last look see."""
    last = max(claim.looks)
    spread_of_seeds = difference.error_seeds * difference.seeds**0.5
    error = (spread_of_seeds**2 / last + difference.error_objects**2) ** 0.5
    return [
        f'Standard error {difference.error:.4f}: {difference.error_seeds:.4f} by seeds, '
        f'{difference.error_objects:.4f} by objects. At {last} seeds a difference of about '
        f'{2.8 * error:.3f} is found four times out of five.'
    ]


def _arm(claim: Claim, masks: Masks) -> str:
    return arm_name(claim.method, '', masks)


def _pair_name(claim: Claim, pair: tuple[Masks, Masks]) -> str:
    return ' against '.join(_arm(claim, arm) for arm in pair)


def _interval(difference: CrossedDifference | None) -> str:
    if difference is None:
        return 'no figure yet'
    return f'{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})'


def _p(p: float) -> str:
    return '–' if np.isnan(p) else f'{p:.4f}' if p >= 0.0001 else '< 0.0001'

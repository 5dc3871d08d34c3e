"""The claims of the paper, each with its rule, and the page that says what its rows decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from freeatm_mm.errors import counted
from freeatm_mm.results.comparison import is_untrained, runs_of
from freeatm_mm.results.file import validate_results
from freeatm_mm.results.metrics import metric_title
from freeatm_mm.results.outcomes import CrossedDifference, NestedDifference, Shift
from freeatm_mm.results.rules import (
    THREE_LOOKS,
    TWO_LOOKS,
    Ahead,
    Arm,
    Claim,
    Comparison,
    Condition,
    Difference,
    Finding,
    Heads,
    Lengths,
    Objects,
    decide_claim,
)

__all__ = [
    'CLAIMS',
    'Claim',
    'Finding',
    'claim_page',
    'decide_claim',
    'has_plot',
    'verdict_line',
]

_TITLES = {'mocov2': 'MoCo v2', 'simclr': 'SimCLR', 'mae': 'MAE'}
_TWELVE = dict(zip((4, 8, 12), THREE_LOOKS))
_SIX = dict(zip((3, 6), TWO_LOOKS))


def _pairs(
    *pairs: tuple[bool | str, bool | str], regime: str = 'synthetic', epochs: float | None = None
) -> Any:
    """Comparisons of arms by what their rows call their masks."""
    return tuple(
        Comparison(Arm(arm, regime, epochs), Arm(other, regime, epochs)) for arm, other in pairs
    )


def _objects(*metrics: str) -> tuple[Objects, ...]:
    return tuple(Objects(metric) for metric in metrics)


_RANDOM = Arm(False, method='random')
_GARMENTS = ('linear_garment', 'knn_garment', 'linear_garment_whole', 'knn_garment_whole')


def _on_garments(
    text: str,
    comparisons: tuple[Comparison, ...],
    looks: Mapping[int, float] = _TWELVE,
    extra: tuple[Comparison, ...] = (),
    method: str = 'simclr',
) -> Claim:
    """By the linear probe on single garments; the other three measures are reported."""
    measures = _objects(*_GARMENTS)
    return Claim(text, method, comparisons, measures[0], looks, measures[1:], extra)


def _contrastive(method: str, text: str = '', looks: Mapping[int, float] = _TWELVE) -> Claim:
    return _on_garments(
        f'{_TITLES[method]}{text} learns to tell objects apart better with attention masks than '
        "without, and it is the masks that do it: another image's don't do as well",
        _pairs((True, 'other_masks'), (True, False)),
        looks,
        _pairs(('other_masks', False), ('box', False), (True, 'box'), ('normalized', True))
        + tuple(Comparison(Arm(masks), _RANDOM) for masks in (False, True, 'other_masks', 'box')),
        method=method,
    )


def _acceleration(method: str, metric: str, baseline: bool | str, views: int) -> Claim:
    """A quarter of the length, as in Fig. 4; methods with one view have twice the epochs."""
    arms = Arm(True), Arm(baseline)
    return Claim(
        f'{_TITLES[method]} with attention masks needs a quarter of the pretraining',
        method,
        (Comparison(*arms), Comparison(*arms, against=2.0, unit=' doublings')),
        Lengths(metric, tuple(epochs * 2 // views for epochs in (6, 12, 24, 48, 96))),
        _SIX,
    )


def _benchmark(method: str, metric: str, what: str, baseline: bool | str) -> Claim:
    return Claim(
        f'{_TITLES[method]} with attention masks is the better start for {what}',
        method,
        _pairs((True, 'other_masks'), (True, baseline)),
        Heads(metric, largest_spread=0.003),
        _TWELVE,
        (),
        _pairs((True, baseline), ('other_masks', baseline)),
    )


def _options(method: str, options: tuple[str, ...], looks: Mapping[int, float]) -> Claim:
    return _on_garments(
        f'{_TITLES[method]} with attention masks gains by each option beyond the paper',
        _pairs(*((option, True) for option in options)),
        looks,
        _pairs(*((option, 'other_masks') for option in options)),
        method=method,
    )


def _plus(
    method: str,
    arm: str,
    what: str,
    looks: Mapping[int, float],
    metric: str = 'linear_garment',
    baseline: bool | str = False,
) -> Claim:
    """Beyond the paper: ahead of its method, and by as much again as that gains."""
    return Claim(
        f"{_TITLES[method]} gains more by {what} than by the paper's method, and more than twice "
        'as much',
        method,
        (
            Comparison(Arm(arm), Arm(True)),
            Comparison(Arm(arm), Arm(True), gain_over=Arm(baseline)),
        ),
        Objects(metric),
        looks,
        _objects(*(each for each in _GARMENTS if each != metric)),
        _pairs((arm, baseline), (arm, 'other_masks'), (True, baseline)),
    )


def _peers(method: str, arm: bool | str, what: str, looks: Mapping[int, float]) -> Claim:
    """Against masks that others make of the same images."""
    peers = 'felzenszwalb', 'kmeans'
    return _on_garments(
        f'{_TITLES[method]} learns to tell objects apart better with {what} than with masks of '
        'colour segmentation, or of k-means of its own features',
        _pairs(*((arm, peer) for peer in peers)),
        looks,
        _pairs(
            *((peer, False) for peer in peers),
            *((peer, 'other_masks') for peer in peers),
        ),
        method=method,
    )


_PEERS = ('hpm', 'own_attention', 'green_noise')
_SINGLY = ('same_noun', 'trust', 'normalized', 'object_crops')

_SCALES = {2_800: 100, 8_400: 33, 28_000: 10}
"""Epochs of so many images: about a thousand steps of 256 each."""

CLAIMS: dict[str, Claim] = {
    'contrastive-mocov2': _contrastive('mocov2'),
    'contrastive-simclr': _contrastive('simclr'),
    'contrastive-mocov2-long': _contrastive('mocov2', ' after a million views', _SIX),
    'contrastive-mocov2-short-queue': replace(
        _contrastive('mocov2', ' with a queue of 1,024 keys and temperature 0.1'),
        cfg_options=('model.queue_len=1024', 'model.head.temperature=0.1'),
        condition=Ahead(
            Arm(False),
            'linear_garment',
            0.02,
            'it does not learn objects with these settings either',
            _RANDOM,
        ),
    ),
    'acceleration-mocov2': _acceleration('mocov2', 'linear_garment', False, 2),
    'acceleration-simclr': _acceleration('simclr', 'linear_garment', False, 2),
    'acceleration-mae': _acceleration('mae', 'knn_garment_whole', 'ceiling_0', 1),
    'mae': Claim(
        'MAE learns to tell objects apart better if it hides what attention marks, and it is the '
        "masks that do it: another image's don't do as well",
        'mae',
        _pairs((True, 'other_masks'), (True, 'ceiling_0')),
        Objects('knn_garment_whole'),
        _TWELVE,
        _objects(*_GARMENTS[:3]),
        _pairs(('other_masks', 'ceiling_0'), ('ceiling_0.4', 'ceiling_0'), (False, 'ceiling_0')),
    ),
    'mae-finetuned': Claim(
        'Fine-tuned, MAE that hides what attention marks tells objects apart better, and it is '
        'the masks that do it',
        'mae',
        _pairs((True, 'other_masks'), (True, 'ceiling_0')),
        Heads('finetune_top1'),
        _TWELVE,
        (),
        _pairs(('other_masks', 'ceiling_0')),
    ),
    'detection-mocov2': _benchmark('mocov2', 'box_ap', 'detection', False),
    'segmentation-mocov2': _benchmark('mocov2', 'miou', 'segmentation', False),
    'detection-mae': _benchmark('mae', 'box_ap', 'detection', 'ceiling_0'),
    'segmentation-mae': _benchmark('mae', 'miou', 'segmentation', 'ceiling_0'),
    'blip-positions': Claim(
        'Position prompts made of attention masks teach BLIP where things are, and it is the '
        'positions that do it',
        'blip',
        _pairs((True, 'positions of other images'), (True, False), regime='real'),
        Heads('zeroshot_blocks_mirror'),
        _SIX,
        (Heads('zeroshot_mirror'), Heads('finetuned_mirror')),
        _pairs(
            ('exact', 'positions of other images'),
            (True, 'exact'),
            (True, 'boxes'),
            ('boxes', 'positions of other images'),
            ('positions of other images', False),
            regime='real',
        ),
        Condition(
            Arm('exact', 'real'),
            'zeroshot_blocks_mirror',
            0.6,
            'the training is too short to learn positions at all',
        ),
    ),
    'attention-blocks': _on_garments(
        'Masks of all blocks and steps are better for pretraining than those of fewer (Fig. 5)',
        _pairs((True, 'one_block_one_step'), (True, 'down_blocks')),
        extra=_pairs((True, 'other_masks'), ('one_block_one_step', 'other_masks')),
    ),
    'plain-prompts': _on_garments(
        'Images of augmented prompts are better to pretrain on than those of plain ones (Table 6)',
        _pairs((True, 'plain_prompts')),
    ),
    'generators': _on_garments(
        "A better generator's images and masks are better to pretrain on (Table 7)",
        _pairs((True, 'generator_quarter')),
        extra=_pairs((True, 'generator_half'), ('generator_half', 'generator_quarter')),
    ),
    'scaling-simclr': _on_garments(
        'Ten times as many images are better in as many steps, and masks still gain (Fig. 6)',
        (
            Comparison(Arm(True, epochs=_SCALES[28_000]), Arm(True, epochs=_SCALES[2_800])),
            *_pairs((True, False), epochs=_SCALES[28_000]),
        ),
        _SIX,
        _pairs((True, False), epochs=_SCALES[2_800]) + _pairs((True, False), epochs=_SCALES[8_400]),
    ),
    'regimes': _on_garments(
        'Half generated images with masks and half real ones are better to pretrain on than the '
        'same without masks, and than real ones alone (Table 1)',
        (
            Comparison(Arm(True, 'mixed'), Arm(False, 'mixed')),
            Comparison(Arm(True, 'mixed'), Arm(False, 'real')),
        ),
        _SIX,
        (
            Comparison(Arm(False, 'mixed'), Arm(False, 'real')),
            Comparison(Arm(True), Arm(False, 'real')),
        ),
    ),
    'pointing-blip': Claim(
        "A loss that supervises BLIP's cross-attention with masks makes nouns attend to their "
        'objects',
        'blip',
        _pairs(('mask_loss', True), regime='real'),
        Heads('pointing'),
        _SIX,
        (Heads('zeroshot_blocks_mirror'), Heads('zeroshot_mirror')),
        _pairs(('exact_mask_loss', True), ('exact_mask_loss', 'mask_loss'), regime='real'),
    ),
    'sharp-masks-simclr': _on_garments(
        "SimCLR gains by masks of 0 and 1 in place of raw attention, and then the image's own do "
        "better than another's and than a centred box",
        _pairs(('binary', True), ('binary', 'other_binary'), ('binary', 'box_binary')),
        extra=_pairs(
            ('binary', False),
            ('other_binary', 'other_masks'),
            ('other_binary', False),
            ('box_binary', False),
            ('normalized', True),
        ),
    ),
    'added-masks-simclr': _on_garments(
        'SimCLR on images that exist already tells objects apart better with masks that a '
        'generator adds by looking at them than without',
        _pairs(('added', False), regime='real'),
        _SIX,
        _pairs(('exact', False), ('added', 'exact'), regime='real'),
    ),
    'peers-mocov2': _peers('mocov2', True, "the generator's attention as masks", _SIX),
    'peers-simclr': _peers('simclr', True, "the generator's attention as masks", _TWELVE),
    'peers-plus-simclr': _peers(
        'simclr', 'plus', "the generator's attention and nouns, four options together,", _TWELVE
    ),
    'peers-mae': Claim(
        'MAE learns to tell objects apart better if it hides what attention marks than by any of '
        'three guidances that need no masks',
        'mae',
        _pairs(*((True, peer) for peer in _PEERS)),
        Objects('knn_garment_whole'),
        _TWELVE,
        _objects(*_GARMENTS[:3]),
        _pairs(*((peer, 'ceiling_0') for peer in _PEERS)),
    ),
    'options-mocov2': _options('mocov2', _SINGLY, _SIX),
    'options-simclr': _options('simclr', (*_SINGLY, 'other_nouns'), _TWELVE),
    'places-of-nouns-simclr': _on_garments(
        "SimCLR whose positives are a noun's objects in all images learns better from where they "
        'are than from a centred box for each noun',
        _pairs(('same_noun', 'same_noun_box')),
        extra=_pairs(('same_noun_box', True), ('same_noun_box', False), ('same_noun', True)),
    ),
    'nouns-without-masks-simclr': _on_garments(
        "SimCLR whose positives are a noun's objects in all images learns better from where they "
        'are than from nouns as labels of whole images',
        _pairs(('same_noun', 'same_noun_whole'), ('same_noun', 'same_noun_label')),
        extra=_pairs(
            ('same_noun_whole', False),
            ('same_noun_label', False),
            ('same_noun', False),
            ('same_noun_label', True),
        ),
    ),
    'plus-mocov2': _plus('mocov2', 'plus', 'four options together', _SIX),
    'plus-simclr': _plus('simclr', 'plus', 'four options together', _TWELVE),
    'parts-of-plus-simclr': _on_garments(
        'SimCLR gains more by two of the four options, same_noun and object_crops, than by all '
        'four, and than by same_noun alone',
        _pairs(('same_noun_crops', 'plus'), ('same_noun_crops', 'same_noun')),
        extra=_pairs(('same_noun_crops', True), ('same_noun_crops', False), ('plus', 'same_noun')),
    ),
    'plus-simclr-28000': _on_garments(
        'SimCLR still gains by four options together after three times as many steps on 28,000 '
        'images',
        _pairs(('plus', False), ('plus', True), epochs=_SCALES[28_000]),
        _SIX,
        _pairs(('plus', 'same_noun_label'), ('same_noun_label', False), epochs=_SCALES[28_000]),
    ),
    'plus-mae': _plus(
        'mae',
        'inside_first',
        'hiding objects from the inside first',
        _TWELVE,
        'knn_garment_whole',
        'ceiling_0',
    ),
    'guidance-simclr': _on_garments(
        'Images and masks generated with little guidance are better to pretrain SimCLR on than '
        'those of usual guidance',
        _pairs(('guidance_2', True), ('guidance_2', 'guidance_7_5')),
        extra=_pairs((True, 'guidance_7_5')),
    ),
}
"""The claims with a rule, by the names of their result files: the paper's, then those beyond it."""


def claim_page(results: Mapping[str, Any], name: str) -> str:
    """Write a claim's rule and what the rows say of it as Markdown.

    Args:
        results: A result file's content.
        name: Of the claim in `CLAIMS`, and of the plot beside the page, if it `has_plot`.

    Raises:
        ValueError: If the content is not a result file's, or cannot be compared.
    """
    validate_results(results)
    claim = CLAIMS[name]
    findings = decide_claim(results, claim)
    primary = findings[: len(claim.comparisons)]
    heading = f'# Claim ({_verdict(primary)}): {claim.text}'
    lines = [heading, '', '**' + verdict_line(primary, claim) + '**', '']
    looks = ', '.join(f'{look} (p below {bound:.4f})' for look, bound in claim.looks.items())
    lines += [
        f'Rule: {metric_title(claim.metric)}; '
        + '; '.join(each.title(claim.method) for each in claim.comparisons)
        + (f'; all with {" ".join(claim.cfg_options)}' if claim.cfg_options else '')
        + f"; looks at {looks} whole seeds, p by Holm's method; see "
        '[decision-rules.md](../decision-rules.md).',
        '',
        *(part for line in results['command'].splitlines() for part in (f'`{line}`', '')),
        f'{results["date"]}; {results["hardware"]}.',
        '',
        '| comparison | measure | difference, 95 % interval | p (Holm) | seeds | verdict |',
        '| --- | --- | --- | ---: | ---: | --- |',
    ]
    for finding in findings:
        difference = finding.difference
        lines.append(
            f'| {finding.name} | '
            f'{metric_title(finding.metric)} | {_interval(difference)} | '
            f'{_p(finding.corrected)} | {difference.seeds if difference else finding.seeds} | '
            f'{finding.verdict} |'
        )
    for reason in dict.fromkeys(finding.obstacle for finding in primary if finding.obstacle):
        lines += ['', f'Nothing is decided as long as {reason}.']
    if has_plot(findings):
        lines += [
            '',
            f'![{_alt_text(findings)}]({name}.svg)',
            '',
            '*Mean difference and its 95 % interval; in colour the comparisons that decide.*',
        ]
    measured = [row for row in runs_of(results) if claim.metric in row['metrics']]
    rows = [
        row
        for row in measured
        if is_untrained(row['method']) or any(arm.fits(row, claim.method) for arm in claim.all_arms)
    ]
    trained = [row for row in rows if not is_untrained(row['method'])]
    one_length = len({row['epochs'] for row in trained}) < 2
    means: dict[str, list[float]] = {}
    for row in rows:
        length = None if one_length or is_untrained(row['method']) else row['epochs']
        arm = Arm(row['masks'], row['regime'], length, row['method']).title(claim.method)
        means.setdefault(arm, []).append(row['metrics'][claim.metric])
    lines += ['', f'Means of {metric_title(claim.metric)} over seeds:', '']
    lines += [
        f'- {arm}: {np.mean(values):.4f} ({len(values)} seed{"s" * (len(values) > 1)})'
        for arm, values in means.items()
    ]
    if len(rows) < len(measured):
        left_out = counted(len(measured) - len(rows), 'row')
        lines += ['', f'Left out: {left_out} of arms that the claim does not compare.']
    for each in findings:  # the first primary comparison, or another one where no seed is whole
        if each.difference:
            lines += ['', f'{each.name}:', '', *_power(each.difference, claim)]
            break
    return '\n'.join(lines) + '\n'


def has_plot(findings: list[Finding]) -> bool:
    """Whether a claim's page has a plot beside it: there is an interval to show."""
    return any(each.has_interval for each in findings)


def _alt_text(findings: list[Finding]) -> str:
    """What a claim's plot shows, for readers who can't see it."""
    decided = '; '.join(f'{each.name}: {each.verdict}' for each in findings if each.verdict)
    count = counted(len(findings), 'comparison')
    return f'Mean differences with their 95 % intervals in {count}. {decided}.'


def _verdict(primary: list[Finding]) -> str:
    """A claim's verdict in a word: it is shown if all of its comparisons are."""
    found = [finding.verdict for finding in primary]
    if set(found) == {'shown'}:
        return 'shown'
    return next(
        verdict
        for verdict in ('opposite', 'not shown', 'undecidable', 'undecided')
        if verdict in found
    )


def verdict_line(primary: list[Finding], claim: Claim) -> str:
    """The verdicts of the primary comparisons in one line."""
    parts = []
    for finding in primary:
        name = finding.name
        verdict = finding.verdict
        if verdict == 'undecided':
            verdict += f': {finding.seeds} of {max(claim.looks)} seeds'
        elif verdict in ('shown', 'opposite'):
            verdict += f' (at {counted(finding.seeds, "seed")})'
            if finding.difference and finding.difference.seeds > finding.seeds:
                verdict += f'; of all {finding.difference.seeds}'
        parts.append(f'{name}: {verdict}, {_interval(finding.difference)}')
    return '; '.join(parts)


def _power(difference: Difference, claim: Claim) -> list[str]:
    """What the spread that was found lets the last look see."""
    last = max(claim.looks)
    if isinstance(difference, CrossedDifference):
        return [
            f'Standard error {difference.error:.4f}: {difference.error_seeds:.4f} by seeds and '
            f'{difference.error_objects:.4f} by objects, both with the residual '
            f'{difference.error_rest:.4f}. At {counted(last, "seed")} a difference of about '
            f'{difference.found_by(last):.3f} is found four times out of five.'
        ]
    if isinstance(difference, NestedDifference):
        lines = [
            f'Paired differences of {counted(difference.seeds, "seed")}, '
            f'{counted(difference.heads, "head")} each, spread by {difference.spread:.4f}.'
        ]
        if difference.heads > 1:
            lines[0] += (
                f' Of that, {difference.spread_pretraining:.4f} are of pretrainings, and a single '
                f'head adds {difference.spread_head:.4f}.'
            )
            for heads in (1, difference.heads, 4 * difference.heads):
                lines += [
                    '',
                    f'With {counted(heads, "head")} they spread by '
                    f'{difference.spread_with(heads):.4f}; differences of 0.005 and 0.003 then '
                    f'take {difference.seeds_for(0.005, heads)} and '
                    f'{difference.seeds_for(0.003, heads)} seeds, four times out of five.',
                ]
        return lines
    if isinstance(difference, Shift):
        return [
            f'At the same length {difference.level:+.4f}; a doubling of the length gains '
            f'{difference.slope:+.4f} (p {difference.slope_p:.4f}).'
        ]
    return []


def _interval(difference: Difference | None) -> str:
    if difference is None:
        return 'no figure yet'
    if isinstance(difference, Shift):
        if np.isinf([difference.low, difference.high]).all():
            return 'no shift, no bounds'
        return (
            f'ahead by {difference.mean:+.2f} doublings '
            f'({difference.low:+.2f} to {difference.high:+.2f})'
        )
    return f'{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})'


def _p(p: float) -> str:
    return '–' if np.isnan(p) else f'{p:.4f}' if p >= 0.0001 else '< 0.0001'

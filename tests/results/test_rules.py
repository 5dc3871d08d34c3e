"""The rules on simulated rows: a true effect is found, none isn't, and obstacles stop verdicts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from freeatm_mm.results import new_results, pack_outcomes, to_markdown
from freeatm_mm.results.claims import CLAIMS, claim_page
from freeatm_mm.results.outcomes import length_shift, nested_difference
from freeatm_mm.results.rules import Arm, Comparison, Heads, Objects, Rows, decide_claim

EPOCHS = (6, 12, 24, 48, 96)


def row(method, masks, seed, epochs=40, regime='synthetic', metrics=(), **details):
    return {
        'method': method,
        'regime': regime,
        'masks': masks,
        'seed': seed,
        'epochs': epochs,
        'metrics': dict(metrics),
        'details': details,
    }


def results_of(rows):
    return {**new_results('claim', './run miniature'), 'rows': rows}


def nested(gains, seeds, heads=3, spread=0.001, noise=0.001, claim='detection-mocov2', seed=0):
    """Rows whose figure is 0.3 and the arm's gain, spread by pretraining and by head."""
    rng, (method, metric) = (
        np.random.default_rng(seed),
        (CLAIMS[claim].method, CLAIMS[claim].metric),
    )
    rows = []
    for number in range(seeds):
        luck = rng.normal(0, 0.02)  # all arms of a seed share it
        for masks, gain in gains.items():
            figures = 0.3 + luck + gain + rng.normal(0, spread) + rng.normal(0, noise, heads)
            extra = {'heads': {metric: figures.tolist()}} if heads > 1 else {}
            rows.append(row(method, masks, number, metrics={metric: figures.mean()}, **extra))
    return results_of(rows)


def verdicts(results, claim):
    return [each.verdict for each in decide_claim(results, claim) if each.verdict]


@pytest.mark.parametrize(
    ('gains', 'expected'),
    [
        ({True: 0.01, 'other_masks': 0.0, False: 0.0}, ['shown', 'shown']),
        ({True: 0.01, 'other_masks': 0.01, False: 0.0}, ['not shown', 'shown']),
        ({True: 0.0, 'other_masks': 0.01, False: 0.0}, ['opposite', 'not shown']),
    ],
    ids=['masks gain', 'any mask gains', 'wrong masks gain'],
)
def test_heads_are_averaged_and_seeds_compared(gains, expected):
    assert verdicts(nested(gains, 12), CLAIMS['detection-mocov2']) == expected


def test_a_spread_above_the_limit_decides_nothing_and_says_what_it_would_take():
    results = nested({True: 0.05, 'other_masks': 0.0, False: 0.0}, 12, noise=0.015)
    claim = CLAIMS['detection-mocov2']
    assert verdicts(results, claim) == ['undecidable'] * 2
    page = claim_page(results, 'detection-mocov2')
    assert 'Nothing is decided as long as paired differences of seeds spread by 0.0' in page
    assert 'With 12 heads they spread by' in page and 'four times out of five' in page
    # Before a third arm is there, the page says what two of them tell.
    results['rows'] = [each for each in results['rows'] if each['masks'] != 'other_masks']
    page = claim_page(results, 'detection-mocov2')
    assert 'no figure yet' in page and 'With 12 heads they spread by' in page
    results = nested({True: 0.05, 'other_masks': 0.0, False: 0.0}, 12, noise=0.015)
    loose = dataclasses.replace(claim, measure=Heads('box_ap'))
    assert verdicts(results, loose) == ['shown'] * 2


def test_the_spread_is_split_into_pretrainings_and_heads():
    rng = np.random.default_rng(0)
    found = nested_difference(rng.normal(0, 3, (4000, 1)) + rng.normal(1, 4, (4000, 4)))
    assert found.spread_pretraining == pytest.approx(3, abs=0.2)
    assert found.spread_head == pytest.approx(4, abs=0.1)
    assert found.spread == pytest.approx(found.spread_with(4)) == pytest.approx(13**0.5, abs=0.2)
    assert found.mean == pytest.approx(1, abs=0.2)
    # (1.96 + 0.84)^2 * 13 / 1.5^2 = 45, and two more as the spread is estimated.
    assert found.seeds_for(1.5, 4) == pytest.approx(47, abs=5)
    single = nested_difference([[1.0], [2.0], [6.0]])
    assert (single.mean, single.heads) == (3, 1) and np.isnan(single.spread_head)


def test_without_an_effect_a_rule_errs_in_about_one_case_of_twenty():
    """Both comparisons, three looks and Holm together; level and spread are seeds' and heads'."""
    gains = {True: 0.0, 'other_masks': 0.0, False: 0.0}
    claim = CLAIMS['detection-mocov2']
    wrong = sum(
        bool({'shown', 'opposite'} & set(verdicts(nested(gains, 12, seed=seed), claim)))
        for seed in range(150)
    )
    assert 1 <= wrong <= 14


def lengths(shift, slope, seeds=6, objects=600, seed=0, method='mocov2'):
    """(S, 2, L, N) right or wrong of the arm, which is ahead by a shift, and of its reference."""
    rng, place = np.random.default_rng(seed), np.log2(EPOCHS) - np.log2(EPOCHS).mean()
    ahead = np.array([shift, 0.0])[:, None] + place
    chance = 0.5 + slope * ahead[..., None] + rng.normal(0, 0.15, objects)
    luck = rng.normal(0, 0.01, (seeds, 1, 1, 1)) + rng.normal(0, 0.005, (seeds, 2, len(EPOCHS), 1))
    return rng.random((seeds, 2, len(EPOCHS), objects)) < chance + luck


def length_rows(right):
    return results_of(
        [
            row(
                'mocov2',
                masks,
                seed,
                epochs,
                metrics={'linear_garment': float(right[seed, arm, place].mean())},
                garments=right.shape[-1],
                outcomes={'linear_garment': pack_outcomes(right[seed, arm, place])},
            )
            for seed in range(len(right))
            for arm, masks in enumerate((True, False))
            for place, epochs in enumerate(EPOCHS)
        ]
    )


@pytest.mark.parametrize(
    ('shift', 'slope', 'expected'),
    [
        (4.0, 0.03, ['shown', 'shown']),
        (1.0, 0.03, ['shown', 'opposite']),
        (-1.5, 0.03, ['opposite', 'opposite']),
        (0.0, 0.0, ['undecidable', 'undecidable']),
    ],
    ids=['by sixteen', 'by two', 'slower', 'no gain by length'],
)
def test_acceleration_is_a_shift_of_finished_schedules(shift, slope, expected):
    results = length_rows(lengths(shift, slope))
    found = decide_claim(results, CLAIMS['acceleration-mocov2'])
    assert [each.verdict for each in found] == expected
    page = claim_page(results, 'acceleration-mocov2')
    if slope:
        assert found[0].difference.mean == pytest.approx(shift, abs=0.6)
        assert found[0].difference.low < shift < found[0].difference.high
        assert 'doublings' in page and 'ahead by more than 2 doublings' in page
    else:
        assert 'nothing to accelerate' in page and 'no shift, no bounds' in page
    to_markdown(results)  # rows of several lengths are one file


def test_the_interval_of_a_shift_covers_it_and_no_shift_is_rarely_one():
    covered = false = 0
    for seed in range(60):
        right = lengths(1.0, 0.03, 3, 300, seed)
        found = length_shift(right[:, 0], right[:, 1], EPOCHS, 1.0)
        covered += found.low <= 1 <= found.high
        false += found.p < 0.05
    assert covered >= 54 and false <= 6


def test_a_length_that_is_missing_leaves_a_seed_unwhole():
    results = length_rows(lengths(4.0, 0.03, objects=2000))
    results['rows'] = [
        each for each in results['rows'] if (each['seed'], each['epochs']) != (3, 96)
    ]
    first = decide_claim(results, CLAIMS['acceleration-mocov2'])[0]
    assert (first.verdict, first.seeds) == ('shown', 3)  # by the look at three


def blip(control, own, seeds=6):
    rng, arms = np.random.default_rng(0), {'exact': control, True: own, False: 0.5}
    return results_of(
        [
            row(
                'blip',
                masks,
                seed,
                20,
                'real',
                metrics={
                    name: level + float(rng.normal(0, 0.01))
                    for name in ('zeroshot_blocks_mirror', 'zeroshot_mirror', 'finetuned_mirror')
                },
            )
            for masks, level in {**arms, 'positions of other images': 0.5}.items()
            for seed in range(seeds)
        ]
    )


def test_without_its_positive_control_blip_is_undecidable():
    claim = CLAIMS['blip-positions']
    assert verdicts(blip(0.8, 0.65), claim) == ['shown', 'shown']
    assert verdicts(blip(0.8, 0.5), claim) == ['not shown', 'not shown']
    results = blip(0.55, 0.65)  # which no control explains
    assert verdicts(results, claim) == ['undecidable', 'undecidable']
    assert 'too short to learn positions at all' in claim_page(results, 'blip-positions')
    alone = results_of([each for each in results['rows'] if each['masks'] == 'exact'])
    page = claim_page(alone, 'blip-positions')  # run first, to see whether the rest is worth it
    assert 'undecided: 0 of 6 seeds, no figure yet' in page
    assert 'Nothing is decided as long as' in page and 'too short to learn positions' in page
    results['rows'] = [each for each in results['rows'] if each['masks'] != 'exact']
    assert verdicts(results, claim) == ['undecided', 'undecided']


def test_arms_are_told_apart_by_masks_regime_and_length():
    rows = [
        row('mocov2', True, 0, 10),
        row('mocov2', True, 0, 100),
        row('mocov2', True, 0, 10, 'mixed'),
        row('mocov2', 'true', 0, 10),
        row('simclr', True, 0, 10),
    ]
    found = Rows(results_of(rows), 'mocov2')
    assert found.row(Arm(True, epochs=100), 0) is rows[1]
    assert found.row(Arm(True, 'mixed'), 0) is rows[2]
    assert found.row(Arm(False), 0) is None
    with pytest.raises(ValueError, match=r'There are 2 rows of MoCo v2 \+ Free-ATM, seed 0'):
        found.row(Arm(True), 0)
    with pytest.raises(ValueError, match='has no box_ap'):
        results = results_of([row('mocov2', masks, s) for s in (0, 1) for masks in (True, False)])
        pair = Comparison(Arm(True), Arm(False))
        Heads('box_ap').difference(Rows(results, 'mocov2'), pair, 2)


def test_rows_of_several_lengths_are_refused_where_arms_name_none():
    """Whichever comparison they are in; random weights have no length."""
    gains = {True: 0.0, 'other_masks': 0.0, False: 0.0}
    results, claim = nested(gains, 2), CLAIMS['detection-mocov2']
    results['rows'] += [row('random', False, 0, 0), row('mocov2', 'box', 0, 80)]
    assert verdicts(results, claim) == ['undecided'] * 2  # no arm of the claim
    results['rows'][4]['epochs'] = 80
    with pytest.raises(
        ValueError,
        match=r'seed 0 was pretrained for 40 epochs, and .*seed 1 .* for 80, where the claim',
    ):
        verdicts(results, claim)


POOL = {'store': 'pool', 'config_sha256': 'a', 'samples': 100, 'list_sha256': 'x'}
OTHER = {**POOL, 'store': 'other', 'config_sha256': 'b'}


@pytest.mark.parametrize(
    ('pool', 'same'),
    [
        (POOL, True),
        (OTHER, True),
        ({**OTHER, 'list_sha256': 'y', 'ids_of': 'pool'}, True),
        (None, True),
        ({**POOL, 'list_sha256': 'y'}, False),
        ({**POOL, 'list_sha256': 'y', 'ids_of': 'prompts'}, False),
        ({**POOL, 'samples': 200}, False),
        ({**OTHER, 'list_sha256': 'y'}, False),
    ],
    ids=['own', 'like it', 'its ids', 'none', 'another list', 'other ids', 'more', 'strange ids'],
)
def test_arms_of_a_seed_must_have_the_same_samples(pool, same):
    results = nested({True: 0.0, 'other_masks': 0.0, False: 0.0}, 2)
    for each in results['rows']:
        each['pool'] = pool if (each['masks'], each['seed']) == (False, 1) else POOL
    if same:
        assert verdicts(results, CLAIMS['detection-mocov2']) == ['undecided'] * 2
    else:
        with pytest.raises(ValueError, match=r'Free-ATM and MoCo v2, seed 1, were .* --same-ids'):
            verdicts(results, CLAIMS['detection-mocov2'])


def test_a_claim_about_the_number_of_images_has_other_samples():
    """Of each length all arms have the same."""
    rows = [
        {
            **row('simclr', masks, seed, epochs, metrics={'box_ap': 0.1 * seed}),
            'pool': {**POOL, 'samples': 1000 // epochs, 'list_sha256': f'{epochs}'},
        }
        for seed in range(2)
        for masks, epochs in ((True, 10), (True, 100), (False, 10))
    ]
    claim = dataclasses.replace(CLAIMS['scaling-simclr'], measure=Heads('box_ap'), others=())
    assert verdicts(results_of(rows), claim) == ['undecided'] * 2
    rows[2]['pool']['list_sha256'] = 'y'
    with pytest.raises(ValueError, match='different samples'):
        verdicts(results_of(rows), claim)


def test_every_claim_has_a_rule_that_can_be_applied():
    for name, claim in CLAIMS.items():
        assert verdicts(results_of([]), claim) == ['undecided'] * len(claim.comparisons)
        assert 'no figure yet' in claim_page(results_of([row('random', False, 0)]), name)
        assert isinstance(claim.measure, Objects | Heads) or 'acceleration' in name

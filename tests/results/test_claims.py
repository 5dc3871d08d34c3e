"""Claims and their rules, on rows whose truth is known."""

import re
from dataclasses import replace

import numpy as np
import pytest
from helpers.tools import exit_code, load_tool

from freeatm_mm.results import new_results, pack_outcomes, read_results, write_results
from freeatm_mm.results.claims import CLAIMS, claim_page, decide_claim
from freeatm_mm.results.comparison import holm
from freeatm_mm.results.plots import claims_plot

OBJECTS = 2000
METRICS = ('linear_garment', 'knn_garment', 'linear_garment_whole', 'knn_garment_whole')


def rows(seeds, gains, method='mocov2'):
    """Rows of arms that tell objects right with a chance of 0.5 and their gain."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 0.15, OBJECTS)
    results = new_results('contrastive', './run miniature')
    for seed in range(seeds):
        luck = rng.normal(0, 0.01)
        for masks, gain in gains.items():
            outcomes = {
                metric: rng.random(OBJECTS) < 0.5 + hard + luck + gain for metric in METRICS
            }
            results['rows'].append(
                {
                    'method': method,
                    'regime': 'synthetic',
                    'masks': masks,
                    'seed': seed,
                    'epochs': 40,
                    'metrics': {name: float(right.mean()) for name, right in outcomes.items()},
                    'details': {
                        'garments': OBJECTS,
                        'outcomes': {name: pack_outcomes(each) for name, each in outcomes.items()},
                    },
                }
            )
    return results


def verdicts(seeds, gains):
    findings = decide_claim(rows(seeds, gains), CLAIMS['contrastive-mocov2'])
    return [(finding.verdict, finding.seeds) for finding in findings[:2]]


@pytest.mark.parametrize(
    ('seeds', 'gains', 'expected'),
    [
        (12, {True: 0.05, 'other_masks': 0.0, False: 0.0}, ['shown', 'shown']),
        (12, {True: 0.0, 'other_masks': 0.05, False: 0.0}, ['opposite', 'not shown']),
        (12, {True: 0.05, 'other_masks': 0.05, False: 0.0}, ['not shown', 'shown']),
        (7, {True: 0.0, 'other_masks': 0.0, False: 0.0}, ['undecided', 'undecided']),
        (3, {True: 0.2, 'other_masks': 0.0, False: 0.0}, ['undecided', 'undecided']),
    ],
    ids=['true', 'opposite', 'any mask will do', 'no effect', 'before the first look'],
)
def test_verdicts_follow_the_rule(seeds, gains, expected):
    found = verdicts(seeds, gains)
    assert [verdict for verdict, _ in found] == expected
    if 'undecided' in expected:
        assert {count for _, count in found} == {seeds}


def test_a_verdict_stays_whatever_seeds_come_after():
    gains = {True: 0.05, 'other_masks': 0.0, False: 0.0}
    results = rows(12, gains)
    early = {**results, 'rows': [row for row in results['rows'] if row['seed'] < 9]}
    claim = CLAIMS['contrastive-mocov2']
    for one, two in zip(decide_claim(early, claim)[:2], decide_claim(results, claim)[:2]):
        assert (one.verdict, one.seeds) == (two.verdict, two.seeds)


def test_only_whole_seeds_count():
    results = rows(6, {True: 0.1, 'other_masks': 0.0, False: 0.0})
    results['rows'] = [
        row for row in results['rows'] if (row['seed'], row['masks']) != (2, 'other_masks')
    ]
    first = decide_claim(results, CLAIMS['contrastive-mocov2'])[0]
    assert (first.verdict, first.seeds, first.difference.seeds) == ('undecided', 2, 2)


def test_the_page_says_rule_figure_interval_and_verdict():
    results = rows(4, {True: 0.0, 'other_masks': 0.0, False: 0.0, 'box': 0.0})
    page = claim_page(results, 'contrastive-mocov2')
    assert 'undecided: 4 of 12 seeds' in page and 'decision-rules.md' in page
    assert 'MoCo v2 + Free-ATM against MoCo v2 + box' in page
    assert 'by seeds' in page
    undecided = claim_page(rows(1, {True: 0, False: 0}), 'contrastive-mocov2')
    assert 'no figure yet' in undecided and '.svg' not in undecided


def test_comparisons_that_decide_nothing_are_corrected_together():
    """Each has the seeds of its own arms, and p is of all that are shown."""
    gains = {True: 0.05, 'other_masks': 0.02, False: 0.0, 'normalized': 0.06}
    results = rows(5, gains)
    results['rows'] += rows(3, {'box': 0.04})['rows']
    found = decide_claim(results, CLAIMS['contrastive-mocov2'])[8:]
    assert [finding.difference.seeds for finding in found] == [5, 3, 3, 5]
    alone = [finding.difference.p for finding in found]
    assert [finding.corrected for finding in found] == holm(alone) != alone


def test_the_page_says_what_all_seeds_find():
    """Without spread by seeds and objects: that of 12 times as many outcomes, right or wrong."""
    gains = {True: 0.0, 'other_masks': 0.0, False: 0.0}
    page = claim_page(rows(8, gains, 'simclr'), 'contrastive-simclr')
    found = float(re.search(r'At 12 seeds a difference of about (\S+) is found', page)[1])
    variance = 2 * (0.25 - 0.15**2) / (12 * OBJECTS)
    assert found == pytest.approx((2.201 + 0.842) * variance**0.5, rel=0.3)


def test_rows_without_outcomes_are_told():
    results = rows(4, {True: 0.0, 'other_masks': 0.0, False: 0.0})
    del results['rows'][0]['details']
    with pytest.raises(ValueError, match='--on garments'):
        decide_claim(results, CLAIMS['contrastive-mocov2'])


def test_the_tool_writes_page_and_plot(tmp_path, capsys):
    path = tmp_path / 'contrastive-mocov2.json'
    write_results(path, rows(5, {True: 0.1, 'other_masks': 0.0, False: 0.0}))
    tool = load_tool('results/claims')
    tool.main([str(path)])
    assert 'shown (at 4 seeds)' in capsys.readouterr().out
    assert 'shown (at 4 seeds)' in path.with_suffix('.md').read_text()
    assert path.with_suffix('.svg').read_text().count('<svg') == 1
    assert '(contrastive-mocov2.svg)' in path.with_suffix('.md').read_text()
    more = tmp_path / 'more.json'
    write_results(more, rows(8, {True: 0.1, 'other_masks': 0.0, False: 0.0}))
    assert tool.main([str(path), '--rows', str(more)]) == 0
    assert 'shown (at 4 seeds)' in capsys.readouterr().out
    assert len(read_results(path)['rows']) == 24
    one = tmp_path / 'contrastive-simclr.json'
    write_results(one, rows(2, {True: 0.1, 'other_masks': 0.0, False: 0.0}, 'simclr'))
    overview = tmp_path / 'overview.svg'
    assert tool.main([str(path), str(one), '--overview', str(overview)]) == 0
    assert overview.read_text().count('<svg') == 1
    other = tmp_path / 'other.json'
    write_results(other, rows(1, {True: 0.0}))
    assert exit_code(tool, [other]) != 0
    assert 'no claim of that name' in capsys.readouterr().err


def test_an_overview_has_a_line_for_each_comparison_with_an_interval():
    claims = {
        name: decide_claim(rows(count, {True: 0.1, 'other_masks': 0, False: 0}, method), claim)[:2]
        for name, method, count in (
            ('contrastive-mocov2', 'mocov2', 5),
            ('contrastive-simclr', 'simclr', 2),
            ('contrastive-mocov2-long', 'mocov2', 1),
        )
        for claim in [CLAIMS[name]]
    }
    (axes,) = claims_plot(claims).axes
    first, second = claims['contrastive-mocov2'], claims['contrastive-simclr']
    assert [each.get_text() for each in axes.get_yticklabels()] == [
        finding.name for finding in first + second
    ]
    assert [each.get_text() for each in axes.get_legend().get_texts()] == ['shown', 'undecided']
    drawn = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    for ends, finding in zip(drawn, first + second):
        np.testing.assert_allclose(
            ends, [100 * finding.difference.low, 100 * finding.difference.high]
        )


def test_means_are_of_arms_of_one_regime_and_length():
    results = rows(3, {True: 0.2, False: 0.0}, 'simclr')
    for row in rows(3, {False: 0.4}, 'simclr')['rows']:
        results['rows'].append({**row, 'regime': 'real'})
    page = claim_page(results, 'regimes')
    assert page.count('(3 seeds)') == 2
    means = [line for line in page.splitlines() if line.startswith('- SimCLR')]
    assert [line.split(':')[0] for line in means] == ['- SimCLR + Free-ATM', '- SimCLR (real)']
    # Generated images without masks are no arm of the claim.
    assert 'Left out: 3 rows of arms that the claim does not compare.' in page
    results = rows(2, {True: 0.2, False: 0.0}, 'simclr')
    for row in results['rows']:
        row['epochs'] = 10
    results['rows'] += [{**row, 'epochs': 100} for row in results['rows'] if row['masks']]
    page = claim_page(results, 'scaling-simclr')
    assert page.count('(2 seeds)') == 3 and '- SimCLR, 10 epochs: ' in page
    assert 'Left out' not in page


@pytest.mark.parametrize(
    ('gain', 'expected'),
    [(0.16, ['shown', 'shown']), (0.1, ['shown', 'not shown']), (0.07, ['shown', 'opposite'])],
    ids=['more than twice', 'twice', 'less than twice'],
)
def test_a_doubled_gain_is_more_than_being_ahead(gain, expected):
    claim = CLAIMS['plus-simclr']
    results = rows(12, {'plus': gain, True: 0.05, False: 0.0}, 'simclr')
    found = decide_claim(results, claim)
    assert [each.verdict for each in found[:2]] == expected
    assert found[1].difference.mean == pytest.approx(gain - 0.1, abs=0.02)
    assert 'above twice that of SimCLR + Free-ATM' in claim_page(results, 'plus-simclr')
    results['rows'] = [row for row in results['rows'] if row['masks'] is not False]
    assert decide_claim(results, claim)[1].verdict == 'undecided'  # it needs all three


@pytest.mark.parametrize('labels, expected', [(0.0, 'shown'), (0.05, 'not shown')])
def test_nouns_without_masks_have_two_controls(labels, expected):
    """Nouns of whole images that do as well in either form are told."""
    gains = {'same_noun': 0.05, 'same_noun_whole': 0.0, 'same_noun_label': labels, False: 0.0}
    claim = CLAIMS['nouns-without-masks-simclr']
    found = decide_claim(rows(12, gains, 'simclr'), claim)
    assert [each.verdict for each in found[:2]] == ['shown', expected]
    assert 'SimCLR + same_noun_label against SimCLR' in [each.name for each in found]


@pytest.mark.parametrize('name, arm', [('peers-simclr', True), ('peers-plus-simclr', 'plus')])
def test_each_peer_has_its_own_verdict(name, arm):
    gains = {arm: 0.05, 'felzenszwalb': 0.0, 'kmeans': 0.1, False: 0.0}
    found = decide_claim(rows(12, gains, 'simclr'), CLAIMS[name])
    assert [each.verdict for each in found[:2]] == ['shown', 'opposite']
    assert {each.name for each in found[2:]} >= {
        'SimCLR + felzenszwalb against SimCLR',
        'SimCLR + kmeans against SimCLR',
    }


@pytest.mark.parametrize(
    'none, verdicts',
    [(0.06, ['shown'] * 2), (0.025, ['undecidable'] * 2), (0.0, ['undecidable'] * 2)],
    ids=['learns', 'hardly', 'not at all'],
)
def test_a_method_that_does_not_learn_decides_nothing(none, verdicts):
    """Whatever its arms differ by: without masks it must be two points ahead of random weights."""
    name = 'contrastive-mocov2-short-queue'
    claim = CLAIMS[name]
    results = rows(12, {True: none + 0.05, 'other_masks': none, False: none})
    for row in results['rows']:
        row['cfg_options'] = list(reversed(claim.cfg_options))
    assert decide_claim(results, claim)[0].seeds == 0  # without rows of random weights
    results['rows'] += rows(12, {False: 0.0}, 'random')['rows']
    found = decide_claim(results, claim)
    assert [each.verdict for each in found[:2]] == verdicts
    page = claim_page(results, name)
    assert ('does not learn objects' in page) == (none < 0.05)
    assert 'all with model.queue_len=1024' in page
    assert '| MoCo v2 + Free-ATM against Random weights |' in page
    with pytest.raises(ValueError, match='has --cfg-options model.head.*the config as it is'):
        decide_claim(results, CLAIMS['contrastive-mocov2'])
    del results['rows'][0]['cfg_options']
    with pytest.raises(ValueError, match='--cfg-options of none, and the claim is about model.'):
        decide_claim(results, claim)


def test_a_margin_is_part_of_what_is_tested():
    """An arm that is ahead by less than it is not shown to be, and the figure stays as it is."""
    claim = CLAIMS['sharp-masks-simclr']
    first, *others = claim.comparisons
    claim = replace(claim, comparisons=(replace(first, against=0.004), *others))
    gains = {True: 0.0, 'other_binary': 0.0, 'box_binary': 0.0}
    small, large = (
        decide_claim(rows(12, {'binary': gain, **gains}, 'simclr'), claim) for gain in (0.008, 0.05)
    )
    assert [each.verdict for each in large[:3]] == ['shown'] * 3
    assert small[0].verdict == 'not shown'
    assert large[0].difference.mean == pytest.approx(0.05, abs=0.01)
    assert large[0].difference.low > 0.004
    assert 'ahead by more than 0.004' in large[0].name

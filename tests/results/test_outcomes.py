"""Right or wrong, object by object: as text, and arms compared over seeds and objects."""

import numpy as np
import pytest
from scipy import stats

from freeatm_mm.results import crossed_difference, pack_outcomes, unpack_outcomes


@pytest.mark.parametrize('count', [1, 8, 8001])
def test_outcomes_are_kept_as_they_are(count):
    right = np.random.default_rng(count).random(count) < 0.5
    np.testing.assert_array_equal(unpack_outcomes(pack_outcomes(right), count), right)


@pytest.mark.parametrize('text', [pack_outcomes(np.ones(9, bool)), 'no base64!', None])
def test_outcomes_of_others_are_refused(text):
    with pytest.raises(ValueError, match='outcomes'):
        unpack_outcomes(text, 8)


def drawn(rng, seeds, objects, mean=0.0, of_seeds=0.02, of_objects=0.3, rest=0.4):
    return (
        mean
        + of_seeds * rng.standard_normal((seeds, 1))
        + of_objects * rng.standard_normal((1, objects))
        + rest * rng.standard_normal((seeds, objects))
    )


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """And one that forgets the seeds, or the objects, would not."""
    rng, inside, alone, errors, means = np.random.default_rng(0), 0, 0, [], []
    for _ in range(1500):
        found = crossed_difference(drawn(rng, 4, 300, mean=0.01, of_seeds=0.05))
        inside += found.low <= 0.01 <= found.high
        alone += abs(found.mean - 0.01) <= 1.96 * found.error_objects
        errors.append(found.error**2)
        means.append(found.mean)
    assert 0.93 < inside / 1500 < 0.985
    assert alone / 1500 < 0.92
    assert np.mean(errors) == pytest.approx(np.var(means), rel=0.1)


@pytest.mark.parametrize('of_seeds', [0.0, 0.05, 0.3])
def test_few_seeds_decide_no_more_often_than_promised(of_seeds):
    """Without a difference, at the bound of a first look of three seeds."""
    rng, bound, count = np.random.default_rng(1), 0.00517, 2500
    wrong = sum(
        crossed_difference(drawn(rng, 3, 300, 0.0, of_seeds, 0.3, 1.0)).p < bound
        for _ in range(count)
    )
    assert wrong <= bound * count + 2 * (bound * count) ** 0.5


def test_seeds_that_agree_by_chance_do_not_make_the_test_surer():
    """Two seeds with nearly the same mean, whose objects differ by as much as the rest, by hand."""
    objects, rest = np.tile([1, 1, -1, -1], 25), np.tile([1, -1, 1, -1], 25)
    found = crossed_difference(0.01 + np.stack([objects + rest + 0.005, objects - rest - 0.005]))
    # The seeds' part is 0.005 squared, the objects' and the rest's are 1/99 each, raised to that.
    assert found.error == pytest.approx(99**-0.5)
    assert found.error_seeds == pytest.approx(0.005)
    # Of the seeds alone, a t of 2 with one degree of freedom; but the objects' test has the
    # smaller t, 0.1 with 49.5 degrees, and holds.
    assert found.p == pytest.approx(2 * stats.t.sf(0.01 * 99**0.5, 49.5), rel=1e-3)
    surer = crossed_difference(0.5 + np.stack([objects + rest + 0.005, objects - rest - 0.005]))
    # Here the objects' t of 5 would be p 0.00001, the seeds' is 100 with one degree.
    assert surer.p == pytest.approx(1 - 2 / np.pi * np.arctan(100.0))
    assert surer.high - surer.mean == pytest.approx(
        max(0.005 * stats.t.ppf(0.975, 1), 99**-0.5 * stats.t.ppf(0.975, 49.5)), rel=1e-3
    )


def test_the_error_is_that_of_a_bootstrap_over_both():
    rng = np.random.default_rng(1)
    differences = drawn(rng, 12, 400)
    means = [
        differences[rng.integers(0, 12, 12)][:, rng.integers(0, 400, 400)].mean()
        for _ in range(3000)
    ]
    # The bootstrap counts the rest three times over, a term that is small here.
    assert crossed_difference(differences).error == pytest.approx(np.std(means), rel=0.12)


@pytest.mark.parametrize('seeds', [3, 12])
def test_what_more_seeds_find_is_four_fifths_of_the_draws(seeds):
    """More seeds leave less of what is neither theirs nor the objects', too."""
    rng, spreads = np.random.default_rng(2), {'of_seeds': 0.02, 'of_objects': 0.1, 'rest': 0.6}
    found = crossed_difference(drawn(rng, 400, 500, **spreads))
    error = (0.02**2 / seeds + 0.1**2 / 500 + 0.6**2 / (500 * seeds)) ** 0.5
    expected = error * (stats.t.ppf(0.975, seeds - 1) + stats.norm.ppf(0.8))
    assert found.found_by(seeds) == pytest.approx(expected, rel=0.05)


def test_a_difference_without_object_effects_is_the_paired_test_of_seeds():
    from scipy import stats

    by_seed = np.array([0.1, 0.3, 0.2, 0.05])
    found = crossed_difference(np.tile(by_seed[:, None], (1, 500)))
    test = stats.ttest_1samp(by_seed, 0)
    assert found.p == pytest.approx(test.pvalue, rel=1e-6)
    assert (found.low, found.high) == pytest.approx(test.confidence_interval(0.95), rel=1e-6)


def test_no_difference_at_all_has_no_p():
    found = crossed_difference(np.zeros((3, 10)))
    assert found.mean == 0 and np.isnan(found.p)


@pytest.mark.parametrize('shape', [(1, 10), (3, 1), (3,)])
def test_too_few_are_refused(shape):
    with pytest.raises(ValueError, match='two seeds'):
        crossed_difference(np.zeros(shape))

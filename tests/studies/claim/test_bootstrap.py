"""Intervals over seeds and utterances, against loops and against every possible draw."""

import itertools

import numpy as np
import pytest

from benchmarks.studies.claim import bootstrap

OURS = np.array([[0, 2, 1], [3, 0, 1]])
THEIRS = np.array([[1, 2, 2], [4, 1, 1]])
WORDS = np.array([4, 5, 3])


def _every_draw(statistic):
    """A statistic of each equally likely draw of seeds and utterances, as rows and columns."""
    seeds, utterances = (itertools.product(range(n), repeat=n) for n in OURS.shape)
    return np.array([statistic(np.ix_(s, u)) for s, u in itertools.product(seeds, utterances)])


def _relative(ours, theirs):
    return (ours.sum() - theirs.sum()) / theirs.sum()


def _check(found, exact):
    """Bounds have at most 2.5 % of the exact distribution outside, and at least nearly that much."""
    assert np.mean(exact < found.low - 1e-9) <= 0.035
    assert np.mean(exact > found.high + 1e-9) <= 0.035
    assert np.mean(exact <= found.low + 1e-9) >= 0.015
    assert np.mean(exact >= found.high - 1e-9) >= 0.015


def test_a_rate_is_resampled_over_seeds_and_utterances():
    found = bootstrap.rate(OURS, WORDS)
    both = np.stack([WORDS, WORDS])
    assert found.value == pytest.approx(7 / 24)
    _check(found, _every_draw(lambda at: OURS[at].sum() / both[at].sum()))


def test_a_difference_is_of_both_nets_on_the_same_draw():
    found = bootstrap.relative([(OURS, THEIRS)])
    assert found.value == pytest.approx(-4 / 11)
    _check(found, _every_draw(lambda at: _relative(OURS[at], THEIRS[at])))


def test_a_mean_difference_is_that_of_all_pairs_on_the_same_draw():
    found = bootstrap.relative([(OURS, THEIRS), (OURS, 2 * OURS + 1)])
    assert found.value == pytest.approx((-4 / 11 - 13 / 20) / 2)
    exact = _every_draw(
        lambda at: (_relative(OURS[at], THEIRS[at]) + _relative(OURS[at], 2 * OURS[at] + 1)) / 2
    )
    _check(found, exact)


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(0)
    alike, theirs = (rng.binomial(5, p, (3, 400)) for p in (0.2, 0.25))
    apart = alike + np.array([[0], [1], [2]])
    narrow, wide = (bootstrap.relative([(x, theirs)]) for x in (alike, apart))
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_one_seed_resamples_utterances_only():
    found = bootstrap.relative([(OURS[:1], THEIRS[:1])])
    draws = itertools.product(range(3), repeat=3)
    exact = [_relative(OURS[0, list(u)], THEIRS[0, list(u)]) for u in draws]
    _check(found, np.array(exact))


def test_a_net_without_errors_is_no_division_by_zero():
    none = np.zeros((2, 3), dtype=int)
    assert bootstrap.relative([(none, none)]).value == 0
    assert np.isfinite(bootstrap.relative([(OURS, none)]).high)


def test_costs_are_compared_seed_by_seed():
    found = bootstrap.ratio([30.0, 20.0, 20.0], [20.0, 10.0, 20.0])
    assert (found.low, found.high) == (1.0, 2.0)
    assert found.value == pytest.approx((1.5 + 2 + 1) / 3)

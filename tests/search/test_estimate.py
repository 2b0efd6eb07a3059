import math
import random

import numpy as np
import pytest

from todm.search.choice import Choice
from todm.search.estimate import Estimate, features
from todm.search.evaluations import Evaluations

PARTS = 10


@pytest.fixture
def draw(space):
    """Draws choices, true scores (linear in features, own deviations) and scores with luck in every part."""

    def make(num, *, slope, own, luck, seed=0):
        rng, draws = np.random.default_rng(seed), random.Random(seed)
        choices = list(dict.fromkeys(Choice(space.sample(draws)) for _ in range(20 * num)))[:num]
        x_NR = np.array([features(space, c) for c in choices])
        true_N = x_NR @ rng.normal(0, slope, x_NR.shape[1]) + rng.normal(0, own, num)
        parts_NP = true_N[:, None] + rng.normal(0, 1, PARTS) + rng.normal(0, luck, (num, PARTS))
        known = dict(zip(choices, np.exp(parts_NP).tolist(), strict=True))
        return choices, true_N, Evaluations(lambda c: {"parts": known[c]})

    return make


def _logs(values):
    return np.array([math.log(v) for v in values])


def _spread(difference_N):
    """Deviation of a difference, without its mean: parts have levels of their own."""
    return float(np.std(difference_N))


@pytest.mark.parametrize("own", [0.0, 0.1])
@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_estimates_are_nearer_to_the_truth_than_scores(space, draw, slope, own):
    estimated, scored = [], []
    for seed in range(6):
        choices, true_N, evaluations = draw(40, slope=slope, own=own, luck=0.4, seed=seed)
        estimate = Estimate(space, choices, evaluations)
        estimated.append(_spread(_logs(map(estimate, choices)) - true_N))
        scored.append(_spread([_logs(evaluations(c)["parts"]).mean() for c in choices] - true_N))
    assert np.mean(estimated) < 0.93 * np.mean(scored)


def test_without_luck_an_estimate_is_the_score(space, draw):
    choices, _, evaluations = draw(40, slope=0.1, own=0.1, luck=0.001)
    found = _logs(map(Estimate(space, choices, evaluations), choices))
    scores = [_logs(evaluations(c)["parts"]).mean() for c in choices]
    assert found == pytest.approx(scores, abs=0.002)


def test_scores_of_luck_alone_are_all_estimated_the_same(space, draw):
    choices, _, evaluations = draw(60, slope=0.0, own=0.0, luck=0.4, seed=2)
    scores = [_logs(evaluations(c)["parts"]).mean() for c in choices]
    found = _logs(map(Estimate(space, choices, evaluations), choices))
    assert _spread(found) < 0.4 * _spread(scores)


def test_what_was_not_evaluated_is_predicted(space, draw):
    choices, true_N, evaluations = draw(120, slope=0.2, own=0.02, luck=0.2)
    estimate = Estimate(space, choices[:80], evaluations)
    found = _logs(map(estimate, choices[80:]))
    assert np.corrcoef(found, true_N[80:])[0, 1] > 0.8


@pytest.mark.parametrize("parts", [[0.2], [0.2, 0.3], [0.0, 0.0]])
def test_one_choice_and_few_parts_are_enough(space, parts):
    choice = Choice(space.smallest)
    estimate = Estimate(space, [choice], Evaluations(lambda c: {"parts": parts}))
    expected = math.exp(_logs([max(p, 1e-12) for p in parts]).mean())
    assert estimate(choice) == pytest.approx(expected)
    assert estimate(Choice(space.largest)) == pytest.approx(expected)


def test_features_tell_subnets_and_compressions_apart(space):
    choices = [Choice(s, c) for s in space.uniforms() for c in ("none", "int8", "int4")]
    rows = {tuple(features(space, c)) for c in choices}
    assert len(rows) == len(choices)

"""What the score of a choice would be on endless data: its own score drawn towards a model of all scores.

The best of many noisy scores is the luckiest of them, so a choice is not judged by its own score alone.
The logarithm of the score on one part of the utterances is modelled as

    y_NP = level_P + x_NR w_R + own_N + luck_NP,

with x what a choice is made of, and w, own and luck normal. Luck is what a choice does better on one part
than on another, so the parts tell its variance; those of w and own are the likeliest ones (empirical
Bayes; Efron and Morris 1973, "Stein's estimation rule and its competitors"). The estimate is the mean of
x w + own given all scores.

Letters: N choices, P parts, R features of a choice.
"""

import math
from collections.abc import Sequence

import numpy as np

from todm.search.choice import Choice
from todm.search.evaluations import Evaluations
from todm.supernet.space import SearchSpace

_SHARES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
"""Variances of w and own to try, as multiples of the luck of a score."""
_LEAST = 1e-12


class Estimate:
    """Scores of choices, evaluated or not, from all that were evaluated."""

    def __init__(
        self, space: SearchSpace, known: Sequence[Choice], evaluations: Evaluations
    ) -> None:
        """Fit the model.

        Args:
            space: of the choices.
            known: evaluated ones, at least one.
            evaluations: their figures; `parts` are the scores on equal parts of the utterances.
        """
        self._space = space
        parts_NP = np.array([evaluations(c)["parts"] for c in known], dtype=np.float64)
        y_NP = np.log(np.maximum(parts_NP, _LEAST))
        y_N = y_NP.mean(1)
        x_NR = np.array([features(space, c) for c in known])
        self._mean, self._centre_R = float(y_N.mean()), x_NR.mean(0)
        x_NR -= self._centre_R
        luck = max(_luck(y_NP), _LEAST)
        gram_NN, rest_N = x_NR @ x_NR.T, y_N - self._mean
        slope, own = _likeliest(gram_NN, rest_N, luck)
        cov_NN = slope * gram_NN + (own + luck) * np.eye(len(known))
        weights_N = np.linalg.solve(cov_NN, rest_N)
        self._slope_R = slope * weights_N @ x_NR
        self._own = dict(zip(known, (own * weights_N).tolist(), strict=True))

    def __call__(self, choice: Choice) -> float:
        """The score to expect; less is better."""
        x_R = features(self._space, choice) - self._centre_R
        return math.exp(self._mean + float(x_R @ self._slope_R) + self._own.get(choice, 0.0))


def features(space: SearchSpace, choice: Choice) -> np.ndarray:
    """Per block of the supernet: kept or not, and its widths as a share of the largest and its root."""
    names = list(space.config.widths)
    table = np.zeros((space.num_blocks, 1 + 2 * len(names)))
    for position, block in enumerate(choice.subnet.blocks):
        table[block, 0] = 1
        for i, name in enumerate(names):
            share = choice.subnet.width(name, position) / space.config.widths[name][-1]
            table[block, 1 + 2 * i : 3 + 2 * i] = share, share**0.5
    return np.append(table.ravel(), [choice.compression == "int8", choice.compression == "int4"])


def _luck(y_NP: np.ndarray) -> float:
    """Variance of the mean over parts that is due to luck: the interaction of choices and parts."""
    N, P = y_NP.shape
    rest_NP = y_NP - y_NP.mean(1, keepdims=True) - y_NP.mean(0) + y_NP.mean()
    return float((rest_NP**2).sum()) / max(1, (N - 1) * (P - 1)) / P


def _likeliest(gram_NN: np.ndarray, rest_N: np.ndarray, luck: float) -> tuple[float, float]:
    """The variances of w and own under which these scores are likeliest."""
    values_N, vectors_NN = np.linalg.eigh(gram_NN)
    rest_N = vectors_NN.T @ rest_N

    def cost(variances: tuple[float, float]) -> float:
        spread_N = variances[0] * np.maximum(values_N, 0) + variances[1] + luck
        return float((np.log(spread_N) + rest_N**2 / spread_N).sum())

    return min(((luck * a, luck * b) for a in _SHARES for b in _SHARES), key=cost)

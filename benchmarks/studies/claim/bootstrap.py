"""Intervals over test utterances and seeds together.

Every seed's net recognises the same utterances, so both are resampled at once: seeds with replacement,
then utterances, the same for all seeds and for both nets of a pair. With n seeds the spread between
trainings comes out too small by about the square root of (n - 1) / n; with one it is left out.

Letters: R resamples, S seeds, N utterances.
"""

import functools
from collections.abc import Sequence

import numpy as np

from todm.asr.decode.wer import Interval

RESAMPLES = 2000
Pair = tuple[np.ndarray, np.ndarray]
"""Errors [S, N] of two nets with the same seeds on the same utterances."""


def rate(errors_SN: np.ndarray, words_N: np.ndarray) -> Interval:
    """Word error rate of all seeds together."""
    words_SN = np.broadcast_to(words_N, errors_SN.shape)
    samples = totals(errors_SN) / np.maximum(totals(words_SN), 1)
    return _interval(float(errors_SN.sum() / max(words_SN.sum(), 1)), samples)


def relative(pairs: Sequence[Pair]) -> Interval:
    """Difference by the other's errors, negative if the first of a pair is better; the mean over pairs.

    All pairs have the same seeds and utterances, and share their resamples.
    """
    values = [_relative(ours.sum(), theirs.sum()) for ours, theirs in pairs]
    samples = [_relative(totals(ours), totals(theirs)) for ours, theirs in pairs]
    return _interval(float(np.mean(values)), np.mean(samples, axis=0))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Mean, least and greatest ratio of two costs, seed by seed."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Interval(value=float(np.mean(ratios)), low=min(ratios), high=max(ratios))


def totals(errors_SN: np.ndarray) -> np.ndarray:
    """The sum in each resample: [R]."""
    seeds_RS, utterances_RN = _draws(*errors_SN.shape)
    return ((utterances_RN @ errors_SN.T) * seeds_RS).sum(1)


@functools.lru_cache(maxsize=4)
def _draws(num_seeds: int, num_utterances: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed [R, S] and each utterance [R, N] is drawn."""
    rng = np.random.default_rng(0)
    seeds, utterances = (
        rng.multinomial(num, np.full(num, 1 / num), size=RESAMPLES).astype(np.float64)
        for num in (num_seeds, num_utterances)
    )
    return seeds, utterances


def _relative(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return (ours - theirs) / np.maximum(theirs, 1)


def _interval(value: float, samples: np.ndarray) -> Interval:
    low, high = np.quantile(samples, [0.025, 0.975])
    return Interval(value=value, low=float(low), high=float(high))

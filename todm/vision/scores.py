"""Figures of merit, with bootstrap intervals over images. Letters: I images, C classes."""

from collections.abc import Iterator
from typing import Any

import numpy as np

RESAMPLES = 2000


def confusion(guesses: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """How often each class (rows) was taken for each (columns), [C, C], of arrays of any shape."""
    flat = labels.reshape(-1) * num_classes + guesses.reshape(-1)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def error_rate(wrong_I: np.ndarray) -> dict[str, Any]:
    """Share of images whose class is wrong (1; else 0), with its 95 % interval."""
    error = float(wrong_I.mean())
    resampled = [float(times_I @ wrong_I) / len(wrong_I) for times_I in _draws(len(wrong_I))]
    figures = {"metric": "error rate", "error": error, **_interval(resampled)}
    return {**figures, "accuracy": 1 - error, "images": len(wrong_I)}


def overlap_error(counts_ICC: np.ndarray) -> dict[str, Any]:
    """1 - mean intersection over union, from the confusions of every image."""
    num, classes = counts_ICC.shape[:2]
    rows = counts_ICC.reshape(num, -1)
    value = mean_iou(counts_ICC.sum(0))
    resampled = [1 - mean_iou((d_I @ rows).reshape(classes, classes)) for d_I in _draws(num)]
    figures = {"metric": "1 - mIoU", "error": 1 - value, **_interval(resampled)}
    return {**figures, "miou": value, "images": num}


def mean_iou(counts_CC: np.ndarray) -> float:
    """Mean, over the classes that occur, of intersection / union of labels and predictions."""
    both = np.diagonal(counts_CC)
    union = counts_CC.sum(0) + counts_CC.sum(1) - both
    return float(np.mean(both[union > 0] / union[union > 0]))


def _interval(resampled: list[float]) -> dict[str, float]:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def _draws(num: int) -> Iterator[np.ndarray]:
    """How often each image comes in each resample, [I]; the same for every model."""
    generator = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        yield np.bincount(generator.integers(0, num, num), minlength=num)

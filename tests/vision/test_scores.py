import numpy as np
import pytest

from todm.vision.scores import confusion, error_rate, mean_iou, overlap_error


def _iou(said, true, classes):
    """Mean over classes that occur, by sets of pixels."""
    found = []
    for c in range(classes):
        ours = {tuple(p) for p in np.argwhere(said == c)}
        theirs = {tuple(p) for p in np.argwhere(true == c)}
        if ours | theirs:
            found.append(len(ours & theirs) / len(ours | theirs))
    return np.mean(found)


def test_mean_iou_against_sets():
    draw = np.random.default_rng(3)
    said, true = draw.integers(0, 4, (2, 5, 7, 9))
    counts = np.stack([confusion(s, t, 6) for s, t in zip(said, true, strict=True)])
    assert counts.shape == (5, 6, 6)
    assert counts.sum() == 5 * 7 * 9
    assert mean_iou(counts.sum(0)) == pytest.approx(_iou(said, true, 6))
    found = overlap_error(counts)
    assert found["error"] == pytest.approx(1 - _iou(said, true, 6))
    assert found["low"] < found["error"] < found["high"]


def test_rows_are_what_is():
    assert confusion(np.array([2]), np.array([1]), 3).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_error_rate_and_its_interval():
    wrong = np.zeros(400)
    wrong[:40] = 1
    found = error_rate(wrong)
    assert found["error"] == pytest.approx(0.1)
    # Normal approximation of a binomial share.
    half = 1.96 * (0.1 * 0.9 / 400) ** 0.5
    assert found["low"] == pytest.approx(0.1 - half, abs=0.006)
    assert found["high"] == pytest.approx(0.1 + half, abs=0.006)
    assert error_rate(np.zeros(3))["high"] == 0

"""Features frame by frame. tests/asr holds the trainer's features against these."""

import numpy as np
import pytest

from todm.device.features import SILENCE, OnlineFeatures, fbank


@pytest.fixture
def noise(seed):
    return np.random.default_rng(seed).standard_normal(20_000).astype(np.float32) / 10


def test_ten_milliseconds_a_frame():
    assert fbank(np.zeros(16_000, np.float32)).shape == (100, 80)


def test_silence_is_at_the_floor():
    np.testing.assert_allclose(fbank(np.zeros(8_000, np.float32)), SILENCE, atol=1e-5)


def test_no_samples_no_frames():
    assert fbank(np.zeros(0, np.float32)).shape == (0, 80)


@pytest.mark.parametrize("piece", [160, 333, 7001])
def test_pieces_give_the_same_frames(noise, piece):
    online = OnlineFeatures()
    taken = []
    for start in range(0, len(noise), piece):
        online.accept(noise[start : start + piece])
        taken.append(online.take(online.num_ready))
    online.finish()
    taken.append(online.take(online.num_ready))
    assert np.array_equal(np.concatenate(taken), fbank(noise))


def test_overlapping_takes(noise):
    online = OnlineFeatures()
    online.accept(noise)
    first, second = online.take(12, advance=8), online.take(12, advance=8)
    assert np.array_equal(first[8:], second[:4])
    assert np.array_equal(second, fbank(noise)[8:20])


def test_volume_shifts_every_bin(noise):
    """Features are not normalised, so a model has to be trained on quiet and loud speech."""
    gap = fbank(2 * noise) - fbank(noise)
    np.testing.assert_allclose(gap, 2 * np.log(2), atol=1e-3)

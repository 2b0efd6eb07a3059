import numpy as np
import pytest

from todm.asr.data import rooms
from todm.asr.data.rooms import RoomConfig


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _tone(num):
    return (0.5 * np.sin(np.arange(num) * 0.1)).astype(np.float32)


@pytest.mark.parametrize("rt60", [0.12, 0.5])
@pytest.mark.parametrize("direct_db", [0.0, 15.0])
def test_an_impulse_response_has_the_energies_asked_for(rng, rt60, direct_db):
    response = rooms.impulse_response(rng, rt60, direct_db)
    assert response[0] == 1
    assert 10 * np.log10(1 / np.sum(response[1:] ** 2)) == pytest.approx(direct_db, abs=0.01)
    half = len(response) // 2
    assert np.sum(response[half:] ** 2) < 0.01 * np.sum(response[1:half] ** 2)


def test_reverberation_keeps_length_and_alignment(rng):
    samples = np.zeros(1001, np.float32)
    samples[200] = 1
    wet = rooms.reverberate(samples, rooms.impulse_response(rng, 0.2, 10.0))
    assert wet.shape == samples.shape
    assert np.argmax(np.abs(wet)) == 200


@pytest.mark.parametrize(("kind", "slope"), [("white", 0), ("pink", -3), ("brown", -6)])
def test_the_colour_of_noise(rng, kind, slope):
    power = np.abs(np.fft.rfft(rooms.noise(rng, kind, 160_000))) ** 2
    low, high = power[10_000:20_000].mean(), power[20_000:40_000].mean()
    assert 10 * np.log10(high / low) == pytest.approx(slope, abs=0.4)


def test_hum_is_low(rng):
    power = np.abs(np.fft.rfft(rooms.noise(rng, "hum", 16_000))) ** 2
    assert power[:500].sum() > 0.9 * power.sum()


@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_noise_is_added_at_the_ratio_to_speech_not_to_pauses(rng, snr_db):
    samples = np.pad(_tone(8000), 8000)
    added = rooms.add_noise(samples, rooms.noise(rng, "white", len(samples)), snr_db) - samples
    loud = samples[np.abs(samples) > 0.025]
    assert 10 * np.log10(np.mean(loud**2) / np.mean(added**2)) == pytest.approx(snr_db, abs=0.01)


def test_disturb_keeps_length_and_leaves_the_clean_share_alone(rng):
    samples = _tone(5000)
    babble = lambda rng, num: rng.standard_normal(num)  # noqa: E731
    done = [rooms.disturb(samples, rng, RoomConfig(clean=0.5), babble=babble) for _ in range(100)]
    assert all(d.shape == samples.shape and np.isfinite(d).all() for d in done)
    assert 35 < sum(d is samples for d in done) < 65

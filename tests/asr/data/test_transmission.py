import numpy as np
import pytest

from todm.asr.data.transmission import CODECS, at_level, overload


@pytest.fixture
def speech():
    """A second of a tone at 400 Hz and one at 6 kHz, an odd number of samples."""
    time = np.arange(16001) / 16000
    wave = 0.3 * np.sin(2 * np.pi * 400 * time) + 0.1 * np.sin(2 * np.pi * 6000 * time)
    return wave.astype(np.float32)


def power(wave, hertz):
    return np.abs(np.fft.rfft(wave[:16000])[hertz]) ** 2


def test_overload_cuts_the_peaks(speech):
    loud = overload(speech, 3.0)
    assert np.abs(loud).max() == 1
    assert 0.02 < (np.abs(loud) == 1).mean() < 0.5
    assert np.corrcoef(loud, speech)[0, 1] > 0.9


@pytest.mark.parametrize("level", [-55.0, -3.0])
def test_the_level_is_that_of_the_peak_in_16_bits(speech, level):
    wave = at_level(speech, level)
    assert wave.dtype == np.float32
    assert 20 * np.log10(np.abs(wave).max()) == pytest.approx(level, abs=0.2)
    assert np.array_equal(wave * 32768, np.rint(wave * 32768))


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_keeps_length_time_and_speech(speech, name):
    wave = CODECS[name](speech, np.random.default_rng(0))
    assert (wave.shape, wave.dtype) == (speech.shape, np.float32)
    assert power(wave, 400) == pytest.approx(power(speech, 400), rel=0.3)
    lags = range(-3, 4)
    fits = [np.dot(wave[100:-100], np.roll(speech, lag)[100:-100]) for lag in lags]
    assert abs(lags[int(np.argmax(fits))]) <= 1
    if name != "opus":
        assert power(wave, 6000) < 0.01 * power(speech, 6000)

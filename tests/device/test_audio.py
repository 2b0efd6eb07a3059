"""Reading and resampling."""

import numpy as np
import pytest
import soundfile

from todm.device.audio import SAMPLE_RATE, read_audio, resample, write_wav
from todm.errors import CorpusError


def tone(hertz, rate, seconds=1.0):
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 16001])
def test_tone_survives_resampling(rate):
    out = resample(tone(1000, rate), rate)
    assert len(out) == SAMPLE_RATE
    np.testing.assert_allclose(out[500:-500], tone(1000, SAMPLE_RATE)[500:-500], atol=1e-4)


def test_what_16_khz_cannot_hold_is_removed():
    assert np.abs(resample(tone(9000, 48000), 48000)[500:-500]).max() < 1e-4


def test_long_recording_has_no_seam():
    long = tone(440, 8000, seconds=9.0)  # more than one block of outputs
    out = resample(long, 8000)
    np.testing.assert_allclose(out[500:-500], tone(440, SAMPLE_RATE, 9.0)[500:-500], atol=1e-4)


def test_same_rate_is_left_alone():
    samples = tone(440, SAMPLE_RATE)
    assert resample(samples, SAMPLE_RATE) is samples


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.wav", {"subtype": "PCM_16"}, 1e-4),
        ("a.flac", {}, 1e-4),
        ("a.ogg", {}, 0.1),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}, 0.1),
    ],
    ids=["wav", "flac", "vorbis", "opus"],
)
def test_formats_and_channels(tmp_path, name, options, tolerance):
    left = tone(440, 48000)
    soundfile.write(tmp_path / name, np.stack([left, 0.5 * left], 1), 48000, **options)
    out = read_audio(tmp_path / name)
    assert out.dtype == np.float32
    wanted = 0.75 * tone(440, SAMPLE_RATE)
    np.testing.assert_allclose(out[2000:14000], wanted[2000:14000], atol=tolerance)


def test_wav_round_trip(tmp_path):
    write_wav(tmp_path / "a.wav", 0.5 * tone(440, SAMPLE_RATE))
    read = read_audio(tmp_path / "a.wav")
    np.testing.assert_allclose(read, 0.5 * tone(440, SAMPLE_RATE), atol=1e-4)


def empty(path):
    soundfile.write(path, np.zeros(0, np.float32), SAMPLE_RATE)


def broken(path):
    soundfile.write(path, tone(440, SAMPLE_RATE), SAMPLE_RATE, format="FLAC")
    path.write_bytes(b"\0" * 500 + path.read_bytes()[500:])


def not_finite(path):
    soundfile.write(path, np.full(100, np.nan, np.float32), SAMPLE_RATE, subtype="FLOAT")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is not a file"),
        (empty, "holds no samples"),
        (lambda path: path.write_text("hello"), "cannot be read as audio"),
        (broken, "cannot be read as audio"),
        (not_finite, "not finite"),
    ],
    ids=["missing", "empty", "text", "damaged", "not-finite"],
)
def test_unusable_audio_is_named(tmp_path, make, message):
    path = tmp_path / "a.wav"
    make(path)
    with pytest.raises(CorpusError, match=message) as error:
        read_audio(path)
    assert str(path) in str(error.value)


def test_impossible_rate():
    with pytest.raises(CorpusError, match="0 Hz"):
        resample(np.zeros(10, np.float32), 0)

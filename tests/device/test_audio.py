"""Reading and resampling."""

import numpy as np
import pytest
import soundfile

from todm.device.audio import (
    SAMPLE_RATE,
    AudioReader,
    Resampler,
    read_audio,
    resample,
    write_wav,
)
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


@pytest.mark.parametrize("size", [1, 7, 500, 6000])
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 16001])
def test_resampling_in_pieces_equals_the_whole(rate, size):
    samples = (
        np.random.default_rng(0).standard_normal(3 * size + 10 * (size > 7)).astype(np.float32)
    )
    resampler = Resampler(rate)
    pieces = [resampler.feed(samples[i : i + size]) for i in range(0, len(samples), size)]
    found = np.concatenate([*pieces, resampler.finish()])
    np.testing.assert_allclose(found, resample(samples, rate), atol=1e-6)


def test_resampling_in_pieces_keeps_little():
    resampler = Resampler(44100)
    for _ in range(20):
        resampler.feed(np.ones(11025, np.float32))
    assert len(resampler._kept) < 400


@pytest.mark.parametrize("rate", [16000, 22050, 48000])
def test_blocks_together_are_the_recording(tmp_path, rate):
    stereo = np.stack([tone(440, rate, 1.3), tone(300, rate, 1.3)], 1)
    soundfile.write(tmp_path / "a.flac", stereo, rate)
    with AudioReader(tmp_path / "a.flac") as reader:
        blocks = list(reader)
        assert reader.seconds == reader.total_seconds == pytest.approx(1.3)
    assert max(map(len, blocks)) <= SAMPLE_RATE // 2
    np.testing.assert_allclose(np.concatenate(blocks), read_audio(tmp_path / "a.flac"), atol=1e-6)


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)


def spoiled(path):
    samples, rate = soundfile.read(path)
    samples[len(samples) // 2] = np.inf
    soundfile.write(path, samples, rate, subtype="FLOAT")


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("a.flac", cut_off, "lost sync"),
        ("a.flac", zeroed, "lost sync"),
        ("a.wav", cut_off, "ends before its stated length"),
        ("a.wav", spoiled, "not finite"),
    ],
    ids=["flac-short", "flac-damaged", "wav-short", "wav-not-finite"],
)
def test_damage_is_told_after_what_was_good(tmp_path, name, damage, reason):
    path = tmp_path / name
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 6 * SAMPLE_RATE)
    soundfile.write(path, noise, SAMPLE_RATE)
    damage(path)
    blocks = []
    with (
        pytest.raises(CorpusError, match=rf"damaged after \d\.\d s \(.*{reason}"),
        AudioReader(path) as reader,
    ):
        blocks.extend(reader)
    good = np.concatenate(blocks)
    assert 1.9 * SAMPLE_RATE < len(good) <= 3.1 * SAMPLE_RATE
    np.testing.assert_allclose(good, noise[: len(good)], atol=1e-4)


def test_an_empty_recording_is_named(tmp_path):
    empty(tmp_path / "a.wav")
    with (
        pytest.raises(CorpusError, match="holds no samples"),
        AudioReader(tmp_path / "a.wav") as reader,
    ):
        list(reader)


def test_a_wav_written_as_a_stream_has_no_stated_length(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(440, SAMPLE_RATE), SAMPLE_RATE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(data)
    with AudioReader(tmp_path / "a.wav") as reader:
        assert sum(map(len, reader)) == SAMPLE_RATE

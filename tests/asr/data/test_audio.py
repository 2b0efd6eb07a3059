import io

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, MonoCut, MultiCut, Recording

from todm.asr.data.audio import cut_samples, frames_at
from todm.errors import CorpusError


def wave(seconds=2.0, rate=16000, channels=1):
    time = np.arange(int(seconds * rate)) / rate
    return np.stack([0.2 * np.sin(2 * np.pi * 200 * (k + 1) * time) for k in range(channels)], 1)


@pytest.fixture
def cut(tmp_path):
    """Makes a cut of a new file."""

    def make(rate=16000, channels=1, channel=0, start=0.0, duration=None, name="a.wav", **more):
        samples = wave(2.0, rate, channels)
        soundfile.write(tmp_path / name, samples, rate)
        source = {"type": "file", "channels": list(range(channels))} | more
        source = {"source": str(tmp_path / name)} | source
        recording = Recording("a", [AudioSource(**source)], rate, len(samples), 2.0)
        kind = MonoCut if isinstance(channel, int) else MultiCut
        length = 2.0 - start if duration is None else duration
        return kind("a", start, length, channel, recording=recording)

    return make


def test_a_part_of_a_recording(cut):
    got = cut_samples(cut(start=0.5, duration=1.25))
    assert got.dtype == np.float32
    assert got == pytest.approx(wave()[8000:28000, 0], abs=1e-4)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_any_rate_becomes_16_khz(cut, rate):
    got = cut_samples(cut(rate=rate, name="a.flac"))
    assert len(got) == 32000
    assert got[2000:30000] == pytest.approx(wave()[2000:30000, 0], abs=5e-3)


@pytest.mark.parametrize(("channel", "heard"), [(1, [1]), ([0, 2], [0, 2]), ([0, 1, 2], [0, 1, 2])])
def test_channels_are_averaged(cut, channel, heard):
    got = cut_samples(cut(channels=3, channel=channel))
    assert got == pytest.approx(wave(channels=3)[:, heard].mean(1), abs=1e-4)


def test_channels_in_files_of_their_own(cut, tmp_path):
    one = cut(channels=1, channel=[0, 1])
    soundfile.write(tmp_path / "b.wav", wave(channels=2)[:, 1], 16000)
    one.recording.sources.append(AudioSource("file", [1], str(tmp_path / "b.wav")))
    assert cut_samples(one) == pytest.approx(wave(channels=2).mean(1), abs=1e-4)


def test_audio_in_memory(cut):
    data = io.BytesIO()
    soundfile.write(data, wave(), 16000, format="FLAC")
    assert len(cut_samples(cut(type="memory", source=data.getvalue()))) == 32000


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"type": "command", "source": "touch pwned"}, "type 'command' is not read"),
        ({"type": "url", "source": "http://x"}, "type 'url' is not read"),
        ({"source": "/nowhere/a.wav"}, "unreadable audio"),
        ({"channel": 3}, r"no channel \[3\]"),
        ({"start": 1.5, "duration": 1.5}, "0.50 s of audio are there, and 1.50 s are expected"),
        ({"start": 5.0, "duration": 1.5}, "0.00 s of audio are there"),
    ],
)
def test_what_cannot_be_read(cut, monkeypatch, tmp_path, more, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError, match=message):
        cut_samples(cut(**more))
    assert not (tmp_path / "pwned").exists()


def test_a_cut_that_is_more_than_a_part_of_a_recording(cut):
    with pytest.raises(CorpusError, match="not a plain part"):
        cut_samples(cut().pad(5.0))
    with pytest.raises(CorpusError, match="to be changed by Speed"):
        cut_samples(cut().perturb_speed(1.1))
    assert len(cut_samples(cut(rate=8000).resample(16000))) == 32000


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_frames_are_known_beforehand(cut, speed):
    from lhotse.utils import perturb_num_samples

    samples = np.arange(16000, 16400)
    want = [(perturb_num_samples(int(n), speed) + 80) // 160 for n in samples]
    assert frames_at(samples / 16000, speed).tolist() == want
    assert frames_at(cut().duration, 1.0) == 200

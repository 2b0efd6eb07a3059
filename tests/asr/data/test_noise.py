import logging

import numpy as np
import pytest
import soundfile

from todm.asr.data.noise import noise_of_store, noise_store
from todm.errors import CorpusError


def burst(path, seconds, rate=16000, channels=1, level=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    soundfile.write(path, rng.standard_normal((int(seconds * rate), channels)) * level, rate)


def test_noise_of_any_format_is_used_and_damage_is_counted(tmp_path, caplog):
    folder = tmp_path / "noise"
    burst(folder / "fan.wav", 1, 44100, 2)
    burst(folder / "kitchen" / "left" / "tap.flac", 1)
    burst(folder / "street.ogg", 1, 8000)
    (folder / "broken.wav").write_bytes(b"no audio")
    (folder / "empty.flac").write_bytes(b"")
    (folder / "notes.txt").write_text("no audio, and no matter")
    with caplog.at_level(logging.WARNING):
        store = noise_store(folder, tmp_path / "features")
    assert [u.num_frames for u in store.utterances] == pytest.approx([100] * 3, abs=1)
    assert "2 of 5 files left out as damaged" in caplog.text


def test_of_long_recordings_a_part_is_taken(tmp_path):
    folder = tmp_path / "noise"
    burst(folder / "day.flac", 40)
    burst(folder / "tap.flac", 2)
    one, two = (noise_store(folder, tmp_path / name, seconds=12.0) for name in ("one", "two"))
    lens = sorted(u.num_frames for u in one.utterances)
    assert lens == [200, 600]
    assert [one.features(i).equal(two.features(i)) for i in range(2)] == [True, True]


def test_every_recording_is_heard_equally(tmp_path):
    for i in range(4):
        burst(tmp_path / "noise" / f"{i}.wav", 2, level=10.0**-i)
    noise = noise_of_store(noise_store(tmp_path / "noise", tmp_path / "out"), max_frames=400)
    powers = noise.exp().sum(1).view(4, 100).mean(1)
    assert powers.max() / powers.min() < 1.5


def test_digital_silence_is_no_noise(tmp_path):
    wave = np.zeros(16000)
    soundfile.write(tmp_path / "silent.wav", wave, 16000)
    wave[:4000] = 0.1 * np.random.default_rng(0).standard_normal(4000)
    soundfile.write(tmp_path / "padded.wav", wave, 16000)
    store = noise_store(tmp_path, tmp_path / "out")
    assert len(noise_of_store(store)) == pytest.approx(26, abs=2)
    (tmp_path / "padded.wav").unlink()
    with pytest.raises(CorpusError, match="only digital silence"):
        noise_of_store(noise_store(tmp_path, tmp_path / "out"))


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_a_folder_without_noise_is_an_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"no readable audio|is not a directory"):
        noise_store(tmp_path / name, tmp_path / "features")

import numpy as np
import pytest
import soundfile

from todm.asr.data.impulse_responses import read_responses
from todm.errors import CorpusError


def response(path, *, rate=16000, channels=1, delay=0.01, gain=0.25):
    """Direct sound after `delay` seconds, an echo of half its height 20 ms later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.zeros((rate // 2, channels), np.float32)
    for c in range(channels):
        wave[int((delay + 0.001 * c) * rate), c] = gain
        wave[int((delay + 0.001 * c + 0.02) * rate), c] = -gain / 2
    soundfile.write(path, wave, rate)


def test_every_channel_begins_at_its_direct_sound(tmp_path):
    response(tmp_path / "hall" / "a.wav", channels=2)
    response(tmp_path / "b.flac", delay=0.0)
    for wave, direct in zip(read_responses(str(tmp_path)), (0, 16, 16), strict=True):
        assert wave.dtype == np.float32
        assert np.argmax(np.abs(wave)) == direct
        assert wave[direct] == pytest.approx(1)
        assert wave[direct + 320] == pytest.approx(-0.5, abs=1e-3)


def test_other_rates_are_resampled(tmp_path):
    response(tmp_path / "a.wav", rate=48000)
    (wave,) = read_responses(str(tmp_path))
    direct = int(np.argmax(np.abs(wave)))
    assert direct == 16
    assert wave[direct + 320] == pytest.approx(-0.5, abs=0.02)


def test_silence_is_named(tmp_path):
    response(tmp_path / "good.wav")
    soundfile.write(tmp_path / "dead.wav", np.zeros(800, np.float32), 16000)
    with pytest.raises(CorpusError, match=r"dead.wav is silent: .* take the file out"):
        read_responses(str(tmp_path))


def test_unreadable_files_are_left_out(tmp_path, caplog):
    response(tmp_path / "good.wav")
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    assert len(read_responses(str(tmp_path))) == 1
    assert "1 of 2 files left out, the first bad.wav" in caplog.text


@pytest.mark.parametrize(
    ("name", "words"),
    [("empty", "holds no readable impulse response"), ("nowhere", "is not a directory")],
)
def test_a_folder_without_responses_is_an_error(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=words):
        read_responses(str(tmp_path / name))

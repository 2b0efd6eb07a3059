import shutil

import numpy as np
import pytest
import soundfile

from todm.asr.corpora import synthesis
from todm.asr.corpora.config import DataConfig, SpeechConfig
from todm.asr.corpora.script import Script
from todm.asr.data.rooms import RoomConfig
from todm.asr.data.workers import Workers
from todm.errors import CorpusError

SENTENCES = {
    "train": ["TURN ON THE LIGHTS", "STOP", "PLAY THE NEXT SONG", "OPEN THE DOOR"] * 2,
    "dev": ["STOP"],
    "test": ["TURN OFF THE FAN", "STOP"],
}
SCRIPT = Script(SENTENCES)
CONFIG = DataConfig(speech=SpeechConfig(train_voices=3, dev_voices=2, test_voices=2))


def _audio(root):
    return {
        p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*.*") if p.is_file()
    }


def test_the_layout_is_librispeechs(tmp_path):
    assert len(synthesis.speak(CONFIG, SCRIPT, tmp_path / "a", Workers(1))) == 6
    folder = tmp_path / "a" / "train" / "1000" / "1"
    assert sorted(p.name for p in folder.iterdir()) == [
        "1000-1-0000.flac", "1000-1-0001.flac", "1000-1-0002.flac",
        "1000-1.times.txt", "1000-1.trans.txt",
    ]  # fmt: skip
    assert (folder / "1000-1.trans.txt").read_text().splitlines()[
        0
    ] == "1000-1-0000 TURN ON THE LIGHTS"
    samples, rate = soundfile.read(folder / "1000-1-0000.flac", dtype="float32")
    assert rate == 16000
    assert 0.5 < len(samples) / rate < 3
    assert 0.1 < np.abs(samples).max() <= 1
    assert "espeak-ng en-us+m1" in (tmp_path / "a" / "SPEAKERS.TXT").read_text()


def test_the_same_for_any_number_of_processes_and_after_an_interruption(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    synthesis.speak(CONFIG, SCRIPT, one, Workers(1))
    calls = []
    synthesis.speak(CONFIG, SCRIPT, two, Workers(2, lambda *state: calls.append(state)))
    assert calls[-1] == ("speaking", 6, 6)
    assert _audio(one) == _audio(two)
    shutil.rmtree(two / "train" / "1001")
    leftover = two / "test" / "3000" / ".1.99.tmp"
    leftover.mkdir()
    synthesis.speak(CONFIG, SCRIPT, two, Workers(1, lambda *state: calls.append(state)))
    assert calls[-1] == ("speaking", 1, 1)
    assert not leftover.exists()
    assert _audio(one) == _audio(two)
    calls.clear()
    synthesis.speak(CONFIG, SCRIPT, two, Workers(2, lambda *state: calls.append(state)))
    assert calls == []


def test_the_times_of_words_include_the_silence_before_them(tmp_path):
    """In a clean room the speech begins and ends where they say."""
    config = CONFIG.replace(room=RoomConfig(clean=1.0))
    said = ["STOP", "PLAY NEXT SONG", "OPEN DOOR"]
    synthesis.speak(config, Script(dict.fromkeys(SENTENCES, said)), tmp_path, Workers(1))
    times = synthesis.word_times(tmp_path)
    assert len(times) == 9
    for path in tmp_path.rglob("*.flac"):
        samples, rate = soundfile.read(path)
        loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max()) / rate
        first, *ends = times[path.stem]
        assert ends == sorted(ends)
        assert (first, ends[-1]) == pytest.approx((loud[0], loud[-1]), abs=0.12)


def test_speech_of_other_settings_is_not_overwritten(tmp_path):
    synthesis.speak(CONFIG, SCRIPT, tmp_path, Workers(1))
    with pytest.raises(CorpusError, match="made with other settings"):
        synthesis.speak(CONFIG.replace(seed=1), SCRIPT, tmp_path, Workers(1))


def test_files_of_others_are_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CorpusError, match="holds other files"):
        synthesis.speak(CONFIG, SCRIPT, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_babble_comes_from_other_voices_of_the_split():
    for chapter in synthesis.plan(
        DataConfig(), Script({s: ["STOP"] * 50 for s in SENTENCES}), synthesis.Path()
    ):
        assert chapter.voice not in chapter.talkers
        assert {t.speaker // 1000 for t in chapter.talkers} == {chapter.voice.speaker // 1000}

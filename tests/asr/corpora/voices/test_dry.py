import os

import numpy as np
import pytest

from todm.asr.corpora.config import SpeechConfig
from todm.asr.corpora.voices import catalogue, dry
from todm.asr.corpora.voices.engine import Engine, Manner, Pronunciation, Spoken, Voice

MANNER = Manner(175, 50, 50)
VOICE = Voice(1, "tone", "a")


class Tone(Engine):
    """A tone as long as the text, and how often it was asked."""

    name = family = "tone"

    def __init__(self, lexicon=None, version="1"):
        self.setting = catalogue.setting(SpeechConfig(), lexicon)
        self.asked, self._version = 0, version

    def check(self):
        pass

    def version(self):
        return self._version

    def speakers(self, split, num):
        return ("a",)

    def speak(self, text, voice, manner):
        self.asked += 1
        tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2400 * len(text)) / 24000)
        return Spoken(tone.astype(np.float32), 24000)


def say(engine, cache, text="go", voice=VOICE, manner=MANNER):
    return dry.speech(engine, text, voice, manner=manner, cache=cache)[0]


def peak(samples_S):
    return np.abs(np.fft.rfft(samples_S)).argmax() * 16000 / len(samples_S)


def test_what_was_spoken_is_not_spoken_again(tmp_path):
    first, second = Tone(), Tone()
    assert np.array_equal(say(first, tmp_path), say(second, tmp_path))
    assert (first.asked, second.asked) == (1, 0)
    assert len(say(first, tmp_path)) == 3200
    assert peak(say(first, tmp_path)) == pytest.approx(1000, abs=10)


@pytest.mark.parametrize(
    ("engine", "changes"),
    [
        (Tone(version="2"), {}),
        (Tone(lexicon={"go": Pronunciation("goh")}), {}),
        (Tone(), {"text": "no"}),
        (Tone(), {"voice": Voice(1, "tone", "b")}),
        (Tone(), {"manner": Manner(200, 50, 50)}),
    ],
)
def test_another_version_text_voice_rate_or_pronunciation_is_spoken(tmp_path, engine, changes):
    say(Tone(), tmp_path)
    say(engine, tmp_path, **changes)
    assert engine.asked == 1


def test_what_a_natural_voice_ignores_is_no_difference(tmp_path):
    say(Tone(), tmp_path)
    engine = Tone(lexicon={"other": Pronunciation("word")})
    say(engine, tmp_path, voice=Voice(7, "tone", "a"), manner=Manner(175, 20, 80))
    assert engine.asked == 0


def test_a_shifted_voice_is_higher(tmp_path):
    shifted = say(Tone(), tmp_path, voice=VOICE._replace(shift=1.15))
    assert peak(shifted) == pytest.approx(1150, abs=10)


def test_a_damaged_file_is_spoken_again_and_left_ones_go(tmp_path):
    engine = Tone()
    whole = say(engine, tmp_path)
    path = dry.place(engine, "go", VOICE, manner=MANNER, cache=tmp_path)
    path.write_bytes(path.read_bytes()[:50])
    assert np.array_equal(say(engine, tmp_path), whole)
    assert engine.asked == 2
    old, new = path.with_name(".a.1.tmp"), path.with_name(".b.2.tmp")
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    dry.tidy(tmp_path)
    assert (old.exists(), new.exists(), path.exists()) == (False, True, True)

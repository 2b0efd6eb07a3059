import time

import numpy as np
import pytest

from todm.asr.corpora import voices
from todm.asr.corpora.config import SPLITS
from todm.errors import CorpusError

MANNER = voices.Manner(rate=175, pitch=50, pitch_range=50)


def test_splits_share_no_timbre_and_no_speaker():
    variants = [v for split in SPLITS for v in voices.VARIANTS[split]]
    assert len(variants) == len(set(variants)) >= 60
    who = [v for split in SPLITS for v in voices.voices(split, 40)]
    assert len({v.speaker for v in who}) == len({v.name for v in who}) == 120


def test_all_pairs_of_accent_and_timbre_can_be_had():
    most = len(voices.VARIANTS["dev"]) * len(voices.ACCENTS)
    assert len(set(voices.voices("dev", most))) == most
    assert len({v.name for v in voices.voices("dev", most)}) == most
    with pytest.raises(
        CorpusError, match=f"{most + 1} voices are requested in dev, and there are {most}"
    ):
        voices.voices("dev", most + 1)


@pytest.mark.parametrize("variant", ["m1", "f2", "klatt", "klatt4", "sandro", "Andy", "mike2"])
def test_speech_depends_on_its_arguments_alone(variant):
    speak = voices.Synthesizer()
    voice = voices.Voice(0, "en-us", variant)
    once = speak("six fans stop", voice, MANNER).samples_S
    for other in ("f3", "klatt", "m2"):
        speak("something else", voices.Voice(0, "en", other), MANNER)
    time.sleep(1.01)  # the library seeds its noise by the clock, in seconds
    assert np.array_equal(once, speak("six fans stop", voice, MANNER).samples_S)


def test_every_timbre_speaks_and_sounds_unlike_the_others():
    speak = voices.Synthesizer()
    heard = set()
    for split in SPLITS:
        for voice in voices.voices(split, len(voices.VARIANTS[split])):
            samples, _ = speak("stop", voices.Voice(0, "en-us", voice.variant), MANNER)
            assert samples.dtype == np.float32
            assert 0.1 < len(samples) / voices.SAMPLE_RATE < 2
            assert 0.02 < np.abs(samples).max() <= 1
            heard.add(samples.tobytes())
    assert len(heard) == sum(map(len, voices.VARIANTS.values()))


def test_every_accent_is_there():
    speak = voices.Synthesizer()
    heard = {
        speak("turn on the bathroom heater", voices.Voice(0, a, "f2"), MANNER).samples_S.tobytes()
        for a in voices.ACCENTS
    }
    assert len(heard) == len(voices.ACCENTS)


def test_a_word_ends_where_the_next_begins():
    """Heard: between two words with a closed lip at their seam it is quiet."""
    speak, text = voices.Synthesizer(), "open top bottle"
    spoken = speak(text, voices.Voice(0, "en-us", "m1"), MANNER)
    first, *ends = times = spoken.word_times(text)
    assert (first, ends[-1]) == (0.0, len(spoken.samples_S) / voices.SAMPLE_RATE)
    assert list(times) == sorted(times)
    alone = [speak(word, voices.Voice(0, "en-us", "m1"), MANNER) for word in text.split()]
    lengths = [len(word.samples_S) / voices.SAMPLE_RATE for word in alone]
    assert np.diff(times) == pytest.approx(lengths, abs=0.12)


@pytest.mark.parametrize("text", ["END OF THE ROAD", "IN 1987 AGAIN"])
def test_words_that_are_not_spoken_one_by_one_have_no_times(text):
    spoken = voices.Synthesizer()(text, voices.Voice(0, "en-us", "m1"), MANNER)
    assert spoken.word_times(text) == ()


def test_an_unknown_voice():
    with pytest.raises(CorpusError, match=r"no voice 'xx\+f2'"):
        voices.Synthesizer()("stop", voices.Voice(0, "xx", "f2"), MANNER)


def test_a_long_path_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(voices.tempfile, "tempdir", str(tmp_path))
    long = tmp_path / ("d" * 150)
    long.mkdir()
    short = voices._short_path(str(long))
    assert len(short) < len(str(long))
    assert voices._short_path(str(long)) == short
    assert voices._short_path("/short") == "/short"

import time

import numpy as np
import pytest

from todm.asr.corpora.config import SPLITS, SpeechConfig
from todm.asr.corpora.voices import catalogue, espeak
from todm.asr.corpora.voices.engine import Manner, Pronunciation, Voice
from todm.errors import CorpusError

MANNER = Manner(rate=175, pitch=50, pitch_range=50)


def make(language="en", lexicon=None):
    return espeak.Espeak(catalogue.setting(SpeechConfig(language=language), lexicon))


def say(engine, text, name="en-us+m1"):
    return engine.speak(text, Voice(0, "espeak", name), MANNER)


def test_splits_share_no_timbre():
    variants = [v for split in SPLITS for v in espeak.VARIANTS[split]]
    assert len(variants) == len(set(variants)) >= 60
    names = [n for split in SPLITS for n in make().speakers(split, 40)]
    assert len(set(names)) == 120


def test_all_pairs_of_accent_and_timbre_can_be_had():
    most = len(espeak.VARIANTS["dev"]) * len(espeak.ACCENTS)
    assert len(set(make().speakers("dev", most + 1))) == most


@pytest.mark.parametrize("variant", ["m1", "f2", "klatt", "klatt4", "sandro", "Andy", "mike2"])
def test_speech_depends_on_its_arguments_alone(variant):
    engine = make()
    once = say(engine, "six fans stop", f"en-us+{variant}").samples_S
    for other in ("f3", "klatt", "m2"):
        say(engine, "something else", f"en+{other}")
    time.sleep(1.01)  # the library seeds its noise by the clock, in seconds
    assert np.array_equal(once, say(engine, "six fans stop", f"en-us+{variant}").samples_S)


def test_every_timbre_speaks_and_sounds_unlike_the_others():
    engine, heard = make(), set()
    for split in SPLITS:
        for variant in espeak.VARIANTS[split]:
            spoken = say(engine, "stop", f"en-us+{variant}")
            assert spoken.samples_S.dtype == np.float32
            assert 0.1 < len(spoken.samples_S) / spoken.rate < 2
            assert 0.02 < np.abs(spoken.samples_S).max() <= 1
            heard.add(spoken.samples_S.tobytes())
    assert len(heard) == sum(map(len, espeak.VARIANTS.values()))


def test_every_accent_is_there():
    engine = make()
    heard = {
        say(engine, "turn on the bathroom heater", f"{a}+f2").samples_S.tobytes()
        for a in espeak.ACCENTS
    }
    assert len(heard) == len(espeak.ACCENTS)


def test_a_word_ends_where_the_next_begins():
    """Heard: between two words with a closed lip at their seam it is quiet."""
    engine, text = make(), "open top bottle"
    spoken = say(engine, text)
    first, *ends = times = spoken.word_times(text)
    assert (first, ends[-1]) == (0.0, len(spoken.samples_S) / spoken.rate)
    assert list(times) == sorted(times)
    lengths = [len(say(engine, word).samples_S) / spoken.rate for word in text.split()]
    assert np.diff(times) == pytest.approx(lengths, abs=0.12)


@pytest.mark.parametrize("text", ["END OF THE ROAD", "IN 1987 AGAIN"])
def test_words_that_are_not_spoken_one_by_one_have_no_times(text):
    assert say(make(), text).word_times(text) == ()


def test_an_unknown_voice():
    with pytest.raises(CorpusError, match=r"no voice 'xx\+f2'"):
        say(make(), "stop", "xx+f2")


def test_a_word_is_said_as_it_is_respelt_and_keeps_its_time():
    plain, lexicon = make(), {"nguyen": Pronunciation("win")}
    told, text = make(lexicon=lexicon), "CALL NGUYEN NOW"
    assert np.array_equal(say(told, text).samples_S, say(plain, "CALL WIN NOW").samples_S)
    assert say(told, text).word_times(text) == say(plain, "call win now").word_times("call win now")
    assert told.phonemes(["nguyen"]) == plain.phonemes(["win"]) == ["wˈɪn"]


def test_other_languages_have_their_own_accents():
    assert make("es").speakers("train", 2) == ("es+m1", "es-419+f2")
    assert make("de").speakers("test", 1) == ("de+f3",)
    english, german = say(make(), "licht an"), say(make("de"), "licht an", "de+m1")
    assert len(german.samples_S) > 0
    assert not np.array_equal(english.samples_S, german.samples_S)
    assert make("de").phonemes(["licht", ""]) == ["lˈɪçt", ""]


def test_an_unknown_language_is_named_with_those_there_are():
    with pytest.raises(CorpusError, match=r"does not speak the language 'xx': choose .*\bde\b"):
        make("xx").check()


def test_a_long_path_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(espeak.tempfile, "tempdir", str(tmp_path))
    long = tmp_path / ("d" * 150)
    long.mkdir()
    short = espeak._short_path(str(long))
    assert len(short) < len(str(long))
    assert espeak._short_path(str(long)) == short
    assert espeak._short_path("/short") == "/short"

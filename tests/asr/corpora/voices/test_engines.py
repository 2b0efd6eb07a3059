"""Engines that are not always there: each speaks, says it again alike, and takes pronunciations."""

import numpy as np
import pytest

from todm.asr.corpora.config import ENGINES, SpeechConfig
from todm.asr.corpora.voices import catalogue, shares
from todm.asr.corpora.voices.engine import Manner, Pronunciation
from todm.errors import CorpusError, MissingExtra

SLOW, FAST = Manner(140, 50, 50), Manner(215, 50, 50)
OPTIONAL = [name for name in ENGINES if name != "espeak"]
LEXICON = {"siobhan": Pronunciation("shivawn", "ʃɪvˈɔːn"), "nguyen": Pronunciation("win")}


@pytest.fixture
def make():
    """An engine with some pronunciations, and its first voice of train; skips where it is not installed."""

    def make(name):
        engine = catalogue.engine(name, catalogue.setting(SpeechConfig(), LEXICON))
        try:
            engine.check()
        except (CorpusError, MissingExtra) as error:
            pytest.skip(str(error))
        return engine, shares.voices(engine, ENGINES.index(name), "train", 1)[0]

    return make


@pytest.mark.parametrize("name", OPTIONAL)
def test_speech_depends_on_its_arguments_and_gets_shorter_with_the_rate(name, make):
    engine, voice = make(name)
    slow = engine.speak("OPEN THE GARAGE DOOR", voice, SLOW)
    fast = engine.speak("OPEN THE GARAGE DOOR", voice, FAST)
    assert slow.samples_S.dtype == np.float32
    assert 0.05 < np.abs(slow.samples_S).max() <= 1
    assert 0.5 < len(fast.samples_S) / len(slow.samples_S) < 0.9
    again = engine.speak("OPEN THE GARAGE DOOR", voice, SLOW)
    assert np.array_equal(again.samples_S, slow.samples_S)
    assert engine.version()


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_word_is_said_as_told(name, make):
    engine, voice = make(name)
    told, spelt = (engine.speak(text, voice, SLOW).samples_S for text in ("NGUYEN", "WIN"))
    assert np.array_equal(told, spelt)
    assert len(engine.speak("CALL SIOBHAN NOW", voice, SLOW).samples_S) > len(told)


@pytest.mark.parametrize("name", OPTIONAL)
def test_another_language_is_refused(name):
    with pytest.raises(CorpusError, match=f"{name} speaks English here, not 'de'"):
        catalogue.engine(name, catalogue.setting(SpeechConfig(language="de"))).check()


@pytest.mark.parametrize(("name", "file"), [("kokoro", "kokoro-v1.0"), ("piper", "en_US-joe")])
def test_missing_weights_are_named_with_their_place(name, file, tmp_path):
    pytest.importorskip({"kokoro": "kokoro_onnx", "piper": "piper"}[name])
    engine = catalogue.engine(name, catalogue.setting(SpeechConfig(weights=str(tmp_path))))
    with pytest.raises(CorpusError, match=rf"{name} needs {file}.*{tmp_path}.*TODM_VOICES"):
        engine.check()


def test_the_place_of_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TODM_HOME", str(tmp_path))
    monkeypatch.delenv("TODM_VOICES", raising=False)
    assert catalogue.weights_folder(SpeechConfig()) == tmp_path / "voices"
    monkeypatch.setenv("TODM_VOICES", "/there")
    assert str(catalogue.weights_folder(SpeechConfig())) == "/there"
    assert str(catalogue.weights_folder(SpeechConfig(weights="/here"))) == "/here"


def test_engines_of_a_trained_family_speak_no_test_of_their_own():
    assert "espeak" not in catalogue.unseen(SpeechConfig())
    assert "hibari" not in catalogue.unseen(SpeechConfig(voices={"kokoro": 1}))
    with pytest.raises(CorpusError, match="hibari is of the family 'kokoro'"):
        catalogue.unseen(SpeechConfig(voices={"kokoro": 1}, unseen=("hibari",)))
    assert catalogue.unseen(SpeechConfig(unseen=())) == ()

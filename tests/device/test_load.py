"""`todm.load`: paths and arrays, words and confidence, and what is refused."""

import math

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import soundfile

import todm
from todm.device.bundle import open_bundle
from todm.device.recognizer import StreamingRecognizer
from todm.errors import BundleError, ConfigError, CorpusError


@pytest.fixture(scope="module")
def bundle(repo):
    return repo / "tests" / "device" / "golden"


@pytest.fixture(scope="module")
def wav(bundle):
    return bundle / "test_wavs" / "0.wav"


@pytest.fixture(scope="module")
def recognizer(bundle):
    return todm.load(bundle)


def test_a_file_gives_text_words_segments_and_confidence(recognizer, bundle, wav):
    found = recognizer.transcribe(wav)
    samples, _ = soundfile.read(wav, dtype="float32")
    whole = StreamingRecognizer(open_bundle(bundle)).transcribe(samples)
    assert found.text.split() == whole.text.split()
    assert [w.text for w in found.words] == found.text.split()
    assert found.words == tuple(w for s in found.segments for w in s.words)
    assert found.confidence == pytest.approx(math.exp(np.mean(whole.log_probs)), abs=1e-3)


def test_arrays_of_every_kind_give_the_same_text(recognizer, wav):
    integers, rate = soundfile.read(wav, dtype="int16")
    text = recognizer.transcribe(str(wav)).text
    floats = integers / 32768
    stereo = np.stack([floats, floats], 1)
    for samples in (integers, floats, floats.astype(np.float32), stereo, floats.tolist()):
        assert recognizer.transcribe(samples, rate=rate).text == text
    wide = integers.astype(np.int32) << 16
    assert recognizer.transcribe(wide, rate=np.int64(rate)).text == text


@pytest.mark.parametrize(
    ("samples", "rate", "words"),
    [
        (np.zeros(9), None, "needs its rate"),
        (np.zeros(9), 0, "rate is 0"),
        (np.zeros(9), "16k", "rate is '16k'"),
        (np.zeros(9), 16000.5, "rate is 16000.5"),
        (np.zeros(9), True, "rate is True"),
        (np.zeros(9, np.uint8), 16000, "type uint8"),
        (["a"], 16000, "give floats in"),
        (np.zeros((2, 9)), 16000, r"shape \(2, 9\)"),
        (np.zeros((9, 1, 1)), 16000, "shape"),
        (np.full(9, 3e4), 16000, "divide 16-bit values by 32768"),
        (np.full(9, np.nan), 16000, "not finite"),
    ],
)
def test_what_is_not_audio_is_refused_in_a_sentence(recognizer, samples, rate, words):
    with pytest.raises(ConfigError, match=words):
        recognizer.transcribe(samples, rate=rate)


def test_an_empty_array_and_the_rate_of_a_file_are_refused(recognizer, wav):
    with pytest.raises(CorpusError, match="no samples"):
        recognizer.transcribe(np.zeros(0), rate=16000)
    with pytest.raises(ConfigError, match="leave out rate"):
        recognizer.transcribe(wav, rate=16000)


def test_what_the_bundle_does_not_hold_is_named(bundle):
    with pytest.raises(BundleError, match="holds no int4 graphs"):
        todm.load(bundle, precision="int4")
    with pytest.raises(ConfigError, match="beam is 0"):
        todm.load(bundle, beam=0)

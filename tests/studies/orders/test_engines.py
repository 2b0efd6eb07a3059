"""Free text as words of the grammar, and what a bundle says about itself."""

import pytest

from benchmarks.studies.orders.engines import BundleEngine, normalised, open_engine
from todm.device.audio import read_audio
from todm.errors import BundleError, ConfigError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I\u2019d like a 12-ounce Latte.", "i'd like a twelve ounce latte"),
        ("Make me a 16oz double-shot mocha!", "make me a sixteen ounce double shot mocha"),
        ("a 20 oz. iced coffee, with 2% milk", "a twenty ounce iced coffee with two milk"),
        ("...", ""),
        ("a 37 ounces caf\u00e9", "a 37 ounce caf"),
    ],
)
def test_numbers_and_units_are_written_out(text, words):
    assert normalised(text) == words


def test_a_bundle_says_its_form_and_size_and_recognises(golden):
    engine = BundleEngine(golden)
    about = engine.describe()
    assert about["precision"] in ("int8", "int8.rr")
    assert about["megabytes"] > 0
    assert len(about["hash"]) == 64
    assert about["info"]["chunk_seconds"] > 0
    samples_S = read_audio(next(iter(sorted((golden / "test_wavs").glob("*.wav")))))
    assert engine.recognise(samples_S) == engine.streaming().transcribe(samples_S).text


def test_a_peer_that_is_not_installed_is_a_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="package 'faster-whisper', which is not installed: run"):
        open_engine("whisper-tiny")


def test_a_directory_that_is_no_bundle_is_a_sentence(tmp_path):
    with pytest.raises(BundleError, match="is not a todm bundle"):
        open_engine(str(tmp_path))

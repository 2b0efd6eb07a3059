"""The confidence of a segment, the same in every runtime, and what a threshold leaves."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from todm.artifact import MANIFEST
from todm.device.bundle import open_bundle
from todm.device.decision import confidence
from todm.device.load import load
from todm.device.recognizer import StreamingRecognizer, Transcript
from todm.device.segments import Pauses, final_text, split, transcribe_blocks
from todm.errors import BundleError, ConfigError

VECTORS = json.loads(Path(__file__).with_name("confidences.json").read_text())


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_the_vectors_of_all_runtimes(vector):
    assert confidence(vector["log_probs"]) == pytest.approx(vector["confidence"], abs=1e-8)


def test_more_and_surer_symbols_are_surer():
    assert confidence([-0.01]) < confidence([-0.01] * 2) < confidence([-0.01] * 9)
    assert confidence([-0.01, -0.5]) < confidence([-0.01, -0.4]) < confidence([-0.01, -0.01])
    assert confidence([0.0] * 1000) < 1 / (1 + math.exp(-8))


TRANSCRIPT = Transcript(
    text="A B C",
    ids=(3, 4, 5),
    tokens=("\u2581A", "\u2581B", "\u2581C"),
    timestamps=(0.2, 0.4, 3.0),
    log_probs=(-0.001, -0.002, -1.0),
)


def test_a_segment_below_the_threshold_gives_no_text():
    pauses = Pauses(silence=0.6)
    first, second = split(TRANSCRIPT, pauses=pauses)
    assert (first.text, second.text) == ("A B", "C")
    assert first.confidence == confidence((-0.001, -0.002)) > second.confidence
    kept = split(TRANSCRIPT, pauses=pauses, threshold=first.confidence)
    assert kept == [first]
    assert split(TRANSCRIPT, pauses=pauses, threshold=first.confidence + 1e-9) == []


class _Recognizer:
    pause_seconds = 0.6
    threshold = 0.9


def test_the_text_at_the_threshold_of_a_bundle():
    assert final_text(_Recognizer(), TRANSCRIPT) == "A B"
    _Recognizer.threshold = 0.0
    assert final_text(_Recognizer(), TRANSCRIPT) == "A B C"


@pytest.fixture
def with_threshold(spoilable):
    """Writes a threshold into the manifest of a bundle."""

    def write(value):
        manifest = json.loads((spoilable / MANIFEST).read_text())
        manifest["info"]["decision_threshold"] = value
        (spoilable / MANIFEST).write_text(json.dumps(manifest, indent=1))
        return spoilable

    return write


def test_the_bundles_threshold_counts_and_may_be_overridden(with_threshold, golden):
    samples = np.random.default_rng(0).normal(0, 0.1, 80_000).astype(np.float32)
    everything = list(transcribe_blocks(StreamingRecognizer(open_bundle(golden)), [samples]))
    assert len(everything) >= 1
    bundle = with_threshold(1.0)
    recognizer = StreamingRecognizer(open_bundle(bundle))
    assert list(transcribe_blocks(recognizer, [samples])) == []
    assert list(transcribe_blocks(recognizer, [samples], threshold=0.0)) == everything
    assert load(bundle).transcribe(samples, rate=16_000).text == ""
    found = load(bundle, threshold=0.0).transcribe(samples, rate=16_000)
    assert found.segments == tuple(everything)
    assert "confidence" in dataclasses.asdict(found.segments[0])


@pytest.mark.parametrize("value", [1.1, -0.1, True, "0.5", None, float("nan")])
def test_a_threshold_that_is_none_is_damage(with_threshold, value):
    with pytest.raises(BundleError, match="decision_threshold is not what a bundle has"):
        open_bundle(with_threshold(value))


@pytest.mark.parametrize("value", [1.1, -0.1, float("nan")])
def test_a_given_threshold_that_is_none(golden, value):
    with pytest.raises(ConfigError, match="a confidence from 0"):
        load(golden, threshold=value)

"""False accepts and waits, by a recogniser that is told what to hear."""

import types

import numpy as np
import pytest

from benchmarks.studies.orders import listening, recordings
from benchmarks.studies.orders.scoring import order_parser
from todm.device.after_silence import Heard
from todm.device.false_accepts import FalseAccepts


@pytest.fixture
def read(spoken):
    return recordings.read(spoken)


def test_orders_after_a_wait_are_compared_with_those_without(monkeypatch, read):
    def fake(recognizer, sound, commands, waits):
        assert [len(c.samples_S) for c in commands] == [20_000, 20_000]
        texts = [("i want a latte", "brew a mocha"), ("i want a latte", "brew a mochas")]
        texts.append(("", "brew a latte"))
        for seconds, said in zip(waits, texts, strict=True):
            yield Heard(seconds=seconds, texts=said, right=(False, False), words=0)

    monkeypatch.setattr(listening, "after_waits", fake)
    rows = listening.waits(None, "silence", read, order_parser())
    assert [row["seconds"] for row in rows] == [0.0, 60.0, 600.0]
    assert [row["exact"]["right"] for row in rows] == [100.0, 50.0, 0.0]
    assert [row["nearest"]["right"] for row in rows] == [100.0, 100.0, 0.0]
    assert rows[1]["exact"]["points"] == -50.0


def test_speech_counts_every_segment_and_those_that_are_orders(monkeypatch, tmp_path):
    said = ["brew a latte", "brew a", "two"]
    words = [types.SimpleNamespace(confidence=0.5)]
    segments = [types.SimpleNamespace(text=t, words=words, start=0.0, confidence=1.0) for t in said]
    heard = []

    def fake(recognizer, blocks):
        heard.extend(blocks)
        yield from segments

    monkeypatch.setattr(listening, "shared", lambda *parts: tmp_path)
    speech = [np.zeros(16_000, np.float32)] * 60
    monkeypatch.setattr(listening.false_accepts, "folder_of_speech", lambda folder: speech)
    monkeypatch.setattr(listening, "transcribe_blocks", fake)
    found = listening.accepts(None, listening.SPEECH, order_parser())
    assert (found["accepts"], found["parsed"], found["minutes"]) == (3, 1, 1.0)
    assert found["per_hour"] == 180
    assert [len(block) for block in heard] == [32_000] * 60


def test_noise_is_that_of_every_bundle(monkeypatch):
    asked = []
    empty = FalseAccepts(
        minutes=10, accepts=0, words=0, sure=0, per_hour=0, low=0, high=1, levels={}, common=[]
    )

    def fake(recognizer, kind, *, minutes):
        asked.append(kind)
        return empty

    monkeypatch.setattr(listening.false_accepts, "score_noise", fake)
    for kind in listening.kinds()[1:]:
        assert listening.accepts(None, kind, order_parser())["accepts"] == 0
    assert asked[0] == "silence"
    assert set(asked[1:]) == set(listening.false_accepts.noises())

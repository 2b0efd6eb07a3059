"""Rows that grow task by task: by the golden bundle in a process of its own, and in this one."""

import json

import numpy as np
import pytest

from benchmarks.studies.orders import evaluate, recordings
from benchmarks.studies.orders.evaluate import Request, open_row
from benchmarks.studies.orders.recordings import Condition
from benchmarks.studies.orders.scoring import order_parser
from todm.errors import ConfigError

CLEAN, TAP = Condition(), Condition(noise="running_tap", snr_db=6)


class Parrot:
    """Hears the same in every recording, and keeps what it was given."""

    def __init__(self, text):
        self.text, self.heard = text, []

    def recognise(self, samples_S):
        self.heard.append(samples_S)
        return self.text


@pytest.fixture
def request_of(golden, spoken, tmp_path):
    def make(**changes):
        fields = {"engine": str(golden), "recordings": spoken, "row": tmp_path / "row.json"}
        return Request(**{**fields, "conditions": [CLEAN], **changes})

    return make


def test_a_condition_is_heard_with_its_noise_and_judged(monkeypatch, spoken):
    noise = np.random.default_rng(0).normal(size=30_000).astype(np.float32)
    monkeypatch.setattr(evaluate, "noise_of", lambda name: noise)
    parrot, read = Parrot("I WANT A LATTE"), recordings.read(spoken)
    found = evaluate.condition(parrot, read, TAP, order_parser())
    assert found["nearest"]["wrong"] == found["exact"]["wrong"] == ["b.wav"]
    assert found["num"] == 2
    assert found["audio_seconds"] == 2.5
    assert found["cpu_seconds"] >= 0
    for recording, heard in zip(read, parrot.heard, strict=True):
        np.testing.assert_array_equal(heard, recordings.disturbed(recording, noise, TAP))


def test_a_row_is_written_once_and_then_read(request_of, monkeypatch):
    row = evaluate.evaluate(request_of())
    assert row["conditions"]["clean"]["num"] == 2
    assert json.loads(request_of().row.read_text()) == json.loads(json.dumps(row))

    def never(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(evaluate, "_run", never)
    assert evaluate.evaluate(request_of()) == json.loads(json.dumps(row))


def test_only_what_is_missing_is_a_task(request_of, monkeypatch):
    done = []

    def fake(request, missing):
        for task in missing:
            done.append(task)
            yield task, {"task": list(task)}

    monkeypatch.setattr(evaluate, "_done", fake)
    evaluate.evaluate(request_of())
    evaluate.evaluate(request_of(conditions=[CLEAN, TAP], parts=("conditions", "waits")))
    assert done == [
        ("conditions", "clean"),
        ("waits", "silence"),
        ("waits", "white noise at -60 dB"),
        ("conditions", "running_tap 6 dB"),
    ]


def test_a_row_of_another_engine_or_other_recordings_is_refused(tmp_path, spoken):
    path, engine = tmp_path / "row.json", {"name": "one", "hash": "1"}
    path.write_text(json.dumps(open_row(path, engine, spoken)))
    assert open_row(path, engine, spoken)["conditions"] == {}
    with pytest.raises(ConfigError, match="is the row of another engine than two: remove"):
        open_row(path, {"name": "two"}, spoken)
    other = tmp_path / "others"
    other.mkdir()
    (other / "labels.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"is a row of other recordings than .*others: remove"):
        open_row(path, engine, other)


def test_no_process_is_a_sentence(request_of):
    with pytest.raises(ConfigError, match="--jobs is 0: at least 1"):
        request_of(jobs=0)

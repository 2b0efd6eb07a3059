"""A row from its material to its figures; the stages of todm are not run here."""

import dataclasses
import json

import pytest

from benchmarks.studies.orders import training
from benchmarks.studies.orders.evaluate import Request
from benchmarks.studies.orders.plan import run_named
from benchmarks.studies.orders.recordings import Condition
from todm import artifact
from todm.errors import ConfigError, TrainingError


@pytest.fixture
def stages(monkeypatch):
    """Records the verbs, which fail if told so; a training leaves a supernet."""
    called, failing = [], []

    def run_verb(words, log, *, note, lock):
        called.append(list(words))
        log.write_text("")
        note(5.0, None)
        note(7.0, status := 3 if words[0] in failing else 0)
        if words[0] == "train":
            place = log.parent / "supernet"
            artifact.save(place, kind="supernet", config={}, metrics={"updates": 12})
        return status

    monkeypatch.setattr(training.processes, "run_verb", run_verb)
    monkeypatch.setattr(training.data, "make", lambda out, material, progress: out / "orders")
    row = {"conditions": {}}
    monkeypatch.setattr(training.evaluate, "evaluate", lambda request, progress: dict(row))
    return called, failing


@pytest.fixture
def finish(tmp_path, spoken, monkeypatch):
    monkeypatch.setenv("TODM_SHARED_DATA", str(tmp_path))

    def call(name="natural", **changes):
        run, out = run_named(name, short=12), tmp_path / "out"
        request = Request(
            engine=str(training.bundle_of(out, run)),
            recordings=spoken,
            row=tmp_path / "rows/row.json",
            conditions=[Condition()],
        )
        return training.finish(run, out, request, natural=tmp_path, **changes)

    return call


def test_a_row_has_its_settings_updates_and_time(stages, finish, tmp_path):
    row = finish()
    called, _ = stages
    assert [words[0] for words in called] == ["prepare", "train", "extract-subnet", "export"]
    assert called[1][called[1].index("--set") + 1] == "train.sandwich=false"
    assert called[-1][-1] == str(tmp_path / "out/natural/bundle")
    assert row["training"]["updates"] == 12
    assert row["training"]["cpu_seconds"] == 7.0
    assert "train.num_updates=12" in row["training"]["train"]
    assert json.loads((tmp_path / "rows/row.json").read_text()) == json.loads(json.dumps(row))
    assert finish()["training"]["cpu_seconds"] == 14.0  # all attempts


def test_settings_name_folders_of_the_shared_data(stages, finish, tmp_path):
    row = finish("noise")
    train = next(words for words in stages[0] if words[0] == "train")
    assert f"asr.noise={tmp_path}/noise/esc10" in train
    assert "asr.noise=SHARED/noise/esc10" in row["training"]["train"]


def test_a_stage_that_fails_names_its_log(stages, finish, tmp_path):
    stages[1].append("train")
    with pytest.raises(TrainingError, match=r"todm train ended with status 3: see .*train\.log"):
        finish()
    assert not (tmp_path / "rows").exists()


def test_other_settings_in_the_same_folder_are_refused(stages, finish, tmp_path):
    finish()
    (tmp_path / "out/natural/settings.json").write_text('{"prepare": [], "train": []}')
    with pytest.raises(ConfigError, match="holds a training with other settings: choose another"):
        finish()


def test_a_row_that_starts_from_a_net_asks_for_it(stages, finish, monkeypatch):
    run = dataclasses.replace(run_named("natural"), init=True)
    monkeypatch.setitem(finish.__globals__, "run_named", lambda name, short: run)
    with pytest.raises(ConfigError, match="starts from a pretrained net: name it with --init"):
        finish()

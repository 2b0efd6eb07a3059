import contextlib
import re
import shutil

import pytest
import torch

from todm.errors import TrainingError
from todm.train import dry_run as module
from todm.train.dry_run import DryRunReport, dry_run


def _report(**changes):
    fields = {
        "init_info": ["taken from x"],
        "params": (12_345_678, 1_200_000),
        "processes": 4,
        "hours": 2880.0,
        "batches_per_epoch": 2000,
        "num_updates": 100_000,
        "sandwich_from": 0.25,
        "worst": "30 utterances, 998 s of audio",
        "worst_bytes": 21_500_000_000,
        "seconds": (0.5, 0.9),
        "audio": 4000.0,
        "checkpoint_bytes": 600_000_000,
        "feature_bytes": 0,
    }
    return DryRunReport(**{**fields, **changes})


def test_the_lines_of_a_report():
    assert _report().lines() == [
        "taken from x",
        "parameters: 12.35M largest, 1.20M smallest",
        "epoch: 2880 h of audio, 2000 updates on 4 processes",
        "worst batch: 30 utterances, 998 s of audio, peak memory 21.5 GB a process",
        "update: 0.5 s at first, 0.9 s with the sandwich (4444 h of audio an hour)",
        "time of an epoch: 17 min at first, 30 min with the sandwich",
        "time of the run: 22 h 14 min for 100000 updates (50 epochs), without evaluations",
        "disk: checkpoints 0.6 GB",
    ]


def test_features_that_had_to_be_computed_are_reported():
    lines = _report(feature_bytes=57_600_000, processes=1).lines()
    assert lines[-1] == "disk: checkpoints 0.6 GB, features 0.0576 GB"
    assert lines[2].endswith("on 1 process")


def test_short_epochs_are_given_in_seconds():
    lines = _report(batches_per_epoch=10).lines()
    assert "time of an epoch: 5 s at first, 9 s with the sandwich" in lines


def test_long_runs_are_given_in_days():
    assert "time of the run: 10 d 0 h 00 min" in " ".join(
        _report(num_updates=1_000_000, sandwich_from=0.09).lines()
    )


def test_a_dry_run_leaves_nothing_and_measures_everything(fake, tmp_path):
    backend = fake.FakeBackend()
    report = dry_run(backend, fake.CONFIG, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert backend.prepared == 1
    assert report.params == (64, 64)  # the fake's plain models are all of one size
    assert (report.hours, report.batches_per_epoch, report.num_updates) == (0.5, 10, 20)
    assert report.worst == "8 utterances, 4 s of audio"
    assert report.audio == 4.0
    assert min(report.seconds) > 0
    # Weights, their mean (and its count), and two moments, three times: two kept, one being written.
    assert report.checkpoint_bytes == 3 * (4 * 64 * 4 + 8)
    largest, smallest = fake.SPACE.largest, fake.SPACE.smallest
    assert [s for s, _ in backend.seen[:3]] == [largest, largest, smallest]
    assert {p for _, p in backend.seen[:3]} == {19 / 20}


def test_a_plain_model_is_tried_without_sandwich(fake, tmp_path):
    backend = fake.FakeBackend()
    report = dry_run(backend, fake.CONFIG.replace(sandwich=False), tmp_path)
    assert {s for s, _ in backend.seen} == {fake.SPACE.largest}
    assert report.total_seconds == pytest.approx(20 * report.seconds[0])


def test_an_earlier_artifact_is_tried_too(fake, tmp_path):
    first = fake.run(tmp_path / "first", config=fake.CONFIG.replace(num_updates=1))
    report = dry_run(fake.FakeBackend(), fake.CONFIG, tmp_path / "run", init=first.path)
    assert report.lines()[0] == "all taken"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
def test_a_batch_that_does_not_fit_names_the_setting(fake, monkeypatch, tmp_path, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(fake.Objective, "forward", fail)
    words = (
        r"worst batch \(8 utterances, 4 s of audio\) does not fit into memory: lower fake.rows=8"
    )
    with pytest.raises(TrainingError, match=words):
        dry_run(fake.FakeBackend(), fake.CONFIG, tmp_path)


def test_other_errors_are_not_taken_for_it(fake, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(fake.Objective, "forward", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        dry_run(fake.FakeBackend(), fake.CONFIG, tmp_path)


def test_on_a_cpu_the_worst_batch_is_estimated_first(fake, monkeypatch, tmp_path):
    """The kernel would kill the process without a message."""
    monkeypatch.setattr(module, "_available_bytes", lambda: 1e9)
    monkeypatch.setattr(module, "_peak_bytes", lambda work, device: work() or 1_500_000_000)
    words = "would need about 1.5 GB in each of 1 processes, and 1 GB are free: lower fake.rows=8"
    with pytest.raises(TrainingError, match=re.escape(words)):
        dry_run(fake.FakeBackend(), fake.CONFIG, tmp_path)


@pytest.mark.parametrize(("processes", "enough"), [("2", True), ("3", False)])
def test_processes_of_a_machine_share_its_memory(fake, monkeypatch, tmp_path, processes, enough):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.setattr(module, "_available_bytes", lambda: 3.5e9)
    monkeypatch.setattr(module, "_peak_bytes", lambda work, device: work() or 1_500_000_000)
    with contextlib.nullcontext() if enough else pytest.raises(TrainingError, match="3 processes"):
        dry_run(fake.FakeBackend(), fake.CONFIG, tmp_path)


def test_a_step_that_fails_is_an_error(fake, tmp_path):
    backend = fake.FakeBackend(lambda index: float("nan") if index == 2 else None)
    words = "the loss is not finite with the batch row-2-0, row-2-1.*: look at these utterances"
    with pytest.raises(TrainingError, match=words):
        dry_run(backend, fake.CONFIG, tmp_path)


def test_random_subnets_of_several_updates_are_timed(fake, monkeypatch, tmp_path):
    drawn = []

    def draw(learner, update):
        drawn.append(update)
        return [fake.SPACE.largest, fake.SPACE.smallest]

    monkeypatch.setattr(module.Learner, "subnets", draw)
    dry_run(fake.FakeBackend(), fake.CONFIG, tmp_path)
    assert drawn[-4:] == [19, 18, 17, 16]


@pytest.mark.parametrize("what", ["features", "checkpoints"])
def test_a_disk_that_is_too_small_is_foreseen(fake, monkeypatch, tmp_path, what):
    usage = shutil.disk_usage(tmp_path)._replace(free=500)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    needed = 10**6 if what == "features" else 0
    monkeypatch.setattr(fake.FakeBackend, "preparation", lambda self: (needed, tmp_path / "f"))
    with pytest.raises(TrainingError, match=f"{what}.* need .* GB left: free some space"):
        dry_run(fake.FakeBackend(), fake.CONFIG, tmp_path / "run")


def test_memory_is_measured():
    held = []
    peak = module._peak_bytes(lambda: held.append(torch.ones(8_000_000)), torch.device("cpu"))
    assert 25e6 < peak < 200e6

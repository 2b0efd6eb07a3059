"""TensorBoard's own loader reads what a training wrote."""

import builtins
import importlib.util

import pytest

from todm.train.monitor import METRICS, TENSORBOARD, Monitor, read_metrics

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")


@pytest.fixture(autouse=True)
def _file_numbers(monkeypatch):
    """Files are read by name, which has the second, the process and a number: 10 sorts before 9."""
    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(0))


def _read(directory):
    """By tag, the step, time and value of every point that TensorBoard shows."""
    found = accumulator.EventAccumulator(str(directory / TENSORBOARD)).Reload()
    return {
        tag: [(event.step, event.wall_time, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def _points(directory, tag):
    return [(step, value) for step, _, value in _read(directory)[tag]]


def test_what_is_written_is_read(tmp_path):
    Monitor(tmp_path, 300_000).log_train(1, {"loss": 2.5, "rnnt smallest": 3.0, "word": "no"})
    with Monitor(tmp_path, 300_000) as monitor:
        monitor.log_eval(20, {"largest": {"error": 0.5}, "grün": {"error": -1e-3}})
        monitor.log_train(300_000, {"loss": 0.0})
        monitor.log_event("disk full", lost="metrics")
        monitor.log_masks(20, {"layer": {"flip_rate": 0.5}})
    assert _read(tmp_path).keys() == {
        "train/loss",
        "train/rnnt smallest",
        "dev error/largest",
        "dev error/grün",
    }
    assert _points(tmp_path, "train/loss") == [(1, 2.5), (300_000, 0.0)]
    assert _points(tmp_path, "train/rnnt smallest") == [(1, 3.0)]
    assert _points(tmp_path, "dev error/largest") == [(20, 0.5)]
    assert _points(tmp_path, "dev error/grün") == [(20, pytest.approx(-1e-3))]


def test_a_run_has_every_point_once_after_it_was_resumed(tmp_path):
    with Monitor(tmp_path, 100) as monitor:
        monitor.resume(0)
        for update in (10, 20, 25, 30):
            monitor.log_train(update, {"loss": update / 4})
        monitor.log_eval(20, {"largest": {"error": 0.5}})
        monitor.log_eval(30, {"largest": {"error": 0.25}})
    before = _read(tmp_path)
    with Monitor(tmp_path, 100) as monitor:
        monitor.resume(25)
        monitor.log_event("restart")
        monitor.log_train(30, {"loss": 2.0})
    after = _read(tmp_path)
    assert [row[::2] for row in after["train/loss"]] == [
        (10, 2.5),
        (20, 5.0),
        (25, 6.25),
        (30, 2.0),
    ]
    assert (
        after["train/loss"][:3] == before["train/loss"][:3]
    )  # with the times of their first writing
    assert after["dev error/largest"] == before["dev error/largest"][:1]


def test_a_new_run_in_an_old_place_starts_empty(tmp_path):
    Monitor(tmp_path, 100).log_train(10, {"loss": 1.0})
    with Monitor(tmp_path, 100) as monitor:
        monitor.resume(0)
        monitor.log_train(1, {"loss": 2.0})
    assert _points(tmp_path, "train/loss") == [(1, 2.0)]


def test_a_file_that_cannot_be_written_is_replaced_by_another(tmp_path, monkeypatch):
    """The rows lie in `metrics.jsonl`; of the failed point only TensorBoard knows nothing."""
    monitor = Monitor(tmp_path, 100)
    monitor.log_train(1, {"loss": 1.0})

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(monitor._board, "flush", full)
    monitor.log_train(2, {"loss": 2.0})
    monitor.log_train(3, {"loss": 3.0})
    kinds = [(r["kind"], r.get("update")) for r in read_metrics(tmp_path / METRICS)]
    assert kinds == [("train", 1), ("train", 2), ("event", None), ("train", 3)]
    assert [step for step, _ in _points(tmp_path, "train/loss")][-1] == 3


def test_figures_that_are_not_finite_are_left_out(tmp_path):
    """JSON has none, and TensorBoard would not draw them."""
    Monitor(tmp_path, 10).log_train(1, {"loss": 1.0, "grad_norm": float("inf")})
    (row,) = read_metrics(tmp_path / METRICS)
    assert row.keys() == {"kind", "update", "loss", "time"}
    assert _points(tmp_path, "train/loss") == [(1, 1.0)]


def test_without_the_package_a_sentence_is_printed_and_training_goes_on(
    tmp_path, monkeypatch, capsys
):
    find, load = importlib.util.find_spec, builtins.__import__

    def refuse(name, *rest):
        assert not name.startswith("torch.utils.tensorboard")
        return load(name, *rest)

    missing = lambda name, *rest: None if name == "tensorboard" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with Monitor(tmp_path, 100) as monitor:
        monitor.resume(0)
        monitor.log_train(1, {"loss": 1.0})
        monitor.log_train(2, {"loss": 1.0})
    assert len(read_metrics(tmp_path / METRICS)) == 2
    assert not (tmp_path / TENSORBOARD).exists()
    err = capsys.readouterr().err
    assert err.count("tensorboard is not installed") == 1
    assert "pip install 'todm[tensorboard]'" in err

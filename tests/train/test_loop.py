import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from todm import artifact
from todm.errors import ArtifactError, ConfigError, TrainingError
from todm.train import loop
from todm.train.checkpoint import read_latest
from todm.train.config import TrainConfig
from todm.train.loop import CHECKPOINTS, SUPERNET
from todm.train.monitor import BAD_BATCHES, CURVES, METRICS, read_metrics


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    """A picture takes longer than these trainings; that of `straight` is drawn."""
    monkeypatch.setattr(loop, "plot_curves", lambda metrics, out: None)


MEASURED = ("seconds", "time", "audio_hours_per_hour", "audio_hours_per_hour_per_process")


@pytest.fixture(scope="module")
def straight(fake, tmp_path_factory):
    """A training that nothing interrupted: its directory, and its backend."""
    torch.set_num_threads(1)
    out, backend = tmp_path_factory.mktemp("straight"), fake.FakeBackend()
    fake.run(out, backend)
    return out, backend


def _weights(out):
    return artifact.load(out / SUPERNET, kind="supernet").tensors()


def _rows(out):
    """Without measured figures, and without events."""
    rows = [r for r in read_metrics(out / METRICS) if r["kind"] != "event"]
    return [{k: v for k, v in r.items() if k not in MEASURED} for r in rows]


def _assert_same(out, straight):
    """Bit by bit the same weights, and the same metrics."""
    want, got = _weights(straight), _weights(out)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert _rows(out) == _rows(straight)


def _crash(at, error=RuntimeError):
    def before(index):
        if index == at:
            raise error

    return before


def test_killed_and_resumed_gives_the_same_result(fake, straight, tmp_path):
    """In the window of the average, which is resumed too."""
    program = [sys.executable, fake.__file__, str(tmp_path / "run"), "0:17"]
    killed = subprocess.run(program, cwd=os.getcwd(), env={**os.environ, "PYTHONPATH": "."})
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / SUPERNET).exists()
    backend = fake.FakeBackend()
    fake.run(tmp_path / "run", backend)
    assert len(backend.seen) == 9  # three passes of each of the last three updates
    _assert_same(tmp_path / "run", straight[0])


@pytest.mark.parametrize("at", [1, 5, 16, 19])
def test_crashed_and_resumed_gives_the_same_result(fake, straight, tmp_path, at):
    with pytest.raises(RuntimeError):
        fake.run(tmp_path, fake.FakeBackend(_crash(at)))
    fake.run(tmp_path)
    _assert_same(tmp_path, straight[0])


def test_a_damaged_checkpoint_costs_an_update_and_no_more(fake, straight, tmp_path):
    with pytest.raises(RuntimeError):
        fake.run(tmp_path, fake.FakeBackend(_crash(13)))
    newest = max((tmp_path / CHECKPOINTS).iterdir())
    newest.write_bytes(newest.read_bytes()[:1000])
    fake.run(tmp_path)
    _assert_same(tmp_path, straight[0])


def test_an_interrupt_finishes_the_update_and_writes_a_checkpoint(fake, straight, tmp_path):
    def interrupt(index):
        if index == 8:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    rare = fake.CONFIG.replace(checkpoint_minutes=1000.0)
    run = lambda backend: fake.run(tmp_path, backend, config=rare)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        run(fake.FakeBackend(interrupt))
    assert signal.getsignal(signal.SIGINT) == before
    assert read_latest(tmp_path / CHECKPOINTS)["update"] == 9
    run(fake.FakeBackend())
    _assert_same(tmp_path, straight[0])


def test_a_finished_training_is_not_trained_again(fake, straight, tmp_path):
    """As after a crash between the last checkpoint and the artifact."""
    shutil.copytree(straight[0] / CHECKPOINTS, tmp_path / CHECKPOINTS)
    backend = fake.FakeBackend()
    fake.run(tmp_path, backend)
    assert backend.seen == []
    want = _weights(straight[0])
    assert all(torch.equal(v, want[k]) for k, v in _weights(tmp_path).items())


def test_the_largest_net_is_alone_at_first(fake, straight):
    _, backend = straight
    space = fake.SPACE
    assert [s for s, _ in backend.seen[:5]] == [space.largest] * 5
    rest = backend.seen[5:]
    assert len(rest) == 15 * 3
    assert {s for s, _ in rest[0::3]} == {space.largest}
    assert {s for s, _ in rest[2::3]} == {space.smallest}
    assert [p for _, p in rest[0::3]] == [u / 20 for u in range(5, 20)]


def test_a_plain_model_is_trained_without_sandwich(fake, tmp_path):
    backend = fake.FakeBackend()
    done = fake.run(tmp_path, backend, config=fake.CONFIG.replace(sandwich=False, num_updates=4))
    assert {s for s, _ in backend.seen} == {fake.SPACE.largest}
    assert list(done.metrics["dev"]) == ["largest", "largest int8"]


def test_the_artifact(fake, straight):
    out, _ = straight
    done = artifact.load(out / SUPERNET, kind="supernet")
    assert done.parent == "a corpus"
    assert done.config == {"train": fake.CONFIG.to_json()}
    assert done.info["seed"] == 3
    assert (done.metrics["updates"], done.metrics["skipped"]) == (20, 0)
    assert set(done.metrics["dev"]) == {"largest", "smallest", "largest int8"}
    assert done.file("labels.txt").read_text() == "none\n"
    average = read_latest(out / CHECKPOINTS)["average"]
    assert average["n_averaged"] == 4
    assert all(torch.equal(v, average[f"module.{k}"]) for k, v in done.tensors().items())


def test_metrics_are_logged(straight):
    rows = _rows(straight[0])
    train = [r for r in rows if r["kind"] == "train"]
    assert [r["update"] for r in train] == list(range(2, 21, 2))
    assert {"loss", "rnnt", "lr", "grad_norm", "clip", "skipped"} <= set(train[0])
    assert {"rnnt smallest", "divergence"} <= set(train[-1])
    assert [r["update"] for r in rows if r["kind"] == "eval"] == [5, 10, 15, 20]


def test_training_learns(fake, tmp_path):
    optim = fake.CONFIG.optim.replace(lr=0.05)
    config = fake.CONFIG.replace(num_updates=300, checkpoint_minutes=100.0, optim=optim)
    fake.run(tmp_path, fake.FakeBackend(dropout=0.0), config=config)
    losses = [r["rnnt"] for r in _rows(tmp_path) if r["kind"] == "train"]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_a_picture_of_the_curves_is_left(straight):
    assert (straight[0] / CURVES).read_bytes().startswith(b"\x89PNG")


def test_other_settings_are_refused_and_named(fake, straight):
    other = fake.CONFIG.replace(optim=fake.CONFIG.optim.replace(lr=0.5))
    with pytest.raises(
        ConfigError, match=r"\(train.optim.lr: 0.02 then, 0.5 now\): choose another"
    ):
        fake.run(straight[0], config=other)
    with pytest.raises(ConfigError, match=r"\(parent: 'a corpus' then, 'another' now\)"):
        fake.run(straight[0], parent="another")
    with pytest.raises(ConfigError, match=r"\(more: None then, 1 now\)"):
        fake.run(straight[0], recipe={"train": fake.CONFIG.to_json(), "more": 1})


def test_a_bad_step_is_skipped_and_counted(fake, tmp_path):
    backend = fake.FakeBackend(lambda index: float("nan") if index in (3, 9) else None)
    done = fake.run(tmp_path, backend)
    assert done.metrics["skipped"] == 2
    assert all(v.isfinite().all() for v in done.tensors().values())


def test_bad_steps_in_a_row_stop_the_training_and_name_the_batch(fake, tmp_path):
    backend = fake.FakeBackend(lambda index: float("inf") if index >= 6 else None)
    config = fake.CONFIG.replace(max_bad_steps=4)
    with pytest.raises(
        TrainingError,
        match=r"4 steps in a row .* \(update 9, batch row-9-0, row-9-1.*bad_batches\.jsonl",
    ):
        fake.run(tmp_path, backend, config=config)
    assert all(v.isfinite().all() for v in read_latest(tmp_path / CHECKPOINTS)["model"].values())
    rows = [json.loads(line) for line in (tmp_path / BAD_BATCHES).read_text().splitlines()]
    assert [(r["update"], r["process"], r["loss"]) for r in rows] == [
        (u, 0, "nan") for u in range(6, 10)
    ]
    assert rows[0]["ids"] == [f"row-6-{i}" for i in range(8)]


SPIKY = {"num_updates": 60, "checkpoint_minutes": 100.0, "eval_every": 2.0, "log_every": 60}


def _spike(at, crash_at=None):
    def before(index):
        if index == crash_at:
            raise InterruptedError
        return 1e4 if index in at else None

    return before


def test_a_step_far_above_the_median_is_skipped_and_recorded(fake, tmp_path):
    """Update 5 is too early for a median: the largest net alone has 15 updates only."""
    config = fake.CONFIG.replace(**SPIKY)
    done = fake.run(tmp_path, fake.FakeBackend(_spike([5, 45])), config=config)
    assert done.metrics["skipped"] == 1
    (row,) = (json.loads(line) for line in (tmp_path / BAD_BATCHES).read_text().splitlines())
    assert row["update"] == 45
    assert re.fullmatch(r"the loss \S+ is above \S+", row["reason"])
    events = [r for r in read_metrics(tmp_path / METRICS) if r["kind"] == "event"]
    assert [e["event"] for e in events] == ["skipped"]


def test_the_guard_of_spikes_can_be_turned_off(fake, tmp_path):
    config = fake.CONFIG.replace(**SPIKY, max_spike=0.0)
    done = fake.run(tmp_path, fake.FakeBackend(_spike([45])), config=config)
    assert done.metrics["skipped"] == 0
    assert not (tmp_path / BAD_BATCHES).exists()


def test_medians_are_kept_in_checkpoints(fake, tmp_path):
    """Resumed between two spikes: both are skipped, each is written down once."""
    config = fake.CONFIG.replace(**{**SPIKY, "checkpoint_minutes": 0.0})
    spikes = [40, 45, 48]
    want = fake.run(tmp_path / "a", fake.FakeBackend(_spike(spikes)), config=config)
    with pytest.raises(InterruptedError):
        fake.run(tmp_path / "b", fake.FakeBackend(_spike(spikes, crash_at=46)), config=config)
    for old in (tmp_path / "b" / CHECKPOINTS).glob("update-00000046.pt"):
        old.unlink()  # so that update 45 comes again
    got = fake.run(tmp_path / "b", fake.FakeBackend(_spike(spikes)), config=config)
    assert got.metrics["skipped"] == want.metrics["skipped"] == 3
    assert all(torch.equal(v, want.tensors()[k]) for k, v in got.tensors().items())
    assert (tmp_path / "b" / BAD_BATCHES).read_text() == (tmp_path / "a" / BAD_BATCHES).read_text()


def test_outliers_are_capped_where_a_cap_is_set(fake, tmp_path):
    quant = fake.CONFIG.quant.replace(outlier_cap=1.3)
    done = fake.run(tmp_path, config=fake.CONFIG.replace(quant=quant))
    rows = [r for r in _rows(tmp_path) if r["kind"] == "train"]
    assert rows[0]["num_capped"] > 0
    assert max(r["outlier_max"] for r in rows) == pytest.approx(1.3, rel=1e-3)
    assert done.metrics["skipped"] == 0


def test_capped_weights_are_counted_over_a_restart(fake, tmp_path):
    config = fake.CONFIG.replace(quant=fake.CONFIG.quant.replace(outlier_cap=1.3))
    fake.run(tmp_path / "straight", config=config)
    with pytest.raises(RuntimeError):
        fake.run(tmp_path / "run", fake.FakeBackend(_crash(11)), config=config)
    fake.run(tmp_path / "run", config=config)
    _assert_same(tmp_path / "run", tmp_path / "straight")


def test_throughput_is_logged_and_kept(straight):
    out, _ = straight
    rows = [r for r in read_metrics(out / METRICS) if r["kind"] == "train"]
    rates = [r["audio_hours_per_hour"] for r in rows]
    assert min(rates) > 0
    assert rates == [pytest.approx(4.0 / r["seconds"]) for r in rows]  # every batch has 4 s
    assert rates == [r["audio_hours_per_hour_per_process"] for r in rows]  # there is one process
    kept = artifact.load(out / SUPERNET).metrics["audio_hours_per_hour"]
    assert min(rates) < kept < max(rates)


def test_a_summary_is_left(straight):
    assert "Dev WER" in (straight[0] / "summary.md").read_text()


@pytest.fixture(scope="module")
def initialised(fake, straight, tmp_path_factory):
    """A training initialised from `straight` that nothing interrupted."""
    out = tmp_path_factory.mktemp("initialised")
    return fake.run(out, init=straight[0] / SUPERNET)


def test_an_earlier_supernet_initialises_and_is_named(fake, straight, initialised, tmp_path):
    first = artifact.load(straight[0] / SUPERNET)
    assert initialised.info["init"] == first.hash
    assert "init" not in first.info
    short = fake.CONFIG.replace(num_updates=1, optim=fake.CONFIG.optim.replace(lr=1e-9))
    near = fake.run(tmp_path, config=short, init=first.path).tensors()
    for name, value in first.tensors().items():
        torch.testing.assert_close(near[name], value, rtol=0, atol=1e-3)


def test_the_initial_artifact_may_be_gone_when_it_resumes(fake, straight, initialised, tmp_path):
    init = tmp_path / "init"
    shutil.copytree(straight[0] / SUPERNET, init)
    with pytest.raises(RuntimeError):
        fake.run(tmp_path / "run", fake.FakeBackend(_crash(7)), init=init)
    shutil.rmtree(init)
    done = fake.run(tmp_path / "run", init=init)
    assert done.info["init"] == initialised.info["init"]
    assert all(torch.equal(v, initialised.tensors()[k]) for k, v in done.tensors().items())


def test_another_initial_artifact_is_refused(fake, straight, tmp_path):
    with pytest.raises(ConfigError, match=r"\(init: None then, '\w+' now\)"):
        fake.run(straight[0], init=straight[0] / SUPERNET)
    with pytest.raises(ArtifactError, match="not an artifact"):
        fake.run(tmp_path / "run", init=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_updates": 0}, "train.num_updates is 0: at least 1"),
        ({"sandwich_from": 1.5}, "train.sandwich_from is 1.5: a fraction from 0 to 1"),
        ({"average_last": -0.1}, "train.average_last is -0.1"),
        ({"num_random": -1}, "train.num_random is -1: 0 or more"),
        ({"log_every": 0}, "train.log_every is 0: at least 1"),
        ({"max_bad_steps": 0}, "train.max_bad_steps is 0: at least 1"),
        ({"max_spike": 0.5}, "train.max_spike is 0.5: a multiple above 1, or 0 for none"),
        ({"max_restarts": -1}, "train.max_restarts is -1: 0 or more"),
        ({"eval_every": 0.0}, "train.eval_every is 0.0: a fraction above 0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_settings_are_checked(changes, words):
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**changes)

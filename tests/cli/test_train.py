"""The verb `train`: what it says, by which process, and what a finished run gets back."""

import json
import types

import pytest

pytest.importorskip("torch")

from todm import artifact
from todm.asr import backend
from todm.cli import main as cli
from todm.recipe import named
from todm.train import loop
from todm.train.monitor import CURVES, METRICS, Monitor

RECIPE = json.loads(json.dumps(named("debug").to_json()))
ROW = {"error": 0.25, "low": 0.125, "high": 0.5}
FLAT = ["--set", "asr.model.ctc=true", "--set", "asr.objective.align_until=0.25"]


@pytest.fixture
def corpus(tmp_path):
    return artifact.save(tmp_path / "corpus", kind="corpus", config=RECIPE["asr"]["data"])


@pytest.fixture
def finished(tmp_path, corpus):
    """A run that is done, without its curves and its summary."""
    out = tmp_path / "run"
    out.mkdir()
    with Monitor(out, 2) as monitor:
        for update in (1, 2):
            monitor.log_train(update, {"loss": 1.0, "seconds": 1.0})
        monitor.log_eval(2, {"largest": ROW})
    metrics, info = {"updates": 2, "skipped": 0}, {"seed": 1}
    given = {"config": RECIPE, "parent": corpus.hash, "metrics": metrics, "info": info}
    artifact.save(out / loop.SUPERNET, kind="supernet", tensors={}, **given)
    return out


@pytest.fixture
def untrained(monkeypatch, corpus):
    """The training itself and its data are left out; it ends at once."""
    net = types.SimpleNamespace(path="net", metrics={"dev": {"largest": ROW}})
    empty = types.SimpleNamespace(prepare=lambda: None)
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: net)
    monkeypatch.setattr(backend, "AsrBackend", lambda *args, **kwargs: empty)


def _process(monkeypatch, rank):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))


def _train(corpus, out, *arguments):
    place = [str(corpus.path), "--config", "debug", "--out", str(out)]
    return cli.main(["train", *place, *map(str, arguments)])


@pytest.mark.parametrize("lost", [{CURVES}, {"summary.md"}, {CURVES, "summary.md"}], ids=sorted)
def test_a_finished_run_gets_back_what_it_lost(finished, corpus, capsys, lost):
    kept = {CURVES, "summary.md"} - lost
    for name in kept:
        (finished / name).write_text("kept")
    assert _train(corpus, finished) == 0
    assert capsys.readouterr().out == f"done already: {finished / 'supernet'}\n"
    assert all((finished / name).read_text() == "kept" for name in kept)
    if CURVES in lost:
        assert (finished / CURVES).read_bytes().startswith(b"\x89PNG")
    if "summary.md" in lost:
        page = (finished / "summary.md").read_text()
        assert "| largest | 25.00% |" in page
        assert f"]({CURVES})" in page
        assert "None." in page  # no setting differs from the recipe's


def test_a_finished_run_without_metrics_is_still_done(finished, corpus):
    (finished / METRICS).unlink()
    assert _train(corpus, finished) == 0
    assert (finished / "summary.md").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_says_that_it_is_done(finished, corpus, capsys, monkeypatch, rank):
    _process(monkeypatch, rank)
    assert _train(corpus, finished) == 0
    assert ("done already" in capsys.readouterr().out) == (rank == 0)
    assert (finished / CURVES).exists() == (rank == 0)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_says_the_results(tmp_path, corpus, capsys, caplog, monkeypatch, rank):
    _process(monkeypatch, rank)
    assert _train(corpus, tmp_path / "run", "--init", tmp_path, *FLAT) == 0
    out, err = capsys.readouterr()
    assert ("largest: dev WER 25.00% [12.50%, 50.00%]" in out) == (rank == 0)
    assert ("flat start" in caplog.text) == (rank == 0)
    assert err == ""
    if rank:
        assert out == ""


@pytest.mark.usefixtures("untrained")
def test_a_flat_start_from_an_earlier_net_is_advised_against_once(
    tmp_path, corpus, caplog, monkeypatch
):
    _process(monkeypatch, 0)
    out, init = tmp_path / "run", ["--init", tmp_path]

    def warnings(*arguments):
        caplog.clear()
        assert _train(corpus, out, *arguments) == 0
        return caplog.messages

    assert warnings(*init, *FLAT) == [
        "asr.objective.align_until is 0.25: this flat start unlearns the alignment of the net given with "
        "--init; consider  --set asr.objective.align_until=0"
    ]
    assert warnings(*FLAT) == []
    assert warnings(*init, "--set", "asr.objective.align_until=0") == []
    (out / loop.CHECKPOINTS).mkdir()
    assert warnings(*init, *FLAT) == []

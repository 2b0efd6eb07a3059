import json

import pytest
import torch

from todm import artifact
from todm.errors import ArtifactError
from todm.train.monitor import CURVES, METRICS, Monitor
from todm.train.summary import differences, write_summary

RECIPE = {"name": "commands", "train": {"num_updates": 40, "optim": {"lr": 0.04}}}


def _error(error):
    return {"error": error, "low": error - 0.01, "high": error + 0.01}


@pytest.fixture
def run(tmp_path):
    """A finished run, with its corpus."""
    corpus = artifact.save(
        tmp_path / "corpus",
        kind="corpus",
        config={},
        info={"splits": {"train": {"num": 3500, "hours": 2.0524}}},
    )
    out = tmp_path / "runs" / "mine"
    out.mkdir(parents=True)
    with Monitor(out, 40) as monitor:
        for update in (10, 20, 40):
            monitor.log_train(
                update,
                {"loss": 1.0, "seconds": 90.0, "audio_hours_per_hour": update, "outlier_max": 5.0},
            )
        monitor.log_eval(20, {"largest": _error(0.5), "largest int8": _error(0.6)})
        monitor.log_eval(40, {"largest": _error(0.25), "smallest": _error(0.375)})
    weight = torch.ones(8, 4)
    weight[0, 0] = 7.0
    artifact.save(
        out / "supernet",
        kind="supernet",
        config=RECIPE,
        parent=corpus.hash,
        metrics={"updates": 40, "skipped": 2},
        info={"seed": 3, "corpus": str(corpus.path)},
        tensors={"encoder.up.weight": weight, "encoder.norm.weight": torch.ones(4)},
    )
    return out


def _summary(run, **options):
    return write_summary(run, **options).read_text()


@pytest.mark.parametrize(
    "line",
    [
        "# mine: a training of `commands`",
        "| recipe | `commands`, seed 3 |",
        "2.052 hours in 3500 utterances, hash `",
        "| updates | 40 |",
        "| skipped steps | 2 |",
        "| time | 1:00:00 of updates, evaluations not counted |",
        "| throughput | 20 hours of audio per hour (median) |",
        "| largest | 25.00% | 24.00% to 26.00% | 60.00% at update 20 |",
        "| smallest | 37.50% | 36.50% to 38.50% |  |",
        "The worst was 5.0 at the start and 5.0 at the end.",
        "| `encoder.up` | 1.9 |",
        "extract-subnet ",
        "todm export ",
    ],
)
def test_the_page_says(run, line):
    assert line in _summary(run)


def test_the_artifact_it_was_initialised_from_is_named(run):
    assert "initialised from" not in _summary(run)
    net = artifact.load(run / "supernet")
    info = {**net.info, "init": "0123456789abcdef"}
    given = {"config": net.config, "metrics": net.metrics, "parent": net.parent}
    artifact.save(net.path, kind=net.kind, info=info, tensors=net.tensors(), **given)
    assert "| initialised from | an artifact with hash `0123456789ab` |" in _summary(run)


def test_the_picture_is_shown_where_there_is_one(run):
    assert f"]({CURVES})" not in _summary(run)
    (run / CURVES).write_bytes(b"a picture")
    assert f"![curves]({CURVES})" in _summary(run)


def test_up_to_ten_events_are_listed(run):
    assert "## Events" not in _summary(run)
    with Monitor(run, 40) as monitor:
        monitor.log_event("restart", lost="process 1")
        for update in range(11):
            monitor.log_event("skipped", update=update, ids=["a"])
    page = _summary(run)
    assert "- restart after update 0: lost process 1" in page
    assert '- skipped at update 8: ids ["a"]' in page
    assert "update 9" not in page
    assert "- and 2 more in `metrics.jsonl`" in page


def test_settings_that_differ_from_the_recipe(run):
    page = _summary(run, standard={**RECIPE, "train": {"num_updates": 5000, "optim": {"lr": 0.04}}})
    assert "| `train.num_updates` | `5000` | `40` |" in page
    assert "optim" not in page
    assert "None." in _summary(run, standard=RECIPE)
    assert "Settings" not in _summary(run)


def test_settings_of_only_one_side_differ():
    assert list(differences({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}})) == [
        ("b.d", 3, None),
        ("b.c", None, 2),
        ("a", None, 1),
    ]


@pytest.mark.parametrize("change", ["gone", "another"])
def test_a_corpus_that_is_no_longer_the_same_gives_no_hours(run, change):
    corpus = run.parents[1] / "corpus"
    if change == "gone":
        corpus.rename(corpus.with_name("elsewhere"))
    else:
        artifact.save(corpus, kind="corpus", config={"other": 1}, info={"splits": {"train": {}}})
    page = _summary(run)
    assert "hours in" not in page
    assert ("(no longer there)" if change == "gone" else "(replaced by another since)") in page


def test_a_run_without_metrics_has_a_page(run):
    (run / METRICS).unlink()
    page = _summary(run)
    assert "throughput" not in page
    assert "| updates | 40 |" in page


def test_an_unfinished_run_has_none(tmp_path):
    (tmp_path / METRICS).write_text(json.dumps({"kind": "train", "update": 1}) + "\n")
    with pytest.raises(ArtifactError, match="supernet"):
        write_summary(tmp_path)

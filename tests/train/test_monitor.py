import json
import math

import pytest

from todm.train.monitor import BAD_BATCHES, CURVES, METRICS, Monitor, plot_curves, read_metrics

FIGURES = {"loss": 2.5, "rnnt": 2.0, "ctc": 0.5, "grad_norm": 1.0, "lr": 0.01}


def _train(monitor, *updates):
    for update in updates:
        monitor.log_train(update, {**FIGURES, "rnnt smallest": 3.0, "divergence": 0.2})


@pytest.fixture
def run(tmp_path):
    """A run of 100 updates with metrics up to update 40."""
    with Monitor(tmp_path, 100) as monitor:
        _train(monitor, 10, 20, 30, 40)
        monitor.log_train(35)
        monitor.log_eval(20, {"largest": {"error": 0.5}, "smallest": {"error": 0.75}})
    return tmp_path


def test_rows_are_json_lines(run):
    rows = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    assert [r["update"] for r in rows] == [10, 20, 30, 40, 20]
    assert [r["kind"] for r in rows] == ["train"] * 4 + ["eval"]
    assert rows[0]["loss"] == 2.5
    assert rows[4]["largest"] == {"error": 0.5}


def test_resuming_forgets_what_lies_beyond(run):
    with Monitor(run, 100) as monitor:
        monitor.resume(25)
        _train(monitor, 30)
    assert [r["update"] for r in read_metrics(run / METRICS)] == [10, 20, 20, 30]


def test_a_new_run_starts_empty(run):
    Monitor(run, 100).resume(0)
    assert read_metrics(run / METRICS) == []


def test_a_last_line_cut_by_a_crash_is_left_out(run):
    path = run / METRICS
    path.write_text(path.read_text()[:-20])
    assert [r["update"] for r in read_metrics(path)] == [10, 20, 30, 40]
    Monitor(run, 100).resume(40)
    assert len(path.read_text().splitlines()) == 4


def test_what_belongs_to_an_update_is_forgotten_with_it(run):
    with Monitor(run, 100) as monitor:
        monitor.resume(40)
        monitor.log_event("skipped", update=35, ids=["a"])
        monitor.log_event("skipped", update=20)
        monitor.log_event("disk full", free=0)
        monitor.resume(30)
        monitor.log_event("restart")
    events = [r for r in read_metrics(run / METRICS) if r["kind"] == "event"]
    assert [(r["event"], r.get("update"), r.get("after")) for r in events] == [
        ("skipped", 20, None),
        ("disk full", None, 40),
        ("restart", None, 30),
    ]
    assert events[1]["free"] == 0


def test_no_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / METRICS) == []


def test_every_kind_of_figure_has_its_panel(run, monkeypatch):
    """The last curve of each panel, by its title."""
    from matplotlib.figure import Figure

    with Monitor(run, 100) as monitor:
        figures = {"audio_hours_per_hour": 120.0, "outlier_max": 7.0, "clip": 0.5}
        monitor.log_train(50, {**FIGURES, **figures})
        monitor.log_train(60, {**FIGURES, "clip": 0.0})
        monitor.log_eval(60, {"largest int8": {"error": 12.0}})
    drawn = {}

    def keep(figure, *args, **options):
        for axis in figure.axes:
            labels = axis.get_legend_handles_labels()[1]
            drawn[axis.get_title("left")] = (labels[-1], axis.lines[-1].get_ydata()[-1])

    monkeypatch.setattr(Figure, "savefig", keep)
    plot_curves(run / METRICS, run / CURVES)
    assert drawn == {
        "loss per label (largest net unless named)": ("divergence", 0.2),
        "dev WER, %": ("largest int8, 1200.00% at the end", 100.0),
        "gradient norm": ("1 skipped", 1.0),
        "learning rate": ("lr", 0.01),
        "throughput, hours of audio per hour": ("audio hours per hour", 120.0),
        "weight outliers, peak over rms of a channel": ("outlier max", 7.0),
    }


@pytest.mark.parametrize("rows", ["run", "training alone", "nothing"])
def test_curves_are_a_picture(run, rows):
    path = run / METRICS
    if rows != "run":
        lines = path.read_text().splitlines(keepends=True)[:4]
        path.write_text("".join(lines) if rows == "training alone" else "")
    plot_curves(path, run / CURVES)
    assert (run / CURVES).read_bytes().startswith(b"\x89PNG\r\n")


def test_the_last_update_is_printed_where_there_is_no_terminal(tmp_path, capsys):
    with Monitor(tmp_path, 3) as monitor:
        monitor.resume(0)
        _train(monitor, 1, 2)
        monitor.log_eval(2, {"largest": {"error": 0.125}})
        assert "update" not in capsys.readouterr().err
        _train(monitor, 3)
    err = capsys.readouterr().err
    assert "update 3 of 3  loss 2.500  dev WER largest 12.5%" in err
    assert "0:00 left" in err


@pytest.mark.parametrize("damage", ["", '{"update": 7, "ids": ["x'], ids=["whole", "cut line"])
def test_bad_batches_beyond_a_checkpoint_are_dropped(tmp_path, damage):
    monitor, path = Monitor(tmp_path, 100), tmp_path / BAD_BATCHES
    for update in (3, 4, 5):
        monitor.log_skipped(update, "the loss is not finite", [{"loss": math.nan}])
    with path.open("a") as handle:
        handle.write(damage)
    Monitor(tmp_path, 100).resume(5)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    same = {"process": 0, "reason": "the loss is not finite", "loss": "nan"}
    assert rows == [{"update": 3, **same}, {"update": 4, **same}]

"""Tables from rows: shares, means and pairs, checked against the numbers that went in."""

import json

import numpy as np
import pytest

from benchmarks.studies.orders import table
from benchmarks.studies.orders.plan import runs
from benchmarks.studies.orders.recordings import conditions
from benchmarks.studies.orders.scoring import wilson

NAMES = [f"{i:03}.opus" for i in range(100)]


def _condition(wrong):
    parse = {"wrong": NAMES[:wrong], "spurious": 0, "slots": 200, "slots_right": 200 - wrong}
    parse["confusions"] = [["size", "small", "", wrong]] if wrong else []
    return {
        "num": 100,
        "parsed": 100 - wrong,
        "exact": parse,
        "nearest": {**parse, "wrong": NAMES[: wrong // 2]},
        "texts": {},
        "commit": "0" * 40,
        "cpu_seconds": 5.0,
        "audio_seconds": 500.0,
    }


def _row(wrong, *, name="net", names=None, **more):
    chosen = [str(c) for c in conditions()] if names is None else names
    return {
        "engine": {"name": name, "megabytes": 1.25},
        "recordings": {"name": "dev", "fingerprint": "f"},
        "conditions": {n: _condition(wrong) for n in chosen},
        **more,
    }


def _write(path, row):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row))


def _cells(text, first):
    """The cells of the lines that begin with a cell."""
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text if "|" in line]
    return [row for row in rows if row[0] == first]


def test_published_figures_have_their_means(tmp_path):
    lines = "\n".join(table.report(tmp_path)).splitlines()
    means = {name: _cells(lines, name)[0][-1] for name in table.PUBLISHED}
    assert means == {
        "Picovoice Rhino": "97.6",
        "Microsoft LUIS": "89.9",
        "IBM Watson": "86.8",
        "Amazon Lex": "84.5",
        "Google Dialogflow": "77.6",
    }


def test_a_row_shows_clean_noise_size_and_speed_by_parse(tmp_path):
    _write(tmp_path / "dev/net.json", _row(20))
    lines = "\n".join(table.report(tmp_path)).splitlines()
    exact, nearest = _cells(lines, "net")
    interval = wilson(80, 100)
    clean = f"80.0 ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
    assert exact[1:3] == ["exact", clean]
    assert exact[3].startswith("80.0 (7")
    assert exact[4:] == ["1.2", "0.010", "80.0", "90.0"]
    assert nearest[1] == "nearest"
    assert nearest[2].startswith("90.0 (")
    assert "- 440 size: small -> nothing" in lines  # 22 conditions


def test_a_row_with_some_ratios_says_which(tmp_path):
    names = ["clean", *(f"babble {snr} dB" for snr in (6, 24))]
    _write(tmp_path / "dev/peer.json", _row(10, names=names))
    lines = "\n".join(table.report(tmp_path)).splitlines()
    assert _cells(lines, "peer")[0][3].endswith(" (at 6, 24 dB)")
    assert _cells(lines, "babble")[0][2:4] == ["90.0", "90.0"]


def test_an_ingredient_is_compared_recording_by_recording(tmp_path):
    first, second = [run.name for run in runs()][:2]
    training = {"updates": 2400, "cpu_seconds": 600.0}
    _write(tmp_path / f"ingredients/{first}.json", _row(40, training=training))
    _write(tmp_path / f"ingredients/{second}.json", _row(20, training=training))
    lines = "\n".join(table.report(tmp_path)).splitlines()
    assert _cells(lines, first)[0][5] == ""
    found = _cells(lines, second)[0]
    assert found[2] == "2,400"
    assert found[5].startswith("+10.0 (+")
    assert found[6] == "10"
    assert _cells(lines, "full")[0][2] == "missing"


def test_recordings_are_paired_by_name():
    """The same share wrong, but other recordings: the difference is 0, and not its interval."""
    mine, theirs = _row(20, names=["clean"]), _row(20, names=["clean"])
    theirs["conditions"]["clean"]["nearest"]["wrong"] = NAMES[50:60]
    right = [
        table.right_CN(row, ["clean"], "nearest", sorted(NAMES[:10] + NAMES[50:60]))
        for row in (mine, theirs)
    ]
    assert (right[0] != right[1]).sum() == 20
    assert np.sum(right[0]) == np.sum(right[1]) == 90


@pytest.mark.parametrize("parse", ["exact", "nearest"])
def test_a_mean_lacks_no_condition(parse):
    row = _row(10, names=["clean"])
    assert table.acceptance(row, ["clean", "babble 6 dB"], parse) is None

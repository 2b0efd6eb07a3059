import json

import pytest

from benchmarks.studies import rnnt_loss as bench

SMALL = {"B": 2, "T": 9, "U": 3, "V": 13, "J": 8}


@pytest.mark.parametrize("case", bench.CASES)
def test_measures_time_and_memory(case):
    if case in ("torchaudio", "k2"):
        pytest.importorskip(case)
    figures = bench.measure(case, SMALL)
    assert figures["seconds"] > 0
    assert figures["peak_mb"] >= 0


def test_bfloat16_is_timed_by_autocast():
    assert bench.measure("torch", SMALL, dtype="bfloat16", repeats=3)["seconds_spread"] >= 0


@pytest.mark.gpu
@pytest.mark.parametrize("case", bench.GPU_CASES)
def test_measures_on_a_gpu(case):
    figures = bench.measure(case, SMALL, device="cuda", dtype="bfloat16", repeats=3)
    assert 0 < figures["peak_mb"] < 100


def test_one_case_prints_json(monkeypatch, capsys):
    monkeypatch.setitem(bench.SHAPES, "issue", SMALL)
    assert bench.main(["--case", "torch", "--shape", "issue", "--repeats", "1"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {
        "seconds",
        "seconds_spread",
        "cpu_seconds",
        "peak_mb",
    }


def test_table_shows_figures_and_failures():
    row = {**SMALL, "case": "torch", "threads": 1}
    table = bench.format_table(
        [
            {**row, "seconds": 0.5, "cpu_seconds": 0.4, "peak_mb": 60.4},
            {**row, "case": "torchaudio", "error": "MissingExtra: no torchaudio"},
        ]
    )
    assert "| 2,9,3,13,8 | torch | 1 | 0.500 | 0.400 | 60 |" in table
    assert "torchaudio | 1 | MissingExtra: no torchaudio" in table

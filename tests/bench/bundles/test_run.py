import json
import shutil
from pathlib import Path

import pytest

from todm.bench.bundles.run import PLOT, RESULTS, Request, bench, plot, save, table
from todm.cli import main as cli
from todm.errors import BundleError, ConfigError

GOLDEN = Path(__file__).parents[2] / "device/golden"


@pytest.mark.runtime
def test_a_bench_has_a_row_for_every_setup_and_writes_it(tmp_path):
    request = Request(bundle=GOLDEN, runtimes=("onnxruntime",), threads=(1,), rounds=2)
    rows = bench(request)
    assert [(r.runtime, r.num_threads) for r in rows] == [("onnxruntime", 1)] * len(rows)
    assert {r.precision for r in rows} >= {"fp32"}
    for row in rows:
        assert 0 < row.p50_ms <= row.p95_ms <= row.p99_ms
        assert row.rtf_low <= row.rtf <= row.rtf_high
        assert row.footprint.peak_mb >= row.footprint.start_mb > 10
        assert row.footprint.load_seconds > 0
        assert len(row.chunks_ms) % 2 == 0  # both rounds, and not the warm-up
    save(rows, request, tmp_path)
    plot(rows, tmp_path / PLOT)
    written = json.loads((tmp_path / RESULTS).read_text())
    assert [r["precision"] for r in written["rows"]] == [r.precision for r in rows]
    assert (tmp_path / PLOT).read_bytes().startswith(b"\x89PNG")
    assert table(rows).count("\n") == len(rows) + 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rounds": 0}, "at least 1"),
        ({"threads": (0,)}, "at least 1"),
        ({"precisions": ("int3",)}, "unknown form 'int3'"),
    ],
)
def test_wrong_requests_are_errors(given, message):
    with pytest.raises(ConfigError, match=message):
        Request(bundle=GOLDEN, **given)


@pytest.mark.runtime
def test_an_unknown_runtime_and_a_bundle_without_recording(tmp_path):
    with pytest.raises(ConfigError, match="unknown runtime 'tvm'"):
        bench(Request(bundle=GOLDEN, runtimes=("tvm",)))
    with pytest.raises(BundleError):
        bench(Request(bundle=tmp_path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kernels", "--rounds", "3"], "--rounds is for"),
        (["kernels", "a.wav"], "audio is for"),
        ([str(GOLDEN), "--ops", "mh_ssm"], "--ops is for"),
        (["nowhere"], "not a directory"),
    ],
)
def test_flags_of_the_other_kind_are_refused(arguments, words, capsys):
    assert cli.main(["bench", *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


@pytest.mark.runtime
def test_the_verb_prints_a_table(tmp_path, capsys):
    bundle = shutil.copytree(GOLDEN, tmp_path / "bundle")
    arguments = ["--runtimes", "onnxruntime", "--threads", "1", "--rounds", "1"]
    assert cli.main(["bench", str(bundle), *arguments, "--out", str(tmp_path / "out")]) == 0
    assert "| onnxruntime | fp32 | 1 |" in capsys.readouterr().out
    assert (tmp_path / "out" / PLOT).is_file()

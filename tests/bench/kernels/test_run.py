"""The sequence of a run, on a fake op."""

import dataclasses
import json

import pytest
import torch

from tests.bench.kernels.made_up import BAD, GOOD, ROOFS, WORK, case_of
from todm.bench.kernels import clock, results, run
from todm.bench.kernels.case import Absent, Checked, Op, Subject
from todm.errors import ConfigError, MissingExtra


@dataclasses.dataclass
class Ticks:
    """A clock by which call number i of a name takes i milliseconds."""

    effort: clock.Effort = dataclasses.field(
        default_factory=lambda: clock.Effort(seconds=0.02, least=3, most=9)
    )
    unit: str = "ticks"

    def prepare(self, subject):
        return subject.run, "eager"

    def rounds(self, calls, repeats):
        seconds = {name: [] for name in calls}
        for i in range(repeats):
            for name, call in calls.items():
                call()
                seconds[name].append((i + 1) / 1e3)
        return seconds

    def peak_mb(self, call):
        return 7.0


@pytest.fixture
def fake(monkeypatch):
    """`fake(checks)` makes an op of two cases the only one; returns its log of calls."""
    monkeypatch.setattr(run, "clock_of", lambda device: Ticks())
    monkeypatch.setattr(run, "roofs_of", lambda device: ROOFS)

    def make(checks, *, cases=2):
        log = []

        def subjects(case, device):
            return [
                Absent(name, check)
                if isinstance(check, str)
                else Subject(
                    name=name,
                    run=lambda name=name: log.append((case.sizes["M"], name)),
                    check=check if callable(check) else lambda check=check: check,
                    work=WORK,
                    ours=name.startswith("ours"),
                )
                for name, check in checks.items()
            ]

        listed = [case_of(M=m + 1) for m in range(cases)]
        monkeypatch.setattr(
            run, "OPS", {"fake": Op("fake", lambda device: listed, subjects, baseline="peer")}
        )
        return log

    return make


def _run(tmp_path):
    """Status, what was shown, and the rows of the file."""
    shown = []
    request = run.Request(out=tmp_path)
    status = run.run(request, show=shown.append, progress=lambda line: None)
    return status, "\n".join(shown), json.loads((tmp_path / "kernels-cpu.json").read_text())


def test_a_case_is_checked_then_timed_in_turns(fake, tmp_path):
    log = fake({"ours": GOOD, "peer": GOOD}, cases=1)
    status, shown, content = _run(tmp_path)
    assert status == 0
    # Warm-up, an estimate of 2 ms a round, and of the ten that fit into 20 ms the nine allowed.
    assert log == [(1, "ours"), (1, "peer")] * (1 + 1 + 9)
    assert "| quick M1 float32 | ours | 5 | 1.8 to 8.2 | 1.00 | 7.0 | 40% | 1.0e-06 |" in shown
    ours = content["rows"][0]["figures"]
    assert ours["repeats"] == 9
    assert ours["median_ms"] == pytest.approx(5)
    assert ours["p90_ms"] == pytest.approx(8.2)


@pytest.mark.parametrize(
    "broken",
    [
        BAD,
        Checked(error=float("nan"), allowed=1.0),
        lambda: (_ for _ in ()).throw(RuntimeError("illegal memory access")),
    ],
    ids=["wrong", "NaN", "raises"],
)
def test_an_op_that_fails_its_check_is_not_timed(fake, tmp_path, broken):
    log = fake({"ours": GOOD, "ours too": broken, "peer": GOOD})
    status, shown, content = _run(tmp_path)
    assert status == 1
    assert log == []
    assert [r["state"] for r in content["rows"]] == ["not timed", "failed", "not timed"]
    assert all(r["figures"] is None for r in content["rows"])
    assert "| ours too | failed" in shown
    assert not list(tmp_path.glob("*.png"))


def test_a_peer_that_is_wrong_or_refuses_is_left_out(fake, tmp_path):
    def refuse():
        raise NotImplementedError("no kernel for this size\nand more")

    log = fake({"ours": GOOD, "peer": BAD, "other": refuse, "third": "not installed"}, cases=1)
    status, shown, content = _run(tmp_path)
    assert status == 0
    assert {name for _, name in log} == {"ours"}
    assert [r["state"] for r in content["rows"]] == ["measured", "failed", "absent", "absent"]
    assert "absent: no kernel for this size |" in shown
    assert "1.0e-03 (allowed 1e-05)" in shown


def test_the_file_records_what_figures_depend_on(fake, tmp_path):
    fake({"ours": GOOD, "peer": "not installed"}, cases=1)
    content = _run(tmp_path)[2]
    assert content["format"] == results.FORMAT
    assert content["command"] == "todm bench kernels --shapes quick --device cpu"
    assert content["time"] == "ticks"
    assert content["date"].endswith("+00:00")
    assert {"commit", "machine", "roofs", "rows"} < set(content)
    assert {"device", "cores", "threads", "torch", "triton", "torchaudio"} < set(content["machine"])
    assert content["roofs"]["source"] == "measured"
    measured, absent = content["rows"]
    assert set(measured) == set(absent) == {
        "op", "shape", "sizes", "dtype", "subject", "ours", "state", "reason", "check", "work", "figures",
    }  # fmt: skip
    assert set(measured["figures"]) == {
        "mode", "repeats", "median_ms", "p10_ms", "p90_ms", "peak_mb",
    }  # fmt: skip
    assert absent["reason"] == "not installed"
    assert absent["check"] is absent["work"] is absent["figures"] is None


def test_measurements_before_an_interruption_are_kept(fake, tmp_path):
    calls = []

    def stop():
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return GOOD

    fake({"ours": stop})
    status, shown, content = _run(tmp_path)
    assert status == 130
    assert [r["state"] for r in content["rows"]] == ["measured"]
    assert "interrupted: 1 rows" in shown
    assert (tmp_path / "kernels-cpu.png").is_file()


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (run.Request(ops=("matmul_w5",)), "unknown op 'matmul_w5'; choose from rnnt_loss, mh_ssm"),
        (run.Request(shapes="huge"), "unknown shape 'huge'; choose from quick, full"),
        (run.Request(ops=("mh_ssm",), shapes="llama-8b"), "choose from quick, full, encoder-512"),
    ],
    ids=["op", "shape", "shape of another op"],
)
def test_unknown_names_are_errors_that_list_the_known_ones(request_, words):
    with pytest.raises(ConfigError, match=words):
        request_.plan()


def test_a_missing_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="use --device cpu"):
        run.Request(device="cuda").plan()


@pytest.mark.parametrize("package", ["triton", "matplotlib"])
def test_a_missing_package_is_named_before_anything_runs(monkeypatch, package):
    found = run.importlib.util.find_spec
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        run.importlib.util, "find_spec", lambda name: None if name == package else found(name)
    )
    with pytest.raises(MissingExtra, match=package):
        run.Request(device="cuda").plan()


def test_a_run_of_some_ops_has_a_file_of_its_own():
    request = run.Request(ops=("mh_ssm", "rnnt_loss"), shapes="full")
    assert request.stem() == "kernels-cpu-rnnt_loss-mh_ssm"
    assert request.command().endswith("--shapes full --device cpu --ops mh_ssm,rnnt_loss")

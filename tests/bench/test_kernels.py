"""The method of `todm bench kernels`, on a fake op; and that the checks of the real ones can fail."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

import todm
from todm.bench.kernels import (
    clock,
    machine,
    op_matmul_24,
    op_matmul_w4,
    op_mh_ssm,
    op_rnnt_loss,
    plots,
    results,
    run,
)
from todm.bench.kernels.aims import AIMS, Aim, judge, times, times_bound
from todm.bench.kernels.case import Absent, Case, Checked, Op, Subject, Work, compare, peer
from todm.bench.kernels.linears import Layer
from todm.errors import ConfigError, MissingExtra

WORK = Work(flops=2e6, bytes=1e6, unit="float32")
ROOFS = machine.Roofs(source="measured", bytes_per_s=1e9, flops_per_s={"float32": 1e9})
GOOD, BAD = Checked(error=1e-6, allowed=1e-5), Checked(error=1e-3, allowed=1e-5)


def _case(op="fake", **sizes):
    return Case(op=op, shape="quick", sizes=sizes or {"M": 2}, dtype="float32", quick=True)


def _row(case, subject, ms=None, *, work=WORK, peak_mb=None, ours=True):
    figures = None
    if ms is not None:
        spread = {"median_ms": ms, "p10_ms": 0.9 * ms, "p90_ms": 1.1 * ms}
        figures = clock.Figures(mode="eager", repeats=5, **spread, peak_mb=peak_mb)
    return results.Row(
        case=case, subject=subject, ours=ours, state="measured", work=work, figures=figures
    )


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

        listed = [_case(M=m + 1) for m in range(cases)]
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


def test_the_file_says_what_a_figure_depends_on(fake, tmp_path):
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


def test_interrupted_what_was_measured_stays(fake, tmp_path):
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
        (run.Request(ops=("matmul_w5",)), "no op 'matmul_w5': choose among rnnt_loss, mh_ssm"),
        (run.Request(shapes="huge"), "no shape 'huge' here: choose among quick, full"),
        (run.Request(ops=("mh_ssm",), shapes="llama-8b"), "choose among quick, full, encoder-512"),
    ],
    ids=["op", "shape", "shape of another op"],
)
def test_what_is_unknown_is_said_with_what_is_known(request_, words):
    with pytest.raises(ConfigError, match=words):
        request_.plan()


def test_a_gpu_that_is_not_there(monkeypatch):
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


def _aim(**changes):
    settings = {"op": "fake", "text": "fast [test]", "device": "H200", "limit": 2.0}
    return Aim(**({**settings, "measure": times("peer", "ours"), "at_most": False} | changes))


@pytest.mark.parametrize(
    ("aim", "device", "verdict", "words"),
    [
        (
            _aim(),
            "NVIDIA H200",
            "missed",
            "1 of 2 cases; worst 1.5 at quick M2 float32; at least 2",
        ),
        (_aim(limit=1.5), "NVIDIA H200", "met", "2 of 2 cases; worst 1.5"),
        (_aim(at_most=True, limit=3), "NVIDIA H200", "missed", "1 of 2 cases; worst 4"),
        (_aim(applies=lambda c: c.sizes["M"] == 1), "NVIDIA H200", "met", "1 of 1"),
        (_aim(measure=times("peer", "gone")), "NVIDIA H200", "not measured", "not measured"),
        (_aim(), "NVIDIA A100-SXM4-80GB", "not measured", "not measured"),
        (_aim(device="cpu", limit=1), "cpu", "met", "2 of 2"),
    ],
    ids=["missed", "met", "at most", "one case", "no such subject", "another GPU", "cpu"],
)
def test_an_aim_is_judged_by_its_worst_case(aim, device, verdict, words):
    one, two = _case(M=1), _case(M=2)
    rows = [_row(one, "ours", 1), _row(one, "peer", 4), _row(two, "ours", 2), _row(two, "peer", 3)]
    (found,) = judge(rows, ops=["fake"], device=device, roofs=ROOFS, aims=[aim])
    assert found.verdict == verdict
    assert words in found.line()


def test_on_a_cpu_only_its_own_aims_apply():
    aims = [_aim(), _aim(device="cpu"), _aim(device="cpu", op="other")]
    found = judge([], ops=["fake"], device="cpu", roofs=ROOFS, aims=aims)
    assert [r.aim for r in found] == [aims[1]]
    assert [r.verdict for r in found] == ["not measured"]


def test_the_memory_bound_is_that_of_the_bytes():
    group = {"ours": _row(_case(), "ours", 3)}
    assert times_bound("ours")(group, ROOFS) == pytest.approx(3)  # 1e6 bytes at 1e9 a second
    assert ROOFS.seconds(WORK) == pytest.approx(2e-3)  # and 2e6 operations at as many


@pytest.mark.parametrize("aim", AIMS, ids=lambda a: f"{a.op}: {a.text}")
def test_every_aim_has_a_case_to_be_judged_by(aim):
    cases = run.OPS[aim.op].cases("cpu" if aim.device == "cpu" else "cuda")
    assert any(aim.applies(case) for case in cases)


@pytest.mark.parametrize("aim", AIMS, ids=lambda a: f"{a.op}: {a.text}")
def test_every_aim_is_about_subjects_that_are_measured(monkeypatch, aim):
    """The names that a GPU has; nothing is run."""
    op = run.OPS[aim.op]
    if aim.device != "cpu":
        module = sys.modules[op.subjects.__module__]
        monkeypatch.setattr(module, "impls", lambda device: ("triton", "torch"), raising=False)
        monkeypatch.setattr(op_matmul_24.semi, "library", lambda device: "cusparselt")
    case = next(c for c in op.cases("cpu") if c.quick)
    names = [s.name for s in op.subjects(case, "cpu") if isinstance(s, Subject)]
    group = {n: _row(case, n, 1 if n == "sparse int8" else 2, peak_mb=1) for n in names}
    assert aim.measure(group, ROOFS) is not None


def test_a_nan_anywhere_fails():
    one, nan = torch.ones(2), torch.tensor([1.0, float("nan")])
    assert compare([one], [one], allowed=0.0).passed
    assert not compare([one, nan, one], [one] * 3, allowed=9.0).passed
    assert not compare([one], [one], allowed=9.0, whole=[nan]).passed


@pytest.mark.parametrize("name", list(run.OPS))
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["cpu", "cuda"]
)
def test_every_subject_of_the_smallest_case_passes(name, device):
    op = run.OPS[name]
    case = next(c for c in op.cases(device) if c.quick)
    subjects = [s for s in op.subjects(case, device) if isinstance(s, Subject)]
    assert {op.baseline} < {s.name for s in subjects}
    found = {s.name: s.check() for s in subjects}
    assert [name for name, checked in found.items() if not checked.passed] == []
    assert all(s.work.flops > 0 and s.work.bytes > 0 for s in subjects)


def _failed(op, case, name):
    subject = next(s for s in op.subjects(case, "cpu") if s.name == name)
    return not subject.check().passed


def test_the_check_of_a_layer_sees_one_wrong_output():
    layer = Layer.draw(_case(M=16, N=32, K=32), "cpu")

    def off():
        y = layer.x_MK @ layer.weight_NK.t()
        y[-1, -1] += 1
        return y

    assert not layer.check(off, layer.product(layer.weight_NK)).passed


def test_the_check_of_mh_ssm_sees_a_wrong_gradient(monkeypatch):
    def wrong(u, ssm):
        return op_fft(u, ssm._replace(angle_HN=ssm.angle_HN.detach() + 0 * ssm.angle_HN))

    op_fft = op_mh_ssm.fft_convolution
    case = dataclasses.replace(
        next(iter(op_mh_ssm.OP.cases("cpu"))), sizes={**dict.fromkeys("HTBPN", 4)}
    )
    assert not _failed(op_mh_ssm.OP, case, "FFT")
    monkeypatch.setattr(op_mh_ssm, "fft_convolution", wrong)
    assert _failed(op_mh_ssm.OP, case, "FFT")


def test_the_check_of_rnnt_loss_sees_a_wrong_gradient(monkeypatch):
    def wrong(enc, *rest, impl, **options):
        frozen = enc.detach() + 0 * enc if impl == "torchaudio" else enc
        return op_rnnt(frozen, *rest, impl=impl, **options)

    op_rnnt = op_rnnt_loss.rnnt_loss
    case = dataclasses.replace(_case("rnnt_loss"), sizes={"B": 2, "T": 6, "U": 3, "V": 9, "J": 8})
    monkeypatch.setattr(op_rnnt_loss, "rnnt_loss", wrong)
    assert not _failed(op_rnnt_loss.OP, case, "torch + distillation")
    assert _failed(op_rnnt_loss.OP, case, "torchaudio")


def test_a_peer_is_absent_with_its_reason():
    def refuse():
        raise RuntimeError("needs compute capability 9.0\n(stack)")

    assert peer("x", "no_such_package", refuse).reason == "no_such_package is not installed"
    assert peer("x", "torch", refuse).reason == "needs compute capability 9.0"


def test_words_of_the_gathering_kernel_hold_eight_inputs():
    codes = torch.randint(0, 16, (3, 32), dtype=torch.uint8)
    words = op_matmul_w4.words(codes)
    assert words.shape == (4, 3)
    back = torch.stack([words[k // 8] >> 4 * (k % 8) & 15 for k in range(32)], 1)
    assert torch.equal(back.to(torch.uint8), codes)


def test_calls_take_turns_on_a_cpu():
    log = []
    seconds = clock.CpuClock().rounds({n: lambda n=n: log.append(n) for n in "ab"}, 3)
    assert "".join(log) == "ababab"
    assert [len(s) for s in seconds.values()] == [3, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is set back on Linux only")
def test_peak_memory_on_a_cpu_is_of_the_call_alone():
    watch, kept = clock.CpuClock(), torch.ones(64 << 20, dtype=torch.int8)
    assert watch.peak_mb(lambda: torch.ones(32 << 20, dtype=torch.int8)) == pytest.approx(
        33.5, abs=8
    )
    assert watch.peak_mb(lambda: kept[:8].clone()) < 8


@pytest.mark.gpu
def test_a_graph_is_replayed_on_a_gpu():
    x = torch.randn(64, 64, device="cuda")
    subject = Subject(name="a", run=lambda: x @ x, check=lambda: GOOD, work=WORK, graph=True)
    found = clock.measure({"a": subject}, clock.CudaClock())["a"]
    assert found.mode == "graph"
    assert found.peak_mb == pytest.approx(64 * 64 * 4 / 1e6, rel=0.5)


@pytest.mark.gpu
def test_what_cannot_be_captured_is_timed_as_it_is():
    x = torch.randn(8, device="cuda")
    subject = Subject(
        name="a", run=lambda: x.sum().item(), check=lambda: GOOD, work=WORK, graph=True
    )
    assert clock.measure({"a": subject}, clock.CudaClock())["a"].mode == "eager"


def test_the_commit_is_that_of_the_code(monkeypatch, tmp_path):
    monkeypatch.setattr(todm, "__file__", str(tmp_path / "todm" / "__init__.py"))
    assert machine.commit() is None


def test_a_roofline_is_drawn_of_what_was_measured(tmp_path):
    far = Work(flops=2e9, bytes=1e6, unit="int8")  # as far to the right as lattices are
    rows = [_row(_case(), "ours", 2), _row(_case(), "peer", ours=False)]
    rows += [_row(_case(M=9), "ours", 2, work=far), *(_row(_case(op), "ours", 1) for op in "abc")]
    plots.roofline(rows, tmp_path / "roof.png", roofs=machine.SHEETS["NVIDIA H200"], device="fake")
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")


def test_the_gather_is_drawn_only_where_it_was_measured(tmp_path):
    path = Path(tmp_path / "order.png")
    cases = [_case("matmul_w4", M=m, N=8, K=8) for m in (1, 16)]
    rows = [_row(c, name, 2) for c in cases for name in ("triton", "in order")]
    assert not plots.act_order(rows, path, device="fake")
    rows += [_row(c, "act order") for c in cases]
    assert not plots.act_order(rows, path, device="fake")
    rows += [_row(c, "act order", 3) for c in cases]
    assert plots.act_order(rows, path, device="fake")
    assert path.is_file()

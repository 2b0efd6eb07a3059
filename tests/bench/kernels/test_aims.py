import sys

import pytest

from tests.bench.kernels.made_up import ROOFS, WORK, case_of, row_of
from todm.bench.kernels import op_matmul_24, run
from todm.bench.kernels.aims import AIMS, Aim, judge, times, times_bound
from todm.bench.kernels.case import Subject


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
def test_an_aim_is_judged_by_its_worstcase_of(aim, device, verdict, words):
    one, two = case_of(M=1), case_of(M=2)
    rows = [
        row_of(one, "ours", 1),
        row_of(one, "peer", 4),
        row_of(two, "ours", 2),
        row_of(two, "peer", 3),
    ]
    (found,) = judge(rows, ops=["fake"], device=device, roofs=ROOFS, aims=[aim])
    assert found.verdict == verdict
    assert words in found.line()


def test_on_a_cpu_only_its_own_aims_apply():
    aims = [_aim(), _aim(device="cpu"), _aim(device="cpu", op="other")]
    found = judge([], ops=["fake"], device="cpu", roofs=ROOFS, aims=aims)
    assert [r.aim for r in found] == [aims[1]]
    assert [r.verdict for r in found] == ["not measured"]


def test_the_memory_bound_is_that_of_the_bytes():
    group = {"ours": row_of(case_of(), "ours", 3)}
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
    group = {n: row_of(case, n, 1 if n == "sparse int8" else 2, peak_mb=1) for n in names}
    assert aim.measure(group, ROOFS) is not None

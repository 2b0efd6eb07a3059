from pathlib import Path

from tests.bench.kernels.made_up import case_of, row_of
from todm.bench.kernels import machine, plots
from todm.bench.kernels.case import Work


def test_a_roofline_is_drawn_of_what_was_measured(tmp_path):
    far = Work(flops=2e9, bytes=1e6, unit="int8")  # as far to the right as lattices are
    rows = [row_of(case_of(), "ours", 2), row_of(case_of(), "peer", ours=False)]
    rows += [
        row_of(case_of(M=9), "ours", 2, work=far),
        *(row_of(case_of(op), "ours", 1) for op in "abc"),
    ]
    plots.roofline(rows, tmp_path / "roof.png", roofs=machine.SHEETS["NVIDIA H200"], device="fake")
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")


def test_the_gather_is_drawn_only_where_it_was_measured(tmp_path):
    path = Path(tmp_path / "order.png")
    cases = [case_of("matmul_w4", M=m, N=8, K=8) for m in (1, 16)]
    rows = [row_of(c, name, 2) for c in cases for name in ("triton", "in order")]
    assert not plots.act_order(rows, path, device="fake")
    rows += [row_of(c, "act order") for c in cases]
    assert not plots.act_order(rows, path, device="fake")
    rows += [row_of(c, "act order", 3) for c in cases]
    assert plots.act_order(rows, path, device="fake")
    assert path.is_file()

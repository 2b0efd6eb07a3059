"""A case, rows and figures that were made up."""

from todm.bench.kernels import clock, machine, results
from todm.bench.kernels.case import Case, Checked, Work

WORK = Work(flops=2e6, bytes=1e6, unit="float32")
ROOFS = machine.Roofs(source="measured", bytes_per_s=1e9, flops_per_s={"float32": 1e9})
GOOD, BAD = Checked(error=1e-6, allowed=1e-5), Checked(error=1e-3, allowed=1e-5)


def case_of(op="fake", **sizes):
    return Case(op=op, shape="quick", sizes=sizes or {"M": 2}, dtype="float32", quick=True)


def row_of(case, subject, ms=None, *, work=WORK, peak_mb=None, ours=True):
    figures = None
    if ms is not None:
        spread = {"median_ms": ms, "p10_ms": 0.9 * ms, "p90_ms": 1.1 * ms}
        figures = clock.Figures(mode="eager", repeats=5, **spread, peak_mb=peak_mb)
    return results.Row(
        case=case, subject=subject, ours=ours, state="measured", work=work, figures=figures
    )

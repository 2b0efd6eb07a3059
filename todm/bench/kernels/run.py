"""The run: every case of the requested ops, checked, then timed; saved after each case."""

import dataclasses
import importlib.util
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from todm.bench.kernels import op_matmul_24, op_matmul_int8, op_matmul_w4, op_mh_ssm, op_rnnt_loss
from todm.bench.kernels.aims import judge
from todm.bench.kernels.case import SHOWN, UNABLE, Absent, Case, Checked, Op, Subject
from todm.bench.kernels.clock import Clock, clock_of, measure
from todm.bench.kernels.machine import Roofs, commit, describe, device_name, now, roofs_of
from todm.bench.kernels.plots import act_order, roofline
from todm.bench.kernels.results import Row, save, table
from todm.errors import ConfigError, MissingExtra, first_line

OPS = {
    op.name: op
    for op in (
        op_rnnt_loss.OP,
        op_mh_ssm.OP,
        op_matmul_int8.OP,
        op_matmul_w4.OP,
        op_matmul_24.OP,
    )
}
SETS = ("quick", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure.

    Attributes:
        ops: names; all of `OPS` if empty.
        shapes: `quick`, `full`, or the name of a shape.
        device: `cpu` or `cuda`.
        out: directory for the results.
    """

    ops: tuple[str, ...] = ()
    shapes: str = "quick"
    device: str = "cpu"
    out: Path = Path("benchmarks/results")

    def plan(self) -> dict[Op, list[Case]]:
        """The cases of each op.

        Raises:
            ConfigError: an unknown op or shape, or a missing device.
            MissingExtra: a package that the run needs is not installed.
        """
        unknown = [name for name in self.ops if name not in OPS]
        if unknown:
            raise ConfigError(f"--ops: unknown op {unknown[0]!r}; choose from {', '.join(OPS)}")
        _check_device(self.device)
        chosen = [op for name, op in OPS.items() if name in (self.ops or OPS)]
        cases = {op: list(op.cases(self.device)) for op in chosen}
        plan = {op: [c for c in found if self._wants(c)] for op, found in cases.items()}
        if not any(plan.values()):
            names = dict.fromkeys(c.shape for found in cases.values() for c in found)
            allowed = ", ".join(dict.fromkeys((*SETS, *names)))
            raise ConfigError(f"--shapes: unknown shape {self.shapes!r}; choose from {allowed}")
        return plan

    def command(self) -> str:
        """The command that measures the same, without the directory of the results."""
        words = ["todm", "bench", "kernels", "--shapes", self.shapes, "--device", self.device]
        return shlex.join([*words, *(["--ops", ",".join(self.ops)] if self.ops else [])])

    def stem(self) -> str:
        """Stem of the files, so that runs of other ops or on another device do not overwrite each other."""
        return "-".join(["kernels", self.device, *(op for op in OPS if op in self.ops)])

    def _wants(self, case: Case) -> bool:
        return self.shapes == "full" or (
            case.quick if self.shapes == "quick" else case.shape == self.shapes
        )


def run(request: Request, *, show: Callable[[str], None], progress: Callable[[str], None]) -> int:
    """Measure; after an interruption, finished measurements are kept and shown.

    Args:
        request: what to measure.
        show: takes tables and aims.
        progress: takes a line for each case.

    Returns:
        0; 1 if a check of ours failed; 130 if the run was interrupted.

    Raises:
        ConfigError: see `Request.plan`.
        MissingExtra: see `Request.plan`.
    """
    plan = request.plan()
    path = request.out / f"{request.stem()}.json"
    request.out.mkdir(parents=True, exist_ok=True)
    head = {"command": request.command(), "date": now(), "commit": commit()}
    head |= {"machine": describe(request.device)}
    roofs, clock = roofs_of(request.device), clock_of(request.device)
    head["time"] = clock.unit
    rows: list[Row] = []
    status = 0
    try:
        for op, case in ((op, case) for op, cases in plan.items() for case in cases):
            if refused([row for row in rows if row.case.op == op.name]):
                continue
            progress(f"{op.name}: {case.label()}")
            rows += measure_case(op, case, clock=clock, device=request.device)
            save(path, rows, head=head, roofs=roofs)
        status = int(refused(rows))
    except KeyboardInterrupt:
        status = 130
    for op in plan:
        if any(row.case.op == op.name for row in rows):
            show(table(op.name, rows, roofs=roofs, baseline=op.baseline) + "\n")
    _conclude(request, rows, roofs=roofs, show=show)
    if status == 130:
        show(f"interrupted: {len(rows)} rows were measured")
    return status


def refused(rows: Sequence[Row]) -> bool:
    """Whether one of ours failed its check, so that its op is not timed."""
    return any(row.ours and row.state == "failed" for row in rows)


def measure_case(op: Op, case: Case, *, clock: Clock, device: str) -> list[Row]:
    """Check all subjects of a case, then time those that passed, unless one of ours failed."""
    found = op.subjects(case, device)
    rows = [_checked(case, subject) for subject in found]
    subjects = {s.name: s for s in found if isinstance(s, Subject)}
    if refused(rows):
        reason = "a check of this op failed"
        return [
            dataclasses.replace(row, state="not timed", reason=reason)
            if row.state == "measured"
            else row
            for row in rows
        ]
    passed = [row.subject for row in rows if row.state == "measured"]
    figures = measure({name: subjects[name] for name in passed}, clock) if passed else {}
    return [dataclasses.replace(row, figures=figures.get(row.subject)) for row in rows]


def _checked(case: Case, subject: Subject | Absent) -> Row:
    """The row of a subject before it is timed."""
    if isinstance(subject, Absent):
        return Row(
            case=case, subject=subject.name, ours=False, state="absent", reason=subject.reason
        )
    row = Row(
        case=case, subject=subject.name, ours=subject.ours, state="measured", work=subject.work
    )
    try:
        checked: Checked = subject.check()
    except UNABLE as error:
        state = "failed" if subject.ours else "absent"
        return dataclasses.replace(row, state=state, reason=first_line(error, SHOWN))
    state = "measured" if checked.passed else "failed"
    return dataclasses.replace(row, state=state, check=checked)


def _conclude(
    request: Request, rows: Sequence[Row], *, roofs: Roofs, show: Callable[[str], None]
) -> None:
    """Aims and plots of the rows."""
    device = request.device if request.device == "cpu" else device_name(request.device)
    results = judge(rows, ops=request.ops or tuple(OPS), device=device, roofs=roofs)
    if results:
        show("\n".join(["aims", "", *(f"- {r.line()}" for r in results)]) + "\n")
    if not rows:
        return
    stem, name = request.out / request.stem(), device_name(request.device)
    show(f"figures: {stem}.json")
    if any(row.figures is not None for row in rows):
        roofline(rows, Path(f"{stem}.png"), roofs=roofs, device=name)
        show(f"roofline: {stem}.png")
    if act_order(rows, Path(f"{stem}-act-order.png"), device=name):
        show(f"act order: {stem}-act-order.png")


def _check_device(device: str) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra("matplotlib", "train", "todm bench kernels")
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here; use --device cpu")
    if importlib.util.find_spec("triton") is None:
        raise MissingExtra("triton", "train", "todm bench kernels --device cuda")

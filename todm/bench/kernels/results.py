"""The rows of a run, their tables, and their file."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from todm.bench.kernels.case import Case, Checked, Work
from todm.bench.kernels.clock import Figures
from todm.bench.kernels.machine import Roofs
from todm.files import markdown_table, write_text

FORMAT = 1
State = Literal["measured", "absent", "failed", "not timed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A subject of a case.

    Attributes:
        case: the problem.
        subject: its name.
        ours: whether it is one of our implementations.
        state: `measured`; `absent`, a peer that cannot run here; `failed`, its check; `not timed`,
            because a check of the same case failed.
        reason: for every state except `measured`.
        check: the error and the allowed error, if it ran.
        work: the least that it has to do, if it ran.
        figures: if it was measured.
    """

    case: Case
    subject: str
    ours: bool
    state: State
    reason: str = ""
    check: Checked | None = None
    work: Work | None = None
    figures: Figures | None = None


def groups(rows: Sequence[Row]) -> Iterator[tuple[Case, dict[str, Row]]]:
    """Rows of each case by subject, in order."""
    cases = {row.case.label(): row.case for row in rows}
    for label, case in cases.items():
        yield case, {r.subject: r for r in rows if r.case.label() == label}


def table(op: str, rows: Sequence[Row], *, roofs: Roofs, baseline: str) -> str:
    """The rows of an op in Markdown; a case's sizes are named once.

    `x` is the baseline's time by the subject's: above 1 is faster. `of roof` is the least time that
    the device's roofs allow by the time taken.
    """
    head = "sizes", "", "ms", "p10 to p90", f"x {baseline}", "peak MB", "of roof", "error"
    lines = [
        [case.label() if i == 0 else "", *_cells(row, group.get(baseline), roofs)]
        for case, group in groups([r for r in rows if r.case.op == op])
        for i, row in enumerate(group.values())
    ]
    return f"{op}\n\n{markdown_table(head, lines)}"


def _cells(row: Row, base: Row | None, roofs: Roofs) -> list[str]:
    found, checked, work = row.figures, row.check, row.work
    error = "" if checked is None else f"{checked.error:.1e}"
    if found is None or work is None:
        if row.state == "failed" and checked is not None:
            error += f" (allowed {checked.allowed:.0e})"
        shown = row.state if not row.reason else f"{row.state}: {row.reason}"
        return [row.subject, shown, "", "", "", "", error]
    ratio = ""
    if base is not None and base.figures is not None:
        ratio = f"{base.figures.median_ms / found.median_ms:.2f}"
    mode = " (graph)" if found.mode == "graph" else ""
    return [
        row.subject + mode,
        f"{found.median_ms:.4g}",
        f"{found.p10_ms:.4g} to {found.p90_ms:.4g}",
        ratio,
        "" if found.peak_mb is None else f"{found.peak_mb:.1f}",
        f"{1e3 * roofs.seconds(work) / found.median_ms:.0%}",
        error,
    ]


def save(path: Path, rows: Sequence[Row], *, head: dict[str, Any], roofs: Roofs) -> None:
    """Write all rows so far, completely or not at all."""
    content = {
        "format": FORMAT,
        **head,
        "roofs": dataclasses.asdict(roofs),
        "rows": [_entry(row) for row in rows],
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def _entry(row: Row) -> dict[str, Any]:
    """A flat entry; missing figures are null."""
    case = row.case
    entry: dict[str, Any] = {"op": case.op, "shape": case.shape, "sizes": dict(case.sizes)}
    entry |= {"dtype": case.dtype, "subject": row.subject, "ours": row.ours}
    entry |= {"state": row.state, "reason": row.reason or None}
    parts = (("check", row.check), ("work", row.work), ("figures", row.figures))
    return entry | {n: None if p is None else dataclasses.asdict(p) for n, p in parts}

"""Plots of a run: the roofline of each op, and the cost of an act-order gather."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from todm.bench.kernels.machine import Roofs
from todm.bench.kernels.results import Row, groups

ACT_ORDER = ("triton", "act order", "in order", "F.linear")
"""Subjects of matmul_w4 in the second plot."""
_MARKERS = "osD^vPX*"


def roofline(rows: Sequence[Row], path: Path, *, roofs: Roofs, device: str) -> None:
    """Operations per second over operations per byte, one axis for each op, with the device's roofs.

    Args:
        rows: of a run, at least one of them measured; the others are left out.
        path: PNG to write.
        roofs: of the device.
        device: its name.
    """
    measured = [r for r in rows if r.figures is not None and r.work is not None]
    ops = list(dict.fromkeys(r.case.op for r in measured))
    figure, axes = _grid(len(ops), columns=3, size=(5, 4))
    for axis, op in zip(axes.flat, ops, strict=False):
        axis.set(xscale="log", yscale="log")  # first: limits in a linear scale may be negative
        _draw_points(axis, [r for r in measured if r.case.op == op])
        _draw_roofs(axis, roofs)
        axis.set(title=op, xlabel="operations per byte (least work)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in axes[:, 0]:
        axis.set_ylabel("10$^9$ operations per second (least work)")
    figure.suptitle(f"{device}; roofs: {roofs.source}", fontsize=10)
    figure.savefig(path, dpi=110)


def act_order(rows: Sequence[Row], path: Path, *, device: str) -> bool:
    """Time over rows of the activation, by layer: groups in order, and groups read through an index.

    Returns:
        Whether there was enough to draw: a layer with the gather at two or more numbers of rows.
    """
    layers: dict[tuple[int, int], list[tuple[int, dict[str, Row]]]] = {}
    for case, group in groups([r for r in rows if r.case.op == "matmul_w4"]):
        if "act order" in group and group["act order"].figures is not None:
            layer = (case.sizes["N"], case.sizes["K"])
            layers.setdefault(layer, []).append((case.sizes["M"], group))
    shown = {layer: found for layer, found in layers.items() if len(found) > 1}
    if not shown:
        return False
    figure, axes = _grid(len(shown), columns=4, size=(4.2, 3.6))
    for axis, ((N, K), found) in zip(axes.flat, sorted(shown.items()), strict=False):
        _draw_times(axis, found)
        axis.set(title=f"N = {N}, K = {K}", xlabel="M, rows", xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("ms, median, p10 to p90")
    axes[0][0].legend(fontsize=7)
    figure.suptitle(f"4-bit layer, groups in order and by act-order index; {device}", fontsize=10)
    figure.savefig(path, dpi=110)
    return True


def _draw_points(axis: Any, rows: Sequence[Row]) -> None:  # noqa: ANN401 - matplotlib's own types
    for i, name in enumerate(dict.fromkeys(r.subject for r in rows)):
        points = [_point(r) for r in rows if r.subject == name]
        ours = next(r.ours for r in rows if r.subject == name)
        face = {"markerfacecolor": f"C{i % 10}" if ours else "none"}
        marker, color = _MARKERS[i % len(_MARKERS)], f"C{i % 10}"
        axis.plot(*zip(*points, strict=True), marker, color=color, label=name, **face)


def _point(row: Row) -> tuple[float, float]:
    assert row.work is not None and row.figures is not None
    return row.work.flops / row.work.bytes, row.work.flops / (1e6 * row.figures.median_ms)


def _draw_roofs(axis: Any, roofs: Roofs) -> None:  # noqa: ANN401
    """The slope of the memory, up to each compute roof, which is a level line."""
    low, high = axis.get_xlim()
    ridges = [peak / roofs.bytes_per_s for peak in roofs.flops_per_s.values()]
    low = 10 ** math.floor(math.log10(min(low, min(ridges) / 4)))
    high = 10 ** math.ceil(math.log10(max(high, max(ridges) * 4)))
    bandwidth = roofs.bytes_per_s / 1e9
    for (unit, peak), ridge in zip(roofs.flops_per_s.items(), ridges, strict=True):
        level = peak / 1e9
        axis.plot([low, ridge, high], [low * bandwidth, level, level], "k-", lw=0.8, alpha=0.6)
        where = {"xy": (high, level), "ha": "right", "va": "bottom"}
        axis.annotate(f"{unit} {peak / 1e12:.3g} T/s", fontsize=7, **where)
    axis.annotate(f"  {bandwidth:.0f} GB/s", (low, low * bandwidth), fontsize=7, va="top")
    axis.set_xlim(low, high)


def _draw_times(axis: Any, found: Sequence[tuple[int, dict[str, Row]]]) -> None:  # noqa: ANN401
    for name in ACT_ORDER:
        points = [
            (M, f.median_ms, f.median_ms - f.p10_ms, f.p90_ms - f.median_ms)
            for M, group in sorted(found, key=lambda item: item[0])
            if name in group and (f := group[name].figures) is not None
        ]
        if points:
            M, median, below, above = zip(*points, strict=True)
            axis.errorbar(M, median, yerr=[below, above], marker="o", ms=3, capsize=2, label=name)


def _grid(count: int, *, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure with at least so many axes of a size, in rows; spare ones are hidden."""
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, axes

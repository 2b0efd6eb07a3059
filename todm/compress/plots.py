"""Plots of a compression: the error of every layer, the curves of trainings, the cost of layers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm.compress.report import PassReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST = 1e-9  # an error of zero has no place on a logarithmic axis


def plot_report(reports: Sequence[PassReport], out: Path) -> None:
    """Error of each layer's outputs after every pass; below it the curves of passes that train.

    Args:
        reports: one per pass.
        out: the PNG to write.
    """
    from matplotlib.figure import Figure

    trained = [report for report in reports if report.curves]
    names = [row.name for row in reports[-1].rows if row.after is not None]
    height = 2.0 + 0.18 * len(names)
    figure = Figure(figsize=(9, height + 3 * len(trained)), layout="constrained")
    ratios = [height, *[3.0] * len(trained)]
    axes = figure.subplots(1 + len(trained), height_ratios=ratios, squeeze=False)
    _errors(axes[0, 0], reports, names)
    for axis, report in zip(axes[1:, 0], trained, strict=True):
        _curves(axis, report)
    figure.savefig(out, dpi=100)


def plot_sensitivity(increases: Mapping[str, float], excluded: Sequence[str], out: Path) -> None:
    """The cost of each layer alone, the largest first.

    Args:
        increases: relative increase of the measure by name of a layer, or of a kind of layers.
        excluded: those recommended for exclusion.
        out: the PNG to write.
    """
    from matplotlib.figure import Figure

    names = sorted(increases, key=lambda name: increases[name])
    figure = Figure(figsize=(9, 1.5 + 0.2 * len(names)), layout="constrained")
    axis = figure.subplots()
    colours = ["tab:red" if name in excluded else "tab:blue" for name in names]
    axis.barh(names, [100 * increases[name] for name in names], color=colours)
    axis.set(xlabel="increase with this alone compressed, %", title="red: better excluded")
    axis.tick_params(axis="y", labelsize=7)
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(out, dpi=100)


def _errors(axis: "Axes", reports: Sequence[PassReport], names: Sequence[str]) -> None:
    for report in reports:
        errors = {row.name: row.after for row in report.rows if row.after is not None}
        shown = [name for name in names if name in errors]
        axis.plot(
            [max(errors[name], _LEAST) for name in shown],
            [names.index(name) for name in shown],
            marker="o",
            linestyle="",
            label=f"after {report.name}",
        )
    axis.set_xscale("log")
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("squared error of the outputs, relative to their power")
    axis.grid(alpha=0.3)
    if names:
        axis.legend()


def _curves(axis: "Axes", report: PassReport) -> None:
    """Each figure over the updates, divided by its largest value to fit one axis."""
    keys = {key for line in report.curves for key in line} - {"update"}
    for key in sorted(keys):
        points: list[tuple[Any, float]] = [
            (line.get("update", at), line[key])
            for at, line in enumerate(report.curves)
            if key in line
        ]
        largest = max(abs(y) for _, y in points) or 1.0
        axis.plot(
            [x for x, _ in points], [y / largest for _, y in points], label=f"{key} / {largest:.3g}"
        )
    axis.set(xlabel="update", title=f"training of {report.name}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)

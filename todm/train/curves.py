"""The curves of a run over its updates, as a picture of six panels (eight if it learns N:M masks)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_LOSSES = ("rnnt", "rnnt smallest", "ctc", "flat_start", "divergence")
INT8 = " int8"  # ends the name of an int8 copy's figures
# Okabe and Ito: distinguishable with most colour vision deficiencies.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.labelcolor": "#555555",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "font.size": 9.5,
}
_FLOOR = 0.1  # percent: the lowest error that the logarithmic axis shows


def draw(rows: Sequence[Row], out: Path) -> None:
    """Write the picture of a run's metrics.

    Args:
        rows: of `metrics.jsonl`.
        out: a PNG file.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    train = [r for r in rows if r["kind"] == "train"]
    evals = [r for r in rows if r["kind"] == "eval"]
    with mpl.rc_context(_STYLE):
        masks = any("flip_rate" in r for r in train)
        lines, height = (4, 14.5) if masks else (3, 11)
        figure, axes = plt.subplots(
            lines, 2, figsize=(12, height), sharex=True, constrained_layout=True
        )
        _losses(axes[0, 0], train)
        _errors(axes[0, 1], evals)
        _gradients(axes[1, 0], train)
        _curves(axes[1, 1], train, ("lr",))
        axes[1, 1].set_title("learning rate")
        _curves(axes[2, 0], train, ("audio_hours_per_hour",), smooth=True)
        axes[2, 0].set_title("throughput, hours of audio per hour")
        _curves(axes[2, 1], rows, ("outlier_max", "outlier_median"))
        axes[2, 1].set_title("weight outliers, peak over rms of a channel")
        if masks:
            _masks(axes[3], rows)
        for axis in axes.flat:
            _finish(axis)
        for axis in axes[-1]:
            axis.set_xlabel("updates")
        figure.savefig(out, dpi=110)
        plt.close(figure)


def _losses(axis: Any, train: Sequence[Row]) -> None:  # noqa: ANN401 - matplotlib
    _curves(axis, train, _LOSSES, smooth=True)
    axis.set(title="loss per label (largest net unless named)", yscale="log")


def _errors(axis: Any, evals: Sequence[Row]) -> None:  # noqa: ANN401 - matplotlib
    """Each net's dev error with its interval; int8 copies are dashed, in their net's colour."""
    axis.set(title="dev WER, %", yscale="log")
    names = list(dict.fromkeys(k for r in evals for k, v in r.items() if isinstance(v, dict)))
    bases = list(dict.fromkeys(name.removesuffix(INT8) for name in names))
    for name in names:
        shown = [r for r in evals if name in r]
        updates = [r["update"] for r in shown]
        colour = _COLOURS[bases.index(name.removesuffix(INT8)) % len(_COLOURS)]
        style = "--" if name.endswith(INT8) else "-"
        errors = [_percent(r[name]["error"]) for r in shown]
        last = shown[-1][name]["error"]
        label = f"{name}, {last:.2%} at the end"
        axis.plot(updates, errors, style, color=colour, marker="o", markersize=3.5, label=label)
        if style == "-" and all("low" in r[name] for r in shown):
            low, high = ([_percent(r[name][end]) for r in shown] for end in ("low", "high"))
            axis.fill_between(updates, low, high, color=colour, alpha=0.12, linewidth=0)


def _percent(error: float) -> float:
    """Clipped to the axis: early nets insert words, and are beyond 100 %."""
    return min(100.0, max(_FLOOR, 100 * error))


def _gradients(axis: Any, train: Sequence[Row]) -> None:  # noqa: ANN401 - matplotlib
    """The norm before and after clipping; skipped updates as crosses."""
    good = [r for r in train if r.get("clip", 1.0) > 0 and "grad_norm" in r]
    bad = [r["update"] for r in train if r.get("clip", 1.0) == 0]
    clipped = [{**r, "after clipping": r["grad_norm"] * r.get("clip", 1.0)} for r in good]
    _curves(axis, clipped, ("grad_norm",), names=("before clipping",), alpha=0.45)
    _curves(axis, clipped, ("after clipping",), smooth=True, first=1)
    axis.set(title="gradient norm", yscale="log")
    if bad and good:
        lowest = min(r["grad_norm"] for r in good)
        axis.plot(bad, [lowest] * len(bad), "x", color="#CC0000", label=f"{len(bad)} skipped")


def _masks(axes: Any, rows: Sequence[Row]) -> None:  # noqa: ANN401 - matplotlib
    """Share of N:M mask entries that change at a renewal, and that differ from the first masks.

    All layers together as a line; the band is the range of single layers.
    """
    train = [r for r in rows if r["kind"] == "train"]
    renewals = [r for r in rows if r["kind"] == "masks"]
    _curves(axes[0], train, ("flip_rate",))
    axes[0].set_title("share of mask entries that change at a renewal")
    _curves(axes[1], train, ("mask_drift",))
    axes[1].set_title("share of mask entries that differ from the first masks (SAD)")
    if not renewals:
        return
    updates = [r["update"] for r in renewals]
    rates = [[f["flip_rate"] for f in r["layers"].values()] for r in renewals]
    lows, highs = [min(r) for r in rates], [max(r) for r in rates]
    axes[0].fill_between(updates, lows, highs, color=_COLOURS[0], alpha=0.12, linewidth=0)


def _curves(
    axis: Any,  # noqa: ANN401 - matplotlib
    rows: Sequence[Row],
    keys: Sequence[str],
    *,
    names: Sequence[str] = (),
    smooth: bool = False,
    alpha: float = 1.0,
    first: int = 0,
) -> None:
    """One line per key that occurs; a smoothed one lies over its raw figures."""
    present = [k for k in keys if any(k in r for r in rows)]
    for place, key in enumerate(present, first):
        shown = [r for r in rows if math.isfinite(r.get(key, math.nan))]
        updates, values = [r["update"] for r in shown], [r[key] for r in shown]
        colour = _COLOURS[place % len(_COLOURS)]
        label = names[place - first] if names else key.replace("_", " ")
        if smooth:
            axis.plot(updates, values, color=colour, alpha=0.2, linewidth=0.8)
            values = _smoothed(values)
        axis.plot(updates, values, color=colour, alpha=alpha, label=label)


def _smoothed(values: Sequence[float]) -> list[float]:
    """The centred running mean over a twentieth of the curve."""
    half = len(values) // 40
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _finish(axis: Any) -> None:  # noqa: ANN401 - matplotlib
    """Legend and plain numbers; a panel without lines is labelled so."""
    if axis.lines:
        if axis.get_yscale() == "log":
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if _round(value) else "")
        if len(axis.get_legend_handles_labels()[1]) > 1 or axis.get_title().startswith("dev"):
            axis.legend()
        return
    axis.set_yscale("linear")
    axis.set(yticks=[])
    axis.text(0.5, 0.5, "not recorded", transform=axis.transAxes, ha="center", color="#999999")


def _round(value: float) -> bool:
    """Whether a minor tick is 2 or 5 times a power of ten."""
    return f"{value:e}"[0] in "25"

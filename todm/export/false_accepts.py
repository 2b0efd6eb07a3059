"""False accepts in the card and the manifest of a bundle, and what its threshold buys."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from todm.device.bundle import open_bundle
from todm.errors import MissingExtra
from todm.export.measured import add_section
from todm.files import markdown_table

PLOT = "false_accepts.png"
_HEAD = "## False accepts"
_SECTION = """\
{head}
How often per hour it gives out a word although nobody spoke to it: each kind of sound without a pause,
decoded greedily, with the 95 % interval. {threshold} {sure}.

{table}

What other thresholds give ([plot]({plot})): false accepts an hour, and commands of the dev split lost.

{curve}

"""

Results = Mapping[str, Mapping[str, Any]]
Losses = Mapping[float, float | None]


def write_false_accepts(path: Path, results: Results, *, sure: float, losses: Losses) -> None:
    """Put false accepts into the card and the manifest of a bundle, with a plot, replacing earlier ones.

    Args:
        path: the bundle.
        results: by form, by kind of sound, the figures of `todm.device.false_accepts.FalseAccepts` as a dict.
        sure: the confidence from which a segment counts as sure.
        losses: the share of commands lost at each threshold of the curves; None where it is unknown.

    Raises:
        BundleError: the bundle is damaged.
        MissingExtra: matplotlib is not installed.
    """
    figures = {form: dict(kinds) for form, kinds in results.items()}
    threshold = open_bundle(path).threshold
    text = section(results, sure=sure, losses=losses, threshold=threshold)
    draw = functools.partial(plot, results, losses, threshold)
    add_section(path, _HEAD, text, {"false_accepts": figures}, files={PLOT: draw})


def section(results: Results, *, sure: float, losses: Losses, threshold: float) -> str:
    """The section of the card."""
    return _SECTION.format(
        head=_HEAD,
        threshold=f"Segments of a confidence below its threshold, {threshold:g}, give no text."
        if threshold
        else "It has no threshold of confidence: every segment gives its text.",
        sure=f"A segment is sure if every word in it has a confidence of at least {sure:g}",
        table=table(results),
        plot=PLOT,
        curve=curve_table(results, losses),
    )


def table(results: Results) -> str:
    """The figures in Markdown, one row for each form and kind of sound."""
    heads = ("", "kind", "minutes", "per hour", "95 % interval", "sure, per hour", "most frequent")
    rows = []
    for form, kinds in results.items():
        for kind, row in kinds.items():
            common = ", ".join(f"{text} ({count})" for text, count in row["common"])
            interval = f"{row['low']:.1f} to {row['high']:.1f}"
            sure = f"{60 * row['sure'] / row['minutes']:.1f}"
            rate = f"{row['per_hour']:.1f}"
            rows.append([form, kind, f"{row['minutes']:.1f}", rate, interval, sure, common])
    return markdown_table(heads, rows)


def curve_table(results: Results, losses: Losses) -> str:
    """False accepts an hour by threshold, in Markdown: of each form in speech and in the worst sound."""
    columns: dict[str, list[float]] = {}
    for form, kinds in results.items():
        speech = {kind: _rates(row) for kind, row in kinds.items() if kind.startswith("speech")}
        noise = [_rates(row) for kind, row in kinds.items() if not kind.startswith("speech")]
        columns |= {f"{form}, {kind}": rates for kind, rates in speech.items()}
        columns[f"{form}, worst other sound"] = [max(at) for at in zip(*noise, strict=True)]
    rows = [
        [f"{threshold:.4f}", _percent(lost), *(f"{rates[i]:.1f}" for rates in columns.values())]
        for i, (threshold, lost) in enumerate(losses.items())
    ]
    return markdown_table(("threshold", "commands lost", *columns), rows)


def plot(results: Results, losses: Losses, threshold: float, out: Path) -> None:
    """Draw false accepts an hour in speech over commands lost; over the threshold where these are unknown.

    Args:
        results: as `write_false_accepts` has them.
        losses: likewise.
        threshold: the bundle's, which is marked.
        out: the PNG to write.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "train", "the plot of a card") from None

    known = all(lost is not None for lost in losses.values())
    places = [100 * (lost or 0.0) for lost in losses.values()] if known else list(losses)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for form, kinds in results.items():
        for kind, row in kinds.items():
            if kind.startswith("speech"):
                axis.plot(places, _rates(row), marker="o", label=f"{form}, {kind}")
    if threshold:
        at = min(losses, key=lambda t: abs(t - threshold))
        axis.axvline(
            places[list(losses).index(at)], color="gray", linestyle=":", label="its threshold"
        )
    axis.set_yscale("symlog", linthresh=1.0)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("commands lost, %" if known else "threshold of confidence")
    axis.set_ylabel("false accepts an hour")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(out, dpi=100)


def _rates(row: Mapping[str, Any]) -> list[float]:
    return [point["per_hour"] for point in row["curve"]]


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"

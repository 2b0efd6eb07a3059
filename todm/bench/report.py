"""The end of a run: every bundle in every precision, as a table and as a picture."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from todm import artifact
from todm.errors import ArtifactError

TABLE, PLOT = "report.md", "report.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One bundle in one precision.

    Attributes:
        name: of the bundle.
        precision: fp32 or int8.
        params: parameters of the subnet.
        megabytes: encoder, decoder and joiner, 10^6 bytes.
        error: WER, with its bootstrap interval `low` to `high`.
        low: lower end.
        high: upper end.
        words: reference words it was measured on.
        rtf: seconds of computing per second of audio, one thread.
        path: of the bundle.
    """

    name: str
    precision: str
    params: float
    megabytes: float
    error: float
    low: float
    high: float
    words: int
    rtf: float
    path: str


def collect(run: Path) -> list[Row]:
    """Rows of all bundles of a run that were evaluated, largest first.

    Raises:
        ArtifactError: there are none.
    """
    rows = []
    for file in sorted(run.glob("evaluation/*/figures.json")):
        bundle = run / "bundles" / file.parent.name
        params = artifact.load(bundle, kind="bundle").info["subnet"]["costs"]["params"]
        for precision, row in json.loads(file.read_text())["results"].items():
            rows.append(_row(bundle, precision, params, row))
    if not rows:
        raise ArtifactError(
            f"{run} has no evaluated bundles: run  todm export  and  todm evaluate  with "
            f"--out {run}/evaluation/NAME"
        )
    return sorted(rows, key=lambda r: (-r.params, r.precision))


def _row(bundle: Path, precision: str, params: float, row: dict[str, Any]) -> Row:
    return Row(
        name=bundle.name,
        precision=precision,
        params=params,
        megabytes=row["megabytes"],
        error=row["error"],
        low=row["low"],
        high=row["high"],
        words=row["words"],
        rtf=row["timing"]["rtf"],
        path=str(bundle),
    )


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| bundle | precision | parameters | MB | WER | 95 % interval | real-time factor |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        lines.append(
            f"| {r.name} | {r.precision} | {r.params / 1e6:.2f}M | {r.megabytes:.2f} | {r.error:.2%} | "
            f"{r.low:.2%} to {r.high:.2%} | {r.rtf:.4f} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], out: Path) -> None:
    """WER against size and against real-time factor, with intervals."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True, sharey=True)
    for axis, name, label in (
        (axes[0], "megabytes", "MB on disk"),
        (axes[1], "rtf", "real-time factor, 1 thread"),
    ):
        for precision in dict.fromkeys(r.precision for r in rows):
            shown = [r for r in rows if r.precision == precision]
            x = [getattr(r, name) for r in shown]
            y = [100 * r.error for r in shown]
            spread = [
                [100 * (r.error - r.low) for r in shown],
                [100 * (r.high - r.error) for r in shown],
            ]
            axis.errorbar(x, y, yerr=spread, marker="o", capsize=3, label=precision)
            for r, a, b in zip(shown, x, y, strict=True):
                axis.annotate(f" {r.name}", (a, b), fontsize=8)
        axis.set(xlabel=label, xlim=(0, None), ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("WER on held-out speakers, %")
    axes[0].legend()
    figure.savefig(out, dpi=110)
    plt.close(figure)

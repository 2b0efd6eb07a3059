"""The end of a run: every bundle in every precision, as a table and as a plot."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from todm import artifact
from todm.artifact import Artifact
from todm.errors import ArtifactError
from todm.files import markdown_table

TABLE, PLOT = "report.md", "report.png"
_UNSEEN = "WER on a voice never heard"
HEADS = ("bundle", "precision", "parameters", "MB", "WER", "95 % interval", "real-time factor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One bundle in one precision.

    `megabytes` are encoder, decoder and joiner in 10^6 bytes; `error` is the WER on `words` reference
    words, with its bootstrap interval `low` to `high`; `rtf` is seconds of computing per second of audio
    on one thread, `p50_ms` the median time of a chunk.
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
    p50_ms: float
    path: str
    unseen: Mapping[str, float] | None = None
    """WER by engines that training did not hear; None where the corpus does not say."""

    def cells(self) -> tuple[str, ...]:
        """The row as text, under `HEADS`."""
        return (
            self.name,
            self.precision,
            f"{self.params / 1e6:.2f}M",
            f"{self.megabytes:.2f}",
            f"{self.error:.2%}",
            f"{self.low:.2%} to {self.high:.2%}",
            f"{self.rtf:.4f}",
        )


def collect(run: Path) -> list[Row]:
    """Rows of all evaluated bundles of a run, largest first.

    Raises:
        ArtifactError: there are none.
    """
    rows = []
    for file in sorted(run.glob("evaluation/*/figures.json")):
        bundle = artifact.load(run / "bundles" / file.parent.name, kind="bundle")
        for precision, row in _figures(file, bundle).items():
            rows.append(_row(bundle, precision, row))
    if not rows:
        raise ArtifactError(
            f"{run} has no evaluated bundles: run  todm export  and  todm evaluate  with "
            f"--out {run}/evaluation/NAME"
        )
    return sorted(rows, key=lambda r: (-r.params, r.precision))


def _figures(file: Path, bundle: Artifact) -> dict[str, Any]:
    """Figures of a bundle by precision.

    Raises:
        ArtifactError: they are damaged, of another bundle, or of part of the test split.
    """
    try:
        found = json.loads(file.read_text())
        asked, results = found["asked"], found["results"]
        fits = (asked["artifact"], asked["split"], asked["limit"]) == (bundle.hash, "test", 0)
    except (ValueError, KeyError, TypeError):
        fits, results = False, {}
    if not fits:
        raise ArtifactError(
            f"{file} is damaged, or not of {bundle.path} on the whole test split: remove it and run  "
            f"todm evaluate {bundle.path} CORPUS --out {file.parent}"
        )
    return results


def _row(bundle: Artifact, precision: str, row: dict[str, Any]) -> Row:
    return Row(
        name=bundle.path.name,
        precision=precision,
        params=bundle.info["subnet"]["costs"]["params"],
        megabytes=row["megabytes"],
        error=row["error"],
        low=row["low"],
        high=row["high"],
        words=row["words"],
        rtf=row["timing"]["rtf"],
        p50_ms=row["timing"]["p50_ms"],
        path=str(bundle.path),
        unseen={name: found["error"] for name, found in row["unseen"].items()}
        if "unseen" in row
        else None,
    )


def table(rows: list[Row]) -> str:
    """The rows in Markdown, and what the split does not say."""
    lines = "".join(f"\n{line}\n" for line in beside(rows))
    return markdown_table(HEADS, [row.cells() for row in rows]) + "\n" + lines


def beside(rows: Sequence[Row]) -> list[str]:
    """What WER on the test split leaves out, a line each: voices of a kind that training never heard."""
    known = [row for row in rows if row.unseen is not None]
    if not known:
        return []
    engines = dict.fromkeys(name for row in known for name in row.unseen or ())
    if not engines:
        return [
            f"{_UNSEEN}: not measured: one engine; install another, as in  pip install hibari-tts"
        ]
    lines = []
    for engine in engines:
        rates = [
            f"{row.name} {row.precision} {row.unseen[engine]:.1%}"
            for row in known
            if row.unseen and engine in row.unseen
        ]
        lines.append(f"{_UNSEEN} ({engine}): {', '.join(rates)}")
    return lines


def plot(rows: list[Row], out: Path) -> None:
    """WER against size and against real-time factor, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
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
    axes[0].set_ylabel("WER on the test split, %")
    axes[0].legend()
    figure.savefig(out, dpi=110)

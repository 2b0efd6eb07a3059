"""What a training shows and leaves: a progress bar, metrics as JSON lines, curves as a picture."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from todm.artifact import write_text

METRICS = "metrics.jsonl"
CURVES = "curves.png"
_PLAIN_SECONDS = 20.0


class Monitor:
    """Progress on the terminal and metrics on disk. Only rank 0 has one.

    `metrics.jsonl` has one line per logged update (`kind` train) and per evaluation (`kind` eval).
    """

    def __init__(self, directory: Path, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._path = directory / METRICS
        self._total = total
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total, note="")
        self._spoken = time.monotonic()
        self._told = 0
        self._loss, self._error = "", ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def resume(self, update: int) -> None:
        """Forget metrics that lie beyond the checkpoint training goes on from."""
        self._told = update
        self._spoken = time.monotonic()
        kept = [row for row in read_metrics(self._path) if self._stands(row, update)]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._bar.update(self._task, completed=update)

    def _stands(self, row: Mapping[str, Any], update: int) -> bool:
        """Whether a row was written before the checkpoint; the last evaluation comes after the last one."""
        final = row["kind"] == "eval" and row["update"] == self._total
        return row["update"] <= update and not final

    def trained(self, update: int, figures: Mapping[str, Any] | None = None) -> None:
        """After an update; `figures` only when it is to be logged."""
        if figures is not None:
            self._write({"kind": "train", "update": update, **figures})
            self._loss = f"loss {figures['loss']:.3f}"
        self._bar.update(self._task, completed=update, note=self._note())
        now = time.monotonic()
        if not self._console.is_terminal and (
            now - self._spoken > _PLAIN_SECONDS or update == self._total
        ):
            # The pace of the last updates: a sandwich of nets takes longer than the largest alone.
            pace = (now - self._spoken) / max(1, update - self._told)
            self._spoken, self._told = now, update
            left = pace * (self._total - update)
            self._console.print(
                f"update {update} of {self._total}  {self._note()}  {pace:.2f} s/update, {_clock(left)} left",
                highlight=False,
                soft_wrap=True,
            )

    def evaluated(self, update: int, figures: Mapping[str, Mapping[str, Any]]) -> None:
        """After an evaluation of some subnets, by name."""
        self._write({"kind": "eval", "update": update, **figures})
        self._error = ", ".join(f"{name} {row['error']:.1%}" for name, row in figures.items())

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def _note(self) -> str:
        return "  ".join(filter(None, (self._loss, self._error and f"dev WER {self._error}")))

    def _write(self, row: Mapping[str, Any]) -> None:
        with self._path.open("a") as handle:
            handle.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file; a last line cut by a crash is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def plot_curves(metrics: Path, out: Path) -> None:
    """Loss terms, each subnet's dev error, gradient norm and learning rate against updates."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_metrics(metrics)
    train = [r for r in rows if r["kind"] == "train"]
    evals = [r for r in rows if r["kind"] == "eval"]
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    losses = [
        k
        for k in ("rnnt", "rnnt smallest", "ctc", "flat_start", "divergence")
        if any(k in r for r in train)
    ]
    for name in losses:
        _line(axes[0, 0], train, name)
    axes[0, 0].set(title="loss per label (largest unless said)", yscale="log")
    for name in sorted({k for r in evals for k in r if k not in ("kind", "update")}):
        shown = [r for r in evals if name in r]
        axes[0, 1].plot(
            [r["update"] for r in shown],
            [100 * r[name]["error"] for r in shown],
            marker=".",
            label=name,
        )
    axes[0, 1].set(title="dev WER, %", ylim=(0, 100))
    _line(axes[1, 0], train, "grad_norm")
    axes[1, 0].set(title="gradient norm", yscale="log")
    _line(axes[1, 1], train, "lr")
    axes[1, 1].set(title="learning rate")
    for axis in axes.flat:
        axis.set_xlabel("updates")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _line(axis: Any, rows: list[dict[str, Any]], name: str) -> None:  # noqa: ANN401 - matplotlib
    shown = [r for r in rows if name in r]
    axis.plot([r["update"] for r in shown], [r[name] for r in shown], label=name)


def _clock(seconds: float) -> str:
    minutes, secs = divmod(int(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{secs:02d}"
        if minutes >= 60
        else f"{minutes}:{secs:02d}"
    )

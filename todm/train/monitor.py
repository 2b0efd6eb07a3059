"""What a training shows and leaves: a progress bar, metrics as JSON lines and for TensorBoard, curves.

`metrics.jsonl` is the record; the event file and the picture are made of it.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from todm.files import append, write_text
from todm.train.curves import draw
from todm.train.tensorboard import EventFile, Point

METRICS = "metrics.jsonl"
CURVES = "curves.png"
TENSORBOARD = "tensorboard"
_PLAIN_SECONDS = 20.0
_NO_CURVES = ("kind", "update", "time", "event", "after")


class Monitor:
    """Progress on the terminal and metrics on disk. Only rank 0 has one.

    `metrics.jsonl` has one line per logged update (`kind` train), per evaluation (`kind` eval), per
    renewal of N:M masks (`kind` masks) and per thing that happened (`kind` event); `time` is in
    seconds since 1970. JSON has no infinity and no NaN: a figure that is not finite is left out of
    its row.
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
        self._board = EventFile(directory / TENSORBOARD)
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
        self._update = 0
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
        self._told = self._update = update
        self._spoken = time.monotonic()
        kept = [row for row in read_metrics(self._path) if self._stands(row, update)]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._board.restart(point for row in kept if (point := _point(row)))
        self._bar.update(self._task, completed=update)

    def _stands(self, row: Mapping[str, Any], update: int) -> bool:
        """Whether a row was written before the checkpoint; the last evaluation comes after the last one.

        What belongs to no update (a restart, a full disk) has happened and is not undone.
        """
        if "update" not in row:
            return update > 0
        final = row["kind"] == "eval" and row["update"] == self._total
        return row["update"] <= update and not final

    def trained(self, update: int, figures: Mapping[str, Any] | None = None) -> None:
        """After an update; `figures` only when it is to be logged."""
        self._update = update
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

    def masked(self, update: int, layers: Mapping[str, Mapping[str, float]]) -> None:
        """After an update that began with new N:M masks; what changed in each layer's."""
        rows = {name: {k: round(v, 6) for k, v in row.items()} for name, row in layers.items()}
        self._write({"kind": "masks", "update": update, "layers": rows})

    def evaluated(self, update: int, figures: Mapping[str, Mapping[str, Any]]) -> None:
        """After an evaluation of some subnets, by name; a name that ends in " int8" is an int8 copy."""
        self._update = update
        self._write({"kind": "eval", "update": update, **figures})
        self._error = ", ".join(f"{name} {row['error']:.1%}" for name, row in figures.items())

    def note(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 - JSON
        """Something that happened: `skipped`, `disk full`, `restart`, ...

        With a field `update` it belongs to that update, and is forgotten if training resumes before
        it, to do it again. Without one it stays, and is said to have come `after` the last update.
        """
        when = {} if "update" in fields else {"after": self._update}
        self._write({"kind": "event", "event": kind, **when, **fields})

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def _note(self) -> str:
        return "  ".join(filter(None, (self._loss, self._error and f"dev WER {self._error}")))

    def _write(self, row: Mapping[str, Any]) -> None:
        finite = {k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)}
        row = {**finite, "time": round(time.time(), 3)}
        append(self._path, (json.dumps(row) + "\n").encode())
        if point := _point(row):
            self._board.add(point)


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
    """Draw a metrics file: losses, dev error of each net, gradient norm, learning rate, pace, outliers."""
    draw(read_metrics(metrics), out)


def _point(row: Mapping[str, Any]) -> Point | None:
    """What TensorBoard shows of a row: figures of training, and the error of each evaluated net."""
    if row["kind"] in ("event", "masks"):
        return None
    scalars: dict[str, float] = {}
    for name, value in row.items():
        if name in _NO_CURVES:
            continue
        if isinstance(value, dict):
            scalars[f"dev error/{name}"] = value["error"]
        elif isinstance(value, int | float):
            scalars[f"{row['kind']}/{name}"] = value
    return Point(row["update"], row.get("time", 0.0), scalars)


def _clock(seconds: float) -> str:
    minutes, secs = divmod(int(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{secs:02d}"
        if minutes >= 60
        else f"{minutes}:{secs:02d}"
    )

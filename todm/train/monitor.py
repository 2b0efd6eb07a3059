"""What a training shows and writes: a progress bar, metrics as JSON lines and for TensorBoard, curves.

`metrics.jsonl` is the record; TensorBoard's event files and the picture repeat it.
"""

import contextlib
import datetime
import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from todm.files import append, is_full, write_text
from todm.train.curves import draw

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"
BAD_BATCHES = "bad_batches.jsonl"
CURVES = "curves.png"
TENSORBOARD = "tensorboard"
_PLAIN_SECONDS = 20.0
_NO_SCALARS = ("kind", "update", "time", "event", "after")

Row = dict[str, Any]


class Monitor:
    """Progress on the terminal and metrics on disk. Only rank 0 has one.

    `metrics.jsonl` has one line per logged update (`kind` train), evaluation (`kind` eval), renewal of
    N:M masks (`kind` masks) and event (`kind` event); `time` is in seconds since 1970. JSON has no
    infinity and no NaN: a figure that is not finite is left out of its row. `bad_batches.jsonl` has a
    line for each process's part of each skipped step. A full disk costs rows, not the training.
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

        self._directory, self._total = directory, total
        self._path, self._bad = directory / METRICS, directory / BAD_BATCHES
        self._has_board = importlib.util.find_spec("tensorboard") is not None
        self._board: SummaryWriter | None = None
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
        self._printed_at, self._printed_update = time.monotonic(), 0
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
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()
            self._board = None

    def resume(self, update: int) -> None:
        """Drop metrics that lie beyond the checkpoint training resumes from."""
        self._update = self._printed_update = update
        self._printed_at = time.monotonic()
        kept = _rewrite(self._path, lambda row: self._keep_row(row, update))
        if self._bad.is_file():  # its updates are counted from 0
            _rewrite(self._bad, lambda row: row["update"] < update)
        if not self._has_board:
            self.print(
                "tensorboard is not installed, so no event files are written: run  pip install "
                "'todm[tensorboard]'  to have them"
            )
        else:
            # TensorBoard hides what it has from this step on, the rows that are kept included.
            self._open_board(purge_step=update)
            for row in kept:
                if row.get("update", -1) >= update:
                    self._add_scalars(row)
        self._bar.update(self._task, completed=update)

    def _keep_row(self, row: Mapping[str, Any], update: int) -> bool:
        """Whether a row was written before the checkpoint; the final evaluation follows the final one.

        Rows without an update (a restart, a full disk) record what happened, which is not undone.
        """
        if "update" not in row:
            return update > 0
        final = row["kind"] == "eval" and row["update"] == self._total
        return row["update"] <= update and not final

    def log_train(self, update: int, figures: Mapping[str, Any] | None = None) -> None:
        """After an update; `figures` only when it is to be logged."""
        self._update = update
        if figures is not None:
            self._write({"kind": "train", "update": update, **figures})
            self._loss = f"loss {figures['loss']:.3f}"
        note = "  ".join(filter(None, (self._loss, self._error and f"dev WER {self._error}")))
        self._bar.update(self._task, completed=update, note=note)
        now = time.monotonic()
        if not self._console.is_terminal and (
            now - self._printed_at > _PLAIN_SECONDS or update == self._total
        ):
            # The pace of the last updates: a sandwich of nets takes longer than the largest alone.
            pace = (now - self._printed_at) / max(1, update - self._printed_update)
            self._printed_at, self._printed_update = now, update
            left = datetime.timedelta(seconds=round(pace * (self._total - update)))
            self.print(
                f"update {update} of {self._total}  {note}  {pace:.2f} s/update, {left} left"
            )

    def log_masks(self, update: int, layers: Mapping[str, Mapping[str, float]]) -> None:
        """After an update that began with new N:M masks: what changed in the mask of each layer."""
        rows = {name: {k: round(v, 6) for k, v in row.items()} for name, row in layers.items()}
        self._write({"kind": "masks", "update": update, "layers": rows})

    def log_eval(self, update: int, figures: Mapping[str, Mapping[str, Any]]) -> None:
        """After an evaluation of some subnets, by name; " int8" ends the name of an int8 copy."""
        self._update = update
        self._write({"kind": "eval", "update": update, **figures})
        self._error = ", ".join(f"{name} {row['error']:.1%}" for name, row in figures.items())

    def log_event(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 - JSON
        """An event: `skipped`, `disk full`, `restart`, ...

        With a field `update` it belongs to that update, and is dropped if training resumes before it
        and repeats it. Without one it stays, marked as having come `after` the last update.
        """
        when = {} if "update" in fields else {"after": self._update}
        self._write({"kind": "event", "event": kind, **when, **fields})

    def log_skipped(self, update: int, reason: str, parts: Sequence[Mapping[str, Any]]) -> None:
        """A skipped step `update`, from 0: for each process its `loss`, `grad_norm` and `ids`."""
        rows = (
            {"update": update, "process": rank, "reason": reason, **part}
            for rank, part in enumerate(parts)
        )
        lines = (json.dumps({k: _plain(v) for k, v in row.items()}) + "\n" for row in rows)
        with self.tolerate_full_disk("a skipped batch"):
            append(self._bad, "".join(lines).encode())
        self.log_event("skipped", update=update + 1, reason=reason)

    def print(self, text: str) -> None:
        """A line above the progress bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def tolerate_full_disk(self, what: str) -> Iterator[None]:
        """Inside, a full disk costs `what` and prints a sentence; training goes on."""
        try:
            yield
        except OSError as error:
            if not is_full(error):
                raise
            self.print(
                f"update {self._update}: the disk of {self._directory} is full, {what} could not be "
                f"written ({error.strerror}); training goes on, free some space"
            )
            row = {"kind": "event", "event": "disk full", "after": self._update, "lost": what}
            with contextlib.suppress(OSError):
                self._append(row)

    def _write(self, row: Mapping[str, Any]) -> None:
        with self.tolerate_full_disk("metrics"):
            self._append(row)

    def _append(self, row: Mapping[str, Any]) -> None:
        finite = {k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)}
        row = {**finite, "time": round(time.time(), 3)}
        append(self._path, (json.dumps(row) + "\n").encode())
        self._add_scalars(row)

    def _open_board(self, *, purge_step: int | None = None) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(self._directory / TENSORBOARD), purge_step=purge_step)
        return self._board

    def _add_scalars(self, row: Mapping[str, Any]) -> None:
        """What TensorBoard shows of a row: training figures, and the error of each evaluated net."""
        if row["kind"] in ("event", "masks") or not self._has_board:
            return
        board = self._board or self._open_board()
        try:
            for name, value in row.items():
                if isinstance(value, dict):
                    name, value = f"dev error/{name}", value["error"]
                elif name in _NO_SCALARS or not isinstance(value, int | float):
                    continue
                else:
                    name = f"{row['kind']}/{name}"
                board.add_scalar(name, value, row["update"], row["time"])
            board.flush()
        except OSError:
            self._board = None  # its thread has ended: the next row opens a new file
            raise


def read_metrics(path: Path) -> list[Row]:
    """Rows of a metrics file; a last line cut by a crash is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def _rewrite(path: Path, keep: Callable[[Row], bool]) -> list[Row]:
    """Drop the rows of a file that `keep` refuses; returns the others."""
    kept = [row for row in read_metrics(path) if keep(row)]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    return kept


def _plain(value: object) -> object:
    """JSON has no infinity and no NaN: they are written as words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def plot_curves(metrics: Path, out: Path) -> None:
    """Draw a metrics file: losses, dev error of each net, gradient norm, learning rate, pace, outliers."""
    draw(read_metrics(metrics), out)

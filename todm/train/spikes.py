"""Steps that are not to be made: a loss or gradient norm that is not finite, or far above the usual."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from todm.files import append, write_text

BAD_BATCHES = "bad_batches.jsonl"
_PERIOD = 100
_ENOUGH = 20  # figures a median needs before anything is measured against it


class SpikeGuard:
    """Knows the usual loss and gradient norm: the medians of the last 100 good steps.

    Steps of another kind (other loss terms, more subnets) have other figures, so that a change of
    the kind begins the medians anew. Steps are judged once 20 of their kind are known.
    """

    def __init__(self, factor: float) -> None:
        """`factor` times the median is too much; 0 turns the guard off."""
        self._factor = factor
        self._kind = ""
        self._losses: list[float] = []
        self._norms: list[float] = []

    def enter(self, kind: str) -> None:
        """Say of which kind the step is that is judged next."""
        if kind != self._kind:
            self._kind, self._losses, self._norms = kind, [], []

    @property
    def max_loss(self) -> float:
        """The largest loss that passes."""
        return self._limit(self._losses)

    @property
    def max_norm(self) -> float:
        """The largest gradient norm that passes."""
        return self._limit(self._norms)

    def accept(self, loss: float, norm: float) -> None:
        """Remember a good step."""
        self._losses = [*self._losses[1 - _PERIOD :], loss]
        self._norms = [*self._norms[1 - _PERIOD :], norm]

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"kind": self._kind, "losses": self._losses, "norms": self._norms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._kind = state["kind"]
        self._losses, self._norms = list(state["losses"]), list(state["norms"])

    def _limit(self, known: Sequence[float]) -> float:
        if not self._factor or len(known) < _ENOUGH:
            return math.inf
        return self._factor * statistics.median(map(abs, known)) or math.inf


class BadBatches:
    """`bad_batches.jsonl` of a run: a line for each process's part of each skipped step."""

    def __init__(self, out: Path) -> None:
        self.path = out / BAD_BATCHES

    def resume(self, update: int) -> None:
        """Forget steps beyond the checkpoint that training goes on from: they come again."""
        if self.path.is_file():
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if _update_of(line) < update]
            write_text(self.path, "".join(kept))

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows with `update`, `process`, `reason`, `loss`, `grad_norm` and `ids`."""
        lines = (json.dumps({k: _plain(v) for k, v in row.items()}) + "\n" for row in rows)
        append(self.path, "".join(lines).encode())


def _update_of(line: str) -> float:
    """The update of a row; infinite for a line cut by a crash, which is then left out."""
    try:
        return json.loads(line)["update"]
    except ValueError:
        return math.inf


def _plain(value: object) -> object:
    """JSON has no infinity and no NaN: they are written as words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

"""What keeps bad steps out: limits on loss and gradient norm, clipping, optimizers that skip steps."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from todm.errors import TrainingError

PERIOD = 100
FIRST = (10, 20, 40)  # early thresholds, with a slack: few norms are known by then
SLACK = 2.0
_ENOUGH = 20  # figures that a median needs before it sets a limit


class MedianClip:
    """Clips gradients to `scale` times the median norm of the last 100 steps.

    The threshold is first set at steps 10, 20 and 40 with a slack of two, then every 100 steps.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.step = 0
        self.threshold = math.inf
        self.norms: list[float] = []

    def factor(self, norm: float) -> float:
        """Record a finite norm; returns the factor in (0, 1] for this step's gradients."""
        self.norms = [*self.norms[1 - PERIOD :], norm]
        if self.step in FIRST or (self.step and self.step % PERIOD == 0):
            slack = SLACK if self.step in FIRST else 1.0
            median = statistics.median(self.norms)
            self.threshold = slack * self.scale * median if median else math.inf
        self.step += 1
        return min(1.0, self.threshold / max(norm, 1e-20)) if self.scale else 1.0


class SpikeGuard:
    """Limits of loss and gradient norm: multiples of their medians over the last 100 good steps.

    Steps of another kind (other loss terms, more subnets) have other figures, so a new kind starts new
    medians. There is no limit until 20 steps of a kind are known.
    """

    def __init__(self, factor: float) -> None:
        """`factor` times the median is the limit; 0 turns the guard off."""
        self._factor = factor
        self._kind = ""
        self._losses: list[float] = []
        self._norms: list[float] = []

    def enter(self, kind: str) -> None:
        """Announce the kind of the next step."""
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
        self._losses = [*self._losses[1 - PERIOD :], loss]
        self._norms = [*self._norms[1 - PERIOD :], norm]

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


class GuardedOptimizer(torch.optim.Optimizer):
    """Abstract: skips a step whose gradient norm is not finite or above `max_norm`.

    `num_skipped` counts skipped steps, `num_skipped_in_row` those since the last good one. `last_norm`
    is the gradient norm of the last step, before clipping; `last_clip` the factor its gradients were
    scaled with (0 if it was skipped). A group's `base_lr` is its peak learning rate. `max_norm` is set
    before each step, from a `SpikeGuard`. `after_clip` may change gradients and weights of a step that
    is not skipped: it is called with the factor that the gradients will still be multiplied with.
    """

    _counters = ("num_skipped", "num_skipped_in_row", "last_norm", "last_clip")

    def _setup(self) -> None:
        self.num_skipped = 0
        self.num_skipped_in_row = 0
        self.last_norm = 0.0
        self.last_clip = 1.0
        self.max_norm = math.inf
        self.after_clip: Callable[[float], None] = lambda clip: None
        for group in self.param_groups:
            group["base_lr"] = group["lr"]

    def skip(self, norm: float) -> None:
        """Count a skipped step; `norm` is that of its gradients."""
        self.num_skipped += 1
        self.num_skipped_in_row += 1
        self.last_norm, self.last_clip = norm, 0.0

    def _refuses(self, norm: float) -> bool:
        return not math.isfinite(norm) or norm > self.max_norm

    def _accept(self, norm: float, clip: float) -> None:
        self.num_skipped_in_row = 0
        self.last_norm, self.last_clip = norm, clip

    def state_dict(self) -> dict[str, Any]:
        """As torch's, but keyed by parameter name, so that the order of parameters does not matter."""
        state = super().state_dict()
        names = _names(state["param_groups"])
        state["state"] = {names[index]: value for index, value in state["state"].items()}
        state["counters"] = {name: getattr(self, name) for name in self._counters}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`, by name; its tensors are used, not copied.

        Raises:
            TrainingError: it belongs to other parameters or groups.
        """
        own = super().state_dict()["param_groups"]
        names = _names(own)
        saved = state_dict["param_groups"]
        theirs = [sorted(group["param_names"]) for group in saved]
        if theirs != [sorted(group["param_names"]) for group in own]:
            raise TrainingError(
                "the optimizer state is of another model: its parameters or their groups differ; "
                "resume with the configuration of the checkpoint, or start a new run"
            )
        keep = ("params", "param_names")
        groups = [
            {**old, **{key: new[key] for key in keep}} for old, new in zip(saved, own, strict=True)
        ]
        state = {i: state_dict["state"][n] for i, n in names.items() if n in state_dict["state"]}
        super().load_state_dict({"state": state, "param_groups": groups})
        for name, value in state_dict["counters"].items():
            setattr(self, name, value)


def _names(groups: list[dict[str, Any]]) -> dict[int, str]:
    """Parameter names by the index of torch's state; an unnamed parameter is named by its index."""
    for group in groups:
        group.setdefault("param_names", [str(index) for index in group["params"]])
    return {i: n for g in groups for i, n in zip(g["params"], g["param_names"], strict=True)}

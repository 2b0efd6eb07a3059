"""A running float32 average of a model's parameters over the last part of training.

Equal weights: after n updates the average is the mean of the n parameter vectors seen. Evaluation
and the final artifact use it; training goes on from the raw weights.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from todm.errors import TrainingError


def in_window(step: int, total: int, fraction: float) -> bool:
    """Whether the update `step` (from 0) lies in the last `fraction` of `total` updates."""
    return step >= total * (1 - fraction)


class RunningAverage:
    """The mean of the parameters given to `update`; `num` of them so far."""

    def __init__(self) -> None:
        self.num = 0
        self._mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the parameters of `model` in as one more member of the mean."""
        named = dict(model.named_parameters())
        self.num += 1
        if self.num == 1:
            self._mean = {name: p.detach().float().clone() for name, p in named.items()}
            return
        means = list(self._matched(named).values())
        values = [named[name].detach().float() for name in self._mean]
        torch._foreach_lerp_(means, values, 1 / self.num)

    @torch.no_grad()
    def apply_to(self, model: nn.Module) -> None:
        """Write the average into `model`; does nothing before the first update."""
        named = dict(model.named_parameters())
        if self.num:
            for name, mean in self._matched(named).items():
                named[name].copy_(mean)

    @contextlib.contextmanager
    def swapped(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model with averaged parameters; the raw ones come back afterwards."""
        raw = {name: p.detach().clone() for name, p in model.named_parameters()}
        try:
            self.apply_to(model)
            yield model
        finally:
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(raw[name])

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"num": self.num, "mean": dict(self._mean)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.num = state["num"]
        self._mean = {name: mean.clone() for name, mean in state["mean"].items()}

    def _matched(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if named.keys() != self._mean.keys():
            other = sorted(named.keys() ^ self._mean.keys())
            raise TrainingError(
                f"the running average is of another model, they differ in {', '.join(other[:5])}: "
                "resume with the configuration of the checkpoint, or start a new run"
            )
        return self._mean

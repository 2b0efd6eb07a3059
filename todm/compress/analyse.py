"""Sensitivity: what each layer, and each kind of layer, costs when it alone is compressed.

A kind is the layers whose names differ in numbers only, such as `encoder.blocks.*.up`. After every
trial the model is restored. The recommended exclusions assume that the costs of layers add up:

    exclude the most expensive layers until the increases of the rest sum to the tolerance or less
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from todm.compress.adapter import ModelAdapter
from todm.compress.config import CompressConfig
from todm.compress.driver import compress
from todm.compress.plan import Plan, matches, select
from todm.errors import ConfigError
from todm.files import Progress

Measure = Callable[[nn.Module], float]
DENSE = "dense"
"""The key of the unchanged model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The result of an analysis.

    Attributes:
        values: the measure with each layer or kind alone compressed, and of the dense model (`DENSE`).
        layers: the layers of each.
        tolerance: total relative increase that is allowed.
    """

    values: Mapping[str, float]
    layers: Mapping[str, Sequence[str]]
    tolerance: float

    @property
    def increases(self) -> dict[str, float]:
        """Relative to the dense model, the largest first; kinds among the layers."""
        dense = self.values[DENSE]
        scale = max(abs(dense), 1e-12)
        increases = {n: (v - dense) / scale for n, v in self.values.items() if n != DENSE}
        return dict(sorted(increases.items(), key=lambda item: -item[1]))

    @property
    def exclude(self) -> list[str]:
        """The layers to exclude, the most expensive first."""
        costs = {n: c for n, c in self.increases.items() if list(self.layers[n]) == [n] and c > 0}
        names = list(costs)
        for count in range(len(names)):
            if sum(costs[name] for name in names[count:]) <= self.tolerance:
                return names[:count]
        return names

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "dense": self.values[DENSE],
            "tolerance": self.tolerance,
            "increases": self.increases,
            "layers": {name: list(layers) for name, layers in self.layers.items()},
            "exclude": self.exclude,
        }


def analyse(
    adapter: ModelAdapter,
    config: CompressConfig,
    measure: Measure,
    *,
    tolerance: float,
    calibration: Path | None = None,
    known: Mapping[str, float] | None = None,
    keep: Callable[[dict[str, float]], None] | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Try the passes on each layer and each kind of layer alone.

    Args:
        adapter: the model; it is as before at the end.
        config: the passes; none of them may train.
        measure: of a model; lower is better.
        tolerance: see `Sensitivity`.
        calibration: the user's own data instead of the training data.
        known: values from an earlier, interrupted call.
        keep: called with all values after each trial.
        progress: see `todm.files.Progress`.

    Raises:
        ConfigError: a pass that trains, or no layer to do.
    """
    _refuse_training(config)
    plan = select(adapter, config)
    units = _units(plan.chosen)
    values = dict(known or {})
    trials = [DENSE, *units]
    before = _Snapshot(adapter.model, plan)
    for number, name in enumerate(trials, 1):
        if name not in values:
            try:
                if name != DENSE:
                    alone = _alone(config, plan, units[name])
                    compress(adapter, alone, calibration=calibration)
                with torch.no_grad():
                    values[name] = measure(adapter.model)
            finally:
                before.restore()
            if keep:
                keep(values)
        if progress:
            progress("sensitivity", number, len(trials))
    measured = {name: values[name] for name in trials}
    return Sensitivity(values=measured, layers=units, tolerance=tolerance)


def kind_of(name: str) -> str:
    """The name with its numbers replaced by `*`."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", f".{name}.").strip(".")


def _units(layers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Every kind of two layers or more, then every layer."""
    kinds: dict[str, tuple[str, ...]] = {}
    for name in layers:
        kinds[kind_of(name)] = (*kinds.get(kind_of(name), ()), name)
    several = {kind: names for kind, names in kinds.items() if len(names) > 1}
    return several | {name: (name,) for name in layers}


def _alone(config: CompressConfig, plan: Plan, layers: Sequence[str]) -> CompressConfig:
    """The passes on these layers, all others excluded."""
    others = tuple(name for name in plan.chosen if name not in layers)
    # A layer that is dense unless included has to be included here too.
    included = tuple(n for n in layers if any(matches(n, p) for p in config.include))
    return config.replace(include=included, exclude=(*config.exclude, *others))


def _refuse_training(config: CompressConfig) -> None:
    for name in config.passes:
        tune = getattr(getattr(config, name), "tune", None)
        if tune is not None and tune.updates:
            raise ConfigError(
                f"--analyse tries every layer alone, and {name} would train each time: leave "
                f"{name}.tune.updates at 0"
            )


class _Snapshot:
    """The modules and tensors of a model."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self._model = model
        self._layers = {name: model.get_submodule(name) for name in plan.layers}
        self._state: dict[str, Tensor] = {k: v.clone() for k, v in model.state_dict().items()}

    def restore(self) -> None:
        """Restore them."""
        for name, layer in self._layers.items():
            if self._model.get_submodule(name) is not layer:
                self._model.set_submodule(name, layer)
        self._model.load_state_dict(self._state)

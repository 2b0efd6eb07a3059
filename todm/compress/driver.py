"""The sequence of passes over a model, block by block, and the account of every layer.

One-shot passes go through a model block by block, so that a model needs memory for one block and
its activations. All one-shot passes of a stretch run on a block before the next block is touched, which is
calibrated on the compressed block's output. Passes that train work on the whole model, between stretches.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from todm.compress import awq, int4, int8, packed, prune
from todm.compress.adapter import ModelAdapter
from todm.compress.calibrate import Block, Call, capture
from todm.compress.config import CompressConfig
from todm.compress.layer_state import LayerState, Probe
from todm.compress.layers import LayerResult
from todm.compress.plan import Plan, select
from todm.compress.report import PassReport
from todm.compress.train.stages import Tuner
from todm.compress.train.tune import Options
from todm.errors import ConfigError
from todm.files import Progress, no_progress

_ONE_SHOT: dict[str, Callable[[Block, Any], dict[str, LayerResult]]] = {
    "prune": prune.run,
    "int8": int8.run,
    "int4": int4.run,
    "awq": awq.run,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What `compress` leaves beside the changed model.

    Attributes:
        reports: one per pass, in order.
        masks: N:M masks by layer, True where a weight is kept; empty without `prune`.
    """

    reports: list[PassReport]
    masks: dict[str, Tensor]


def compress(
    adapter: ModelAdapter,
    config: CompressConfig,
    *,
    calibration: Path | None = None,
    optimizers: Mapping[str, Any] | None = None,
    checkpoints: Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Run the passes over `adapter.model`, in place.

    Args:
        adapter: the model and its modality.
        config: passes and settings.
        calibration: the user's own data instead of the training data.
        optimizers: further optimizers for passes that train, by name; see `todm.compress.train.tune`.
        checkpoints: directory where a training keeps its checkpoint, to be resumed; None for none.
        progress: see `todm.files.Progress`.

    Raises:
        ConfigError: a named layer that cannot be compressed, a model already compressed, settings
            that do not fit a layer; before any work.
        CorpusError: calibration data that cannot be used.
        TrainingError: a training that cannot go on.
    """
    if not config.passes:
        raise ConfigError("no passes are given: name some, as in  --passes prune,int8")
    plan = select(adapter, config)
    batches = adapter.calibration(config.num_calibration, calibration)
    run = _Run(adapter, config, plan, batches, progress or no_progress)
    steps, tuner = _steps(config), None
    if any(step.trains for step in steps):
        options = Options(
            optimizers=optimizers or {}, directory=checkpoints, progress=progress, seed=config.seed
        )
        tuner = Tuner(adapter, copy.deepcopy(adapter.model), plan.blocks, options)
    for step in steps:
        if step.trains:
            assert tuner is not None
            run.train(step.passes[0], tuner)
        else:
            run.walk(step.passes, last=step is steps[-1])
    run.pack()
    return Result(reports=run.reports(), masks=run.masks)


class _Step(NamedTuple):
    """A stretch of one-shot passes, or the training of one pass."""

    passes: tuple[str, ...]
    trains: bool


def _steps(config: CompressConfig) -> list[_Step]:
    """Stretches of one-shot passes with trainings between them, in the order of the passes."""
    steps: list[_Step] = []
    stretch: tuple[str, ...] = ()
    for name in config.passes:
        tune = getattr(getattr(config, name), "tune", None)
        trains = tune is not None and tune.updates > 0
        one_shot = not trains or (name == "prune" and config.prune.method != "sr_ste")
        if one_shot:
            stretch = (*stretch, name)
        if trains:
            steps += [_Step(stretch, trains=False)] if stretch else []
            steps.append(_Step((name,), trains=True))
            stretch = ()
    return [*steps, _Step(stretch, trains=False)] if stretch else steps


class _Run:
    """The state of one call of `compress`."""

    def __init__(
        self,
        adapter: ModelAdapter,
        config: CompressConfig,
        plan: Plan,
        batches: list[Any],
        progress: Progress,
    ) -> None:
        self.adapter, self.config, self.plan, self.batches = adapter, config, plan, batches
        self.progress = progress
        self.masks: dict[str, Tensor] = {}
        self.states = {name: LayerState(name, planned) for name, planned in plan.all.items()}
        self.layers = [self.states[name] for name in plan.layers]
        self.curves: dict[str, list[dict[str, float]]] = {}
        self.packed = False

    def walk(self, names: Sequence[str], *, last: bool) -> None:
        """The one-shot passes of a stretch, over all blocks and the chosen layers outside them."""
        self.adapter.model.eval()
        for block_list in self.adapter.block_lists:
            with self.adapter.resident(""):
                calls = self._capture(block_list)
            for block in (b for b in self.plan.blocks if b.startswith(f"{block_list}.")):
                with self.adapter.resident(block):
                    calls = self._block(block, names, calls, last=last)
                done = self.plan.blocks.index(block) + 1
                self.progress(", ".join(names), done, len(self.plan.blocks))
        if outside := self.plan.chosen_in(""):
            with self.adapter.resident(""):
                calls = [Call((batch,), {}) for batch in self.batches]
                self._passes(self._whole(outside, calls), names, last=last)
        self.packed = self.packed or last

    def train(self, name: str, tuner: Tuner) -> None:
        """A pass that trains, on the whole model."""
        whole = self._whole(self.plan.chosen, [Call((b,), {}) for b in self.batches])
        self._probe(whole, self.layers)
        trained = tuner.run(name, getattr(self.config, name), whole)
        for layer, result in trained.done.items():
            self.states[layer].results[name] = result
        self.curves[name] = trained.curves
        self._measure(whole, name, self.layers)

    def pack(self) -> None:
        """Put sparse layers that no pass quantised into their packed form, where that was not done."""
        for name in () if self.packed else (*self.plan.blocks, ""):
            with self.adapter.resident(name):
                self._pack(self._block_of(name, []))

    def reports(self) -> list[PassReport]:
        """A report per pass, with a row for every layer of the model."""
        reached = [state.rows for state in self.layers if state.probe]
        # A layer that calibration does not reach (a head) counts as many rows as the last block.
        rows = {state.name: state.rows or (reached or [0])[-1] for state in self.layers}
        reports, before = [], ""
        for name in self.config.passes:
            states = self.states.values()
            table = [state.row(name, before, rows=rows.get(state.name, 0)) for state in states]
            settings, curves = getattr(self.config, name).to_json(), self.curves.get(name, [])
            reports.append(PassReport(name=name, settings=settings, rows=table, curves=curves))
            before = name
        return reports

    def _capture(self, block_list: str) -> list[Call]:
        """The calls of a block list; probes look at the layers before it that no block holds."""
        whole = self._whole([], [])
        new = {
            state.name: Probe(whole.get(state.name))
            for state in self._layers_in("")
            if state.probe is None
        }
        show = {n: lambda call, probe=probe: probe.add(call.input) for n, probe in new.items()}
        with whole.observed(show):
            calls = capture(self.adapter, block_list, self.batches)
        for name, probe in new.items():
            if probe.rows:
                probe.fix()
                self.states[name].probe = probe
        return calls

    def _block(
        self, name: str, passes: Sequence[str], calls: list[Call], *, last: bool
    ) -> list[Call]:
        """All passes of a stretch on a block; returns the calls of the next one."""
        block = self._block_of(name, calls)
        dense = None if self.config.sequential else [block.call(c) for c in calls]
        self._passes(block, passes, last=last)
        outputs = dense or [block.call(c) for c in calls]
        return [c.after(y) for c, y in zip(calls, outputs, strict=True)]

    def _passes(self, block: Block, names: Sequence[str], *, last: bool) -> None:
        layers = self._layers_in(block.name)
        self._probe(block, layers)
        for name in names:
            if block.layers:
                results = _ONE_SHOT[name](block, getattr(self.config, name))
                missing = set(block.layers) - set(results)
                assert not missing, f"{name} does not account for {missing}"
                for layer, result in results.items():
                    if not result.what and layer in self.plan.named:
                        raise ConfigError(
                            f"{name} cannot be done on {layer}, which is named: {result.why_not}"
                        )
                    self.states[layer].results[name] = result
            self._measure(block, name, layers)
        if last:
            self._pack(block)

    def _probe(self, block: Block, layers: Sequence[LayerState]) -> None:
        """Sample the inputs of layers that have no probe yet."""
        new = [state for state in layers if state.probe is None]
        probes = [Probe(block.get(state.name)) for state in new]
        if new:
            block.observe(
                {
                    state.name: lambda call, probe=probe: probe.add(call.input)
                    for state, probe in zip(new, probes, strict=True)
                }
            )
        for state, probe in zip(new, probes, strict=True):
            probe.fix()
            state.probe = probe

    def _measure(self, block: Block, name: str, layers: Sequence[LayerState]) -> None:
        """Errors and sizes of layers after a pass."""
        for state in layers:
            mask = self.masks.get(state.name)
            state.measure(name, block.get(state.name), mask, self.config.prune)

    def _pack(self, block: Block) -> None:
        """Sparse layers that are still dense modules with zeros take their packed form."""
        for layer in block.layers if self.config.prune.is_24 else ():
            module = block.get(layer)
            if layer in self.masks and isinstance(module, nn.Linear):
                block.replace(layer, packed.pack_sparse(module))

    def _layers_in(self, block: str) -> list[LayerState]:
        """The layers of a block, or those outside all blocks ("")."""
        return [state for state in self.layers if self.plan.block_of(state.name) == block]

    def _block_of(self, name: str, calls: Sequence[Call]) -> Block:
        """A block of the model, or with the name "" the model and its layers outside the blocks."""
        module = self.adapter.model.get_submodule(name)
        layers, folds = self.plan.chosen_in(name), self.adapter.folds(module) if name else ()
        return Block(name, module, layers=layers, calls=calls, masks=self.masks, folds=folds)

    def _whole(self, layers: Sequence[str], calls: Sequence[Call]) -> Block:
        """The whole model as one block, called with batches."""
        model = self.adapter.model
        return Block(
            "",
            model,
            layers=layers,
            calls=calls,
            masks=self.masks,
            run=lambda call: self.adapter.run(model, call.args[0]),
        )

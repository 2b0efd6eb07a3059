"""The sequence of passes over a model: which layers, block by block, and what became of each.

One-shot passes go through a model block by block, so that a model needs memory for one block and
its activations. All one-shot passes of a stretch do a block before the next is touched, and the next
sees what the compressed one puts out. Passes that train work on the whole model, between stretches.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from todm.compress import awq, int4, int8, packed, prune
from todm.compress.adapter import ModelAdapter
from todm.compress.config import CompressConfig
from todm.compress.plan import Plan, select
from todm.compress.report import PassReport, Row, index_bits
from todm.compress.train.stages import Trained, Tuner
from todm.compress.train.tune import Options
from todm.compress.work import BlockWork, Call, LayerResult, Probe, capture, first_argument
from todm.errors import ConfigError
from todm.files import Progress

_ONE_SHOT: dict[str, Callable[[BlockWork, Any], dict[str, LayerResult]]] = {
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
        progress: called with what is done, how much, and of how much.

    Raises:
        ConfigError: a layer that is named and cannot be done, a model already compressed, settings
            that do not fit a layer; before any work.
        CorpusError: calibration data that cannot be used.
        TrainingError: a training that cannot go on.
    """
    if not config.passes:
        raise ConfigError("no passes are given: name some, as in  --passes prune,int8")
    plan = select(adapter, config)
    batches = adapter.calibration(config.num_calibration, calibration)
    job = _Job(adapter, config, plan, batches, progress)
    steps = _steps(config)
    if any(step.trains for step in steps):
        teacher = copy.deepcopy(adapter.model)
        options = Options(
            optimizers=optimizers or {}, directory=checkpoints, progress=progress, seed=config.seed
        )
        job.tuner = Tuner(adapter, teacher, options)
    for step in steps:
        if step.trains:
            job.train(step.passes[0])
        else:
            job.walk(step.passes, last=step is steps[-1])
    if not job.packed:
        job.pack_all()
    return Result(reports=job.reports(), masks=job.masks)


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


class _Job:
    """The state of a run of `compress`."""

    def __init__(
        self,
        adapter: ModelAdapter,
        config: CompressConfig,
        plan: Plan,
        batches: list[Any],
        progress: Progress | None,
    ) -> None:
        self.adapter, self.config, self.plan, self.batches = adapter, config, plan, batches
        self.progress = progress or (lambda what, done, total: None)
        self.masks: dict[str, Tensor] = {}
        self.probes: dict[str, Probe] = {}
        self.done: dict[str, dict[str, LayerResult]] = {name: {} for name in config.passes}
        self.errors: dict[str, dict[str, float | None]] = {"": {}}
        self.sizes: dict[str, dict[str, dict[str, float]]] = {}
        self.curves: dict[str, list[dict[str, float]]] = {}
        self.tuner: Tuner | None = None
        self.packed = False

    def walk(self, names: Sequence[str], *, last: bool) -> None:
        """The one-shot passes of a stretch, over all blocks and over what lies outside them."""
        self.adapter.model.eval()
        blocks = [b for block_list in self.adapter.block_lists for b in self._blocks(block_list)]
        for block_list in self.adapter.block_lists:
            with self.adapter.resident(""):
                calls = self._capture(block_list)
            for block in self._blocks(block_list):
                with self.adapter.resident(block):
                    calls = self._block(block, names, calls, last=last)
                self.progress(", ".join(names), blocks.index(block) + 1, len(blocks))
        if outside := [n for n in self.plan.chosen if self.plan.block_of(n) == ""]:
            with self.adapter.resident(""):
                calls = [Call((batch,), {}) for batch in self.batches]
                self._passes(self._outside(outside, calls), names, last=last)
        self.packed = self.packed or last

    def _capture(self, block_list: str) -> list[Call]:
        """What comes into a block_list; layers on the way there that no block holds are looked at."""
        outside = self._outside([], [])
        names = [n for n in self.plan.layers if self.plan.block_of(n) == ""]
        new = {n: Probe(outside.get(n)) for n in names if n not in self.probes}
        with outside.watched({name: first_argument(probe) for name, probe in new.items()}):
            calls = capture(self.adapter, block_list, self.batches)
        for name, probe in new.items():
            if probe.rows:
                probe.fix()
                self.probes[name] = probe
        return calls

    def train(self, name: str) -> None:
        """A pass that trains, on the whole model."""
        assert self.tuner is not None
        settings = getattr(self.config, name)
        work = self._outside(list(self.plan.chosen), [Call((b,), {}) for b in self.batches])
        self._probe(work)
        trained: Trained = self.tuner.run(name, settings, work)
        for layer, found in trained.done.items():
            self.done[name][layer] = found
        self.curves[name] = trained.curves
        self._measure(work, name)

    def pack_all(self) -> None:
        """Put sparse layers that no later pass quantised into their packed form."""
        for block in [*self._all_blocks(), ""]:
            with self.adapter.resident(block):
                layers = [n for n in self.plan.chosen if self.plan.block_of(n) == block]
                self._pack(
                    BlockWork(block, self._module(block), layers=layers, calls=[], masks=self.masks)
                )
        self.packed = True

    def reports(self) -> list[PassReport]:
        """A report per pass, with a row for every layer of the model."""
        found = []
        before: dict[str, float | None] = {}
        for name in self.config.passes:
            rows = [self._row(layer, name, before) for layer in self.plan.all]
            before = self.errors.get(name, {})
            settings = getattr(self.config, name).to_json()
            curves = self.curves.get(name, [])
            found.append(PassReport(name=name, settings=settings, rows=rows, curves=curves))
        return found

    def _block(
        self, name: str, passes: Sequence[str], calls: list[Call], *, last: bool
    ) -> list[Call]:
        """All passes of a stretch on a block; returns the calls of the next one."""
        layers = [n for n in self.plan.chosen if self.plan.block_of(n) == name]
        module = self._module(name)
        folds = self.adapter.folds(module)
        work = BlockWork(name, module, layers=layers, calls=calls, masks=self.masks, folds=folds)
        dense = None if self.config.sequential else [work.call(c) for c in calls]
        self._passes(work, passes, last=last)
        outputs = dense or [work.call(c) for c in calls]
        return [c.after(y) for c, y in zip(calls, outputs, strict=True)]

    def _passes(self, work: BlockWork, names: Sequence[str], *, last: bool) -> None:
        self._probe(work)
        for name in names:
            if work.layers:
                found = _ONE_SHOT[name](work, getattr(self.config, name))
                missing = set(work.layers) - set(found)
                assert not missing, f"{name} does not account for {missing}"
                self._check_named(name, found)
                self.done[name].update(found)
            self._measure(work, name)
        if last:
            self._pack(work)

    def _check_named(self, name: str, found: Mapping[str, LayerResult]) -> None:
        for layer, done in found.items():
            if not done.what and layer in self.plan.named:
                raise ConfigError(
                    f"{name} cannot be done on {layer}, which is named: {done.why_not}"
                )

    def _probe(self, work: BlockWork) -> None:
        """Sample the inputs of layers that were not looked at yet, and count the rows of all."""
        inside = [
            n for n in self.plan.layers if self.plan.block_of(n) == work.name or not work.name
        ]
        new = {n: Probe(work.get(n)) for n in inside if n not in self.probes}
        if new:
            work.observe_inputs(new)
            for probe in new.values():
                probe.fix()
        self.probes.update(new)

    def _measure(self, work: BlockWork, name: str) -> None:
        """Errors and sizes of the block's layers after a pass."""
        errors = self.errors.setdefault(name, {})
        sizes = self.sizes.setdefault(name, {})
        history = self.config.passes[: self.config.passes.index(name) + 1]
        for layer in [n for n in self.plan.layers if n in self.probes]:
            if work.name and self.plan.block_of(layer) != work.name:
                continue
            module = work.get(layer)
            done = [self.done[p][layer] for p in history if layer in self.done[p]]
            errors[layer] = self.probes[layer].error(module, done)
            sizes[layer] = _size(module, self.masks.get(layer), self.config)

    def _pack(self, work: BlockWork) -> None:
        """Sparse layers that are still dense modules with zeros take their packed form."""
        for layer in work.layers:
            module = work.get(layer)
            if layer in self.masks and _is_24(self.config) and isinstance(module, nn.Linear):
                work.replace(layer, packed.pack_sparse(module))

    def _outside(self, layers: Sequence[str], calls: Sequence[Call]) -> BlockWork:
        model = self.adapter.model
        return BlockWork(
            "",
            model,
            layers=layers,
            calls=calls,
            masks=self.masks,
            run=lambda call: self.adapter.run(model, call.args[0]),
        )

    def _row(self, layer: str, name: str, before: Mapping[str, float | None]) -> Row:
        kind, count, why = self.plan.all[layer]
        done = self.done[name].get(layer, LayerResult(why_not=why))
        probe = self.probes.get(layer)
        start = before.get(layer, 0.0 if probe and probe.rows else None)
        error = self.errors.get(name, {}).get(layer, start)
        sizes = {"weight_bits": 32.0, "bytes_after": 4 * count} | self.sizes.get(name, {}).get(
            layer, {}
        )
        return Row(
            name=layer,
            kind=kind,
            done=done.what,
            why_not="" if done.what else done.why_not,
            before=start,
            after=error,
            num_weights=count,
            rows=self._rows(layer),
            bytes_before=4 * count,
            figures=dict(done.figures),
            **sizes,  # pyright: ignore[reportArgumentType]
        )

    def _rows(self, layer: str) -> int:
        """Rows that a layer sees; one that calibration does not reach (a head) as many as the last block."""
        if layer not in self.plan.layers:
            return 0
        probe = self.probes.get(layer)
        if probe and probe.rows:
            return probe.rows
        last = [self.probes[n].rows for n in self.plan.layers if n in self.probes]
        return last[-1] if last else 0

    def _blocks(self, block_list: str) -> list[str]:
        return [
            f"{block_list}.{n}"
            for n, _ in self.adapter.model.get_submodule(block_list).named_children()
        ]

    def _all_blocks(self) -> list[str]:
        return [b for block_list in self.adapter.block_lists for b in self._blocks(block_list)]

    def _module(self, name: str) -> nn.Module:
        return self.adapter.model.get_submodule(name) if name else self.adapter.model


@torch.no_grad()
def _size(module: nn.Module, mask: Tensor | None, config: CompressConfig) -> dict[str, float]:
    """How a layer is stored now, for `Row`."""
    density = 1.0 if mask is None else float(mask.float().mean())
    kept = index_bits(config.prune.m) if mask is not None else 0.0
    found = {"density": density, "index_bits": kept}
    if isinstance(module, packed.PackedLinear):
        bits = {"weight_bits": module.weight_bits, "activation_bits": module.activation_bits}
        return found | bits | {"bytes_after": module.num_bytes}
    weight = module.weight
    assert isinstance(weight, Tensor)
    size = weight.element_size()
    if mask is not None and isinstance(module, nn.Linear) and _is_24(config):
        groups = -(-weight.shape[1] // 4)  # as it will be packed, unless a later pass quantises it
        return found | {"bytes_after": weight.shape[0] * (2 * groups * size + -(-groups // 2))}
    return found | {"bytes_after": weight.numel() * size}


def _is_24(config: CompressConfig) -> bool:
    return (config.prune.n, config.prune.m) == (2, 4)

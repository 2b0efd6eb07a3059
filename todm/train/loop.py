"""The training loop: sandwich steps over resumable batches, one optimizer step each.

Knows no modality: it meets the model through `Backend`. Every schedule constant is a fraction of the
planned updates. Ctrl-C finishes the update, writes a checkpoint and stops; after kill -9 training
goes on from the last checkpoint, exactly as it would have.
"""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from todm import artifact
from todm.artifact import Artifact
from todm.backend import Backend
from todm.config import Config
from todm.errors import ConfigError, TrainingError
from todm.supernet.sandwich import draw_subnets, sandwich_step
from todm.supernet.space import Subnet
from todm.train import checkpoint
from todm.train.average import RunningAverage, in_window
from todm.train.monitor import CURVES, METRICS, Monitor, plot_curves
from todm.train.optim import OptimConfig, build_optimizer, set_lr
from todm.train.parallel import World
from todm.train.schedule import ScheduleConfig, lr_factor

CHECKPOINTS = "checkpoints"
SUPERNET = "supernet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How long and how to train.

    Attributes:
        num_updates: planned optimizer steps.
        seed: of weights, subnets, data order and augmentation.
        sandwich: train a supernet; off trains the largest net alone (a plain model).
        sandwich_from: fraction of the updates in which the largest net trains alone first.
        num_random: random subnets a step, beside the largest and the smallest.
        average_last: the running average covers this last fraction.
        eval_every: fraction of the updates between evaluations of the largest and smallest net.
        eval_limit: dev utterances of such an evaluation.
        log_every: updates between logged figures.
        checkpoint_minutes: time between checkpoints.
        max_bad_steps: non-finite steps in a row after which training stops.
        num_threads: CPU threads of a process; 0 leaves it to torch.
        num_processes: data-parallel processes on a CPU, each with batches of its own.
        optim: the optimizer.
        schedule: the learning rate over time.
    """

    num_updates: int = 2000
    seed: int = 1
    sandwich: bool = True
    sandwich_from: float = 0.3
    num_random: int = 1
    average_last: float = 0.2
    eval_every: float = 0.1
    eval_limit: int = 100
    log_every: int = 20
    checkpoint_minutes: float = 1.0
    max_bad_steps: int = 20
    num_threads: int = 0
    num_processes: int = 1
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        for name in ("num_updates", "log_every", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}: at least 1")
        if not self.eval_every > 0:
            raise ConfigError(
                f"train.eval_every is {self.eval_every}: a fraction above 0; above 1 for none"
            )
        for name in ("sandwich_from", "average_last"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}: a fraction from 0 to 1")
        if not 0 <= self.seed < 2**24:
            raise ConfigError(f"train.seed is {self.seed}: 0 to {2**24 - 1}")
        if self.eval_limit < 0 or self.num_threads < 0:
            raise ConfigError("train.eval_limit and train.num_threads must be 0 or more")
        if self.num_processes < 1:
            raise ConfigError(f"train.num_processes is {self.num_processes}: at least 1")
        if self.num_random < 0:
            raise ConfigError(f"train.num_random is {self.num_random}: 0 or more")


def train(
    backend: Backend,
    config: TrainConfig,
    out: Path,
    *,
    recipe: dict[str, Any],
    parent: str,
    info: dict[str, Any] | None = None,
) -> Artifact:
    """Train a supernet and write it to `out/supernet`; continues where an earlier call stopped.

    Args:
        backend: the modality.
        config: this stage's settings.
        out: directory of the run: checkpoints, metrics, curves, the artifact.
        recipe: the whole configuration, kept in checkpoints and in the artifact.
        parent: hash of the corpus.
        info: anything a later stage needs, kept in the artifact.

    Raises:
        ConfigError: the run was started with other settings.
        TrainingError: too many bad steps in a row, or unreadable checkpoints.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    with World().joined() as world:
        origin = {"recipe": recipe, "parent": parent, "num_processes": world.size}
        trainer = _Trainer(backend, config, out, world, origin)
        return trainer.run(info or {})


class _Trainer:
    """State of one training and the steps that change it."""

    def __init__(
        self, backend: Backend, config: TrainConfig, out: Path, world: World, origin: dict[str, Any]
    ) -> None:
        self.backend, self.config, self.out, self.world, self.origin = (
            backend,
            config,
            out,
            world,
            origin,
        )
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        with world.lead_first():
            backend.prepare()
        torch.manual_seed(config.seed)
        self.model = backend.build(None).to(world.device)
        self.objective = world.wrap(backend.objective(self.model).to(world.device))
        self.optimizer = build_optimizer(config.optim, self.model)
        self.average = RunningAverage()
        self.batches = backend.batches(
            rank=world.rank, world_size=world.size, num_updates=config.num_updates
        )
        self.update = 0

    def run(self, info: dict[str, Any]) -> Artifact:
        """Train to the end, from the last checkpoint if there is one."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._restore()
        lead = self.world.rank == 0
        monitor = Monitor(self.out, self.config.num_updates) if lead else None
        with monitor or contextlib.nullcontext(), _StopFlag(ignore=not lead) as stop:
            if monitor:
                monitor.resume(self.update)
            saved = time.monotonic()
            for batch in self._remaining():
                figures = self._step(batch)
                self._report(monitor, figures)
                done = self.update == self.config.num_updates
                due = time.monotonic() - saved > 60 * self.config.checkpoint_minutes
                if lead and (due or done or stop.raised):
                    self._save()
                    saved = time.monotonic()
                if stop.raised:
                    raise KeyboardInterrupt
            return self._finish(monitor, info)

    def _remaining(self) -> Iterator[Any]:
        stream = iter(self.batches)
        while self.update < self.config.num_updates:
            yield next(stream)

    def _step(self, batch: Any) -> dict[str, Tensor | float]:  # noqa: ANN401 - the backend's own
        """One optimizer step."""
        config, update = self.config, self.update
        started = time.monotonic()
        # Dropout is a function of the update and the rank: nothing to keep in checkpoints.
        torch.manual_seed((config.seed * self.world.size + self.world.rank) * 2**32 + update)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        set_lr(self.optimizer, lr_factor(update, config.num_updates, config=config.schedule))
        with torch.autocast("cuda", torch.bfloat16, enabled=self.world.device.type == "cuda"):
            passes = sandwich_step(
                self.objective,
                batch.to(self.world.device),
                subnets=self._subnets(update),
                progress=update / config.num_updates,
            )
        self.optimizer.step()
        if self.optimizer.num_skipped_in_row >= config.max_bad_steps:
            raise TrainingError(
                f"{config.max_bad_steps} steps in a row had non-finite gradients (update {update}, "
                f"batch {', '.join(batch.ids[:4])}, ...): lower train.optim.lr, or look at these utterances"
            )
        if in_window(update, config.num_updates, config.average_last):
            self.average.update(self.model)
        self.update += 1
        smallest = {f"{k} smallest": v for k, v in passes[-1].items()} if len(passes) > 1 else {}
        divergence = passes[-1].get("divergence")
        return {
            **passes[0],
            **smallest,
            **({"divergence": divergence} if divergence is not None else {}),
            "seconds": time.monotonic() - started,
        }

    def _subnets(self, update: int) -> list[Subnet]:
        config, space = self.config, self.backend.space
        if not config.sandwich or update < config.sandwich_from * config.num_updates:
            return [space.largest]
        return draw_subnets(space, seed=config.seed, update=update, num_random=config.num_random)

    def _report(self, monitor: Monitor | None, figures: dict[str, Tensor | float]) -> None:
        """Show and log; evaluate when it is time."""
        if monitor is None:
            return
        config, update = self.config, self.update
        logged = None
        if update % config.log_every == 0 or update == config.num_updates:
            logged = {k: float(v) for k, v in figures.items()}
            logged |= {
                "lr": self.optimizer.param_groups[0]["lr"],
                "grad_norm": self.optimizer.last_norm,
                "clip": self.optimizer.last_clip,
                "skipped": self.optimizer.num_skipped,
            }
        monitor.trained(update, logged)
        every = max(1, round(config.eval_every * config.num_updates))
        if update % every == 0 and update < config.num_updates:
            monitor.evaluated(update, self._evaluate(config.eval_limit))

    def _evaluate(self, limit: int) -> dict[str, dict[str, Any]]:
        """Dev figures of the largest and the smallest net, with averaged weights once there are any."""
        space = self.backend.space
        nets = {"largest": space.largest, "smallest": space.smallest}
        if not self.config.sandwich:
            nets.pop("smallest")
        with self.average.swapped(self.model):
            return {
                name: self.backend.evaluate(self.model, subnet=net, split="dev", limit=limit)
                for name, net in nets.items()
            }

    def _save(self) -> None:
        checkpoint.write(
            self.out / CHECKPOINTS,
            self.update,
            {
                "update": self.update,
                "origin": self.origin,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict(),
                "batches": self.batches.state_dict(),
            },
        )

    def _restore(self) -> None:
        state = checkpoint.read_latest(self.out / CHECKPOINTS)
        if state is None:
            return
        if state["origin"] != self.origin:
            raise ConfigError(
                f"{self.out} holds a training with other settings "
                f"({_first_difference(state['origin'], self.origin)}): choose another --out or remove it"
            )
        self.update = state["update"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(_to_device(state["average"], self.world.device))
        self.batches.load_state_dict(state["batches"])

    def _finish(self, monitor: Monitor | None, info: dict[str, Any]) -> Artifact:
        """Average, evaluate, write the artifact (rank 0; the others wait for it)."""
        self.average.apply_to(self.model)
        self.average = RunningAverage()
        self.model.eval()
        if monitor is not None:
            figures = self._evaluate(0)
            monitor.evaluated(self.update, figures)
            plot_curves(self.out / METRICS, self.out / CURVES)
            artifact.save(
                self.out / SUPERNET,
                kind="supernet",
                config=self.origin["recipe"],
                parent=self.origin["parent"],
                metrics={
                    "dev": figures,
                    "updates": self.update,
                    "skipped": self.optimizer.num_skipped,
                },
                info={"seed": self.config.seed, **info},
                tensors=self.model.state_dict(),
                write=self.backend.write_assets,
            )
        self.world.barrier()
        return artifact.load(self.out / SUPERNET, kind="supernet")


class _StopFlag:
    """Turns the first Ctrl-C into a flag, so that an update is never cut in half.

    Processes other than the first ignore it: the first one ends them once its checkpoint is written.
    """

    def __init__(self, *, ignore: bool) -> None:
        self.raised = False
        self._ignore = ignore
        self._before: Any = None

    def __enter__(self) -> "_StopFlag":
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            self._before = signal.signal(
                signal.SIGINT, signal.SIG_IGN if self._ignore else self._raise
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _raise(self, _signal: int, _frame: FrameType | None) -> None:
        if self.raised:
            raise KeyboardInterrupt
        self.raised = True


def _to_device(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {**state, "mean": {k: v.to(device) for k, v in state["mean"].items()}}


def _first_difference(a: Any, b: Any, where: str = "") -> str:  # noqa: ANN401 - JSON
    """The first setting in which two configurations differ, in words."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            if a.get(key) != b.get(key):
                return _first_difference(a.get(key), b.get(key), f"{where}.{key}" if where else key)
    return f"{where.removeprefix('recipe.')}: {a!r} then, {b!r} now"

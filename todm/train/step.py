"""One update: the learning rate, a sandwich step, the guards, the optimizer, the average.

All that changes the model is here, and all its state; when to evaluate and what to write is in
`loop.py`. The same on every process: figures that decide something are summed over them first.
"""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from todm.artifact import Artifact
from todm.backend import Backend, Batches
from todm.compress.int8_emulation import cap_outliers
from todm.compress.train.sr_ste import SrSte
from todm.supernet.sandwich import draw_subnets, sandwich_step
from todm.supernet.space import Subnet
from todm.train.average import RunningAverage, in_window
from todm.train.config import TrainConfig
from todm.train.optim import build_optimizer, set_lr
from todm.train.parallel import World
from todm.train.schedule import Pace, lr_factor
from todm.train.spikes import SpikeGuard

Figures = dict[str, Tensor | float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult:
    """What became of an update.

    Attributes:
        figures: to be logged.
        loss: of the largest net on this process's batch.
        audio: seconds of audio, all processes together.
        skip_reason: why the step was skipped; empty if it was made.
        flags: the sums over processes of `flags`.
        renewed: whether the update began with new N:M masks.
    """

    figures: Figures
    loss: float
    audio: float
    skip_reason: str
    flags: list[float]
    renewed: bool


class Learner:
    """The model and all that an update changes."""

    def __init__(
        self,
        backend: Backend,
        config: TrainConfig,
        world: World,
        *,
        start: Artifact | None = None,
    ) -> None:
        """A fresh model, or one that begins with the weights of `start`.

        Attributes: `init_info` says what was taken from there, line by line.
        """
        self.backend, self.config, self.world = backend, config, world
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        torch.manual_seed(config.seed)
        self.model = backend.build(None)
        self.init_info = [] if start is None else backend.init_from(self.model, start)
        self.model = self.model.to(world.device)
        self.objective = world.wrap(backend.objective(self.model).to(world.device))
        self.optimizer = build_optimizer(config.optim, self.model)
        self.average = RunningAverage()
        self.sparse = SrSte.of(self.model, config.sparse, num_updates=config.num_updates)
        self.optimizer.after_clip = lambda clip: self.sparse.pull(self.optimizer, clip=clip)
        self.guard = SpikeGuard(config.max_spike)
        self.pace: Pace | None = None
        self.capped = 0
        self._drawn = hashlib.sha256()

    def set_pace(self, batches: Batches) -> None:
        """Learn how much audio an update takes, for schedules that count audio."""
        if self.config.schedule.reference_seconds:
            updates = batches.batches_per_epoch
            self.pace = Pace(seconds=batches.hours * 3600 / updates, updates=updates)

    def subnets(self, update: int) -> list[Subnet]:
        """Those of an update, the largest first."""
        config, space = self.config, self.backend.space
        if not config.sandwich or update < config.sandwich_from * config.num_updates:
            return [space.largest]
        return draw_subnets(space, seed=config.seed, update=update, num_random=config.num_random)

    def step(
        self,
        batch: Any,  # noqa: ANN401 - the backend's own
        update: int,
        *,
        subnets: Sequence[Subnet],
        audio: float,
        flags: Sequence[float] = (),
    ) -> StepResult:
        """Update number `update`, counted from 0.

        Args:
            batch: this process's.
            update: for the schedules, and the seed of dropout.
            subnets: the largest first.
            audio: seconds of audio of the batch.
            flags: further numbers to be summed over processes.
        """
        config = self.config
        # Dropout is a function of the update and the rank: nothing to keep in checkpoints.
        torch.manual_seed((config.seed * self.world.size + self.world.rank) * 2**32 + update)
        self._drawn.update(repr(subnets).encode())
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        factor = lr_factor(update, config.num_updates, config=config.schedule, pace=self.pace)
        set_lr(self.optimizer, factor)
        renewed = self.sparse.enter(update)
        on_gpu = self.world.device.type == "cuda"
        with self.sparse.masked(), torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            passes = sandwich_step(
                self.objective,
                batch.to(self.world.device),
                subnets=subnets,
                progress=update / config.num_updates,
                student_weight=config.student_weight,
            )
        loss = float(passes[0]["loss"])
        total, seconds, *flags = self.world.total([loss, audio, *flags])
        skip_reason = self._apply(
            total / self.world.size, f"{len(passes)} {' '.join(sorted(passes[0]))}"
        )
        if in_window(update, config.num_updates, config.average_last):
            self.average.update(self.model)
        return StepResult(
            figures=_figures(passes),
            loss=loss,
            audio=seconds,
            skip_reason=skip_reason,
            flags=flags,
            renewed=renewed,
        )

    def _apply(self, loss: float, kind: str) -> str:
        """The optimizer's step, or why there was none; `loss` is the mean over processes."""
        guard, optimizer = self.guard, self.optimizer
        guard.enter(kind)
        if not math.isfinite(loss):
            optimizer.skip(math.nan)
            return "the loss is not finite"
        if loss > guard.max_loss:
            optimizer.skip(math.nan)
            return f"the loss {loss:.3g} is above {guard.max_loss:.3g}"
        optimizer.max_norm = guard.max_norm
        optimizer.step()
        norm = optimizer.last_norm
        if optimizer.num_skipped_in_row:
            finite = math.isfinite(norm)
            why = f"{norm:.3g} is above {guard.max_norm:.3g}" if finite else "is not finite"
            return f"the gradient norm {why}"
        guard.accept(loss, norm)
        if (cap := self.config.quant.outlier_cap) is not None:
            self.capped += cap_outliers(self.model, cap)
        return ""

    @contextlib.contextmanager
    def eval_weights(self) -> Iterator[None]:
        """Inside, the model has the weights that it is judged by: averaged, then masked."""
        with self.average.swapped(self.model), self.sparse.masked():
            yield

    def finish(self) -> None:
        """Leave these weights in the model for good; training cannot go on."""
        self.average.apply_to(self.model)
        self.average = RunningAverage()
        self.sparse.finish()
        self.model.eval()

    def check_draws(self, update: int) -> None:
        """Make sure that all processes have drawn, and will draw, the same subnets, and mask alike.

        Raises:
            TrainingError: they have not.
        """
        ahead = [repr(self.subnets(update + i)) for i in range(100)]
        self.world.agree(
            [self._drawn.hexdigest(), ahead, self.sparse.digest()],
            what="subnets",
            hint="start all with the same version of todm and of Python",
        )

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "sparse": self.sparse.state_dict(),
            "guard": self.guard.state_dict(),
            "capped": self.capped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        average = state["average"]
        mean = {k: v.to(self.world.device) for k, v in average["mean"].items()}
        self.average.load_state_dict({**average, "mean": mean})
        self.sparse.load_state_dict(state["sparse"])
        self.guard.load_state_dict(state["guard"])
        self.capped = state["capped"]


def _figures(passes: Sequence[Mapping[str, Tensor]]) -> Figures:
    """Of the largest net, of the smallest, and its distance from the largest."""
    if len(passes) == 1:
        return {**passes[0]}
    smallest = {f"{name} smallest": value for name, value in passes[-1].items()}
    divergence = {k: v for k, v in passes[-1].items() if k == "divergence"}
    return {**passes[0], **smallest, **divergence}

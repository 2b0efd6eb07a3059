"""One update: the learning rate, a sandwich step, the guards, the optimizer, the average.

Everything that changes the model is here, with its state; `loop.py` decides when to evaluate and what
to write. All processes take the same decisions: the figures behind them are summed over processes.
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
from todm.backend import Backend
from todm.compress.int8_emulation import cap_outliers
from todm.compress.train.sr_ste import SrSte
from todm.supernet.sandwich import draw_subnets, sandwich_step
from todm.supernet.space import Subnet
from todm.train.average import apply_average, averaged, in_window, running_average
from todm.train.config import TrainConfig
from todm.train.guards import SpikeGuard
from todm.train.optim import build_optimizer, set_lr
from todm.train.parallel import World
from todm.train.schedule import UpdateStats, lr_factor

Figures = dict[str, Tensor | float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult:
    """Result of one update.

    Attributes:
        figures: to be logged.
        loss: of the largest net on this process's batch.
        audio: seconds of audio, all processes together.
        skip_reason: why the optimizer made no step; empty if it made one.
        flags: the given flags, summed over processes.
        renewed: whether the update began with new N:M masks.
    """

    figures: Figures
    loss: float
    audio: float
    skip_reason: str
    flags: list[float]
    renewed: bool


class Learner:
    """The model, its batches, and all else that an update changes.

    Attributes:
        init_info: what was taken from an earlier artifact, line by line.
        batches: of this process.
        update_stats: audio and updates of an epoch, for schedules that count audio.
    """

    def __init__(
        self, backend: Backend, config: TrainConfig, world: World, *, start: Artifact | None = None
    ) -> None:
        """A fresh model, or one initialised from the weights of `start`."""
        self.backend, self.config, self.world = backend, config, world
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        with world.rank_zero_first():
            backend.prepare()
        torch.manual_seed(config.seed)
        self.model = backend.build(None)
        self.init_info = [] if start is None else backend.init_from(self.model, start)
        self.model = self.model.to(world.device)
        self.objective = backend.objective(self.model).to(world.device)
        self.optimizer = build_optimizer(config.optim, self.model)
        self.average = running_average(self.model)
        self.sparse = SrSte.of(self.model, config.sparse, num_updates=config.num_updates)
        self.optimizer.after_clip = lambda clip: self.sparse.pull(self.optimizer, clip=clip)
        self.guard = SpikeGuard(config.max_spike)
        self.num_capped = 0
        self.batches = backend.batches(
            rank=world.rank, world_size=world.size, num_updates=config.num_updates
        )
        self.update_stats: UpdateStats | None = None
        if config.schedule.reference_seconds:
            updates = self.batches.batches_per_epoch
            self.update_stats = UpdateStats(
                seconds=self.batches.hours * 3600 / updates, updates=updates
            )

    def subnets(self, update: int) -> list[Subnet]:
        """The subnets of an update, the largest first."""
        config, space = self.config, self.backend.space
        if not config.sandwich or update < config.sandwich_from * config.num_updates:
            return [space.largest]
        num_random = 1 if config.random_net else config.num_random
        drawn = draw_subnets(space, seed=config.seed, update=update, num_random=num_random)
        return drawn[1:2] if config.random_net else drawn  # without the largest and the smallest

    def step(
        self,
        batch: Any,  # noqa: ANN401 - the backend's own
        update: int,
        *,
        subnets: Sequence[Subnet],
        flags: Sequence[float] = (),
    ) -> StepResult:
        """Update number `update`, counted from 0.

        Args:
            batch: this process's.
            update: for the schedules, and the seed of dropout.
            subnets: the largest first.
            flags: further numbers to be summed over processes.
        """
        config, world = self.config, self.world
        # Dropout is a function of the update and the rank: nothing to keep in checkpoints.
        torch.manual_seed((config.seed * world.size + world.rank) * 2**32 + update)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        factor = lr_factor(
            update, config.num_updates, config=config.schedule, stats=self.update_stats
        )
        set_lr(self.optimizer, factor)
        renewed = self.sparse.enter(update)
        on_gpu = world.device.type == "cuda"
        with self.sparse.masked(), torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            passes = sandwich_step(
                self.objective,
                batch.to(world.device),
                subnets=subnets,
                progress=update / config.num_updates,
                student_weight=config.student_weight,
            )
        world.average_gradients(self.model.parameters())
        loss = float(passes[0]["loss"])
        total, audio, *flags = world.all_reduce_sum([loss, self.batches.seconds(batch), *flags])
        kind = f"{len(passes)} {' '.join(sorted(passes[0]))}"
        skip_reason = self._apply(total / world.size, kind)
        if in_window(update, config.num_updates, config.average_last):
            self.average.update_parameters(self.model)
        return StepResult(
            figures=_figures(passes),
            loss=loss,
            audio=audio,
            skip_reason=skip_reason,
            flags=flags,
            renewed=renewed,
        )

    def _apply(self, loss: float, kind: str) -> str:
        """Make the optimizer's step, or say why not; `loss` is the mean over processes."""
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
            self.num_capped += cap_outliers(self.model, cap)
        return ""

    @contextlib.contextmanager
    def eval_weights(self) -> Iterator[None]:
        """Inside, the model has the weights that are evaluated: averaged, then masked."""
        with averaged(self.average, self.model), self.sparse.masked():
            yield

    def finish(self) -> None:
        """Leave the evaluated weights in the model for good; training cannot go on."""
        apply_average(self.average, self.model)
        self.sparse.finish()
        self.model.eval()

    def check_weights(self) -> None:
        """Check that all processes have the same weights and masks.

        Raises:
            TrainingError: they have not.
        """
        if self.world.size == 1:
            return
        digest = hashlib.sha256()
        for weight in self.model.state_dict().values():
            digest.update(weight.cpu().reshape(-1).view(torch.uint8).numpy())
        self.world.assert_same(
            [digest.hexdigest(), self.sparse.digest()],
            what="weights",
            hint="run all processes with the same versions of todm and torch, on hardware of one kind",
        )

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "sparse": self.sparse.state_dict(),
            "guard": self.guard.state_dict(),
            "num_capped": self.num_capped,
            "batches": self.batches.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.sparse.load_state_dict(state["sparse"])
        self.guard.load_state_dict(state["guard"])
        self.num_capped = state["num_capped"]
        self.batches.load_state_dict(state["batches"])


def _figures(passes: Sequence[Mapping[str, Tensor]]) -> Figures:
    """Of the largest net and of the smallest, and the divergence between them."""
    if len(passes) == 1:
        return {**passes[0]}
    smallest = {f"{name} smallest": value for name, value in passes[-1].items()}
    divergence = {k: v for k, v in passes[-1].items() if k == "divergence"}
    return {**passes[0], **smallest, **divergence}

"""The settings of a training. Every constant of a schedule is a fraction of the planned updates."""

import dataclasses

from todm.compress.int8_emulation import QuantConfig
from todm.compress.train.sr_ste import SrSteConfig
from todm.config import Config
from todm.errors import ConfigError
from todm.train.optim import OptimConfig
from todm.train.schedule import ScheduleConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How long and how to train.

    Attributes:
        num_updates: planned optimizer steps.
        seed: of weights, subnets, data order and augmentation.
        sandwich: train a supernet; off trains the largest net alone (a plain model).
        sandwich_from: fraction of the updates in which the largest net trains alone first.
        num_random: random subnets a step, beside the largest and the smallest.
        student_weight: what the losses of these subnets count, that of the largest being 1.
        average_last: the running average covers this last fraction.
        eval_every: fraction of the updates between evaluations of the largest and smallest net.
        eval_limit: dev utterances of such an evaluation.
        log_every: updates between logged figures.
        checkpoint_minutes: time between checkpoints.
        max_spike: a step whose loss or gradient norm is this many times its running median is
            skipped; 0 skips only what is not finite.
        max_bad_steps: skipped steps in a row after which training stops.
        num_threads: CPU threads of a process; 0 leaves it to torch.
        num_processes: data-parallel processes on a CPU, each with batches of its own.
        max_restarts: how often such processes are started again after one was lost.
        optim: the optimizer.
        schedule: the learning rate over time.
        quant: what is watched, and kept, for int8.
        sparse: N:M masks that are learnt in training; off unless `sparse.n` is set.
    """

    num_updates: int = 2000
    seed: int = 1
    sandwich: bool = True
    sandwich_from: float = 0.3
    num_random: int = 1
    student_weight: float = 1.0
    average_last: float = 0.2
    eval_every: float = 0.1
    eval_limit: int = 100
    log_every: int = 20
    checkpoint_minutes: float = 1.0
    # In trainings that went well the loss came to 14 times its median, the gradient norm to 52.
    max_spike: float = 100.0
    max_bad_steps: int = 20
    num_threads: int = 0
    num_processes: int = 1
    max_restarts: int = 3
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    quant: QuantConfig = dataclasses.field(default_factory=QuantConfig)
    sparse: SrSteConfig = dataclasses.field(default_factory=SrSteConfig)

    def __post_init__(self) -> None:
        some = ("num_updates", "log_every", "max_bad_steps", "num_processes")
        none = ("eval_limit", "num_threads", "num_random", "max_restarts")
        for name, least in {**dict.fromkeys(some, 1), **dict.fromkeys(none, 0)}.items():
            if getattr(self, name) < least:
                allowed = "at least 1" if least else "0 or more"
                raise ConfigError(f"train.{name} is {getattr(self, name)}: {allowed}")
        positive = {
            "student_weight": "it must be above 0",
            "eval_every": "a fraction above 0; above 1 for none",
        }
        for name, allowed in positive.items():
            if not getattr(self, name) > 0:
                raise ConfigError(f"train.{name} is {getattr(self, name)}: {allowed}")
        for name in ("sandwich_from", "average_last"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}: a fraction from 0 to 1")
        if not 0 <= self.seed < 2**24:
            raise ConfigError(f"train.seed is {self.seed}: 0 to {2**24 - 1}")
        if self.max_spike and not self.max_spike > 1:
            raise ConfigError(
                f"train.max_spike is {self.max_spike}: a multiple above 1, or 0 for none"
            )

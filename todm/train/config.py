"""The settings of a training. Every constant of a schedule is a fraction of the planned updates."""

import dataclasses

from todm.compress.int8_emulation import QuantConfig
from todm.compress.train.sr_ste import SrSteConfig
from todm.config import Config
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
        random_net: one random net a step instead of the sandwich, without distillation; for comparison.
        num_random: random subnets a step, beside the largest and the smallest.
        student_weight: weight of the losses of all but the largest net, whose own is 1.
        average_last: the running average covers this last fraction of the updates.
        eval_every: fraction of the updates between evaluations of the largest and smallest net.
        eval_limit: dev utterances of such an evaluation.
        log_every: updates between logged figures.
        checkpoint_minutes: time between checkpoints.
        max_spike: a step whose loss or gradient norm exceeds its running median by this factor is
            skipped; 0 skips only steps that are not finite.
        max_bad_steps: skipped steps in a row after which training stops.
        num_threads: CPU threads of a process; 0 leaves it to torch.
        num_processes: data-parallel processes on a CPU, each with batches of its own.
        max_restarts: how often these processes are restarted after one was lost.
        optim: the optimizer.
        schedule: the learning rate over time.
        quant: int8 monitoring and outlier clamping.
        sparse: N:M masks learnt in training; off unless `sparse.n` is set.
    """

    num_updates: int = 2000
    seed: int = 1
    sandwich: bool = True
    sandwich_from: float = 0.3
    random_net: bool = False
    num_random: int = 1
    student_weight: float = 1.0
    average_last: float = 0.2
    eval_every: float = 0.1
    eval_limit: int = 100
    log_every: int = 20
    checkpoint_minutes: float = 1.0
    # In good trainings the loss reached 14 times its median, the gradient norm 52 times.
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
        ones = ("num_updates", "log_every", "max_bad_steps", "num_processes")
        self.check("train", ones, holds=lambda v: v >= 1, allowed="at least 1")
        zeros = ("eval_limit", "num_threads", "num_random", "max_restarts")
        self.check("train", zeros, holds=lambda v: v >= 0, allowed="0 or more")
        fractions, allowed = ("sandwich_from", "average_last"), "a fraction from 0 to 1"
        self.check("train", fractions, holds=lambda v: 0 <= v <= 1, allowed=allowed)
        weight, allowed = ("student_weight",), "it must be above 0"
        self.check("train", weight, holds=lambda v: v > 0, allowed=allowed)
        allowed = "a fraction above 0; above 1 for none"
        self.check("train", ("eval_every",), holds=lambda v: v > 0, allowed=allowed)
        allowed = f"0 to {2**24 - 1}"
        self.check("train", ("seed",), holds=lambda v: 0 <= v < 2**24, allowed=allowed)
        allowed = "a multiple above 1, or 0 for none"
        self.check("train", ("max_spike",), holds=lambda v: v == 0 or v > 1, allowed=allowed)

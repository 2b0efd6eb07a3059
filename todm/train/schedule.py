"""Learning-rate schedules, as pure functions of the step.

Every constant of `ScheduleConfig` is a fraction of the planned updates, so a short run is a scaled
long one, unless `reference_seconds` asks for Eden in the units of icefall's Zipformer recipes (Yao et
al., arXiv 2310.11230): batches of a fixed length of audio, and epochs.
"""

import dataclasses
import math
from typing import Literal

from todm.config import Config
from todm.errors import ConfigError

MAX_FINAL = 0.05  # a run that ends at a high rate leaves noisy weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """Warm-up, then a decay from exactly 1 to exactly `final`.

    `warmup` is a fraction of the planned updates, `warmup_start` the factor of the first update.
    `knee_updates` and `knee_epochs` are where Eden's two factors bend, as fractions of the updates
    after warm-up; Eden2 uses the first only, the other kinds neither.

    With `reference_seconds` above 0 only `warmup_start` of these is used: `eden` and `eden2` then
    follow the published curve, whose constants (`eden_batches`, `eden_epochs`, `eden_warmup`) count
    batches of so many seconds of audio. The rate thus depends on the audio seen, not on the batch size
    or the number of processes. icefall tuned its constants on two GPUs of 1,000 s each: 2000. An epoch
    is a pass over all speeds of the data; `eden_epochs` is meant for 30 to 50 of them, so lower it in a
    shorter run.
    """

    kind: Literal["eden", "eden2", "cosine", "linear"] = "eden2"
    warmup: float = 0.05
    warmup_start: float = 0.1
    final: float = 0.02
    knee_updates: float = 0.2
    knee_epochs: float = 0.4
    reference_seconds: float = 0.0
    eden_batches: float = 7500.0
    eden_epochs: float = 3.5
    eden_warmup: float = 500.0

    def __post_init__(self) -> None:
        allowed = "a fraction in [0, 1) is needed"
        self.check("schedule", ("warmup",), holds=lambda v: 0 <= v < 1, allowed=allowed)
        allowed = "a factor in (0, 1] is needed"
        self.check("schedule", ("warmup_start",), holds=lambda v: 0 < v <= 1, allowed=allowed)
        allowed = f"at most {MAX_FINAL} of the peak is allowed"
        self.check("schedule", ("final",), holds=lambda v: 0 <= v <= MAX_FINAL, allowed=allowed)
        names = ("knee_updates", "knee_epochs", "eden_batches", "eden_epochs", "eden_warmup")
        self.check("schedule", names, holds=lambda v: v > 0, allowed="it must be above 0")
        allowed = "seconds of audio, or 0"
        self.check("schedule", ("reference_seconds",), holds=lambda v: v >= 0, allowed=allowed)
        if self.reference_seconds and self.kind not in ("eden", "eden2"):
            raise ConfigError(
                f"schedule.reference_seconds is for eden and eden2, not {self.kind}: set it to 0"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateStats:
    """How much data an update takes, all processes together.

    Attributes:
        seconds: mean audio of an update.
        updates: updates of an epoch.
    """

    seconds: float
    updates: float


def lr_factor(
    step: int, total: int, *, config: ScheduleConfig, stats: UpdateStats | None = None
) -> float:
    """The factor of the peak learning rate.

    Args:
        step: the update about to be made, counted from 0.
        total: the planned number of updates; later steps keep the last factor.
        config: the curve.
        stats: of the training; needed with `reference_seconds`.
    """
    if config.reference_seconds:
        assert stats is not None
        return _by_audio(step, config, stats)
    warmup = config.warmup * total
    if step < warmup:
        return config.warmup_start + (1 - config.warmup_start) * step / warmup
    at = min(1.0, (step - warmup) / max(total - 1 - warmup, 1))
    shape = _SHAPES[config.kind]
    end = shape(1.0, config)
    return config.final + (1 - config.final) * (shape(at, config) - end) / (1 - end)


def _by_audio(step: int, config: ScheduleConfig, stats: UpdateStats) -> float:
    """Eden as published, a batch counted as its audio b over the reference's; e is the epoch.

    `eden` is `((b^2 + B^2) / B^2)^-1/4 * ((e^2 + E^2) / E^2)^-1/4 * warm`, the product of two decays like
    an inverse square root; `eden2` is `((b^2 + B^2) / B^2)^-1/2 * warm`.
    """
    batch, start = step * stats.seconds / config.reference_seconds, config.warmup_start
    warm = min(1.0, start + (1 - start) * batch / config.eden_warmup)
    if config.kind == "eden2":
        return _knee(batch / config.eden_batches, 0.5) * warm
    epoch = step / stats.updates
    return _knee(batch / config.eden_batches, 0.25) * _knee(epoch / config.eden_epochs, 0.25) * warm


def _knee(ratio: float, power: float) -> float:
    return (ratio * ratio + 1) ** -power


_SHAPES = {
    "eden": lambda at, c: _knee(at / c.knee_updates, 0.25) * _knee(at / c.knee_epochs, 0.25),
    "eden2": lambda at, c: _knee(at / c.knee_updates, 0.5),
    "cosine": lambda at, _: (1 + math.cos(math.pi * at)) / 2,
    "linear": lambda at, _: 1 - at,
}

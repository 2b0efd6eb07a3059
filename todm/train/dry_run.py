"""A dry run: the first steps of a training, on its largest batch, of which nothing is kept.

Reports the memory, time and disk that the training needs, or which setting is too high.
"""

import dataclasses
import itertools
import math
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from todm import artifact
from todm.backend import Backend
from todm.errors import TrainingError
from todm.supernet.space import Subnet
from todm.train import checkpoint
from todm.train.config import TrainConfig
from todm.train.evaluation import evaluate
from todm.train.parallel import World
from todm.train.step import Learner

TYPICAL = 4  # batches that are timed
_STATUS = Path("/proc/self/status")
_GB = 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class DryRunReport:
    """What a training will need; the slowest or largest of its processes counts.

    Attributes:
        init_info: what was taken from an earlier artifact.
        params: parameters of the largest and of the smallest net, as they are extracted.
        processes: number of processes.
        hours: audio of an epoch.
        batches_per_epoch: of one process.
        num_updates: of the training.
        sandwich_from: fraction of the updates in which the largest net trains alone.
        worst: description of the largest batch.
        worst_bytes: peak memory of its step: on a CPU above what was in use before, on a GPU all.
        seconds: time of an update with the largest net alone, and with the sandwich.
        audio: seconds of audio in a timed update, all processes together.
        checkpoint_bytes: of all checkpoints that are on the disk at once.
        feature_bytes: features that had to be computed for this corpus.
    """

    init_info: Sequence[str]
    params: tuple[int, int]
    processes: int
    hours: float
    batches_per_epoch: int
    num_updates: int
    sandwich_from: float
    worst: str
    worst_bytes: int
    seconds: tuple[float, float]
    audio: float
    checkpoint_bytes: int
    feature_bytes: int

    @property
    def total_seconds(self) -> float:
        """Time of the whole training, without evaluations."""
        alone = self.sandwich_from * self.num_updates
        return alone * self.seconds[0] + (self.num_updates - alone) * self.seconds[1]

    def lines(self) -> list[str]:
        """For the terminal."""
        alone, sandwich = self.seconds
        epochs = self.num_updates / self.batches_per_epoch
        rate = self.audio / sandwich
        epoch = [_clock(self.batches_per_epoch * s) for s in self.seconds]
        disk = f"checkpoints {self.checkpoint_bytes / _GB:.3g} GB"
        if self.feature_bytes:
            disk += f", features {self.feature_bytes / _GB:.3g} GB"
        return [
            *self.init_info,
            f"parameters: {self.params[0] / 1e6:.2f}M largest, {self.params[1] / 1e6:.2f}M smallest",
            f"epoch: {self.hours:.4g} h of audio, {self.batches_per_epoch} updates on "
            f"{self.processes} process{'es' * (self.processes > 1)}",
            f"worst batch: {self.worst}, peak memory {self.worst_bytes / _GB:.3g} GB a process",
            f"update: {alone:.3g} s at first, {sandwich:.3g} s with the sandwich "
            f"({rate:.4g} h of audio an hour)",
            f"time of an epoch: {epoch[0]} at first, {epoch[1]} with the sandwich",
            f"time of the run: {_clock(self.total_seconds)} for {self.num_updates} updates "
            f"({epochs:.3g} epochs), without evaluations",
            f"disk: {disk}",
        ]


def dry_run(
    backend: Backend, config: TrainConfig, out: Path, *, init: Path | None = None
) -> DryRunReport:
    """Build everything, train on the worst batch and a few others, and report what that took.

    Computes missing features, as a training would; writes nothing to `out`.

    Raises:
        TrainingError: memory or disk do not suffice, with the setting to lower.
    """
    start = None if init is None else artifact.load(init, kind=("supernet", "subnet"))
    with World().joined() as world:
        features, place = backend.preparation()
        _check_disk(features, place, "the features of this corpus", "another place for the corpus")
        learner = Learner(backend, config, world, start=start)
        learner.check_weights()
        return _measure(learner, out, features)


def _measure(learner: Learner, out: Path, features: int) -> DryRunReport:
    config, world, backend = learner.config, learner.world, learner.backend
    batches, space = learner.batches, backend.space
    timed = list(itertools.islice(iter(batches), TYPICAL))
    worst_bytes, worst = _worst(learner, timed[0])
    last = config.num_updates - 1
    alone, _ = _time_updates(learner, timed, draws=[[space.largest]] * TYPICAL, update=0)
    draws = [learner.subnets(max(0, last - i)) for i in range(TYPICAL)]
    sandwich, audio = _time_updates(learner, timed, draws=draws, update=last)
    if world.rank == 0:
        model = learner.model
        evaluate(backend, model, sandwich=config.sandwich, int8=config.quant.every <= 1, limit=2)
    size = checkpoint.num_bytes(learner.state_dict()) * (checkpoint.KEEP + 1)
    _check_disk(size, out, "checkpoints", "another --out")
    return DryRunReport(
        init_info=learner.init_info,
        params=(_params(backend, space.largest), _params(backend, space.smallest)),
        processes=world.size,
        hours=batches.hours,
        batches_per_epoch=batches.batches_per_epoch,
        num_updates=config.num_updates,
        sandwich_from=config.sandwich_from if config.sandwich else 1.0,
        worst=worst,
        worst_bytes=worst_bytes,
        seconds=(alone, sandwich),
        audio=audio,
        checkpoint_bytes=size,
        feature_bytes=features,
    )


def _worst(learner: Learner, typical: Any) -> tuple[int, str]:  # noqa: ANN401 - the backend's own
    """Peak bytes of a sandwich step on the largest batch (the most of all processes), and its name.

    Random subnets are taken as large as they can be. A CPU process that asks for too much is killed
    without a message, so the need is estimated from a typical batch first.
    """
    config, world, space = learner.config, learner.world, learner.backend.space
    batches, worst = learner.batches, learner.batches.worst_batch()
    seconds = batches.seconds(worst)
    name = f"{len(worst.ids)} utterances, {seconds:.4g} s of audio"
    nets = [space.largest] * (1 + config.num_random) + [space.smallest]
    subnets = nets if config.sandwich else nets[:1]
    remedy = f"lower {batches.limit}, or the largest net's widths and depth"

    def step(batch: Any) -> None:  # noqa: ANN401 - the backend's own
        _step(learner, batch, config.num_updates - 1, subnets=subnets)

    try:
        step(typical)  # not measured: it creates the optimizer's state
        usual = _peak_bytes(lambda: step(typical), world.device)
        likely = max(world.all_gather(usual * seconds / batches.seconds(typical)))
        free = min(world.all_gather(_available_bytes()))  # shared by the processes of a machine
        if world.device.type == "cpu" and likely * world.local_size > free:
            raise TrainingError(
                f"the worst batch ({name}) would need about {likely / _GB:.3g} GB in each of "
                f"{world.local_size} processes, and {free / _GB:.3g} GB are free: {remedy}"
            )
        peak = _peak_bytes(lambda: step(worst), world.device)
    except (RuntimeError, MemoryError) as error:
        if not _is_memory(error):
            raise
        raise TrainingError(
            f"the worst batch ({name}) does not fit into memory: {remedy}"
        ) from error
    return max(world.all_gather(peak)), name


def _time_updates(
    learner: Learner, timed: Sequence[Any], *, draws: Sequence[Sequence[Subnet]], update: int
) -> tuple[float, float]:
    """Mean seconds of an update, and of audio in it, all processes together.

    The first batch is not timed: a kernel is compiled when its shapes are first met.
    """
    audio, started = 0.0, 0.0
    for index, (batch, subnets) in enumerate(zip(timed, draws, strict=True)):
        if index == 1:
            started = time.monotonic()
        seconds = _step(learner, batch, update, subnets=subnets)
        audio += seconds if index else 0.0
    count = len(timed) - 1
    return (time.monotonic() - started) / count, audio / count


def _step(
    learner: Learner,
    batch: Any,  # noqa: ANN401 - the backend's own
    update: int,
    *,
    subnets: Sequence[Subnet],
) -> float:
    """An update that must not fail; the audio of all processes.

    Raises:
        TrainingError: its loss or gradient is not finite; in every process.
    """
    result = learner.step(batch, update, subnets=subnets)
    if result.skip_reason:
        raise TrainingError(
            f"{result.skip_reason} with the batch {', '.join(batch.ids[:4])}, ...: look at these "
            "utterances, or lower train.optim.lr"
        )
    return result.audio


def _peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """Peak memory during `work`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    before = _resident("VmRSS")
    _forget_peak()
    work()
    return max(0, _resident("VmHWM") - before)


def _resident(line: str) -> int:
    """Resident bytes of this process: now (VmRSS) or at their peak (VmHWM)."""
    if _STATUS.is_file():
        rows = dict(row.split(":", 1) for row in _STATUS.read_text().splitlines())
        return int(rows[line].split()[0]) * 1024
    # Without /proc only the peak since the start is known; macOS gives it in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _available_bytes() -> float:
    """Memory that is free; infinite where that is unknown."""
    if not _STATUS.is_file():
        return math.inf
    rows = dict(row.split(":", 1) for row in Path("/proc/meminfo").read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024


def _forget_peak() -> None:
    """Reset VmHWM (Linux: write 5 to clear_refs)."""
    if _STATUS.is_file():
        _STATUS.with_name("clear_refs").write_text("5")


def _is_memory(error: Exception) -> bool:
    """Whether an allocation failed; the CPU's allocator has no error class."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "can't allocate memory" in str(error)


def _check_disk(needed: int, place: Path, what: str, remedy: str) -> None:
    disk = next(p for p in (place, *place.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise TrainingError(
            f"{what} need {needed / _GB:.3g} GB, and the disk of {disk} has {free / _GB:.3g} GB "
            f"left: free some space, or choose {remedy}"
        )


def _params(backend: Backend, subnet: Subnet) -> int:
    with torch.device("meta"):
        plain = backend.build(subnet)
    return sum(p.numel() for p in plain.parameters())


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    minutes = math.ceil(seconds / 60)
    days, rest = divmod(minutes, 24 * 60)
    hours = f"{rest // 60} h {rest % 60:02d} min" if rest >= 60 or days else f"{rest} min"
    return f"{days} d {hours}" if days else hours

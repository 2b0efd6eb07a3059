"""How times and peaks are measured: in turns, with flushed caches, as the median of many with its spread.

On a GPU a time is measured between two events; nothing waits for the GPU within a round, so the flush
hides the launch. Calls that are mostly launches are replayed from a CUDA graph.
"""

import ctypes
import dataclasses
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from todm.bench.kernels.case import Call, Subject

MODE = Literal["eager", "graph"]
_FLUSHED_ON_CPU = 64 << 20
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """Number of repetitions of a case: as many as fit into `seconds`, within limits."""

    seconds: float
    least: int
    most: int

    def repeats(self, seconds_once: float) -> int:
        """For a round of all subjects that takes this many seconds."""
        return int(min(max(self.seconds / max(seconds_once, 1e-9), self.least), self.most))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """Measurements of a subject: the median of so many repetitions, and 10th and 90th percentile.

    `peak_mb` is in 10^6 bytes above the memory in use before, outputs included; None if the system does
    not report it.
    """

    mode: MODE
    repeats: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    peak_mb: float | None


class Clock(Protocol):
    """How times are measured on a device: with how much effort, in which kind of time."""

    effort: Effort
    unit: str

    def prepare(self, subject: Subject) -> tuple[Call, MODE]:
        """The call to time."""
        ...

    def rounds(self, calls: Mapping[str, Call], repeats: int) -> dict[str, list[float]]:
        """Seconds of each repetition of each call; every call once a round."""
        ...

    def peak_mb(self, call: Call) -> float | None:
        """Peak memory of one call above the memory in use before."""
        ...


def measure(subjects: Mapping[str, Subject], clock: Clock) -> dict[str, Figures]:
    """Times and peaks of subjects that passed their checks, measured in turns."""
    # Peaks first: a graph never gives its memory back.
    peaks = {name: clock.peak_mb(s.run) for name, s in subjects.items()}
    prepared = {name: clock.prepare(s) for name, s in subjects.items()}
    calls = {name: call for name, (call, _) in prepared.items()}
    clock.rounds(calls, 1)
    once = sum(sum(seconds) for seconds in clock.rounds(calls, 1).values())
    seconds = clock.rounds(calls, clock.effort.repeats(once))
    return {n: _figures(s, mode=prepared[n][1], peak_mb=peaks[n]) for n, s in seconds.items()}


def _figures(seconds: list[float], *, mode: MODE, peak_mb: float | None) -> Figures:
    p10, median, p90 = (1e3 * float(q) for q in np.quantile(seconds, (0.1, 0.5, 0.9)))
    times = {"median_ms": median, "p10_ms": p10, "p90_ms": p90}
    return Figures(mode=mode, repeats=len(seconds), **times, peak_mb=peak_mb)


class CpuClock:
    """The time of `cpu_time`."""

    effort = Effort(seconds=0.5, least=5, most=100)

    def __init__(self) -> None:
        self.unit, self._now = cpu_time()
        self._flushed = torch.empty(_FLUSHED_ON_CPU, dtype=torch.int8)

    def prepare(self, subject: Subject) -> tuple[Call, MODE]:
        """The call itself."""
        return subject.run, "eager"

    def rounds(self, calls: Mapping[str, Call], repeats: int) -> dict[str, list[float]]:
        """See `Clock`."""
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                self._flushed.zero_()
                begin = self._now()
                call()
                seconds[name].append(self._now() - begin)
        return seconds

    def peak_mb(self, call: Call) -> float | None:
        """Resident size; only Linux can reset its peak."""
        if sys.platform != "linux" or not _RESET.is_file():
            return None
        # Freed memory that the allocator still holds would be reused and not counted.
        ctypes.CDLL(None).malloc_trim(0)
        try:
            _RESET.write_text("5")
        except OSError:
            return None
        before = _resident_kib("VmRSS")
        call()
        return max(0, _resident_kib("VmHWM") - before) * 1024 / 1e6


class CudaClock:
    """Time between events on the current stream."""

    effort = Effort(seconds=2.0, least=10, most=200)
    unit = "GPU time"

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        size = 2 * max(properties.L2_cache_size, 1 << 20)
        self._flushed = torch.empty(size, dtype=torch.int8, device="cuda")

    def prepare(self, subject: Subject) -> tuple[Call, MODE]:
        """A graph's replay if the subject asks for it and can be captured."""
        if not subject.graph:
            return subject.run, "eager"
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                subject.run()
        except RuntimeError:
            torch.cuda.synchronize()
            return subject.run, "eager"
        return graph.replay, "graph"

    def rounds(self, calls: Mapping[str, Call], repeats: int) -> dict[str, list[float]]:
        """See `Clock`."""
        events = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self._flushed.zero_()
                start.record()
                call()
                end.record()
                events[name].append((start, end))
        torch.cuda.synchronize()
        return {n: [a.elapsed_time(b) / 1e3 for a, b in pairs] for n, pairs in events.items()}

    def peak_mb(self, call: Call) -> float | None:
        """Memory allocated by torch, without the workspaces of libraries."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6


def cpu_time() -> tuple[str, Callable[[], float]]:
    """CPU time of this process if it has one thread, because other work does not affect it.

    Wall time if it has more, because their CPU times would add up.
    """
    if torch.get_num_threads() == 1:
        return "CPU time", time.process_time
    return "wall time", time.perf_counter


def clock_of(device: str) -> Clock:
    """The clock of `cpu` or `cuda`."""
    return CudaClock() if device == "cuda" else CpuClock()


def _resident_kib(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+)", _STATUS.read_text())
    assert found is not None
    return int(found[1])

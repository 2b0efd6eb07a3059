"""Which of an op's algorithms is the fastest: measured once per shape and device, and kept on disk.

Every op has its own file, `$XDG_CACHE_HOME/todm/OP.json` (`~/.cache` where the variable is not set).
A damaged file is replaced by new measurements. If the file cannot be written, there is a warning, and
the times stay in memory.
"""

import dataclasses
import functools
import json
import logging
import math
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from todm.errors import ConfigError
from todm.files import write_text

Call = Callable[[], object]
Times = dict[str, float]

GAIN = 1.05
"""How much faster than `dense` another algorithm must be to be taken."""

_VERSION = 1
_REPEATS = 20
_log = logging.getLogger(__name__)


class Problem(Protocol):
    """A call of an op: a dataclass with the activation."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def x_MK(self) -> Tensor:
        """The activation; M rows, K inputs."""
        ...


P = TypeVar("P", bound=Problem)


class Shape(NamedTuple):
    """Everything that a measured time depends on; `rows` is M's `bucket`.

    `dtype` is the weight's, followed by words for what else changes the time of this op.
    """

    device: str
    version: str
    dtype: str
    rows: int
    outputs: int
    inputs: int

    @classmethod
    def of(cls, x_MK: Tensor, dtype: torch.dtype, weight_shape: tuple[int, int]) -> "Shape":
        """The entry for these activations, on a GPU, and a weight [N, K] of this dtype."""
        name = torch.cuda.get_device_name(x_MK.device)
        short = str(dtype).removeprefix("torch.")
        return cls(name, torch.__version__, short, bucket(x_MK.shape[0]), *weight_shape)

    def key(self) -> str:
        """The entry's name in the file."""
        return "|".join(map(str, self))


def bucket(rows: int) -> int:
    """Rows rounded up to a power of two, 16 at least."""
    return max(16, 1 << (rows - 1).bit_length())


class Table:
    """Milliseconds by shape and algorithm, in memory and in a file."""

    def __init__(self, path: Path, timer: Callable[[Call], float] | None = None) -> None:
        self._path, self._timer = path, timer or cuda_ms
        self._times = _read(path)

    def choose(self, shape: Shape, candidates: Callable[[], dict[str, Call]]) -> str:
        """The algorithm to take; a new shape is measured. One of the `candidates` is named `dense`."""
        key = shape.key()
        if key not in self._times:
            self._times[key] = {name: self._timer(call) for name, call in candidates().items()}
            self._save()
        return fastest(self._times[key])

    def _save(self) -> None:
        """Replace the file; entries that another process has added since are kept."""
        self._times = {**_read(self._path), **self._times}
        text = json.dumps({"version": _VERSION, "ms": self._times}, indent=1, sort_keys=True)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, text)
        except OSError as error:
            _log.warning("%s: measured times are not kept: %s", self._path, error)


def fastest(times: Times) -> str:
    """`dense`, unless another algorithm gains enough."""
    best = min(times, key=lambda name: times[name])
    return best if times["dense"] >= GAIN * times[best] else "dense"


@functools.cache
def table(op: str) -> Table:
    """The op's table in this process."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Table(Path(cache) / "todm" / f"{op}.json")


def fastest_algorithm(
    op: str, shape: Shape, *, problem: P, algorithms: Mapping[str, Callable[[P], Tensor]]
) -> str:
    """The algorithm to take by the op's table; a missing entry is measured.

    Args:
        op: Whose table.
        shape: The entry.
        problem: Of the call, on a GPU.
        algorithms: By name, one of them `dense`.

    Raises:
        ConfigError: the entry is not measured, and cannot be while a CUDA graph is captured.
    """

    def candidates() -> dict[str, Call]:
        """All algorithms, on random activations with the number of rows of the entry."""
        rows, x = shape.rows, problem.x_MK
        if torch.cuda.is_current_stream_capturing():
            choices = " or ".join(f"algorithm={name!r}" for name in algorithms)
            raise ConfigError(
                f"{op}: {rows} rows of this layer are not measured yet, and cannot be while a CUDA graph "
                f"is captured: call it once before, or give {choices}"
            )
        generator = torch.Generator(x.device).manual_seed(
            0
        )  # the caller's random state is left alone
        x_MK = torch.randn(rows, x.shape[1], generator=generator, device=x.device).to(x.dtype)
        probe = dataclasses.replace(problem, x_MK=x_MK)
        return {name: functools.partial(run, probe) for name, run in algorithms.items()}

    return table(op).choose(shape, candidates)


def cuda_ms(call: Call) -> float:
    """Median time of a call on the GPU, with a cold L2 cache."""
    size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    flush = torch.empty(2 * max(size, 1), dtype=torch.int8, device="cuda")
    for _ in range(3):
        call()
    times = []
    for _ in range(_REPEATS):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def _read(path: Path) -> dict[str, Times]:
    """The times in the file; none if it is absent or not a file that `_save` wrote."""
    try:
        content = json.loads(path.read_text())
    except OSError:
        return {}
    except ValueError:
        content = None
    if (
        isinstance(content, dict)
        and content.get("version") == _VERSION
        and _valid(content.get("ms"))
    ):
        return content["ms"]
    _log.warning("%s is not a table of times: its shapes are measured again", path)
    return {}


def _valid(table: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether it holds times above zero, by shape and algorithm, with `dense` in each."""
    return isinstance(table, dict) and all(
        isinstance(times, dict)
        and "dense" in times
        and all(isinstance(t, float) and math.isfinite(t) and t > 0 for t in times.values())
        for times in table.values()
    )

"""Which of an op's ways is the fastest: measured once per shape and device, and kept on disk.

Every op has a file of its own, `$XDG_CACHE_HOME/todm/OP.json` (`~/.cache` where the variable is not
set). One that cannot be read for what it should be is measured anew; one that cannot be written is
done without, with a warning.
"""

import contextlib
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

Call = Callable[[], object]
Times = dict[str, float]

GAIN = 1.05
"""How much faster than `dense` another way must be to be taken."""

_VERSION = 1
_REPEATS = 20
_log = logging.getLogger(__name__)


class Problem(Protocol):
    """What the implementations of an op are given: a dataclass with the activation."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def x_MK(self) -> Tensor:
        """The activation; M rows, K inputs."""
        ...


P = TypeVar("P", bound=Problem)


class Shape(NamedTuple):
    """What a measured time depends on, torch's version included; `rows` is M's `bucket`.

    `dtype` is the weight's, with words for whatever else an op knows to change the time.
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
    """Milliseconds by shape and way, in memory and in a file."""

    def __init__(self, path: Path, timer: Callable[[Call], float] | None = None) -> None:
        self._path, self._timer = path, timer or cuda_ms
        self._times = _read(path)

    def choose(self, shape: Shape, candidates: Callable[[], dict[str, Call]]) -> str:
        """The way to take, measured if this shape was not yet; `candidates` has one named `dense`."""
        key = shape.key()
        if key not in self._times:
            times = {way: self._timer(call) for way, call in candidates().items()}
            self._times[key] = times
            self._save()
        return fastest(self._times[key])

    def _save(self) -> None:
        """Write the file whole; entries that another process has added since are kept."""
        self._times = {**_read(self._path), **self._times}
        text = json.dumps({"version": _VERSION, "ms": self._times}, indent=1, sort_keys=True)
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text)
            temporary.replace(self._path)
        except OSError as error:
            _log.warning("%s: measured times are not kept: %s", self._path, error)
            with contextlib.suppress(OSError):
                temporary.unlink()


def fastest(times: Times) -> str:
    """`dense`, unless another way gains enough."""
    way = min(times, key=lambda name: times[name])
    return way if times["dense"] >= GAIN * times[way] else "dense"


@functools.cache
def table(op: str) -> Table:
    """The op's table in this process."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Table(Path(cache) / "todm" / f"{op}.json")


def fastest_way(
    op: str, shape: Shape, *, problem: P, ways: Mapping[str, Callable[[P], Tensor]]
) -> str:
    """The way to take by the op's table; an entry that is not there yet is measured.

    Args:
        op: Whose table.
        shape: The entry.
        problem: Of the call, on a GPU.
        ways: By name, one of them `dense`.

    Raises:
        ConfigError: the entry is not measured, and cannot be while a CUDA graph is captured.
    """
    candidates = functools.partial(_candidates, op, shape.rows, problem, ways)
    return table(op).choose(shape, candidates)


def _candidates(
    op: str, rows: int, problem: P, ways: Mapping[str, Callable[[P], Tensor]]
) -> dict[str, Call]:
    """All ways, on random activations of as many rows as the entry of the table stands for."""
    if torch.cuda.is_current_stream_capturing():
        given = " or ".join(f"way={name!r}" for name in ways)
        raise ConfigError(
            f"{op}: {rows} rows of this layer are not measured yet, and cannot be while a CUDA graph "
            f"is captured: call it once before, or give {given}"
        )
    x = problem.x_MK
    draw = torch.Generator(x.device).manual_seed(0)  # the caller's random state is left alone
    x_MK = torch.randn(rows, x.shape[1], generator=draw, device=x.device).to(x.dtype)
    probe = dataclasses.replace(problem, x_MK=x_MK)
    return {name: functools.partial(way, probe) for name, way in ways.items()}


def cuda_ms(call: Call) -> float:
    """Median time of a call on the GPU, with the weight not yet in L2."""
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
    """What the file holds; nothing if it is absent or not what `_save` wrote."""
    try:
        found = json.loads(path.read_text())
    except OSError:
        return {}
    except ValueError:
        found = None
    if isinstance(found, dict) and found.get("version") == _VERSION and _valid(found.get("ms")):
        return found["ms"]
    _log.warning("%s is not a table of times and is made anew", path)
    return {}


def _valid(table: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether it is times above zero, by shape and way, with `dense` in each."""
    if not isinstance(table, dict):
        return False
    for times in table.values():
        if not isinstance(times, dict) or "dense" not in times:
            return False
        if not all(isinstance(t, float) and math.isfinite(t) and t > 0 for t in times.values()):
            return False
    return True

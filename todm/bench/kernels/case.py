"""The terms of the benchmark: a case of an op, its subjects, the least work of each, and the check."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from todm.errors import TodmError, first_line

Call = Callable[[], object]
SHOWN = 90  # characters of a reason
UNABLE = (ImportError, RuntimeError, NotImplementedError, AssertionError, ValueError, TodmError)
"""What libraries, torch included, raise if they cannot do something on this machine."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One problem, which all subjects solve in turns.

    Attributes:
        op: its folder in `todm/kernels`.
        shape: name for `--shapes`.
        sizes: by letter, in the order in which they are printed.
        dtype: of the activations.
        quick: whether it belongs to `--shapes quick`.
    """

    op: str
    shape: str
    sizes: Mapping[str, int]
    dtype: str
    quick: bool = False

    def label(self) -> str:
        """Shape, sizes and dtype."""
        sizes = ",".join(f"{k}{v}" for k, v in self.sizes.items())
        return f"{self.shape} {sizes} {self.dtype}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """The least a subject has to do: every input read once, every output written once.

    Attributes:
        flops: multiplications and additions that the result needs.
        bytes: of inputs and outputs, as this subject stores them.
        unit: its compute roof: float32, tf32, bfloat16 or int8.
    """

    flops: float
    bytes: float
    unit: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """Relative error against the reference, and the allowed error; NaN is never allowed."""

    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether it may be timed."""
        return self.error <= self.allowed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """One way to solve a case.

    Attributes:
        name: of the implementation, or of the peer.
        run: one repetition, on inputs that exist already.
        check: runs it and compares with the reference.
        work: the least that it has to do.
        ours: one of our implementations; otherwise a peer.
        graph: try to replay it from a CUDA graph, since launching takes longer than computing.
    """

    name: str
    run: Call
    check: Callable[[], Checked]
    work: Work
    ours: bool = False
    graph: bool = False


@dataclasses.dataclass(frozen=True)
class Absent:
    """A peer that cannot run here, and why."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Op:
    """An op of the benchmark.

    Attributes:
        name: its folder in `todm/kernels`.
        cases: all that are sensible on a device, `cpu` or `cuda`.
        subjects: makes the inputs of a case on a device, and the subjects that solve it.
        baseline: the subject that others are compared with.
    """

    name: str
    cases: Callable[[str], Sequence[Case]]
    subjects: Callable[[Case, str], Sequence[Subject | Absent]]
    baseline: str


def peer(name: str, package: str, build: Callable[[], Subject]) -> Subject | Absent:
    """A peer of an optional package: absent where it is not installed or refuses this machine."""
    if importlib.util.find_spec(package) is None:
        return Absent(name, f"{package} is not installed")
    try:
        return build()
    except UNABLE as error:
        return Absent(name, first_line(error, SHOWN))


def compare(
    got: Sequence[Tensor], want: Sequence[Tensor], *, allowed: float, whole: Sequence[Tensor] = ()
) -> Checked:
    """The largest relative error (norm) of several tensors.

    Args:
        got: the results, of any dtype.
        want: the right results.
        allowed: the largest allowed error.
        whole: tensors that need only be finite, such as those that `got` samples.
    """
    assert all(a.shape == b.shape for a, b in zip(got, want, strict=True))
    errors = [
        (a.detach().double() - b.detach()).norm() / b.detach().double().norm().clamp_min(1e-30)
        for a, b in zip(got, want, strict=True)
    ]
    broken = any(not bool(t.isfinite().all()) for t in whole if t.is_floating_point())
    # `max` of Python loses a NaN that is not first.
    worst = float("nan") if broken else float(torch.stack(errors).max())
    return Checked(error=worst, allowed=allowed)

"""What the kernels are to reach, and whether a run shows it. Nothing is claimed that was not measured."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from todm.bench.kernels.case import Case
from todm.bench.kernels.machine import Roofs
from todm.bench.kernels.results import Row, groups
from todm.kernels._choice import GAIN

Group = Mapping[str, Row]
Measure = Callable[[Group, Roofs], float | None]
Verdict = Literal["met", "missed", "not measured"]


def _ms(group: Group, name: str) -> float | None:
    row = group.get(name)
    return None if row is None or row.figures is None else row.figures.median_ms


def milliseconds(name: str) -> Measure:
    """The median time of a subject."""
    return lambda group, roofs: _ms(group, name)


def peak_mb(name: str) -> Measure:
    """The peak memory of a subject above its inputs."""

    def measure(group: Group, roofs: Roofs) -> float | None:
        row = group.get(name)
        return None if row is None or row.figures is None else row.figures.peak_mb

    return measure


def times(slower: str, faster: str) -> Measure:
    """How many times as long one subject takes as another."""

    def measure(group: Group, roofs: Roofs) -> float | None:
        long, short = _ms(group, slower), _ms(group, faster)
        return None if long is None or short is None else long / short

    return measure


def times_bound(name: str) -> Measure:
    """A subject's time by that of its bytes alone."""

    def measure(group: Group, roofs: Roofs) -> float | None:
        row, time = group.get(name), _ms(group, name)
        if row is None or row.work is None or time is None:
            return None
        return time / (1e3 * row.work.bytes / roofs.bytes_per_s)

    return measure


def _where_chosen(dense: str, sparse: str) -> Measure:
    """`times`, where the sparse way gains enough to be taken."""

    def measure(group: Group, roofs: Roofs) -> float | None:
        ratio = times(dense, sparse)(group, roofs)
        return None if ratio is None or ratio < GAIN else ratio

    return measure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aim:
    """One promise.

    Attributes:
        op: of which op.
        text: in words.
        source: where it is from.
        device: part of the device's name, or `cpu`.
        applies: to which cases.
        measure: the figure it is about, None where it was not taken.
        limit: how much at most, or at least.
        at_most: which of the two.
    """

    op: str
    text: str
    source: str
    device: str = "H200"
    applies: Callable[[Case], bool] = lambda case: True
    measure: Measure
    limit: float
    at_most: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """An aim and what came of it: the worst case decides.

    Attributes:
        aim: in question.
        verdict: met where all cases are.
        worst: the figure furthest from the aim, None if nothing was measured.
        case: where that was.
        met: cases that meet the aim.
        total: cases measured.
    """

    aim: Aim
    verdict: Verdict
    worst: float | None = None
    case: str = ""
    met: int = 0
    total: int = 0

    def line(self) -> str:
        """In a sentence."""
        aim = self.aim
        said = f"{aim.op}: {aim.text} [{aim.source}]: {self.verdict}"
        if self.worst is None:
            return said
        sign = "at most" if aim.at_most else "at least"
        where = f"{self.met} of {self.total} cases; worst {self.worst:.3g} at {self.case}"
        return f"{said} ({where}; {sign} {aim.limit:g})"


SPINE = {"B": 8, "T": 400, "U": 80, "V": 500, "J": 512}
LARGE = SPINE | {"B": 32}
_HALF_GIB = 0.5 * 2**30 / 1e6


def lattice(sizes: Mapping[str, int]) -> Callable[[Case], bool]:
    """The problem of exactly these sizes."""
    return lambda case: dict(case.sizes) == sizes


def layers(*, least: int = 1, most: int = 1 << 30, square: int = 0) -> Callable[[Case], bool]:
    """Layers with so many rows, or one square one; the small ones of `quick` are nobody's."""

    def applies(case: Case) -> bool:
        M, N, K = (case.sizes[k] for k in "MNK")
        fits = square in (0, N) and square in (0, K)
        return case.shape != "quick" and least <= M <= most and fits

    return applies


_RNNT, _SSM, _W4 = "rnnt_loss", "mh_ssm", "matmul_w4"
_MARLIN = "Marlin and GemLite on an H100: 2.2 and 1.8 (GemLite's charts, October 2024)"
_SLIDE = "cuBLASLt and cuSPARSELt on an H100 (arXiv 2603.05232)"
AIMS = (
    Aim(
        op=_RNNT,
        text="32,400,80,500,512 forward and backward in at most 15 ms",
        source="9 to 10 derived in its README",
        applies=lattice(LARGE),
        measure=milliseconds("triton"),
        limit=15,
    ),
    Aim(
        op=_RNNT,
        text="the same in under 0.5 GiB",
        source="0.23 derived in its README; torchaudio needs about 8",
        applies=lattice(LARGE),
        measure=peak_mb("triton"),
        limit=_HALF_GIB,
    ),
    Aim(
        op=_RNNT,
        text="with distillation on every node at most 1.6 times as long",
        source="1.6 derived in its README",
        applies=lattice(LARGE),
        measure=times("triton + distillation", "triton"),
        limit=1.6,
    ),
    Aim(
        op=_SSM,
        text="at least 5 times faster than the convolution by FFT, forward and backward, T >= 512",
        source="bytes moved by both",
        applies=lambda case: case.sizes["T"] >= 512 and case.shape != "quick",
        measure=times("FFT", "triton"),
        limit=5,
        at_most=False,
    ),
    Aim(
        op=_SSM,
        text="at most twice what its bytes take",
        source="memory bound",
        applies=lambda case: case.sizes["T"] >= 512 and case.shape != "quick",
        measure=times_bound("triton"),
        limit=2,
    ),
    Aim(
        op=_W4,
        text="at least 2 times faster than bfloat16 at M = 1 on 8192 x 8192",
        source=_MARLIN,
        applies=layers(most=1, square=8192),
        measure=times("F.linear", "triton"),
        limit=2,
        at_most=False,
    ),
    Aim(
        op=_W4,
        text="not slower than bfloat16 at M <= 16",
        source=_MARLIN,
        applies=layers(most=16),
        measure=times("F.linear", "triton"),
        limit=1,
        at_most=False,
    ),
    Aim(
        op=_W4,
        text="at most 15 % slower than bfloat16 above that",
        source="dequantising once, then the library",
        applies=layers(least=17),
        measure=times("triton", "F.linear"),
        limit=1.15,
    ),
    Aim(
        op=_W4,
        text="as fast as bfloat16 above that with a cached copy (5 % are measuring)",
        source="it is the same product",
        applies=layers(least=17),
        measure=times("triton cached", "F.linear"),
        limit=1.05,
    ),
    Aim(
        op="matmul_int8",
        text="at least 1.5 times faster than bfloat16 at M >= 4096",
        source=_SLIDE,
        applies=layers(least=4096),
        measure=times("F.linear", "triton"),
        limit=1.5,
        at_most=False,
    ),
    Aim(
        op="matmul_24",
        text=f"sparse int8 at least 1.1 times faster than dense int8 where chosen (from {GAIN:g} on)",
        source=_SLIDE,
        applies=layers(),
        measure=_where_chosen("dense int8", "sparse int8"),
        limit=1.1,
        at_most=False,
    ),
    Aim(
        op=_RNNT,
        text="on a CPU at most 1.5 times torchaudio's time",
        source="1.3 to 1.6 for tiles with recomputation",
        device="cpu",
        measure=times("torch", "torchaudio"),
        limit=1.5,
    ),
    Aim(
        op=_RNNT,
        text="on a CPU 8,400,80,500,512 in at most 150 MB above its inputs",
        source="61 MB when the op was written; torchaudio 1,607",
        device="cpu",
        applies=lattice(SPINE),
        measure=peak_mb("torch"),
        limit=150,
    ),
)


def judge(
    rows: Sequence[Row],
    *,
    ops: Sequence[str],
    device: str,
    roofs: Roofs,
    aims: Sequence[Aim] = AIMS,
) -> list[Result]:
    """What came of the aims of these ops for this kind of device.

    Args:
        rows: of a run.
        ops: that were asked for.
        device: `cpu`, or a GPU's name. An aim for another GPU is not measured on this one.
        roofs: of the device.
        aims: in question.
    """
    kind = [a for a in aims if a.op in ops and (a.device == "cpu") == (device == "cpu")]
    return [_judge(aim, rows if aim.device in device else [], roofs=roofs) for aim in kind]


def _judge(aim: Aim, rows: Sequence[Row], *, roofs: Roofs) -> Result:
    found = [
        (figure, case.label())
        for case, group in groups(rows)
        if case.op == aim.op and aim.applies(case)
        if (figure := aim.measure(group, roofs)) is not None
    ]
    if not found:
        return Result(aim=aim, verdict="not measured")
    worst, where = (max if aim.at_most else min)(found)
    met = sum(f <= aim.limit if aim.at_most else f >= aim.limit for f, _ in found)
    verdict: Verdict = "met" if met == len(found) else "missed"
    return Result(aim=aim, verdict=verdict, worst=worst, case=where, met=met, total=len(found))

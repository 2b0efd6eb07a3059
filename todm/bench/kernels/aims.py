"""The aims of the kernels, and whether a run meets them. What was not measured is not claimed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from todm.bench.kernels.case import Case
from todm.bench.kernels.clock import Figures
from todm.bench.kernels.machine import Roofs
from todm.bench.kernels.op_rnnt_loss import SHAPES
from todm.bench.kernels.results import Row, groups
from todm.kernels._choice import GAIN

Group = Mapping[str, Row]
Measure = Callable[[Group, Roofs], float | None]
Verdict = Literal["met", "missed", "not measured"]


def _figures(group: Group, name: str) -> Figures | None:
    row = group.get(name)
    return None if row is None else row.figures


def _ms(group: Group, name: str) -> float | None:
    return (f := _figures(group, name)) and f.median_ms


def milliseconds(name: str) -> Measure:
    """The median time of a subject."""
    return lambda group, roofs: _ms(group, name)


def peak_mb(name: str) -> Measure:
    """The peak memory of a subject above its inputs."""
    return lambda group, roofs: (f := _figures(group, name)) and f.peak_mb


def times(slower: str, faster: str) -> Measure:
    """How many times as long one subject takes as another."""

    def measure(group: Group, roofs: Roofs) -> float | None:
        long, short = _ms(group, slower), _ms(group, faster)
        return None if long is None or short is None else long / short

    return measure


def times_bound(name: str) -> Measure:
    """A subject's time, divided by the time of moving its bytes."""

    def measure(group: Group, roofs: Roofs) -> float | None:
        row, time = group.get(name), _ms(group, name)
        if row is None or row.work is None or time is None:
            return None
        return time / (1e3 * row.work.bytes / roofs.bytes_per_s)

    return measure


def _where_chosen(group: Group, roofs: Roofs) -> float | None:
    """How many times as long as sparse int8 dense int8 takes, where that is enough to be chosen."""
    ratio = times("dense int8", "sparse int8")(group, roofs)
    return None if ratio is None or ratio < GAIN else ratio


@dataclasses.dataclass(frozen=True)
class Aim:
    """One promise.

    Attributes:
        op: the op that it is about.
        measure: the figure that it is about, None where it was not taken.
        limit: how much at most, or at least.
        applies: whether a case counts.
        text: in words, with the source in brackets.
        at_most: whether `limit` is the most or the least.
        device: part of the device's name, or `cpu`.
    """

    op: str
    measure: Measure
    limit: float
    applies: Callable[[Case], bool] = lambda case: True
    text: str = ""
    _: dataclasses.KW_ONLY
    at_most: bool = True
    device: str = "H200"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The verdict on an aim: met if all cases meet it.

    `worst` is the figure furthest from the aim, in the case `case`, and None if nothing was measured;
    `met` of the `total` measured cases meet the aim.
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
        line = f"{aim.op}: {aim.text}: {self.verdict}"
        if self.worst is None:
            return line
        sign = "at most" if aim.at_most else "at least"
        where = f"{self.met} of {self.total} cases; worst {self.worst:.3g} at {self.case}"
        return f"{line} ({where}; {sign} {aim.limit:g})"


LARGE = SHAPES["gpu"]
_HALF_GIB = 0.5 * 2**30 / 1e6


def lattice(sizes: Mapping[str, int]) -> Callable[[Case], bool]:
    """The problem of exactly these sizes."""
    return lambda case: dict(case.sizes) == sizes


def layers(*, least: int = 1, most: int = 1 << 30, square: int = 0) -> Callable[[Case], bool]:
    """Layers with so many rows, or one square layer; the small ones of `quick` do not count."""

    def applies(case: Case) -> bool:
        M, N, K = (case.sizes[k] for k in "MNK")
        fits = square in (0, N) and square in (0, K)
        return case.shape != "quick" and least <= M <= most and fits

    return applies


_RNNT, _SSM, _W4 = "rnnt_loss", "mh_ssm", "matmul_w4"
_MARLIN = "Marlin and GemLite on an H100: 2.2 and 1.8 (GemLite's charts, October 2024)"
_SLIDE = "cuBLASLt and cuSPARSELt on an H100 (arXiv 2603.05232)"


def _long(case: Case) -> bool:
    return case.sizes["T"] >= 512 and case.shape != "quick"


_BY_TEXT = {
    "32,400,80,500,512 forward and backward in at most 15 ms [9 to 10 derived in its README]": Aim(
        _RNNT, milliseconds("triton"), 15, lattice(LARGE)
    ),
    "the same in under 0.5 GiB [0.23 derived in its README; torchaudio needs about 8]": Aim(
        _RNNT, peak_mb("triton"), _HALF_GIB, lattice(LARGE)
    ),
    "with distillation on every node at most 1.6 times as long [1.6 derived in its README]": Aim(
        _RNNT, times("triton + distillation", "triton"), 1.6, lattice(LARGE)
    ),
    "at least 5 times faster than the convolution by FFT, forward and backward, T >= 512 "
    "[bytes moved by both]": Aim(_SSM, times("FFT", "triton"), 5, _long, at_most=False),
    "at most twice what its bytes take [memory bound]": Aim(_SSM, times_bound("triton"), 2, _long),
    f"at least 2 times faster than bfloat16 at M = 1 on 8192 x 8192 [{_MARLIN}]": Aim(
        _W4, times("F.linear", "triton"), 2, layers(most=1, square=8192), at_most=False
    ),
    f"not slower than bfloat16 at M <= 16 [{_MARLIN}]": Aim(
        _W4, times("F.linear", "triton"), 1, layers(most=16), at_most=False
    ),
    "at most 15 % slower than bfloat16 above that [dequantising once, then the library]": Aim(
        _W4, times("triton", "F.linear"), 1.15, layers(least=17)
    ),
    "as fast as bfloat16 above that with a cached copy, 5 % being noise [the same product]": Aim(
        _W4, times("triton cached", "F.linear"), 1.05, layers(least=17)
    ),
    f"at least 1.5 times faster than bfloat16 at M >= 4096 [{_SLIDE}]": Aim(
        "matmul_int8", times("F.linear", "triton"), 1.5, layers(least=4096), at_most=False
    ),
    f"sparse int8 at least 1.1 times faster than dense int8 where chosen (from {GAIN:g} on) [{_SLIDE}]": Aim(
        "matmul_24", _where_chosen, 1.1, layers(), at_most=False
    ),
    "on a CPU at most 1.5 times torchaudio's time [1.3 to 1.6 for tiles with recomputation]": Aim(
        _RNNT, times("torch", "torchaudio"), 1.5, device="cpu"
    ),
    "on a CPU 8,400,80,500,512 in at most 150 MB above its inputs "
    "[61 MB when the op was written; torchaudio 1,607]": Aim(
        _RNNT, peak_mb("torch"), 150, lattice(SHAPES["issue"]), device="cpu"
    ),
}
AIMS = tuple(dataclasses.replace(aim, text=text) for text, aim in _BY_TEXT.items())


def judge(
    rows: Sequence[Row],
    *,
    ops: Sequence[str],
    device: str,
    roofs: Roofs,
    aims: Sequence[Aim] = AIMS,
) -> list[Result]:
    """Verdicts on the aims of these ops for this kind of device.

    Args:
        rows: of a run.
        ops: the ops of the run.
        device: `cpu`, or a GPU's name. An aim for another GPU is not measured on this one.
        roofs: of the device.
        aims: candidates.
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

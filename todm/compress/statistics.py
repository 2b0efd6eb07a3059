"""Streaming statistics of what comes into a layer: means, second moment, histogram, a few rows.

A `Watch` stands at a layer, makes rows of its inputs, refuses what is not finite, and hands them to a
part that keeps what its pass needs; nothing keeps all rows.

Letters: M rows, K inputs (columns of the weight's matrix), B bins, C candidates.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from todm.compress.affine import input_rows, num_groups
from todm.compress.work import BlockWork
from todm.errors import CorpusError


class Part(Protocol):
    """What keeps a statistic of rows."""

    def add(self, x_MK: Tensor) -> None:
        """Take float32 rows into account."""
        ...


PartT = TypeVar("PartT", bound=Part)


class Means:
    """Means of |x| (AWQ, arXiv 2306.00978) and x^2 (Wanda, arXiv 2306.11695) of each input."""

    def __init__(self) -> None:
        self._rows = 0
        self._abs_K: Tensor | None = None
        self._square_K: Tensor | None = None

    def add(self, x_MK: Tensor) -> None:
        """Take rows into account."""
        abs_K, square_K = x_MK.abs().double().sum(0), x_MK.double().square().sum(0)
        self._rows += x_MK.shape[0]
        self._abs_K = abs_K if self._abs_K is None else self._abs_K + abs_K
        self._square_K = square_K if self._square_K is None else self._square_K + square_K

    @property
    def abs_K(self) -> Tensor:
        """Mean magnitude of each input, float64."""
        assert self._abs_K is not None
        return self._abs_K / self._rows

    @property
    def square_K(self) -> Tensor:
        """Mean square of each input, float64."""
        assert self._square_K is not None
        return self._square_K / self._rows


class Moment:
    """Second moment H = mean x^T x, of which SparseGPT and GPTQ make their Hessian."""

    def __init__(self) -> None:
        self._rows = 0
        self._sum_KK: Tensor | None = None

    def add(self, x_MK: Tensor) -> None:
        """Take rows into account; products are in float32, sums over batches in float64."""
        product_KK = (x_MK.T @ x_MK).double()
        self._rows += x_MK.shape[0]
        self._sum_KK = product_KK if self._sum_KK is None else self._sum_KK.add_(product_KK)

    @property
    def moment_KK(self) -> Tensor:
        """Mean of products of two inputs, float64."""
        assert self._sum_KK is not None
        return self._sum_KK / self._rows


class Histogram:
    """Magnitudes in bins from 0 to `top`, a power of two above the absmax, for ranges of activations.

    When a larger magnitude comes, `top` doubles and bins are joined two by two: they end as if `top`
    had been known from the start.
    """

    BINS = 4096

    def __init__(self) -> None:
        self.top = 0.0
        self.absmax = 0.0
        self.count_B = torch.zeros(self.BINS, dtype=torch.int64)

    def add(self, x_MK: Tensor) -> None:
        """Take rows into account."""
        size = x_MK.abs().flatten()
        largest = float(size.max())
        self.absmax = max(self.absmax, largest)
        self._reach(largest)
        if self.top == 0:  # nothing but zeros so far
            self.count_B[0] += size.numel()
            return
        place = (size.double() * (self.BINS / self.top)).long()
        self.count_B += torch.bincount(place, minlength=self.BINS).cpu()

    def _reach(self, largest: float) -> None:
        if self.top == 0 and largest > 0:
            self.top = 2.0 ** math.frexp(largest)[1]
        while 0 < self.top <= largest:
            self.top *= 2
            joined = self.count_B.view(-1, 2).sum(1)
            self.count_B = torch.cat([joined, torch.zeros_like(joined)])

    def percentile(self, percent: float) -> float:
        """Least magnitude that `percent` of all do not exceed, to the end of its bin; 100 is the absmax."""
        passed_B = self.count_B.cumsum(0)
        wanted = percent / 100 * float(passed_B[-1])
        place = int((passed_B.double() < wanted).sum())
        return min(self.absmax, (place + 1) * self.top / self.BINS)

    def mse_range(self, levels: int = 127) -> float:
        """The range [-r, r] whose symmetric rounding to `levels` steps on each side errs the least.

        Of 100 fractions of the absmax; a magnitude counts as the middle of its bin.
        """
        used_B = self.count_B > 0
        place_B = torch.arange(self.BINS, dtype=torch.float64)[used_B]
        x_B, weight_B = (place_B + 0.5) * self.top / self.BINS, self.count_B[used_B].double()
        range_C = self.absmax * torch.arange(1, 101, dtype=torch.float64) / 100
        step_C1 = (range_C / levels)[:, None]
        found_CB = (x_B / step_C1).round().clamp(max=levels) * step_C1
        error_C = ((found_CB - x_B).square() * weight_B).sum(1)
        return float(range_C[int(error_C.argmin())])


class Sample:
    """A few rows spread evenly over all: every `stride`-th, the stride doubling as room runs out."""

    def __init__(self, most: int = 512) -> None:
        """At most so many rows are kept."""
        self._most, self._stride, self._seen = most, 1, 0
        self._kept: list[Tensor] = []

    def add(self, x_MK: Tensor) -> None:
        """Take rows into account."""
        first = -self._seen % self._stride
        self._kept += list(x_MK[first :: self._stride].clone())
        self._seen += x_MK.shape[0]
        while len(self._kept) > self._most:
            self._kept = self._kept[::2]
            self._stride *= 2

    @property
    def x_SK(self) -> Tensor:
        """The rows."""
        return torch.stack(self._kept)


class Watch(Generic[PartT]):
    """Stands at a layer and hands rows of its inputs to a part, one for each group of a convolution.

    Attributes:
        parts: what was made of the rows.
        rows: how many there were.
    """

    def __init__(
        self, name: str, module: nn.Module, make: Callable[[], PartT], *, m: int = 1
    ) -> None:
        """See `input_rows` for m.

        Args:
            name: of the layer, for messages.
            module: the layer.
            make: makes an empty part.
            m: entries of a group of an N:M mask.
        """
        self._name, self._module, self._m = name, module, m
        self._calls = 0
        self.parts = [make() for _ in range(num_groups(module))]
        self.rows = 0

    def __call__(self, x: Tensor) -> None:
        """Look at an input.

        Raises:
            CorpusError: it holds NaN or infinity.
        """
        self._calls += 1
        if not bool(x.isfinite().all()):
            raise CorpusError(
                f"{self._name}: calibration batch {self._calls} brings NaN or infinity to this layer; "
                "leave the item out, or look for a damaged weight in the layers before"
            )
        if x.numel() == 0:
            return
        rows = input_rows(self._module, x.detach(), m=self._m)
        self.rows += rows[0].shape[0]
        for part, x_MK in zip(self.parts, rows, strict=True):
            part.add(x_MK)


def watch(
    block: BlockWork, names: Sequence[str], make: Callable[[], PartT], *, m: int = 1
) -> Mapping[str, Watch[PartT]]:
    """Run a block on its calibration data with a `Watch` at each of these layers.

    Raises:
        CorpusError: an input holds NaN or infinity.
    """
    watches = {name: Watch(name, block.get(name), make, m=m) for name in names}
    if watches:
        block.observe_inputs(watches)
    return watches


def why_no_rows(rows: int) -> str:
    """Why a layer without inputs in calibration cannot be done; empty if there were some."""
    return "" if rows else "no input of the calibration data reached it"


def too_few_rows(rows: int, num_inputs: int) -> str:
    """A remark for the report where a second moment has more inputs than rows, so damping decides."""
    return "" if rows >= num_inputs else f", few rows: {rows} for {num_inputs} inputs"

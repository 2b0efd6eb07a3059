"""A block at work on calibration data: its layers, the calls that reach it, statistics of layer inputs.

`collect` runs a block with a statistic at each layer. A statistic sees rows of the layer's inputs batch
by batch and keeps what its pass needs; nothing keeps all rows.

Letters: M rows (frames, patches, tokens), K inputs (columns of the weight's matrix), B bins, C candidates.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from todm.compress.adapter import Fold, ModelAdapter
from todm.compress.layers import LayerResult, finite_weight, input_rows, num_groups
from todm.compress.masks import is_nm
from todm.errors import CorpusError


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a module; for a block, the output of the block before is the first argument."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def input(self) -> Tensor:
        """The first argument, by position or by name."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    def after(self, output: Tensor) -> "Call":
        """The call of the next block."""
        return dataclasses.replace(self, args=(output, *self.args[1:]))


@dataclasses.dataclass
class Block:
    """A block (or, with the name "", a whole model whose chosen layers lie outside its block lists).

    Attributes:
        name: of the block in the model.
        module: the block, changed in place.
        layers: full names of the layers that a pass has to account for.
        calls: calibration data as it reaches the block.
        masks: N:M masks by full name of the layer, True where a weight is kept; of all blocks.
        run: how a call is made; None to call the module.
        folds: where AWQ's scales go, names relative to the block.
    """

    name: str
    module: nn.Module
    _: dataclasses.KW_ONLY
    layers: Sequence[str]
    calls: Sequence[Call]
    masks: dict[str, Tensor]
    run: Callable[[Call], Any] | None = None
    folds: Sequence[Fold] = ()

    def full(self, relative: str) -> str:
        """The full name of a module of this block."""
        return f"{self.name}.{relative}" if self.name and relative else self.name or relative

    def relative(self, full: str) -> str:
        """The inverse of `full`."""
        return full.removeprefix(self.name).removeprefix(".") if self.name else full

    def get(self, name: str) -> nn.Module:
        """A module of this block by its full name."""
        return self.module.get_submodule(self.relative(name))

    def replace(self, name: str, new: nn.Module) -> None:
        """Replace a layer (by its full name) with another module."""
        self.module.set_submodule(self.relative(name), new.train(self.module.training))

    def is_24(self, name: str) -> bool:
        """Whether a layer has a mask that hardware runs as 2:4."""
        return name in self.masks and is_nm(self.masks[name], 2, 4)

    def candidates(
        self, why_not: Callable[[nn.Module], str]
    ) -> tuple[dict[str, LayerResult], dict[str, Tensor]]:
        """Reasons by layer (empty where a pass can do it), and the weights of those it can do.

        Raises:
            ConfigError: a weight that is not finite.
        """
        done = {name: LayerResult(why_not=why_not(self.get(name))) for name in self.layers}
        names = [name for name in self.layers if not done[name].why_not]
        return done, {name: finite_weight(name, self.get(name)) for name in names}

    @torch.no_grad()
    def call(self, call: Call) -> Tensor:
        """The block's output (the first, if it has several) for a call."""
        output = self.run(call) if self.run else self.module(*call.args, **call.kwargs)
        return output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def observe(self, show: Mapping[str, Callable[[Call], None]]) -> None:
        """Make all calls; `show` gets those of the modules inside, by full name."""
        with self.observed(show):
            for call in self.calls:
                self.call(call)

    @contextmanager
    def observed(self, show: Mapping[str, Callable[[Call], None]]) -> Iterator[None]:
        """Inside, `show` gets the calls of the named modules."""
        with ExitStack() as stack:
            for name, one in show.items():
                hook = self.get(name).register_forward_pre_hook(
                    lambda _module, args, kwargs, one=one: one(Call(args, kwargs)), with_kwargs=True
                )
                stack.callback(hook.remove)
            yield


class _Reached(Exception):
    """The first block of a block list was called."""


@torch.no_grad()
def capture(adapter: ModelAdapter, block_list: str, batches: Sequence[Any]) -> list[Call]:
    """The call of the first block of a block list, for every batch."""
    first = next(adapter.model.get_submodule(block_list).children())
    calls: list[Call] = []

    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call(args, kwargs))
        raise _Reached

    hook = first.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for batch in batches:
            before = len(calls)
            with suppress(_Reached):
                adapter.run(adapter.model, batch)
            assert len(calls) == before + 1, f"block list {block_list} was not reached"
    finally:
        hook.remove()
    return calls


class Statistic(Protocol):
    """A statistic of rows."""

    def add(self, x_MK: Tensor) -> None:
        """Count float32 rows in."""
        ...


StatisticT = TypeVar("StatisticT", bound=Statistic)


class Inputs(Generic[StatisticT]):
    """The inputs of a layer, as one statistic for each group of a convolution.

    Attributes:
        parts: the statistics.
        rows: how many rows there were.
    """

    def __init__(
        self, name: str, module: nn.Module, make: Callable[[], StatisticT], *, m: int = 1
    ) -> None:
        """Before the first input.

        Args:
            name: of the layer, for messages.
            module: the layer.
            make: makes an empty statistic.
            m: entries of a group of an N:M mask, see `input_rows`.
        """
        self._name, self._module, self._m = name, module, m
        self._calls = 0
        self.parts = [make() for _ in range(num_groups(module))]
        self.rows = 0

    def add(self, x: Tensor) -> None:
        """Count the input of a call in.

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

    @property
    def why_not(self) -> str:
        """Why the layer cannot be calibrated; empty if a row reached it."""
        return "" if self.rows else "no input of the calibration data reached it"


def collect(
    block: Block, names: Sequence[str], make: Callable[[], StatisticT], *, m: int = 1
) -> dict[str, Inputs[StatisticT]]:
    """Run a block on its calibration data, with a statistic at each of these layers.

    Raises:
        CorpusError: an input holds NaN or infinity.
    """
    found = {name: Inputs(name, block.get(name), make, m=m) for name in names}
    if found:
        block.observe({n: lambda call, one=one: one.add(call.input) for n, one in found.items()})
    return found


def too_few_rows(rows: int, num_inputs: int) -> str:
    """A remark for the report where a second moment has more inputs than rows, so damping decides."""
    return "" if rows >= num_inputs else f", few rows: {rows} for {num_inputs} inputs"


class Means:
    """Means of |x| (AWQ, arXiv 2306.00978) and x^2 (Wanda, arXiv 2306.11695) of each input."""

    def __init__(self) -> None:
        self._rows = 0
        self._abs_K: Tensor | None = None
        self._square_K: Tensor | None = None

    def add(self, x_MK: Tensor) -> None:
        """Count rows in."""
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
        """Count rows in; products are in float32, sums over batches in float64."""
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

    When a larger magnitude comes, `top` doubles and bins are merged in pairs: the result is as if `top`
    had been known from the start.
    """

    BINS = 4096

    def __init__(self) -> None:
        self.top = 0.0
        self.absmax = 0.0
        self.count_B = torch.zeros(self.BINS, dtype=torch.int64)

    def add(self, x_MK: Tensor) -> None:
        """Count rows in."""
        size = x_MK.abs().flatten()
        largest = float(size.max())
        self.absmax = max(self.absmax, largest)
        self._reach(largest)
        if self.top == 0:  # only zeros until now
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
        """The least magnitude that `percent` of all do not exceed, up to its bin's end; 100: the absmax."""
        passed_B = self.count_B.cumsum(0)
        wanted = percent / 100 * float(passed_B[-1])
        place = int((passed_B.double() < wanted).sum())
        return min(self.absmax, (place + 1) * self.top / self.BINS)

    def mse_range(self, levels: int = 127) -> float:
        """The range [-r, r] whose symmetric rounding to `levels` steps on each side has the least error.

        Among 100 fractions of the absmax; a magnitude counts as the middle of its bin.
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
        """Count rows in."""
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

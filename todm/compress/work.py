"""A block at work: its layers, what comes into it from calibration data, and how a pass changes it.

Letters: M rows (frames, patches, tokens), N outputs, K inputs of a layer.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from todm.compress.adapter import Fold, ModelAdapter

Seen = Callable[[tuple[Any, ...], Mapping[str, Any]], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerResult:
    """What a pass made of a layer.

    Attributes:
        what: in a few words, such as `2:4 wanda`; empty if it was left as it is.
        why_not: the reason, if it was left as it is.
        input_factor_K: what the layer's input is multiplied with from now on, since an earlier layer
            took a factor over (AWQ).
        output_factor_N: what the layer's output is multiplied with from now on (that earlier layer).
        figures: anything worth reporting (`ratio` of AWQ's scale, a clipped share).
    """

    what: str = ""
    why_not: str = ""
    input_factor_K: Tensor | None = None
    output_factor_N: Tensor | None = None
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a block: the output of the block before is `args[0]`."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def after(self, output: Tensor) -> "Call":
        """The call of the next block."""
        return dataclasses.replace(self, args=(output, *self.args[1:]))


class BlockWork:
    """A block (or, with the name "", a whole model whose selected layers lie outside its block_lists)."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        layers: Sequence[str],
        calls: Sequence[Call],
        masks: dict[str, Tensor],
        run: Callable[[Call], Any] | None = None,
        folds: Sequence[Fold] = (),
    ) -> None:
        """See the attributes.

        Attributes:
            name: of the block in the model.
            module: the block, changed in place.
            layers: full names of the layers that passes shall do.
            calls: what comes into the block.
            masks: N:M masks by full name of the layer, True where a weight is kept; of all blocks.
            folds: where AWQ's scales go, names relative to the block.
        """
        self.name, self.module, self.calls, self.masks = name, module, calls, masks
        self.layers, self.folds = tuple(layers), tuple(folds)
        self._run = run

    def full(self, relative: str) -> str:
        """The full name of a module of this block."""
        return f"{self.name}.{relative}" if self.name and relative else self.name or relative

    def get(self, name: str) -> nn.Module:
        """A module of this block by its full name."""
        inner = name.removeprefix(self.name).removeprefix(".") if self.name else name
        return self.module.get_submodule(inner)

    def replace(self, name: str, new: nn.Module) -> None:
        """Put another module in the place of a layer (by its full name)."""
        inner = name.removeprefix(self.name).removeprefix(".") if self.name else name
        parent, _, last = inner.rpartition(".")
        setattr(self.module.get_submodule(parent), last, new.train(self.module.training))

    @torch.no_grad()
    def call(self, call: Call) -> Tensor:
        """The block's output (the first, if it has several) for a call."""
        found = self._run(call) if self._run else self.module(*call.args, **call.kwargs)
        return found[0] if isinstance(found, tuple) else found

    @torch.no_grad()
    def observe(self, seen: Mapping[str, Seen]) -> None:
        """Run all calls; every named module (full name) shows the arguments it is called with.

        Raises:
            RuntimeError: whatever the block raises.
        """
        with self.watched(seen):
            for call in self.calls:
                self.call(call)

    def observe_inputs(self, seen: Mapping[str, Callable[[Tensor], None]]) -> None:
        """As `observe`, with the first argument alone: a layer's input, [..., K] or an image."""
        self.observe({name: first_argument(show) for name, show in seen.items()})

    @contextmanager
    def watched(self, seen: Mapping[str, Seen]) -> Iterator[None]:
        """Inside, every named module shows the arguments it is called with."""
        with ExitStack() as stack:
            for name, show in seen.items():
                hook = self.get(name).register_forward_pre_hook(
                    lambda _module, args, kwargs, show=show: show(args, kwargs), with_kwargs=True
                )
                stack.callback(hook.remove)
            yield


def first_argument(show: Callable[[Tensor], None]) -> Seen:
    """Shows the first argument of a call, by position or by name."""
    return lambda args, kwargs: show(args[0] if args else next(iter(kwargs.values())))


class _Reached(Exception):
    """The first block of a block_list was called."""


@torch.no_grad()
def capture(adapter: ModelAdapter, block_list: str, batches: Sequence[Any]) -> list[Call]:
    """What comes into the first block of a block_list, for every batch."""
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
            assert len(calls) == before + 1, f"block_list {block_list} was not reached"
    finally:
        hook.remove()
    return calls


class Probe:
    """A sample of a layer's inputs and its outputs before any pass: the measure of what passes do."""

    ROWS = 256

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._inputs: list[Tensor] = []
        self._held = 0
        self.rows = 0
        self._expected: Tensor | None = None

    def __call__(self, x: Tensor) -> None:
        """Look at an input of the layer."""
        is_linear = isinstance(self._module, nn.Linear)
        rows = x.reshape(-1, x.shape[-1]) if is_linear else x
        self.rows += rows.shape[0] if is_linear else x.shape[0] * _positions(self._module, x)
        wanted = (self.ROWS if is_linear else 8) - self._held
        if wanted > 0:
            # Spread over the batch: neighbouring rows are alike.
            step = max(1, rows.shape[0] // min(wanted, 64))
            kept = rows[::step][:wanted].clone()
            self._inputs.append(kept)
            self._held += kept.shape[0]

    @torch.no_grad()
    def fix(self) -> None:
        """Remember the outputs of the layer as it is now."""
        if self._inputs:
            self._inputs = [torch.cat(self._inputs)]
            self._expected = self._module(self._inputs[0])

    @torch.no_grad()
    def error(self, module: nn.Module, done: Sequence[LayerResult]) -> float | None:
        """Squared error of outputs against those of `fix`, relative to their power; None if not seen.

        Args:
            module: the layer as it is now.
            done: what was done to it, for the factors that moved to or from other layers.
        """
        if self._expected is None:
            return None
        x = self._inputs[0]
        for one in done:
            x = x if one.input_factor_K is None else x * one.input_factor_K
        y = module(x)
        for one in done:
            y = y if one.output_factor_N is None else y / one.output_factor_N
        power = self._expected.double().square().sum().clamp(min=1e-30)
        return float((y.double() - self._expected.double()).square().sum() / power)


def _positions(module: nn.Module, x: Tensor) -> int:
    """Output positions of a convolution for one item."""
    with torch.no_grad():
        # Not called: this runs inside the module's own hook.
        return math.prod(module.forward(x[:1]).shape[2:])

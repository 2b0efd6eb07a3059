"""The state of a layer through the passes: the result of each, and the effect on its outputs and bytes."""

import dataclasses
import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from todm.compress.config import PruneConfig
from todm.compress.layers import LayerResult
from todm.compress.packed import PackedLinear
from todm.compress.plan import Planned
from todm.compress.report import Row, index_bits

_SAMPLE_ROWS, _SAMPLE_ITEMS = 256, 8
"""What a probe keeps: rows for a linear layer, items for a convolution."""


class Probe:
    """A sample of a layer's inputs, and its outputs before any pass."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._inputs: list[Tensor] = []
        self._held = 0
        self._expected: Tensor | None = None
        self.rows = 0

    def add(self, x: Tensor) -> None:
        """Count an input of the layer in, and keep some of it."""
        is_linear = isinstance(self._module, nn.Linear)
        rows = x.reshape(-1, x.shape[-1]) if is_linear else x
        self.rows += rows.shape[0] if is_linear else x.shape[0] * _positions(self._module, x)
        room = (_SAMPLE_ROWS if is_linear else _SAMPLE_ITEMS) - self._held
        if room > 0:
            # Spread over the batch: neighbouring rows are alike.
            step = max(1, rows.shape[0] // min(room, 64))
            sample = rows[::step][:room].clone()
            self._inputs.append(sample)
            self._held += sample.shape[0]

    @torch.no_grad()
    def fix(self) -> None:
        """Record the current outputs of the layer."""
        if self._inputs:
            self._inputs = [torch.cat(self._inputs)]
            self._expected = self._module(self._inputs[0])

    @torch.no_grad()
    def error(self, module: nn.Module, results: Collection[LayerResult]) -> float | None:
        """Squared error of outputs against those of `fix`, relative to their power; None without inputs.

        Args:
            module: the layer as it is now.
            results: of the passes so far, for the factors that moved to or from other layers.
        """
        if self._expected is None:
            return None
        x = self._inputs[0]
        for result in results:
            x = x if result.input_factor_K is None else x * result.input_factor_K
        y = module(x)
        for result in results:
            y = y if result.output_factor_N is None else y / result.output_factor_N
        power = self._expected.double().square().sum().clamp(min=1e-30)
        return float((y.double() - self._expected.double()).square().sum() / power)


@dataclasses.dataclass
class LayerState:
    """A parameter with two axes or more; those that passes can change have a probe.

    Attributes:
        name: full name of the layer.
        planned: its kind and size, and why it is left unchanged.
        probe: None before calibration.
        results: by pass.
        errors: relative error of its outputs after each pass.
        sizes: how it was stored after each pass, as fields of `Row`.
    """

    name: str
    planned: Planned
    probe: Probe | None = None
    results: dict[str, LayerResult] = dataclasses.field(default_factory=dict)
    errors: dict[str, float | None] = dataclasses.field(default_factory=dict)
    sizes: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows that reached it in calibration."""
        return self.probe.rows if self.probe else 0

    def measure(
        self, name: str, module: nn.Module, mask: Tensor | None, prune: PruneConfig
    ) -> None:
        """Error and size after a pass; before any input was seen there is nothing to measure."""
        if self.probe is not None:
            self.errors[name] = self.probe.error(module, self.results.values())
            self.sizes[name] = _size(module, mask, prune)

    def row(self, name: str, before: str, *, rows: int) -> Row:
        """The layer in the report of a pass.

        Args:
            name: of the pass.
            before: of the pass before it, or "".
            rows: to count; a layer that calibration does not reach borrows some.
        """
        result = self.results.get(name, LayerResult(why_not=self.planned.why_not))
        start = self.errors.get(before, 0.0 if self.rows else None)
        num_bytes = 4 * self.planned.num_weights
        size = {"weight_bits": 32.0, "bytes_after": num_bytes} | self.sizes.get(name, {})
        return Row(
            name=self.name,
            kind=self.planned.kind,
            done=result.what,
            why_not="" if result.what else result.why_not,
            before=start,
            after=self.errors.get(name, start),
            num_weights=self.planned.num_weights,
            rows=rows,
            bytes_before=num_bytes,
            figures=dict(result.figures),
            **size,  # pyright: ignore[reportArgumentType]
        )


@torch.no_grad()
def _positions(module: nn.Module, x: Tensor) -> int:
    """Output positions of a convolution for one item."""
    # `forward`, not a call: this runs inside the module's own hook.
    return math.prod(module.forward(x[:1]).shape[2:])


@torch.no_grad()
def _size(module: nn.Module, mask: Tensor | None, prune: PruneConfig) -> dict[str, float]:
    """How a layer is stored now, for `Row`."""
    density = 1.0 if mask is None else float(mask.float().mean())
    size = {"density": density, "index_bits": 0.0 if mask is None else index_bits(prune.m)}
    if isinstance(module, PackedLinear):
        bits = {"weight_bits": module.weight_bits, "activation_bits": module.activation_bits}
        return size | bits | {"bytes_after": module.num_bytes}
    weight = module.get_parameter("weight")
    bytes_each, num = weight.element_size(), weight.numel()
    if mask is not None and isinstance(module, nn.Linear) and prune.is_24:
        groups = -(-weight.shape[1] // 4)  # as it will be packed, unless a later pass quantises it
        return size | {"bytes_after": weight.shape[0] * (2 * groups * bytes_each + -(-groups // 2))}
    return size | {"bytes_after": num * bytes_each}

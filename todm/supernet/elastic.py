"""Elastic layers: the width is an argument of the call, never a state of the module.

A narrow subnet uses a prefix of a weight. Dropout follows the width (TODM: adaptive dropout).
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm.supernet.space import Subnet

DropoutRule = Literal["adaptive", "constant", "off_for_students", "none"]


class ElasticLinear(nn.Linear):
    """A linear layer of which each call may use a prefix of the inputs and outputs."""

    def forward(self, input: Tensor, *, out_features: int | None = None) -> Tensor:  # noqa: A002
        """As `nn.Linear`, with as many inputs as `input` has and the first `out_features` outputs."""
        weight, bias = self.weight, self.bias
        if input.shape[-1] != self.in_features:
            weight = weight[:, : input.shape[-1]]
        if out_features is not None and out_features != self.out_features:
            weight, bias = weight[:out_features], bias[:out_features] if bias is not None else None
        return F.linear(input, weight, bias)


@dataclasses.dataclass(frozen=True)
class AdaptiveDropout:
    """Dropout whose rate follows the sampled width: p(c) = p_max * c / c_max (TODM, arXiv 2309.01947).

    A narrow subnet fits the data less tightly and needs less dropout. `constant` ignores the width,
    `off_for_students` drops in the largest net only (BigNAS, AlphaNet: the teacher regularises a
    student), `none` never drops.
    """

    p_max: float
    rule: DropoutRule = "adaptive"

    def __call__(self, x: Tensor, *, ratio: float, student: bool, training: bool) -> Tensor:
        """Drop elements of `x`; arguments as of `rate`."""
        p = self.rate(ratio, student=student)
        return drop(x, p) if training and p > 0 else x

    def rate(self, ratio: float, *, student: bool) -> float:
        """The dropout rate.

        Args:
            ratio: c / c_max, the layer's width in the active subnet relative to the largest.
            student: whether the active subnet is smaller than the largest, in any layer.
        """
        if self.rule == "none" or (self.rule == "off_for_students" and student):
            return 0.0
        return self.p_max * ratio if self.rule == "adaptive" else self.p_max


def drop(x: Tensor, p: float) -> Tensor:
    """Dropout; on a CPU with the rate rounded to 1/256.

    A CPU draws random numbers one by one on one thread, which took a fifth of a training step. Here one
    64-bit draw serves eight elements, and comparing bytes, as selecting by booleans, takes several
    times as long as the one vectorised kernel that does the like.
    """
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = min(255, max(1, round(p * 256)))
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    noise = words.view(torch.uint8)[: x.numel()].view(x.shape).to(x.dtype)
    kept = torch.ops.aten.threshold_backward(
        x, noise, dropped - 1
    )  # x where noise >= dropped, else 0
    return kept * (256 / (256 - dropped))


# For every parameter of a block: its elastic axes, each with the name of its width and the entries
# that one unit of that width takes.
Axes = Mapping[str, Mapping[int, tuple[str, int]]]


def extract_blocks(
    state: Mapping[str, Tensor], prefix: str, axes: Axes, subnet: Subnet
) -> dict[str, Tensor]:
    """The state dict of a plain model: kept blocks renumbered, elastic axes cut to their prefix.

    Args:
        state: the supernet's state dict.
        prefix: of the blocks' names, such as "encoder.blocks.".
        axes: elastic axes of the parameters of a block.
        subnet: what to keep.
    """
    kept: dict[str, Tensor] = {}
    position = {block: i for i, block in enumerate(subnet.blocks)}
    for name, value in state.items():
        if not name.startswith(prefix):
            kept[name] = value.clone()
            continue
        number, _, inner = name.removeprefix(prefix).partition(".")
        if int(number) in position:
            at = position[int(number)]
            kept[f"{prefix}{at}.{inner}"] = _cut(value, axes.get(inner, {}), subnet, at)
    return kept


def _cut(value: Tensor, axes: Mapping[int, tuple[str, int]], subnet: Subnet, at: int) -> Tensor:
    for axis, (width, unit) in axes.items():
        value = value.narrow(axis, 0, subnet.width(width, at) * unit)
    return value.clone(memory_format=torch.contiguous_format)

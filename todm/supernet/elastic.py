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


class ElasticLinear(nn.Linear):
    """A linear layer of which a call may use only a prefix of the inputs or outputs."""

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
    """Dropout whose rate follows the sampled width: p(c) = p_max * c / c_max (TODM).

    `constant` ignores the width; `off_for_students` is AlphaNet's rule (only the largest drops).
    """

    p_max: float
    rule: Literal["adaptive", "constant", "off_for_students"] = "adaptive"

    def __call__(self, x: Tensor, *, ratio: float, training: bool) -> Tensor:
        """Drop elements of `x`, where ratio = c / c_max of the active subnet."""
        p = self.rate(ratio)
        return drop(x, p) if training and p > 0 else x

    def rate(self, ratio: float) -> float:
        """The dropout rate at a width ratio."""
        if self.rule == "constant":
            return self.p_max
        if self.rule == "off_for_students":
            return self.p_max if ratio == 1 else 0.0
        return self.p_max * ratio


def drop(x: Tensor, p: float) -> Tensor:
    """Dropout; on a CPU with the rate rounded to 1/256.

    A CPU draws random numbers one by one on one thread, which took a fifth of a training step; one
    64-bit draw serves eight elements here.
    """
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = min(255, max(1, round(p * 256)))
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
    return x * (keep.to(x.dtype) * (256 / (256 - dropped)))


# For every parameter of a block: which axes are elastic, by which width, and how many entries one
# unit of that width takes.
Axes = Mapping[str, Mapping[int, tuple[str, int]]]


def extract_blocks(
    state: Mapping[str, Tensor], prefix: str, axes: Axes, subnet: Subnet
) -> dict[str, Tensor]:
    """The state dict of a plain model: kept blocks renumbered, elastic axes cut to their prefix.

    Args:
        state: the supernet's state dict.
        prefix: where the blocks live, such as "encoder.blocks.".
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

"""The arguments of every implementation, and their checks. Letters: M rows, K inputs, N outputs."""

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from todm.errors import ConfigError
from todm.kernels._linear import (
    check_act_scale,
    check_activation,
    check_int8_inputs,
    check_out_dtype,
    check_together,
    check_vector,
)
from todm.kernels.matmul_24.pack import Packed

Algorithm = Literal["measured", "dense", "sparse"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One call. An implementation gets the activation's leading axes folded into M, M >= 1."""

    x_MK: Tensor
    weight: Packed
    bias_N: Tensor | None
    act_scale: Tensor | None
    out_dtype: torch.dtype
    algorithm: Algorithm

    @property
    def num_outputs(self) -> int:
        """N."""
        return self.weight.shape[0]

    def check(self) -> None:
        """Raises ConfigError with the first thing that is wrong."""
        op, weight = "matmul_24", self.weight
        num_outputs, num_inputs = weight.shape
        check_activation(op, self.x_MK, num_inputs)
        check_act_scale(op, self.act_scale)
        check_vector(op, "bias_N", self.bias_N, num_outputs)
        check_out_dtype(op, self.out_dtype)
        if self.algorithm not in ("measured", "dense", "sparse"):
            raise ConfigError(
                f"{op}: algorithm {self.algorithm!r} is not measured | dense | sparse"
            )
        if weight.scale_N is not None:
            check_int8_inputs(op, num_inputs)
        else:
            self._check_float()
        parts = (weight.values_NH, weight.codes_NC, weight.scale_N)
        check_together(op, self.x_MK, *parts, self.bias_N, self.act_scale)

    def _check_float(self) -> None:
        x, values = self.x_MK.dtype, self.weight.values_NH.dtype
        if x != values or self.out_dtype != x:
            raise ConfigError(
                f"matmul_24: the activation is {x}, the weight {values} and out_dtype "
                f"{self.out_dtype}: they must be the same unless the weight is int8"
            )
        if self.act_scale is not None:
            raise ConfigError("matmul_24: act_scale is for int8 weights: leave it out")

"""The arguments of every implementation, and their checks. Letters: M rows, K inputs, N outputs."""

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from todm.errors import ConfigError
from todm.kernels._linear import check_activation, check_together, check_vector
from todm.kernels.matmul_w4.pack import Packed

Algorithm = Literal["measured", "fused", "dense"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One call. An implementation gets the activation's leading axes folded into M, M >= 1."""

    x_MK: Tensor
    weight: Packed
    bias_N: Tensor | None
    algorithm: Algorithm
    cache_dequantised: bool

    @property
    def num_outputs(self) -> int:
        """N."""
        return self.weight.shape[0]

    @property
    def out_dtype(self) -> torch.dtype:
        """Of the result: that of the activation."""
        return self.x_MK.dtype

    def check(self) -> None:
        """Raises ConfigError with the first thing that is wrong."""
        op, weight = "matmul_w4", self.weight
        num_outputs, num_inputs = weight.shape
        check_activation(op, self.x_MK, num_inputs)
        check_vector(op, "bias_N", self.bias_N, num_outputs)
        if self.algorithm not in ("measured", "fused", "dense"):
            raise ConfigError(f"{op}: algorithm {self.algorithm!r} is not measured | fused | dense")
        parts = (weight.words_NJ, weight.scale_NG, weight.zero_NG, weight.pre_quant_scale_K)
        check_together(op, self.x_MK, *parts, self.bias_N)

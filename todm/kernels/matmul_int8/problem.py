"""The arguments of every implementation, and their checks. Letters: M rows, K inputs, N outputs."""

import dataclasses

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One call. An implementation gets the activation's leading axes folded into M, M >= 1."""

    x_MK: Tensor
    weight_NK: Tensor
    weight_scale_N: Tensor
    bias_N: Tensor | None
    act_scale: Tensor | None
    out_dtype: torch.dtype

    @property
    def num_outputs(self) -> int:
        """N."""
        return self.weight_NK.shape[0]

    def check(self) -> None:
        """Raises ConfigError with the first thing that is wrong."""
        op, weight = "matmul_int8", self.weight_NK
        if weight.dim() != 2 or weight.dtype != torch.int8 or 0 in weight.shape:
            raise ConfigError(
                f"{op}: weight_NK is {weight.dtype} {tuple(weight.shape)}; int8 [N, K] with N and K of "
                "at least 1 is needed: quantise_weight makes it"
            )
        num_outputs, num_inputs = weight.shape
        check_int8_inputs(op, num_inputs)
        check_activation(op, self.x_MK, num_inputs)
        check_act_scale(op, self.act_scale)
        check_vector(op, "weight_scale_N", self.weight_scale_N, num_outputs)
        check_vector(op, "bias_N", self.bias_N, num_outputs)
        check_out_dtype(op, self.out_dtype)
        check_together(op, self.x_MK, weight, self.weight_scale_N, self.bias_N, self.act_scale)

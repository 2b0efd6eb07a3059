"""What every implementation is given, and the checks. Letters: M rows, K inputs, N outputs."""

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from todm.errors import ConfigError
from todm.kernels.matmul_24.pack import Packed
from todm.kernels.matmul_int8.problem import (
    MAX_INPUTS,
    check_act_scale,
    check_activation,
    check_out_dtype,
    check_together,
    check_vector,
)

Way = Literal["measured", "dense", "sparse"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One call. An implementation gets the activation's leading axes folded into M, M >= 1."""

    x_MK: Tensor
    weight: Packed
    bias_N: Tensor | None
    act_scale: Tensor | None
    out_dtype: torch.dtype
    way: Way

    @property
    def is_int8(self) -> bool:
        """Whether activations are quantised too."""
        return self.weight.scale_N is not None

    def check(self) -> None:
        """Raises ConfigError with the first thing that is wrong."""
        outputs, inputs = self.weight.shape
        check_activation("matmul_24", self.x_MK, inputs)
        check_act_scale("matmul_24", self.act_scale)
        check_vector("matmul_24", "bias_N", self.bias_N, outputs)
        check_out_dtype("matmul_24", self.out_dtype)
        if self.way not in ("measured", "dense", "sparse"):
            raise ConfigError(f"matmul_24: way {self.way!r} is not measured | dense | sparse")
        if self.is_int8:
            self._check_int8()
        else:
            self._check_float()
        weight = self.weight
        given = (weight.values_NH, weight.codes_NC, weight.scale_N)
        check_together("matmul_24", (self.x_MK, *given, self.bias_N, self.act_scale))

    def _check_int8(self) -> None:
        if self.weight.num_inputs > MAX_INPUTS:
            raise ConfigError(
                f"matmul_24: {self.weight.num_inputs} int8 inputs could overflow an int32 sum, "
                f"allowed are {MAX_INPUTS}: split the layer along K"
            )

    def _check_float(self) -> None:
        x, values = self.x_MK.dtype, self.weight.values_NH.dtype
        if x != values or self.out_dtype != x:
            raise ConfigError(
                f"matmul_24: the activation is {x}, the weight {values} and out_dtype "
                f"{self.out_dtype}: they must be the same unless the weight is int8"
            )
        if self.act_scale is not None:
            raise ConfigError("matmul_24: act_scale is for int8 weights: leave it out")

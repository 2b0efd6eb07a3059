"""What every implementation is given, and the checks. Letters: M rows, K inputs, N outputs."""

import dataclasses
from typing import Literal

from torch import Tensor

from todm.errors import ConfigError
from todm.kernels.matmul_int8.problem import check_activation, check_together, check_vector
from todm.kernels.matmul_w4.pack import Packed

Way = Literal["measured", "fused", "dense"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One call. An implementation gets the activation's leading axes folded into M, M >= 1."""

    x_MK: Tensor
    weight: Packed
    bias_N: Tensor | None
    way: Way
    cache_dequantised: bool

    def check(self) -> None:
        """Raises ConfigError with the first thing that is wrong."""
        weight = self.weight
        outputs, inputs = weight.shape
        check_activation("matmul_w4", self.x_MK, inputs)
        check_vector("matmul_w4", "bias_N", self.bias_N, outputs)
        if self.way not in ("measured", "fused", "dense"):
            raise ConfigError(f"matmul_w4: way {self.way!r} is not measured | fused | dense")
        parts = (weight.words_NJ, weight.scale_NG, weight.zero_NG, weight.pre_quant_scale_K)
        check_together("matmul_w4", (self.x_MK, *parts, self.bias_N))

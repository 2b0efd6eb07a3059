"""Linear layer with a 2:4 weight: of every four inputs of an output, at most two weights are not zero.

    y_mn = sum_g (v_ng0 x_m(4g + i_ng0) + v_ng1 x_m(4g + i_ng1)) + b_n

Mishra et al. 2021 (arXiv 2104.08378). With int8 values, activations are quantised and sums rescaled
as in `matmul_int8`. On a GPU the sparse product runs only where it was measured to be faster than
the dense one (`todm.kernels._choice`). README.md has the layout and the details.

Letters: M rows (all leading axes), K inputs, N outputs, G groups of four inputs.
"""

import torch
from torch import Tensor

from todm.kernels._linear import run_linear
from todm.kernels.matmul_24.pack import Packed, check_24, pack
from todm.kernels.matmul_24.problem import Algorithm, Problem

__all__ = ["IMPLS", "Algorithm", "Packed", "check_24", "matmul_24", "pack"]

IMPLS = ("torch", "reference")


def matmul_24(
    x: Tensor,
    weight: Packed,
    *,
    bias_N: Tensor | None = None,
    act_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    algorithm: Algorithm = "measured",
    impl: str | None = None,
) -> Tensor:
    """The layer's output [..., N]. It has no gradient.

    Args:
        x: Activations [..., K] of any strides, of the weight's dtype (any of the three for int8); may
            have no rows.
        weight: What `pack` returned.
        bias_N: Added at the end.
        act_scale: For int8 weights, one scale for all activations; None takes each row's absmax / 127.
        out_dtype: For int8 weights, dtype of the result; that of x where None.
        algorithm: `dense` or `sparse` kernels of the `torch` impl, or the one `measured` to be faster.
        impl: `torch` or `reference`; see `todm.kernels._dispatch`.

    Raises:
        ConfigError: shapes, dtypes or devices that do not fit, a gradient that is required, or `sparse`
            where no sparse kernel is available.
    """
    problem = Problem(
        x_MK=x,
        weight=weight,
        bias_N=bias_N,
        act_scale=act_scale,
        out_dtype=x.dtype if out_dtype is None else out_dtype,
        algorithm=algorithm,
    )
    return run_linear("matmul_24", problem, names=IMPLS, impl=impl)

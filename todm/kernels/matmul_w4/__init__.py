"""Linear layer with a weight of 4 or 3 bits in groups, and activations of 16 (W4A16, W3A16).

    y_mn = sum_k round(x_mk s_k) w_nk + b_n,    w_nk = scale_ng (code_nk - zero_ng),    g = k // group

AWQ (arXiv 2306.00978), section 2, with s = `pre_quant_scale_K`. Groups lie along the inputs in their own
order, so a kernel reads one scale for a whole group and gathers nothing. README.md has layouts and details.

Letters: M rows (all leading axes), K inputs, N outputs, G groups of inputs.
"""

from torch import Tensor

from todm.kernels._linear import run_linear
from todm.kernels.matmul_w4.awq import Awq, from_awq, to_awq
from todm.kernels.matmul_w4.pack import Packed, pack
from todm.kernels.matmul_w4.problem import Algorithm, Problem
from todm.kernels.matmul_w4.quantise import quantise_rtn

__all__ = [
    "IMPLS",
    "Algorithm",
    "Awq",
    "Packed",
    "from_awq",
    "matmul_w4",
    "pack",
    "quantise_rtn",
    "to_awq",
]

IMPLS = ("torch", "reference", "triton")


def matmul_w4(
    x: Tensor,
    weight: Packed,
    *,
    bias_N: Tensor | None = None,
    algorithm: Algorithm = "measured",
    cache_dequantised: bool = False,
    impl: str | None = None,
) -> Tensor:
    """The layer's output [..., N], of x's dtype. It has no gradient.

    Args:
        x: Activations [..., K], float32, float16 or bfloat16, of any strides; may have no rows.
        weight: What `pack`, `quantise_rtn` or `from_awq` returned.
        bias_N: Added at the end.
        algorithm: `fused` reads the packed weight in the product; `dense` dequantises it to x's dtype
            first and leaves the product to the library; `measured` takes the faster.
        cache_dequantised: Keep the weight that `dense` dequantises beside the packed one: as fast as if it
            had never been quantised, in four times the memory.
        impl: `torch`, `reference` or `triton`; see `todm.kernels._dispatch`.

    Raises:
        ConfigError: shapes, dtypes or devices that do not fit, or a gradient that is required.
    """
    problem = Problem(
        x_MK=x,
        weight=weight,
        bias_N=bias_N,
        algorithm=algorithm,
        cache_dequantised=cache_dequantised,
    )
    return run_linear("matmul_w4", problem, names=IMPLS, impl=impl)

"""Linear layer with int8 weights and int8 activations (W8A8), int32 sums.

    y_mn = s_m s_n sum_k q_mk w_nk + b_n,    q_mk = round(x_mk / s_m)

SmoothQuant (arXiv 2211.10438), eqs. 1 and 2. w and s_n come from `quantise_weight`; s_m is a scale
per row, taken from the row itself, or one given for the whole tensor. README.md has the details.

Letters: M rows (all leading axes), K inputs, N outputs.
"""

import torch
from torch import Tensor

from todm.kernels._dispatch import load_impl, on_device_of
from todm.kernels._linear import check_act_scale, check_activation, check_together, run_linear
from todm.kernels.matmul_int8.problem import Problem
from todm.kernels.matmul_int8.quantise import quantise_weight

__all__ = ["IMPLS", "matmul_int8", "quantise_activation", "quantise_weight"]

IMPLS = ("torch", "reference", "triton")


def matmul_int8(
    x: Tensor,
    weight_NK: Tensor,
    weight_scale_N: Tensor,
    *,
    bias_N: Tensor | None = None,
    act_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    impl: str | None = None,
) -> Tensor:
    """The layer's output [..., N]. It has no gradient.

    A row of x with a NaN or an infinity gives NaN in all its outputs, as does an `act_scale` that is
    not above zero and finite: neither has a code, and checking for them first would stall a GPU.

    Args:
        x: Activations [..., K], float32, float16 or bfloat16, of any strides; may have no rows.
        weight_NK: Codes of the weight, int8.
        weight_scale_N: Its scale per output channel.
        bias_N: Added at the end.
        act_scale: One scale for all activations (static); None takes each row's absmax / 127.
        out_dtype: dtype of the result; that of x where None.
        impl: `torch`, `reference` or `triton`; see `todm.kernels._dispatch`.

    Raises:
        ConfigError: shapes, dtypes or devices that do not fit, or a gradient that is required.
    """
    problem = Problem(
        x_MK=x,
        weight_NK=weight_NK,
        weight_scale_N=weight_scale_N,
        bias_N=bias_N,
        act_scale=act_scale,
        out_dtype=x.dtype if out_dtype is None else out_dtype,
    )
    return run_linear("matmul_int8", problem, names=IMPLS, impl=impl)


def quantise_activation(
    x_MK: Tensor, *, act_scale: Tensor | None = None, impl: str | None = None
) -> tuple[Tensor, Tensor]:
    """Codes int8 [M, K] and scales float32 [M], as `matmul_int8` makes them.

    A row that cannot be coded (see there) has codes of zero and a scale of NaN.

    Raises:
        ConfigError: as `matmul_int8`.
    """
    check_activation("quantise_activation", x_MK, x_MK.shape[-1])
    check_act_scale("quantise_activation", act_scale)
    check_together("quantise_activation", x_MK, act_scale)
    chosen = load_impl("matmul_int8", IMPLS, impl, device=x_MK.device.type)
    with on_device_of(x_MK):
        return chosen.quantise(x_MK, act_scale)

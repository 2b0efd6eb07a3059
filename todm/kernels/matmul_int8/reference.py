"""The oracle of matmul_int8: SmoothQuant (arXiv 2211.10438), eqs. 1 and 2, one row at a time, in float64.

Scales and ratios are rounded to float32, as the op defines them; all else is exact in float64.
"""

import math

import torch
from torch import Tensor

from todm.kernels.matmul_int8.problem import Problem

_LEAST = 1e-30  # of a row's absmax


def run(problem: Problem) -> Tensor:
    """See `todm.kernels.matmul_int8.matmul_int8`; [M, N]."""
    p = problem
    codes_MK, scale_M = quantise(p.x_MK, p.act_scale)
    sums_MN = codes_MK.double() @ p.weight_NK.double().t()
    y_MN = scale_M.double()[:, None] * sums_MN * p.weight_scale_N.double()
    if p.bias_N is not None:
        y_MN += p.bias_N.double()
    return y_MN.to(p.out_dtype)


def quantise(x_MK: Tensor, act_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `todm.kernels.matmul_int8.quantise_activation`."""
    codes_MK = torch.zeros(x_MK.shape, dtype=torch.int8, device=x_MK.device)
    scale_M = torch.full((x_MK.shape[0],), math.nan, device=x_MK.device)
    for m, row_K in enumerate(x_MK.double()):
        absmax = float(row_K.abs().max())  # NaN if there is one
        scale = _float32(max(_float32(absmax), _float32(_LEAST)) / 127)
        if act_scale is not None:
            scale = float(act_scale)
        if math.isfinite(absmax) and math.isfinite(scale) and scale > 0:
            ratio_K = (row_K / scale).float()
            codes_MK[m] = ratio_K.round().clamp(-127, 127).to(torch.int8)
            scale_M[m] = scale
    return codes_MK, scale_M


def _float32(number: float) -> float:
    return float(torch.tensor(number, dtype=torch.float32))

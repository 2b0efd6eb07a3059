"""matmul_int8 in torch: exact sums on every device, `torch._int_mm` on a GPU."""

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.kernels.matmul_int8.problem import Problem
from todm.kernels.matmul_int8.quantise import absmax_scale, encode

# 127 * 128 * 1024 < 2^24: every partial sum of so many products is exact in float32.
_SLICE = 1024


def run(problem: Problem) -> Tensor:
    """See `todm.kernels.matmul_int8.matmul_int8`; [M, N]."""
    p = problem
    codes_MK, scale_M = quantise(p.x_MK, p.act_scale)
    sums_MN = integer_matmul(codes_MK, p.weight_NK)
    return rescale(sums_MN, scale_M, p.weight_scale_N, p.bias_N).to(p.out_dtype)


def quantise(x_MK: Tensor, act_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `todm.kernels.matmul_int8.quantise_activation`."""
    own_M = absmax_scale(x_MK)
    scale_M = own_M if act_scale is None else act_scale.float().reshape(1).expand_as(own_M)
    usable_M = own_M.isfinite() & scale_M.isfinite() & (scale_M > 0)
    # Codes of NaN are undefined: such rows are replaced before they are encoded.
    x_MK = x_MK.masked_fill(~usable_M[:, None], 0.0)
    codes_MK = encode(x_MK, scale_M.masked_fill(~usable_M, 1.0))
    return codes_MK, scale_M.masked_fill(~usable_M, float("nan"))


def integer_matmul(codes_MK: Tensor, weight_NK: Tensor) -> Tensor:
    """The sums over K of the products of codes, exact, int32 [M, N]."""
    if codes_MK.device.type == "cuda":
        return padded_int_mm(codes_MK, weight_NK)
    # `torch._int_mm` is exact on a CPU too, and ten times slower than this without VNNI.
    sums_MN = codes_MK.new_zeros((codes_MK.shape[0], weight_NK.shape[0]), dtype=torch.int32)
    for codes, weight in zip(codes_MK.split(_SLICE, 1), weight_NK.split(_SLICE, 1), strict=True):
        sums_MN += (codes.float() @ weight.float().t()).to(torch.int32)
    return sums_MN


def padded_int_mm(codes_MK: Tensor, weight_NK: Tensor) -> Tensor:
    """`torch._int_mm`, which needs more than 16 rows, and K and N in multiples of 8, on a GPU."""
    (rows, inputs), outputs = codes_MK.shape, weight_NK.shape[0]
    codes_MK = zero_padded(codes_MK, 32 - rows if rows <= 16 else 0, -inputs % 8)
    weight_NK = zero_padded(weight_NK, -outputs % 8, -inputs % 8).contiguous()
    return torch._int_mm(codes_MK, weight_NK.t())[:rows, :outputs]


def zero_padded(x: Tensor, rows: int, columns: int) -> Tensor:
    """The matrix with more rows and columns of zeros; itself for none of them, where `pad` would copy."""
    return F.pad(x, (0, columns, 0, rows)) if rows or columns else x


def rescale(
    sums_MN: Tensor, scale_M: Tensor, weight_scale_N: Tensor, bias_N: Tensor | None
) -> Tensor:
    """From sums of codes to the layer's output, float32 [M, N]."""
    y_MN = sums_MN.float().mul_(scale_M[:, None]).mul_(weight_scale_N.float())
    return y_MN if bias_N is None else y_MN.add_(bias_N.float())

"""matmul_w4 in torch: the computation of the kernels, except for the order of their sums."""

from torch import Tensor
from torch.nn import functional as F

from todm.kernels.matmul_w4 import choice
from todm.kernels.matmul_w4.problem import Problem


def run(problem: Problem) -> Tensor:
    """See `todm.kernels.matmul_w4.matmul_w4`; [M, N]."""
    return ALGORITHMS[choice.choose(problem, ALGORITHMS)](problem)


def fused(problem: Problem) -> Tensor:
    """The product with the unrounded weight, in float32."""
    p = problem
    bias_N = None if p.bias_N is None else p.bias_N.float()
    y_MN = F.linear(scaled(p).float(), p.weight.dequantise(), bias_N)
    return y_MN.to(p.x_MK.dtype)


def dense(problem: Problem) -> Tensor:
    """The product with the weight rounded to the activation's dtype."""
    dtype = problem.x_MK.dtype
    copies = problem.weight.copies
    weight_NK = copies.get(dtype) if problem.cache_dequantised else None
    if weight_NK is None:
        weight_NK = problem.weight.dequantise(dtype)
    return product(problem, weight_NK)


ALGORITHMS = {"fused": fused, "dense": dense}


def product(problem: Problem, weight_NK: Tensor) -> Tensor:
    """The library's product with a dequantised weight, which is cached if the call says so."""
    p = problem
    if p.cache_dequantised:
        p.weight.copies[p.x_MK.dtype] = weight_NK
    bias_N = None if p.bias_N is None else p.bias_N.to(p.x_MK.dtype)
    return F.linear(scaled(p), weight_NK, bias_N)


def scaled(problem: Problem) -> Tensor:
    """The activation times `pre_quant_scale_K`, rounded to its dtype."""
    x_MK, pre_quant_scale_K = problem.x_MK, problem.weight.pre_quant_scale_K
    return (
        x_MK
        if pre_quant_scale_K is None
        else (x_MK.float() * pre_quant_scale_K.float()).to(x_MK.dtype)
    )

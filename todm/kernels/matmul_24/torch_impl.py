"""matmul_24 in torch. A CPU multiplies the expanded weight: the zeros make it no faster."""

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.kernels._choice import Shape, fastest_algorithm
from todm.kernels.matmul_24 import semi
from todm.kernels.matmul_24.problem import Problem
from todm.kernels.matmul_int8 import matmul_int8, quantise_activation
from todm.kernels.matmul_int8.torch_impl import rescale


def run(problem: Problem) -> Tensor:
    """See `todm.kernels.matmul_24.matmul_24`; [M, N]."""
    return ALGORITHMS[_algorithm(problem)](problem)


def dense(problem: Problem) -> Tensor:
    """The product with the expanded weight; int8 is `matmul_int8`'s."""
    p = problem
    if p.weight.scale_N is not None:
        quantised = (p.weight.dense_NK, p.weight.scale_N)
        options = {"bias_N": p.bias_N, "act_scale": p.act_scale, "out_dtype": p.out_dtype}
        return matmul_int8(p.x_MK, *quantised, **options)
    bias_N = None if p.bias_N is None else p.bias_N.to(p.x_MK.dtype)
    return F.linear(p.x_MK, p.weight.dense_NK, bias_N)


def sparse(problem: Problem) -> Tensor:
    """The product on sparse tensor cores."""
    p = problem
    if p.weight.scale_N is None:
        return semi.matmul(p.x_MK, p.weight.semi_structured, p.bias_N).contiguous()
    codes_MK, scale_M = quantise_activation(p.x_MK, act_scale=p.act_scale)
    sums_MN = semi.matmul(codes_MK, p.weight.semi_structured)
    return rescale(sums_MN, scale_M, p.weight.scale_N, p.bias_N).to(p.out_dtype).contiguous()


ALGORITHMS = {"dense": dense, "sparse": sparse}


def _algorithm(problem: Problem) -> str:
    p, weight = problem, problem.weight
    dtype, device = weight.values_NH.dtype, p.x_MK.device
    possible = semi.library(device) is not None and dtype != torch.float32
    if p.algorithm == "sparse" and not possible:
        raise semi.no_kernel(dtype, device)
    if p.algorithm != "measured":
        return p.algorithm
    if not possible:
        return "dense"
    shape = Shape.of(p.x_MK, dtype, weight.shape)
    return fastest_algorithm("matmul_24", shape, problem=p, algorithms=ALGORITHMS)

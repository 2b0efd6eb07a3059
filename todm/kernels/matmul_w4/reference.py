"""The oracle of matmul_w4: AWQ (arXiv 2306.00978), section 2, one input at a time, in float64.

The words are decoded independently here. Only x times `pre_quant_scale_K` is rounded, to x's dtype, as
the op defines it.
"""

import torch
from torch import Tensor

from todm.kernels.matmul_w4.pack import Packed
from todm.kernels.matmul_w4.problem import Problem


def run(problem: Problem) -> Tensor:
    """See `todm.kernels.matmul_w4.matmul_w4`; [M, N]. The algorithm makes no difference."""
    p = problem
    x_MK = p.x_MK
    if p.weight.pre_quant_scale_K is not None:
        x_MK = (x_MK.float() * p.weight.pre_quant_scale_K.float()).to(x_MK.dtype)
    y_MN = x_MK.double() @ dequantise(p.weight).t()
    if p.bias_N is not None:
        y_MN += p.bias_N.double()
    return y_MN.to(p.x_MK.dtype)


def dequantise(weight: Packed) -> Tensor:
    """The weight in float64 [N, K]."""
    words_JN = weight.words_NJ.long().t() % 2**32  # as numbers without a sign
    decode = _code_4 if weight.bits == 4 else _code_3
    columns = []
    for k in range(weight.num_inputs):
        g = k // weight.group
        zero_N = 2 ** (weight.bits - 1) if weight.zero_NG is None else weight.zero_NG[:, g].double()
        columns.append(weight.scale_NG[:, g].double() * (decode(words_JN, k).double() - zero_N))
    return torch.stack(columns, 1)


def _code_4(words_JN: Tensor, k: int) -> Tensor:
    block, (place, lane) = k // 128, divmod(k % 128, 16)
    return words_JN[16 * block + lane] // 16**place % 16


def _code_3(words_JN: Tensor, k: int) -> Tensor:
    block, (place, lane) = k // 128, divmod(k % 128, 4)
    one, two, three = (words_JN[12 * block + 4 * i + lane] for i in range(3))
    if place < 30:
        return (one, two, three)[place // 10] // 8 ** (place % 10) % 8
    tops = (one, two)[place - 30] // 2**30
    return tops + 4 * (three // 2**place % 2)

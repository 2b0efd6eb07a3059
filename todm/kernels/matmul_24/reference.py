"""The oracle of matmul_24: each output sums its kept inputs only, in float64 (arXiv 2104.08378, figure 3).

The positions are decoded independently here, one output at a time.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.kernels.matmul_24.pack import Packed
from todm.kernels.matmul_24.problem import Problem
from todm.kernels.matmul_int8 import reference as int8


def run(problem: Problem) -> Tensor:
    """See `todm.kernels.matmul_24.matmul_24`; [M, N]."""
    p = problem
    x_MK, scale_M = p.x_MK.double(), torch.ones_like(p.x_MK[:, 0])
    if p.weight.scale_N is not None:
        x_MK, scale_M = int8.quantise(p.x_MK, p.act_scale)
    x_MK = F.pad(x_MK.double(), (0, -p.weight.num_inputs % 4))
    columns = []
    for n, kept in enumerate(_kept_inputs(p.weight)):
        sums_M = x_MK[:, kept] @ p.weight.values_NH[n].double()
        if p.weight.scale_N is not None:
            sums_M = scale_M.double() * sums_M * p.weight.scale_N[n].double()
        columns.append(sums_M if p.bias_N is None else sums_M + p.bias_N[n].double())
    return torch.stack(columns, 1).to(p.out_dtype)


def _kept_inputs(weight: Packed) -> list[list[int]]:
    """For each output, the input of each of its values."""
    inputs = []
    for codes in weight.codes_NC.tolist():
        nibbles = [nibble for code in codes for nibble in (code % 16, code // 16)]
        groups = nibbles[: weight.values_NH.shape[1] // 2]
        inputs.append([4 * g + i for g, code in enumerate(groups) for i in (code % 4, code // 4)])
    return inputs

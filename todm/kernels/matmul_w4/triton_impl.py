"""matmul_w4 in Triton: which kernel runs, on how many programs. The kernels are in triton_kernels.py."""

import torch
import triton
from triton import language as tl

from todm.kernels.matmul_w4 import choice, torch_impl
from todm.kernels.matmul_w4 import triton_kernels as kernels
from todm.kernels.matmul_w4.pack import BLOCK, Packed
from todm.kernels.matmul_w4.problem import Problem

_DOT = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
# Few rows give few tiles of outputs, so the blocks of 128 inputs are shared out too: until there are
# programs for every unit four times, or a program has but four blocks.
_PROGRAMS_PER_UNIT, _LEAST_BLOCKS, _MOST_SPLITS = 4, 4, 16
_NOMINAL_N = {1: 8, 16: 32}  # outputs of a program, by most rows; what tuning picks is not known yet
_UNITS_OF_H200 = 132  # for the interpreter
ROWS = 32
"""Outputs of a program of `dequantise_kernel`."""


def run(problem: Problem):
    """See `todm.kernels.matmul_w4.matmul_w4`; [M, N]."""
    return WAYS[choice.choose(problem, WAYS)](problem)


def fused(problem: Problem, *, splits: int | None = None):
    """The product from the packed weight; `splits` of the inputs is for tests."""
    p, weight = problem, problem.weight
    (M, K), N = p.x_MK.shape, weight.shape[0]
    blocks, groups = triton.cdiv(K, BLOCK), weight.scale_NG.shape[1]
    few = choice.FEW_ROWS >= M
    if splits is None:
        splits = _splits(M, N, blocks, p.x_MK.device) if few else 1
    y = torch.empty((M, N), dtype=p.x_MK.dtype, device=p.x_MK.device)
    parts = y if splits == 1 else torch.empty((splits, M, N), dtype=torch.float32, device=y.device)
    bias = _or(p.bias_N, y)
    words, scale, zero = _parts(weight)
    layer = (p.x_MK, words, scale, zero, _or(weight.inv_s_K, y), bias, parts)
    sizes = {"N": N, "K": K, "blocks": blocks, "groups": groups}
    sizes["per_split"] = triton.cdiv(blocks, splits)
    flags = _constants(weight) | {
        "HAS_INV": weight.inv_s_K is not None,
        "HAS_BIAS": p.bias_N is not None,
        "PARTIAL": splits > 1,
    }
    if M == 1:
        grid = lambda s: (triton.cdiv(N, s["BLOCK_N"]), splits)  # noqa: E731
        kernels.row_kernel[grid](*layer, **sizes, stride_xk=p.x_MK.stride(1), **flags)
    else:
        kernel = kernels.few_rows_kernel if few else kernels.many_rows_kernel
        grid = lambda s: (triton.cdiv(M, s["BLOCK_M"]) * triton.cdiv(N, s["BLOCK_N"]), splits)  # noqa: E731
        kernel[grid](
            *layer,
            M=M,
            rows=triton.next_power_of_2(M),
            **sizes,
            stride_xm=p.x_MK.stride(0),
            stride_xk=p.x_MK.stride(1),
            **flags,
            DOT=_dot_dtype(y.dtype),
        )
    if splits > 1:
        programs = (triton.cdiv(M * N, 256),)
        has_bias = p.bias_N is not None
        kernels.sum_kernel[programs](parts, bias, y, M, N, splits, HAS_BIAS=has_bias, BLOCK=256)
    return y


def dense(problem: Problem):
    """Dequantise, then the library's product."""
    kept = problem.weight.copies.get(problem.x_MK.dtype) if problem.cache_dequantised else None
    weight_NK = dequantise(problem.weight, problem.x_MK.dtype) if kept is None else kept
    return torch_impl.product(problem, weight_NK)


WAYS = {"fused": fused, "dense": dense}


def dequantise(weight: Packed, dtype: torch.dtype):
    """The weight [N, K], rounded once from float32."""
    N, K = weight.shape
    dense_NK = torch.empty((N, K), dtype=dtype, device=weight.words_NJ.device)
    blocks, groups = triton.cdiv(K, BLOCK), weight.scale_NG.shape[1]
    kernels.dequantise_kernel[(blocks, triton.cdiv(N, ROWS))](
        *(*_parts(weight), dense_NK, N, K, blocks, groups),
        **_constants(weight),
        BLOCK_N=ROWS,
    )
    return dense_NK


def _constants(weight: Packed):
    group = 0 if weight.scale_NG.shape[1] == 1 else weight.group
    return {"BITS": weight.bits, "GROUP": group, "HAS_ZERO": weight.zero_NG is not None}


def _parts(weight: Packed):
    """Words, scales and zero points without gaps; they nearly always are so already."""
    words, scale = weight.words_NJ.contiguous(), weight.scale_NG.contiguous()
    return words, scale, scale if weight.zero_NG is None else weight.zero_NG.contiguous()


def _splits(M, N, blocks, device):
    """Ranges of the inputs that are summed apart; a power of two."""
    units = _UNITS_OF_H200
    if device.type == "cuda":
        units = torch.cuda.get_device_properties(device).multi_processor_count
    programs = triton.cdiv(N, _NOMINAL_N[1 if M == 1 else choice.FEW_ROWS])
    wanted = triton.cdiv(_PROGRAMS_PER_UNIT * units, programs)
    most = min(wanted, blocks // _LEAST_BLOCKS, _MOST_SPLITS)
    return 1 << max(most, 1).bit_length() - 1


def _dot_dtype(dtype):
    """The interpreter multiplies bfloat16 as if it were integers."""
    interpreted = triton.knobs.runtime.interpret and dtype == torch.bfloat16
    return tl.float32 if interpreted else _DOT[dtype]


def _or(tensor, other):
    """A pointer that is never read stands for a tensor that is absent."""
    return other if tensor is None else tensor

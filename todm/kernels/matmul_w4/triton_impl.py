"""matmul_w4 in Triton: which kernel runs, with how many programs. The kernels are in triton_kernels.py."""

import torch
import triton
from torch.nn import functional as F

from todm.kernels._tune import dot_dtype, or_else, require_gpu
from todm.kernels.matmul_w4 import choice, torch_impl
from todm.kernels.matmul_w4 import triton_kernels as kernels
from todm.kernels.matmul_w4.pack import BLOCK, Packed
from todm.kernels.matmul_w4.problem import Problem
from todm.kernels.matmul_w4.triton_unpack import EXPONENT

ROWS = 32
"""Outputs of a program of `dequantise_kernel`."""
# Few rows give few tiles of outputs, so the blocks of 128 inputs are divided too, until every
# multiprocessor has this many programs or a program only four blocks.
_PROGRAMS_PER_UNIT = {"row": 16, "few": 4}
_NOMINAL_N = {"row": 8, "few": 32}  # outputs of a program; the tuned number is not known yet
_LEAST_BLOCKS, _MOST_SPLITS = 4, 16
_UNITS_OF_H200 = 132  # for the interpreter


def run(problem: Problem):
    """See `todm.kernels.matmul_w4.matmul_w4`; [M, N]."""
    require_gpu("matmul_w4", problem.x_MK)
    return ALGORITHMS[choice.choose(problem, ALGORITHMS)](problem)


def fused(problem: Problem):
    """The product from the packed weight."""
    p, weight = problem, problem.weight
    M, N = p.x_MK.shape[0], weight.shape[0]
    blocks, has_bias = triton.cdiv(weight.num_inputs, BLOCK), p.bias_N is not None
    splits = _splits(M, N, blocks, p.x_MK.device)
    y = torch.empty((M, N), dtype=p.x_MK.dtype, device=p.x_MK.device)
    parts = y if splits == 1 else torch.empty((splits, M, N), dtype=torch.float32, device=y.device)
    x, factors = _whole_chunks(p.x_MK, weight.pre_quant_scale_K)
    bias = y if p.bias_N is None else p.bias_N.contiguous()
    layer = (x, *_parts(weight), or_else(factors, y), bias, parts)
    sizes = (N, x.shape[1] // 16, blocks, weight.scale_NG.shape[1], triton.cdiv(blocks, splits))
    flags = _constants(weight) | {"HAS_INPUT_SCALE": factors is not None, "HAS_BIAS": has_bias}
    flags["PARTIAL"] = splits > 1
    if M == 1:
        grid = lambda s: (triton.cdiv(N, s["BLOCK_N"]), splits)  # noqa: E731
        kernels.row_kernels[weight.bits][grid](*layer, *sizes, EXPONENT, **flags)
    else:
        few = choice.FEW_ROWS >= M
        kernel = kernels.few_rows_kernel if few else kernels.many_rows_kernel
        rows, stride, dot = triton.next_power_of_2(M), x.stride(0) // 16, dot_dtype(x.dtype)
        grid = lambda s: (triton.cdiv(M, s["BLOCK_M"]) * triton.cdiv(N, s["BLOCK_N"]), splits)  # noqa: E731
        kernel[grid](*layer, M, *sizes, EXPONENT, rows, stride, **flags, DOT=dot)
    if splits > 1:
        programs = (triton.cdiv(M * N, 256),)
        kernels.sum_kernel[programs](parts, bias, y, M, N, splits, HAS_BIAS=has_bias, BLOCK=256)
    return y


def dense(problem: Problem):
    """Dequantise, then the library's product."""
    kept = problem.weight.copies.get(problem.x_MK.dtype) if problem.cache_dequantised else None
    weight_NK = dequantise(problem.weight, problem.x_MK.dtype) if kept is None else kept
    return torch_impl.product(problem, weight_NK)


ALGORITHMS = {"fused": fused, "dense": dense}


def dequantise(weight: Packed, dtype: torch.dtype):
    """The weight [N, K], rounded once from float32."""
    N, K = weight.shape
    dense_NK = torch.empty((N, K), dtype=dtype, device=weight.words_NJ.device)
    blocks, groups = triton.cdiv(K, BLOCK), weight.scale_NG.shape[1]
    kernels.dequantise_kernel[(blocks, triton.cdiv(N, ROWS))](
        *(*_parts(weight), dense_NK, N, K, blocks, groups, EXPONENT),
        **_constants(weight),
        BLOCK_N=ROWS,
    )
    return dense_NK


def _constants(weight: Packed):
    group = 0 if weight.scale_NG.shape[1] == 1 else weight.group
    return {"BITS": weight.bits, "GROUP": group, "HAS_ZERO": weight.zero_NG is not None}


def _parts(weight: Packed):
    """Words, scales and zero points without gaps, nearly always without a copy."""
    words, scale, zero = weight.words_NJ.contiguous(), weight.scale_NG.contiguous(), weight.zero_NG
    words = words.clone() if words.data_ptr() % 16 else words
    return words, scale, scale if zero is None else zero.contiguous()


def _whole_chunks(x_MK, pre_quant_scale_K):
    """Inputs in whole aligned chunks of 16, which kernels read at once; nearly always without a copy."""
    over = -x_MK.shape[1] % 16
    if pre_quant_scale_K is not None:
        pre_quant_scale_K = (
            F.pad(pre_quant_scale_K, (0, over)) if over else pre_quant_scale_K.contiguous()
        )
    gaps = x_MK.stride(1) != 1 or x_MK.stride(0) % 16 or x_MK.data_ptr() % 16
    if over:
        x_MK = F.pad(x_MK, (0, over))
    elif gaps:
        x_MK = x_MK.clone(memory_format=torch.contiguous_format)
    return x_MK, pre_quant_scale_K


def _splits(M, N, blocks, device):
    """How many ranges of the inputs are summed separately; a power of two."""
    if choice.FEW_ROWS < M:
        return 1
    units, kernel = _UNITS_OF_H200, "row" if M == 1 else "few"
    if device.type == "cuda":
        units = torch.cuda.get_device_properties(device).multi_processor_count
    wanted = _PROGRAMS_PER_UNIT[kernel] * units // triton.cdiv(N, _NOMINAL_N[kernel])
    most = max(1, min(wanted, blocks // _LEAST_BLOCKS, _MOST_SPLITS))
    return 1 << most.bit_length() - 1

"""matmul_24 in Triton, from the packed weight itself: half of the values are read, and none is kept twice.

Triton cannot reach sparse tensor cores, so the product is a dense one and what is saved is memory
traffic: for few rows, where reading the weight is all the time there is. The reduction runs over
the four positions of a group in turn: plane j of the weight holds, for each group, the value kept
at position j or zero, and is multiplied with inputs j, j + 4, j + 8, ... No input is gathered.
"""

import torch
import triton
from triton import language as tl

from todm.kernels._tune import require_gpu, tuned
from todm.kernels.matmul_24.problem import Problem
from todm.kernels.matmul_int8.triton_impl import quantise

_NAMES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.int8: tl.int8,
}
_PAIRS = {1: torch.int16, 2: torch.int32, 4: torch.int64}


def run(problem: Problem):
    """See `todm.kernels.matmul_24.matmul_24`; [M, N]."""
    p = problem
    require_gpu("matmul_24", p.x_MK)
    x, scale_m = quantise(p.x_MK, p.act_scale) if p.is_int8 else (p.x_MK, None)
    values, codes = p.weight.values_NH.contiguous(), p.weight.codes_NC.contiguous()
    (M, K), N = x.shape, codes.shape[0]
    y = torch.empty((M, N), dtype=p.out_dtype, device=x.device)
    pairs = values.view(_PAIRS[values.itemsize])
    value = _NAMES[values.dtype]
    # The interpreter multiplies bfloat16 as if it were integers.
    interpreted = triton.knobs.runtime.interpret and values.dtype == torch.bfloat16
    scales = [y if s is None else s.contiguous() for s in (scale_m, p.weight.scale_N, p.bias_N)]
    grid = lambda s: (triton.cdiv(M, s["BLOCK_M"]) * triton.cdiv(N, s["BLOCK_N"]),)  # noqa: E731
    packed_kernel[grid](
        *(x, pairs, codes, *scales, y),
        *(M, N, K, pairs.shape[1], codes.shape[1], triton.next_power_of_2(M)),
        *x.stride(),
        VALUE=value,
        DOT=tl.float32 if interpreted else value,
        HAS_BIAS=p.bias_N is not None,
    )
    return y


def _config(m, n, g, warps, stages):
    return triton.Config(
        {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_G": g}, num_warps=warps, num_stages=stages
    )


@triton.jit
def _unpack(pair, VALUE: tl.constexpr):
    """The two values of a group: the first is the low half of the word."""
    BITS: tl.constexpr = VALUE.primitive_bitwidth
    HALF: tl.constexpr = tl.int8 if BITS == 8 else (tl.int16 if BITS == 16 else tl.int32)
    return pair.to(HALF).to(VALUE, bitcast=True), (pair >> BITS).to(HALF).to(VALUE, bitcast=True)


@tuned(
    [
        _config(16, 16, 32, 2, 3),
        _config(16, 32, 32, 4, 4),
        _config(16, 32, 64, 4, 3),
        _config(16, 64, 32, 4, 3),
        _config(32, 64, 32, 4, 3),
        _config(64, 64, 32, 8, 3),
    ],
    key=["N", "K", "rows"],
)
@triton.jit(do_not_specialize=["M", "rows"])
def packed_kernel(
    x_ptr,
    pairs_ptr,
    codes_ptr,
    scale_m_ptr,
    scale_n_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    K,
    groups,
    bytes_of_codes,  # of one output
    rows,  # M rounded up to a power of two: the key by which tiles are chosen
    stride_xm,
    stride_xk,
    VALUE: tl.constexpr,
    DOT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """A tile of y per program; neighbours share the weight they read, in L2."""
    IS_INT8: tl.constexpr = VALUE.primitive_bitwidth == 8
    ACC: tl.constexpr = tl.int32 if IS_INT8 else tl.float32
    tiles_m = tl.cdiv(M, BLOCK_M)
    ms = tl.program_id(0) % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    ns = tl.program_id(0) // tiles_m * BLOCK_N + tl.arange(0, BLOCK_N)
    x_rows = x_ptr + ms.to(tl.int64)[:, None] * stride_xm
    pair_rows = pairs_ptr + ns.to(tl.int64)[None, :] * groups
    code_rows = codes_ptr + ns.to(tl.int64)[None, :] * bytes_of_codes
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for start in range(0, groups, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)
        inside = (ns[None, :] < N) & (g[:, None] < groups)
        low, high = _unpack(tl.load(pair_rows + g[:, None], mask=inside, other=0), VALUE)
        code = tl.load(code_rows + (g // 2)[:, None], mask=inside, other=0).to(tl.int32)
        code = code >> (g % 2 * 4)[:, None]
        for j in tl.static_range(4):
            plane = tl.where((code >> 2 & 3) == j, high, tl.zeros_like(high))
            plane = tl.where((code & 3) == j, low, plane)
            k = 4 * g + j
            within = (ms[:, None] < M) & (k[None, :] < K)
            at = x_rows + k.to(tl.int64)[None, :] * stride_xk
            x = tl.load(at, mask=within, other=0)
            acc = tl.dot(x.to(DOT), plane.to(DOT), acc, input_precision="ieee", out_dtype=ACC)
    y = acc.to(tl.float32)
    if IS_INT8:
        y *= tl.load(scale_m_ptr + ms, mask=ms < M, other=0.0)[:, None]
        y *= tl.load(scale_n_ptr + ns, mask=ns < N, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + ns, mask=ns < N, other=0.0).to(tl.float32)[None, :]
    at = y_ptr + ms.to(tl.int64)[:, None] * N + ns[None, :]
    tl.store(at, y.to(y_ptr.dtype.element_ty), mask=(ms[:, None] < M) & (ns[None, :] < N))

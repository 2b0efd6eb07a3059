"""matmul_int8 in Triton: codes of the activation, then an int8 GEMM; for few rows both in one kernel.

All kernels make the same codes as `torch_impl`: divisions are IEEE divisions, and adding and
subtracting 1.5 * 2^23 rounds half to even. Sums are exact, so tiles change nothing.

The GEMM reads whole aligned groups of 16 codes. The host pads K to a multiple of 16 (`chunks` of 16):
always in the activation's codes, in the weight only where K is not one already.
"""

import torch
import triton
from torch.nn import functional as F
from triton import language as tl

from todm.kernels._tune import or_else, require_gpu, tuned
from todm.kernels.matmul_int8.problem import Problem
from todm.kernels.matmul_int8.quantise import FLOOR

# Up to here each program of `fused_kernel` reads all rows twice, from L2, which saves a launch: for a
# tile of 16 outputs that is as much (2 x 2 bytes x 4 rows) as it reads of the weight.
FUSED_ROWS = 4


def run(problem: Problem):
    """See `todm.kernels.matmul_int8.matmul_int8`; [M, N]."""
    p = problem
    require_gpu("matmul_int8", p.x_MK)
    (M, K), N = p.x_MK.shape, p.weight_NK.shape[0]
    y = torch.empty((M, N), dtype=p.out_dtype, device=p.x_MK.device)
    scale_N = p.weight_scale_N.contiguous()
    has_bias = p.bias_N is not None
    layer = (_aligned(p.weight_NK), scale_N, p.bias_N.contiguous() if has_bias else scale_N, y)
    if M <= FUSED_ROWS:
        fused_kernel[lambda s: (triton.cdiv(N, s["BLOCK_N"]),)](
            p.x_MK,
            or_else(p.act_scale, p.x_MK),
            *layer,
            *(M, N, K, triton.cdiv(K, 16)),
            *p.x_MK.stride(),
            FLOOR=FLOOR,
            STATIC=p.act_scale is not None,
            HAS_BIAS=has_bias,
        )
        return y
    codes, scale = _padded_codes(p.x_MK, p.act_scale)
    rows = triton.next_power_of_2(M)
    gemm_kernel[lambda s: (triton.cdiv(M, s["BLOCK_M"]) * triton.cdiv(N, s["BLOCK_N"]),)](
        codes, scale, *layer, *(M, N, codes.shape[1] // 16, rows), HAS_BIAS=has_bias
    )
    return y


def quantise(x_MK, act_scale):
    """See `todm.kernels.matmul_int8.quantise_activation`."""
    require_gpu("quantise_activation", x_MK)
    codes, scale = _padded_codes(x_MK, act_scale)
    return codes[:, : x_MK.shape[1]], scale


def _padded_codes(x_MK, act_scale):
    M, K = x_MK.shape
    padded = triton.cdiv(K, 16) * 16
    codes = torch.empty((M, padded), dtype=torch.int8, device=x_MK.device)
    scale = torch.empty((M,), dtype=torch.float32, device=x_MK.device)
    block = min(triton.next_power_of_2(padded), 2048)
    height = 2048 // block
    if M:
        quantise_kernel[(triton.cdiv(M, height),)](
            x_MK,
            or_else(act_scale, x_MK),
            codes,
            scale,
            *(M, K, padded),
            *x_MK.stride(),
            FLOOR=FLOOR,
            STATIC=act_scale is not None,
            BLOCK_M=height,
            BLOCK_K=block,
        )
    return codes, scale


def _aligned(weight_NK):
    """The weight in rows of whole groups of 16 bytes, nearly always without a copy."""
    K = weight_NK.shape[1]
    if K % 16:
        return F.pad(weight_NK, (0, -K % 16))
    fits = weight_NK.is_contiguous() and weight_NK.data_ptr() % 16 == 0
    return weight_NK if fits else weight_NK.clone(memory_format=torch.contiguous_format)


@triton.jit
def _size(x):
    """|x|, with infinity for NaN, which `tl.maximum` would drop."""
    size = tl.abs(x.to(tl.float32))
    return tl.where(size < float("inf"), size, float("inf"))


@triton.jit
def _scale(largest, act_scale_ptr, FLOOR: tl.constexpr, STATIC: tl.constexpr):
    """Scale of each row, NaN where the row, or the scale given, cannot be used."""
    if STATIC:
        scale = tl.zeros_like(largest) + tl.load(act_scale_ptr).to(tl.float32)
    else:
        scale = tl.div_rn(tl.maximum(largest, FLOOR), 127.0)
    usable = (largest < float("inf")) & (scale > 0.0) & (scale < float("inf"))
    return tl.where(usable, scale, float("nan"))


@triton.jit
def _codes(x, scale):
    """int8 codes; zeros where the scale is NaN."""
    usable = scale == scale
    x = tl.where(usable, x.to(tl.float32), 0.0)
    ratio = tl.div_rn(x, tl.where(usable, scale, 1.0) + tl.zeros_like(x))
    ratio = tl.minimum(tl.maximum(ratio, -127.0), 127.0)
    return ((ratio + 12582912.0) - 12582912.0).to(tl.int8)


@triton.jit
def _x_tile(x_ptr, ms, k, M, K, stride_xm, stride_xk):
    """[BLOCK_M, BLOCK_K] of the activation, of any strides; zeros outside."""
    at = x_ptr + ms.to(tl.int64)[:, None] * stride_xm + k.to(tl.int64)[None, :] * stride_xk
    return tl.load(at, mask=(ms[:, None] < M) & (k[None, :] < K), other=0.0)


@triton.jit(do_not_specialize=["M"])
def quantise_kernel(
    x_ptr,
    act_scale_ptr,
    codes_ptr,
    scale_ptr,
    M,
    K,
    padded,
    stride_xm,
    stride_xk,
    FLOOR: tl.constexpr,
    STATIC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_M rows per program: absmax, then codes; the second read of the rows hits a cache."""
    ms = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ks = tl.arange(0, BLOCK_K)
    largest = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        x = _x_tile(x_ptr, ms, start + ks, M, K, stride_xm, stride_xk)
        largest = tl.maximum(largest, _size(x))
    scale = _scale(tl.max(largest, 1), act_scale_ptr, FLOOR, STATIC)
    tl.store(scale_ptr + ms, scale, mask=ms < M)
    for start in range(0, padded, BLOCK_K):
        k = start + ks
        x = _x_tile(x_ptr, ms, k, M, K, stride_xm, stride_xk)
        at = codes_ptr + ms.to(tl.int64)[:, None] * padded + k[None, :]
        inside = (ms[:, None] < M) & (k[None, :] < padded)
        tl.store(at, _codes(x, scale[:, None]), mask=inside)


@triton.jit
def _weight_tile(weight_ptr, ns, k, N, K):
    """[BLOCK_K, BLOCK_N] of the weight, in aligned groups of 16 along K; zeros outside."""
    at = weight_ptr + ns.to(tl.int64)[None, :] * K + k[:, None]
    at = tl.multiple_of(at, (16, 1))
    return tl.load(at, mask=(ns[None, :] < N) & (k[:, None] < K), other=0)


@triton.jit
def _store(acc, scale_m, layer, y_ptr, ms, ns, M, N, HAS_BIAS: tl.constexpr):
    """The epilogue: scales, bias, and the rounding to y's dtype."""
    weight_scale_ptr, bias_ptr = layer
    scale_n = tl.load(weight_scale_ptr + ns, mask=ns < N, other=0.0).to(tl.float32)
    y = acc.to(tl.float32) * scale_m[:, None] * scale_n[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + ns, mask=ns < N, other=0.0).to(tl.float32)[None, :]
    at = y_ptr + ms.to(tl.int64)[:, None] * N + ns[None, :]
    tl.store(at, y.to(y_ptr.dtype.element_ty), mask=(ms[:, None] < M) & (ns[None, :] < N))


def _config(m, n, k, warps, stages, **more):
    return triton.Config(
        {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, **more}, num_warps=warps, num_stages=stages
    )


@tuned(
    [
        _config(16, 16, 64, 2, 4),
        _config(16, 16, 256, 4, 4),
        _config(16, 32, 128, 4, 5),
        _config(16, 64, 128, 4, 4),
    ],
    key=["N", "K"],
)
@triton.jit(do_not_specialize=["M"])
def fused_kernel(
    x_ptr,
    act_scale_ptr,
    weight_ptr,
    weight_scale_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    K,
    chunks,
    stride_xm,
    stride_xk,
    FLOOR: tl.constexpr,
    STATIC: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Few rows (M <= BLOCK_M): each program codes all of them, and reads its share of the weight."""
    ms, ks = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    ns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    largest = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        x = _x_tile(x_ptr, ms, start + ks, M, K, stride_xm, stride_xk)
        largest = tl.maximum(largest, _size(x))
    scale = _scale(tl.max(largest, 1), act_scale_ptr, FLOOR, STATIC)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, K, BLOCK_K):
        k = start + ks
        x = _x_tile(x_ptr, ms, k, M, K, stride_xm, stride_xk)
        weight = _weight_tile(weight_ptr, ns, k, N, chunks * 16)
        acc = tl.dot(_codes(x, scale[:, None]), weight, acc, out_dtype=tl.int32)
    _store(acc, scale, (weight_scale_ptr, bias_ptr), y_ptr, ms, ns, M, N, HAS_BIAS)


@tuned(
    [
        _config(16, 32, 64, 4, 4, GROUP=8),
        _config(16, 64, 256, 4, 3, GROUP=8),
        _config(64, 64, 128, 4, 4, GROUP=8),
        _config(64, 128, 128, 4, 4, GROUP=8),
        _config(128, 128, 128, 8, 3, GROUP=8),
        _config(128, 256, 64, 8, 4, GROUP=8),
        _config(128, 256, 128, 8, 3, GROUP=8),
    ],
    key=["N", "chunks", "rows"],
)
@triton.jit(do_not_specialize=["M", "rows"])
def gemm_kernel(
    codes_ptr,
    scale_ptr,
    weight_ptr,
    weight_scale_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    chunks,
    rows,  # M rounded up to a power of two: the key by which tiles are chosen
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """A tile of y per program; GROUP tiles of rows share the columns of weight they read, in L2."""
    K = chunks * 16
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0)
    first = tile // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    within = tile % (GROUP * tiles_n)
    ms = (first + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    ns = within // height * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    codes_rows = codes_ptr + ms.to(tl.int64)[:, None] * K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, K, BLOCK_K):
        k = start + ks
        at = tl.multiple_of(codes_rows + k[None, :], (1, 16))
        codes = tl.load(at, mask=(ms[:, None] < M) & (k[None, :] < K), other=0)
        acc = tl.dot(codes, _weight_tile(weight_ptr, ns, k, N, K), acc, out_dtype=tl.int32)
    scale = tl.load(scale_ptr + ms, mask=ms < M, other=0.0)
    _store(acc, scale, (weight_scale_ptr, bias_ptr), y_ptr, ms, ns, M, N, HAS_BIAS)

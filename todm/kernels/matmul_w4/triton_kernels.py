"""The kernels of matmul_w4: one row, a tile of rows, the sum of their parts, and dequantising.

Letters: M rows, K inputs, N outputs, G groups of inputs, `blocks` of 128 inputs (see pack.py). A layer
is the tuple (words, scale, zero, inv_s, bias) of pointers, the last three unread where there are none.
Constants: BITS; GROUP, 0 for one group; HAS_ZERO, HAS_INV, HAS_BIAS; PARTIAL, whether y is the
float32 part of one of several ranges of blocks, without bias; DOT, the dtype of products.
"""

import triton
from triton import language as tl

from todm.kernels._tune import tuned
from todm.kernels.matmul_w4.triton_unpack import (
    group_of,
    inputs_in_order,
    load_words,
    load_zero,
    steps,
)


def _row_config(n, blocks, warps):
    return triton.Config({"BLOCK_N": n, "BLOCK_B": blocks}, num_warps=warps)


def _tile_config(m, n, warps, stages, panel=8):
    sizes = {"BLOCK_M": m, "BLOCK_N": n, "PANEL": panel}
    return triton.Config(sizes, num_warps=warps, num_stages=stages)


ROW_CONFIGS = [
    _row_config(4, 4, 1),
    _row_config(4, 8, 2),
    _row_config(8, 8, 4),
    _row_config(16, 8, 4),
    _row_config(8, 16, 4),
    _row_config(32, 4, 4),
]
FEW_CONFIGS = [
    _tile_config(16, 16, 2, 4),
    _tile_config(16, 32, 2, 5),
    _tile_config(16, 32, 4, 5),
    _tile_config(16, 64, 4, 4),
    _tile_config(16, 128, 4, 3),
]
MANY_CONFIGS = [
    _tile_config(32, 32, 4, 3),
    _tile_config(32, 64, 4, 4),
    _tile_config(32, 128, 4, 3),
    _tile_config(64, 64, 4, 4),
    _tile_config(64, 128, 4, 3),
    _tile_config(128, 64, 4, 3),
    _tile_config(128, 128, 8, 3),
]


@triton.jit
def _load_x(x_ptr, inv_ptr, at, k, inside, inside_k, HAS_INV: tl.constexpr):
    """Activations times `inv_s`, rounded to their dtype; zeros outside."""
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    if HAS_INV:
        inv = tl.load(inv_ptr + k, mask=inside_k, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) * inv).to(x.dtype)
    return x


@tuned(ROW_CONFIGS, key=["N", "K", "per_split"])
@triton.jit
def row_kernel(
    x_ptr,
    words_ptr,
    scale_ptr,
    zero_ptr,
    inv_ptr,
    bias_ptr,
    y_ptr,
    N,
    K,
    blocks,
    groups,
    per_split,  # blocks of a program
    stride_xk,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    HAS_INV: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PARTIAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """M = 1, without tensor cores: BLOCK_N outputs a program, each thread sums whole lanes.

    sum_k x (code - zero) is sum_k x code - zero sum_k x, so that a zero point costs one operation a
    lane and not one a weight.
    """
    LANES: tl.constexpr = 16 if BITS == 4 else 4
    WIDTH: tl.constexpr = 128 if GROUP == 0 else GROUP
    PLACES: tl.constexpr = WIDTH // LANES
    ns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, BLOCK_B * LANES)
    first = tl.program_id(1) * per_split
    last = tl.minimum(first + per_split, blocks)
    acc = tl.zeros([BLOCK_N, BLOCK_B * LANES], tl.float32)
    for start in range(first, last, BLOCK_B):
        block = start + lanes // LANES
        inside = (ns[:, None] < N) & (block[None, :] < last)
        # Words of lane r of a block lie LANES apart, blocks 4 * BITS.
        words = load_words(words_ptr, ns, block, lanes % LANES, inside, blocks, BITS)
        for part in tl.static_range(128 // WIDTH):
            g = group_of(block, part, GROUP, groups)
            at = ns.to(tl.int64)[:, None] * groups + g[None, :]
            scale = tl.load(scale_ptr + at, mask=inside, other=0.0).to(tl.float32)
            zero = load_zero(zero_ptr, at, inside, BITS, HAS_ZERO)
            dot = tl.zeros([BLOCK_N, BLOCK_B * LANES], tl.float32)
            total = tl.zeros([BLOCK_B * LANES], tl.float32)
            for i in tl.static_range(PLACES):
                k = block * 128 + (part * PLACES + i) * LANES + lanes % LANES
                there = (k < K) & (block < last)
                x = _load_x(x_ptr, inv_ptr, k.to(tl.int64) * stride_xk, k, there, there, HAS_INV)
                x = x.to(tl.float32)
                total += x
                dot += x[None, :] * steps(words, 0.0, part * PLACES + i, BITS)
            acc += scale * (dot - zero * total[None, :])
    y = tl.sum(acc, 1)
    if PARTIAL:
        y_ptr += tl.program_id(1).to(tl.int64) * N
    elif HAS_BIAS:
        y += tl.load(bias_ptr + ns, mask=ns < N, other=0.0).to(tl.float32)
    tl.store(y_ptr + ns, y.to(y_ptr.dtype.element_ty), mask=ns < N)


@triton.jit
def tile_kernel(
    x_ptr,
    words_ptr,
    scale_ptr,
    zero_ptr,
    inv_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    K,
    blocks,
    groups,
    per_split,  # blocks of a program
    rows,  # M rounded up to a power of two: the key by which tiles are chosen
    stride_xm,
    stride_xk,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    HAS_INV: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PARTIAL: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PANEL: tl.constexpr,
):
    """A tile of y per program; PANEL tiles of rows share the columns of weight they read, in L2.

    The matrix units multiply whole numbers, code - zero; the group's sums are scaled in float32.
    So the weight is nowhere rounded, and a scale costs one operation a sum and not one a weight.
    """
    LANES: tl.constexpr = 16 if BITS == 4 else 4
    WIDTH: tl.constexpr = 128 if GROUP == 0 else GROUP
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0)
    top = tile // (PANEL * tiles_n) * PANEL
    height = tl.minimum(tiles_m - top, PANEL)
    within = tile % (PANEL * tiles_n)
    ms = (top + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    ns = within // height * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * per_split
    last = tl.minimum(first + per_split, blocks)
    x_rows = ms.to(tl.int64)[:, None] * stride_xm
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for block in range(first, last):
        lane = tl.arange(0, LANES)
        words = load_words(words_ptr, ns, block, lane, ns[:, None] < N, blocks, BITS)
        for part in tl.static_range(128 // WIDTH):
            at = ns.to(tl.int64) * groups + group_of(block, part, GROUP, groups)
            scale = tl.load(scale_ptr + at, mask=ns < N, other=0.0).to(tl.float32)
            zero = load_zero(zero_ptr, at, ns < N, BITS, HAS_ZERO)
            w = inputs_in_order(words, zero[:, None], part, WIDTH, BITS)
            k = block * 128 + part * WIDTH + tl.arange(0, WIDTH)
            at_x = x_rows + k.to(tl.int64)[None, :] * stride_xk
            inside = (ms[:, None] < M) & (k[None, :] < K)
            x = _load_x(x_ptr, inv_ptr, at_x, k[None, :], inside, k[None, :] < K, HAS_INV)
            sums = tl.dot(x.to(DOT), tl.trans(w.to(DOT)), input_precision="ieee")
            acc += sums * scale[None, :]
    if PARTIAL:
        y_ptr += tl.program_id(1).to(tl.int64) * M * N
    elif HAS_BIAS:
        acc += tl.load(bias_ptr + ns, mask=ns < N, other=0.0).to(tl.float32)[None, :]
    at_y = ms.to(tl.int64)[:, None] * N + ns[None, :]
    inside = (ms[:, None] < M) & (ns[None, :] < N)
    tl.store(y_ptr + at_y, acc.to(y_ptr.dtype.element_ty), mask=inside)


few_rows_kernel = tuned(FEW_CONFIGS, key=["N", "K", "per_split"])(tile_kernel)
many_rows_kernel = tuned(MANY_CONFIGS, key=["N", "K", "rows"])(tile_kernel)


@triton.jit
def sum_kernel(
    parts_ptr, bias_ptr, y_ptr, M, N, splits, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    """y [M, N] from its parts [splits, M, N], always added in the same order."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < M * N
    y = tl.zeros([BLOCK], tl.float32)
    for split in range(splits):
        y += tl.load(parts_ptr + split.to(tl.int64) * M * N + at, mask=inside, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + at % N, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def dequantise_kernel(
    words_ptr,
    scale_ptr,
    zero_ptr,
    w_ptr,
    N,
    K,
    blocks,
    groups,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """128 inputs of BLOCK_N outputs a program, rounded to w's dtype."""
    LANES: tl.constexpr = 16 if BITS == 4 else 4
    WIDTH: tl.constexpr = 128 if GROUP == 0 else GROUP
    block = tl.program_id(0)
    ns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    words = load_words(words_ptr, ns, block, tl.arange(0, LANES), ns[:, None] < N, blocks, BITS)
    for part in tl.static_range(128 // WIDTH):
        at = ns.to(tl.int64) * groups + group_of(block, part, GROUP, groups)
        scale = tl.load(scale_ptr + at, mask=ns < N, other=0.0).to(tl.float32)
        zero = load_zero(zero_ptr, at, ns < N, BITS, HAS_ZERO)
        w = inputs_in_order(words, zero[:, None], part, WIDTH, BITS) * scale[:, None]
        k = block * 128 + part * WIDTH + tl.arange(0, WIDTH)
        at_w = ns.to(tl.int64)[:, None] * K + k[None, :]
        inside = (ns[:, None] < N) & (k[None, :] < K)
        tl.store(w_ptr + at_w, w.to(w_ptr.dtype.element_ty), mask=inside)

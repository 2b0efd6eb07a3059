"""The kernels of matmul_w4: one row, a tile of rows, the sum of their parts, and dequantising.

Letters: M rows, K inputs, N outputs, G groups of inputs, `blocks` of 128 inputs (see pack.py). Pointers to
zero points, input scales and bias are not read where a layer has none.
Constants: BITS; GROUP, 0 for one group; HAS_ZERO, HAS_INPUT_SCALE, HAS_BIAS; PARTIAL, whether y is the
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


def _row_config(n, warps):
    return triton.Config({"BLOCK_N": n, "BLOCK_Q": 32 * warps}, num_warps=warps)


def _tile_config(m, n, k, warps, stages):
    sizes = {"BLOCK_M": m, "BLOCK_N": n, "DEPTH": k, "PANEL": 8}
    return triton.Config(sizes, num_warps=warps, num_stages=stages)


ROW_CONFIGS = {  # by bits: three words of a lane take three times the registers
    4: [_row_config(n, warps) for warps in (1, 2, 4) for n in (4, 8)],
    3: [_row_config(n, warps) for warps in (1, 2, 4) for n in (2, 4)],
}
FEW_CONFIGS = [
    _tile_config(16, 16, 128, 2, 4),
    _tile_config(16, 32, 128, 2, 5),
    _tile_config(16, 32, 128, 4, 5),
    _tile_config(16, 64, 128, 4, 4),
    _tile_config(16, 128, 64, 4, 3),
]
MANY_CONFIGS = [
    _tile_config(32, 32, 128, 4, 3),
    _tile_config(32, 64, 128, 4, 4),
    _tile_config(64, 64, 64, 4, 4),
    _tile_config(64, 128, 64, 8, 3),
    _tile_config(128, 64, 64, 8, 3),
    _tile_config(256, 64, 32, 8, 3),
]


@triton.jit
def _scaled(x, input_scale_ptr, k, inside, HAS_INPUT_SCALE: tl.constexpr):
    """Activations times `pre_quant_scale_K`, rounded to their dtype."""
    if HAS_INPUT_SCALE:
        scale = tl.load(input_scale_ptr + k, mask=inside, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) * scale).to(x.dtype)
    return x


@triton.jit
def _words_of_block(words_ptr, ns, N, block, blocks, BITS: tl.constexpr):
    """The words of all lanes, [N, R] each."""
    LANES: tl.constexpr = 16 if BITS == 4 else 4
    at = words_ptr + (ns.to(tl.int64)[:, None] * blocks + block) * (4 * BITS)
    at = tl.multiple_of(at + tl.arange(0, LANES)[None, :], (1, 16))
    return load_words(at, ns[:, None] < N, BITS)


@triton.jit(do_not_specialize=["exponent"])
def row_kernel(
    x_ptr,
    words_ptr,
    scale_ptr,
    zero_ptr,
    input_scale_ptr,
    bias_ptr,
    y_ptr,
    N,
    chunks,  # K / 16
    blocks,
    groups,
    per_split,  # blocks of a program
    exponent,  # EXPONENT: as a constant it would cost an instruction a weight
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    HAS_INPUT_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PARTIAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """M = 1, without tensor cores: BLOCK_N outputs a program; a thread has four lanes of each.

    sum_k x (code - zero) is sum_k x code - zero sum_k x, so that a zero point costs two operations
    a thread and not one a weight.
    """
    LANES: tl.constexpr = 16 if BITS == 4 else 4
    WIDTH: tl.constexpr = 128 if GROUP == 0 else GROUP
    PLACES: tl.constexpr = WIDTH // LANES
    K = chunks * 16
    ns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    quads, four = tl.arange(0, BLOCK_Q), tl.arange(0, 4)
    lanes = (quads % (LANES // 4))[:, None] * 4 + four[None, :]
    first = tl.program_id(1) * per_split
    last = tl.minimum(first + per_split, blocks)
    rows = ns.to(tl.int64)[None, :]
    acc = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
    for start in range(first, last, BLOCK_Q * 4 // LANES):
        block = start + quads // (LANES // 4)
        inside = (ns[None, :] < N) & (block[:, None] < last)
        at = (rows * blocks + block[:, None]) * (4 * BITS)
        at = words_ptr + at[:, :, None] + lanes[:, None, :]
        words = load_words(tl.multiple_of(at, (1, 1, 16)), inside[:, :, None], BITS)
        for part in tl.static_range(128 // WIDTH):
            at = rows * groups + group_of(block, part, GROUP, groups)[:, None]
            scale = tl.load(scale_ptr + at, mask=inside, other=0.0).to(tl.float32)
            zero = load_zero(zero_ptr, at, inside, BITS, HAS_ZERO)
            dot = tl.zeros([BLOCK_Q, BLOCK_N, 4], tl.float32)
            total = tl.zeros([BLOCK_Q, 4], tl.float32)
            for i in tl.static_range(PLACES):
                k = (block * 128 + (part * PLACES + i) * LANES)[:, None] + lanes
                there = (k < K) & (block < last)[:, None]
                at = tl.multiple_of(x_ptr + k, (1, 8))
                x = _scaled(
                    tl.load(at, mask=there, other=0.0), input_scale_ptr, k, there, HAS_INPUT_SCALE
                )
                x = x.to(tl.float32)
                total += x
                dot += x[:, None, :] * steps(words, 0.0, exponent, part * PLACES + i, BITS)
            acc += scale * (tl.sum(dot, 2) - zero * tl.sum(total, 1)[:, None])
    y = tl.sum(acc, 0)
    if PARTIAL:
        y_ptr += tl.program_id(1).to(tl.int64) * N
    elif HAS_BIAS:
        y += tl.load(bias_ptr + ns, mask=ns < N, other=0.0).to(tl.float32)
    tl.store(y_ptr + ns, y.to(y_ptr.dtype.element_ty), mask=ns < N)


@triton.jit(do_not_specialize=["M", "rows", "exponent"])
def tile_kernel(
    x_ptr,
    words_ptr,
    scale_ptr,
    zero_ptr,
    input_scale_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    chunks,  # K / 16
    blocks,
    groups,
    per_split,  # blocks of a program
    exponent,  # EXPONENT: as a constant it would cost an instruction a weight
    rows,  # M rounded up to a power of two: the key by which tiles are chosen
    stride_xm,  # in chunks of 16
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    HAS_INPUT_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PARTIAL: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DEPTH: tl.constexpr,
    PANEL: tl.constexpr,
):
    """A tile of y per program; PANEL tiles of rows share the columns of weight they read, in L2.

    The matrix units multiply whole numbers, code - zero; the group's sums are scaled in float32.
    So the weight is nowhere rounded, and a scale costs one operation a sum and not one a weight.
    """
    SPAN: tl.constexpr = 128 if GROUP == 0 else GROUP
    WIDTH: tl.constexpr = min(SPAN, DEPTH)
    K = chunks * 16
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0)
    top = tile // (PANEL * tiles_n) * PANEL
    height = tl.minimum(tiles_m - top, PANEL)
    within = tile % (PANEL * tiles_n)
    ms = (top + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    ns = within // height * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * per_split
    last = tl.minimum(first + per_split, blocks)
    x_rows = x_ptr + ms.to(tl.int64)[:, None] * (stride_xm * 16)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for block in range(first, last):
        words = _words_of_block(words_ptr, ns, N, block, blocks, BITS)
        for part in tl.static_range(128 // SPAN):
            at = ns.to(tl.int64) * groups + group_of(block, part, GROUP, groups)
            scale = tl.load(scale_ptr + at, mask=ns < N, other=0.0).to(tl.float32)
            zero = load_zero(zero_ptr, at, ns < N, BITS, HAS_ZERO)[:, None]
            sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for piece in tl.static_range(part * SPAN // WIDTH, (part + 1) * SPAN // WIDTH):
                w = inputs_in_order(words, zero, exponent, piece, WIDTH, BITS)
                k = (block * 128 + piece * WIDTH + tl.arange(0, WIDTH))[None, :]
                inside = (ms[:, None] < M) & (k < K)
                x = tl.load(tl.multiple_of(x_rows + k, (1, 16)), mask=inside, other=0.0)
                x = _scaled(x, input_scale_ptr, k, k < K, HAS_INPUT_SCALE).to(DOT)
                sums = tl.dot(x, tl.trans(w.to(DOT)), sums, input_precision="ieee")
            acc += sums * scale[None, :]
    if PARTIAL:
        y_ptr += tl.program_id(1).to(tl.int64) * M * N
    elif HAS_BIAS:
        acc += tl.load(bias_ptr + ns, mask=ns < N, other=0.0).to(tl.float32)[None, :]
    at_y = ms.to(tl.int64)[:, None] * N + ns[None, :]
    inside = (ms[:, None] < M) & (ns[None, :] < N)
    tl.store(y_ptr + at_y, acc.to(y_ptr.dtype.element_ty), mask=inside)


row_kernels = {
    bits: tuned(configs, key=["N", "chunks", "per_split"])(row_kernel)
    for bits, configs in ROW_CONFIGS.items()
}
few_rows_kernel = tuned(FEW_CONFIGS, key=["N", "chunks", "per_split"])(tile_kernel)
many_rows_kernel = tuned(MANY_CONFIGS, key=["N", "chunks", "rows"])(tile_kernel)


@triton.jit(do_not_specialize=["M", "splits"])
def sum_kernel(
    parts_ptr, bias_ptr, y_ptr, M, N, splits, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    """The output [M, N] from its parts [splits, M, N], always added in the same order."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < M * N
    y = tl.zeros([BLOCK], tl.float32)
    for _ in range(splits):
        y += tl.load(parts_ptr + at, mask=inside, other=0.0)
        parts_ptr += M * N
    if HAS_BIAS:
        y += tl.load(bias_ptr + at % N, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["exponent"])
def dequantise_kernel(
    words_ptr,
    scale_ptr,
    zero_ptr,
    w_ptr,
    N,
    K,
    blocks,
    groups,
    exponent,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """128 inputs of BLOCK_N outputs a program, rounded to w's dtype."""
    WIDTH: tl.constexpr = 128 if GROUP == 0 else GROUP
    block = tl.program_id(0)
    ns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    words = _words_of_block(words_ptr, ns, N, block, blocks, BITS)
    for part in tl.static_range(128 // WIDTH):
        at = ns.to(tl.int64) * groups + group_of(block, part, GROUP, groups)
        scale = tl.load(scale_ptr + at, mask=ns < N, other=0.0).to(tl.float32)
        zero = load_zero(zero_ptr, at, ns < N, BITS, HAS_ZERO)
        w = inputs_in_order(words, zero[:, None], exponent, part, WIDTH, BITS) * scale[:, None]
        k = block * 128 + part * WIDTH + tl.arange(0, WIDTH)
        at_w = ns.to(tl.int64)[:, None] * K + k[None, :]
        inside = (ns[:, None] < N) & (k[None, :] < K)
        tl.store(w_ptr + at_w, w.to(w_ptr.dtype.element_ty), mask=inside)

"""For the benchmark only: a 4-bit product whose inputs may belong to groups in any order.

GPTQ (arXiv 2210.17323) with "act order" quantises the inputs with the largest activations first. A
group then has inputs from the whole layer, and a kernel that leaves the inputs in place reads a scale
and a zero point for every weight, by an index. This is the classic kernel for that layout (words
[K/8, N], scales [G, N]). IN_ORDER only removes the index, so that the difference in time is the cost of
the reordering.
"""

import torch
import triton
from triton import language as tl

from todm.kernels._tune import dot_dtype, tuned

CONFIGS = [
    triton.Config({"BLOCK_M": 16, "BLOCK_N": n}, num_warps=warps, num_stages=stages)
    for n, warps, stages in ((32, 2, 4), (64, 4, 4), (128, 4, 3))
]


def product(x_MK, words_JN, scale_GN, zero_GN, group_K):
    """The activation times the dequantised weight, [M, N].

    Args:
        x_MK: Activations.
        words_JN: int32, eight inputs a word, the first lowest; K is a multiple of 32.
        scale_GN: float16.
        zero_GN: uint8.
        group_K: int32, the group of each input; None for consecutive groups of K / G inputs, a
            multiple of 32.
    """
    (M, K), (G, N) = x_MK.shape, scale_GN.shape
    y = torch.empty((M, N), dtype=x_MK.dtype, device=x_MK.device)
    grid = lambda s: (triton.cdiv(M, s["BLOCK_M"]), triton.cdiv(N, s["BLOCK_N"]))  # noqa: E731
    gather_kernel[grid](
        *(x_MK, words_JN, scale_GN, zero_GN, words_JN if group_K is None else group_K, y),
        *(M, N, K, K // G),
        *x_MK.stride(),
        IN_ORDER=group_K is None,
        DOT=dot_dtype(x_MK.dtype),
    )
    return y


@tuned(CONFIGS, key=["M", "N", "K"])
@triton.jit(do_not_specialize=["M"])
def gather_kernel(
    x_ptr,
    words_ptr,
    scale_ptr,
    zero_ptr,
    group_ptr,
    y_ptr,
    M,
    N,
    K,
    group,
    stride_xm,
    stride_xk,
    IN_ORDER: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A tile of y per program, 32 inputs at a time."""
    ms = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = ns[None, :] < N
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, 32):
        k = start + tl.arange(0, 32)
        word = tl.load(words_ptr + (k // 8).to(tl.int64)[:, None] * N + ns[None, :], mask=inside_n)
        code = word >> (k % 8 * 4)[:, None] & 15
        if IN_ORDER:
            g = (start // group + tl.zeros([1], tl.int32)).to(tl.int64)
        else:
            g = tl.load(group_ptr + k).to(tl.int64)
        at = g[:, None] * N + ns[None, :]
        inside = inside_n & (g[:, None] >= 0)
        scale = tl.load(scale_ptr + at, mask=inside, other=0.0).to(tl.float32)
        zero = tl.load(zero_ptr + at, mask=inside, other=0).to(tl.int32)
        w = (code - zero).to(tl.float32) * scale
        at_x = ms.to(tl.int64)[:, None] * stride_xm + k.to(tl.int64)[None, :] * stride_xk
        x = tl.load(x_ptr + at_x, mask=ms[:, None] < M, other=0.0)
        acc = tl.dot(x.to(DOT), w.to(DOT), acc, input_precision="ieee")
    at_y = ms.to(tl.int64)[:, None] * N + ns[None, :]
    tl.store(y_ptr + at_y, acc.to(y_ptr.dtype.element_ty), mask=(ms[:, None] < M) & inside_n)

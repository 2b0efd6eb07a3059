"""Matrices of a block in Triton, and the gradients of the parameters from those of the matrices.

One launch each, with one program per head: as torch ops they are a hundred launches, which take longer
than the whole recurrence. Letters: L rows of a block, N modes, NP those padded to a power of two.
"""

import triton
import triton.language as tl

# Arguments that change from call to call must not cause a compilation.
_CHANGING = ["length", "chunk"]


def operator_size(rows, modes):
    """Elements of a head's operators: k [L], R [L, NP] twice, W [NP, L] twice (real, imaginary)."""
    return rows + 4 * rows * modes


def gradient_size(rows, modes):
    """Elements of their gradients: K [L, L], R and W as above, a^length [NP] twice."""
    return rows * rows + 4 * rows * modes + 2 * modes


@triton.jit
def powers(log_decay, angle, exponents):
    """A to each of the exponents, real and imaginary part, [NP, exponents]."""
    k = exponents[None, :].to(log_decay.dtype)
    size = tl.exp(log_decay[:, None] * k)
    turn = angle[:, None] * k
    return size * tl.cos(turn), size * tl.sin(turn)


@triton.jit
def power(log_decay, angle, exponent):
    """A to one exponent, [NP, 1]."""
    k = exponent.to(log_decay.dtype)
    size = tl.exp(log_decay * k)
    return (size * tl.cos(angle * k))[:, None], (size * tl.sin(angle * k))[:, None]


@triton.jit
def modes_of(ptr, head, N, NP: tl.constexpr):
    """A parameter of one head, zero for the padding modes."""
    n = tl.arange(0, NP)
    return tl.load(ptr + head * N + n, mask=n < N, other=0.0)


@triton.jit(do_not_specialize=_CHANGING)
def operator_kernel(
    ops_ptr,
    log_decay_ptr,
    angle_ptr,
    gain_re_ptr,
    gain_im_ptr,
    skip_ptr,
    N,
    length,
    L: tl.constexpr,
    NP: tl.constexpr,
):
    """k, R and W of one head, for blocks of `length` <= L frames."""
    head = tl.program_id(0)
    n, j = tl.arange(0, NP), tl.arange(0, L)
    log_decay, angle = modes_of(log_decay_ptr, head, N, NP), modes_of(angle_ptr, head, N, NP)
    g_re = modes_of(gain_re_ptr, head, N, NP)[:, None]
    g_im = modes_of(gain_im_ptr, head, N, NP)[:, None]
    ops_ptr += head.to(tl.int64) * (L + 4 * L * NP)

    re, im = powers(log_decay, angle, j)
    kernel = tl.sum(g_re * re - g_im * im, 0)
    tl.store(ops_ptr + j, tl.where(j == 0, kernel + tl.load(skip_ptr + head), kernel))

    re, im = powers(log_decay, angle, j + 1)
    read = ops_ptr + L + j[None, :] * NP + n[:, None]
    tl.store(read, g_re * re - g_im * im)
    tl.store(read + L * NP, -(g_re * im + g_im * re))

    re, im = powers(log_decay, angle, tl.maximum(length - 1 - j, 0))
    write = ops_ptr + L + 2 * L * NP + n[:, None] * L + j[None, :]
    there = (n < N)[:, None] & (j < length)[None, :]
    tl.store(write, tl.where(there, re, 0.0))
    tl.store(write + L * NP, tl.where(there, im, 0.0))


@triton.jit
def _by_power(re, im, grad_re, grad_im, exponents):
    """Gradients of log decay and angle, from those of the powers with these exponents."""
    k = exponents[None, :].to(re.dtype)
    log_decay = tl.sum(k * (grad_re * re + grad_im * im), 1)
    return log_decay, tl.sum(k * (grad_im * re - grad_re * im), 1)


@triton.jit(do_not_specialize=_CHANGING)
def parameter_kernel(
    grads_ptr,
    log_decay_ptr,
    angle_ptr,
    gain_re_ptr,
    gain_im_ptr,
    out_ptr,
    skip_out_ptr,
    N,
    length,
    chunk,
    L: tl.constexpr,
    NP: tl.constexpr,
    STATE: tl.constexpr,
):
    """Gradients of one head's log decay, angle and gain (out [4, H, N]) and of its skip."""
    head, heads = tl.program_id(0), tl.num_programs(0)
    n, j = tl.arange(0, NP), tl.arange(0, L)
    log_decay, angle = modes_of(log_decay_ptr, head, N, NP), modes_of(angle_ptr, head, N, NP)
    g_re = modes_of(gain_re_ptr, head, N, NP)[:, None]
    g_im = modes_of(gain_im_ptr, head, N, NP)[:, None]
    grads_ptr += head.to(tl.int64) * (L * L + 4 * L * NP + 2 * NP)

    # Element j of the kernel stands on diagonal j of K, where it joins frames of one chunk.
    row, col = j[:, None] + j[None, :], j[:, None]
    used = (row < L) & (row // chunk == col // chunk)
    kernel = tl.sum(tl.load(grads_ptr + row * L + col, mask=used, other=0.0), 0)
    tl.store(skip_out_ptr + head, tl.sum(tl.where(j == 0, kernel, 0.0)))
    re, im = powers(log_decay, angle, j)
    kernel = kernel[None, :]
    d_gain_re, d_gain_im = tl.sum(kernel * re, 1), -tl.sum(kernel * im, 1)
    d_log_decay, d_angle = _by_power(re, im, g_re * kernel, -g_im * kernel, j)

    if STATE:
        re, im = powers(log_decay, angle, j + 1)
        read = grads_ptr + L * L + j[None, :] * NP + n[:, None]
        q_re, q_im = tl.load(read), -tl.load(read + L * NP)  # of g a^(t+1)
        d_gain_re += tl.sum(q_re * re + q_im * im, 1)
        d_gain_im += tl.sum(q_im * re - q_re * im, 1)
        p_re, p_im = q_re * g_re + q_im * g_im, q_im * g_re - q_re * g_im
        more, turn = _by_power(re, im, p_re, p_im, j + 1)
        d_log_decay, d_angle = d_log_decay + more, d_angle + turn

        ago = tl.maximum(length - 1 - j, 0)  # 0 beyond the block: no gradient
        re, im = powers(log_decay, angle, ago)
        write = grads_ptr + L * L + 2 * L * NP + n[:, None] * L + j[None, :]
        more, turn = _by_power(re, im, tl.load(write), tl.load(write + L * NP), ago)
        d_log_decay, d_angle = d_log_decay + more, d_angle + turn

        re, im = power(log_decay, angle, length)
        carry = grads_ptr + L * L + 4 * L * NP + n
        c_re, c_im = tl.load(carry)[:, None], tl.load(carry + NP)[:, None]
        d_log_decay += tl.sum(length * (c_re * re + c_im * im), 1)
        d_angle += tl.sum(length * (c_im * re - c_re * im), 1)

    at, plane = out_ptr + head * N + n, heads * N
    tl.store(at, d_log_decay, mask=n < N)
    tl.store(at + plane, d_angle, mask=n < N)
    tl.store(at + 2 * plane, d_gain_re, mask=n < N)
    tl.store(at + 3 * plane, d_gain_im, mask=n < N)

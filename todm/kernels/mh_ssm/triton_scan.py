"""The recurrence in Triton, block by block, and the sums for the gradients of its operators.

A program has BR columns (sequence and channel) of one head and walks over the blocks of one segment:
states stay in its registers. Rows of a tile are frames, so that every row is read as one line.
Sequences that are too few to fill a GPU are cut into segments: `segment_kernel` computes the state that
each leaves from a zero state, and the programs of later segments add those up when they start.

The gradient is the same recurrence from the last block to the first with all matrices transposed:
y = K u + R x, x' = a^L x + W u  becomes  du = K' dy + W' l, l' = conj(a^L) l + R' dy.

Letters: L frames of a block, NP modes (padded), BR columns of a tile, R columns in all.
"""

import triton
import triton.language as tl

from todm.kernels._tune import tuned
from todm.kernels.mh_ssm.triton_operators import modes_of, power

# Arguments that change from batch to batch must not cause a compilation. R may, three times at most: lines
# of states are R long.
_CHANGING = ["T", "width", "frames", "pad", "blocks", "chunk", "length", "segments"]


def _configs(*choices):
    return [triton.Config({"BR": br}, num_warps=w, num_stages=s) for br, w, s in choices]


@triton.jit
def _toeplitz(ops_ptr, chunk, L: tl.constexpr, TRANSPOSED: tl.constexpr):
    """K [L, L] from its first column; nothing flows from one chunk to another."""
    i, j = tl.arange(0, L)[:, None], tl.arange(0, L)[None, :]
    lag = j - i if TRANSPOSED else i - j
    return tl.load(ops_ptr + lag, mask=(lag >= 0) & (i // chunk == j // chunk), other=0.0)


@triton.jit
def _read(ops_ptr, L: tl.constexpr, NP: tl.constexpr, TRANSPOSED: tl.constexpr):
    """R, or W transposed: real and imaginary part [L, NP]."""
    j, n = tl.arange(0, L)[:, None], tl.arange(0, NP)[None, :]
    at = L + 2 * L * NP + n * L + j if TRANSPOSED else L + j * NP + n
    return tl.load(ops_ptr + at), tl.load(ops_ptr + L * NP + at)


@triton.jit
def _write(ops_ptr, L: tl.constexpr, NP: tl.constexpr, TRANSPOSED: tl.constexpr):
    """W, or R transposed: real and imaginary part [NP, L]."""
    j, n = tl.arange(0, L)[None, :], tl.arange(0, NP)[:, None]
    at = L + j * NP + n if TRANSPOSED else L + 2 * L * NP + n * L + j
    return tl.load(ops_ptr + at), tl.load(ops_ptr + L * NP + at)


@triton.jit
def _modes(log_decay_ptr, angle_ptr, head, N, NP: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Log decay and angle of a head; transposed, a is its conjugate."""
    angle = modes_of(angle_ptr, head, N, NP)
    return modes_of(log_decay_ptr, head, N, NP), -angle if TRANSPOSED else angle


@triton.jit
def _columns(cols, stride_b, P: tl.constexpr):
    """Offset of column b * P + p. P = 0: columns lie side by side."""
    if P == 0:
        return cols.to(tl.int64)
    return (cols // P).to(tl.int64) * stride_b + cols % P


@triton.jit
def _tile(first, begin, end, columns, stride_t, L: tl.constexpr):
    """Offsets of a block that starts at frame `first`, and which of its frames exist."""
    t = first + tl.arange(0, L)
    inside = (t >= begin) & (t < end)
    return t.to(tl.int64)[:, None] * stride_t + columns[None, :], inside[:, None]


@triton.jit
def _bounds(segment, frames, T, RESET: tl.constexpr):
    """Frames that a segment may see: its own, or those of the whole sequence."""
    begin = segment * frames if RESET else 0
    return begin, tl.minimum(T, begin + frames) if RESET else T


@triton.jit
def _state_at(slot, cols, N, R, NP: tl.constexpr):
    """Offsets of the real parts [NP, BR] of a state [2N, R], and which of them exist."""
    n = tl.arange(0, NP)
    at = (slot.to(tl.int64) * (2 * N) + n[:, None]) * R + cols[None, :]
    return at, (n < N)[:, None] & (cols < R)[None, :]


@triton.jit
def _load_state(ptr, slot, cols, N, R, NP: tl.constexpr, WIDE: tl.constexpr):
    at, inside = _state_at(slot, cols, N, R, NP)
    re = tl.load(ptr + at, mask=inside, other=0.0)
    im = tl.load(ptr + at + N * R, mask=inside, other=0.0)
    return re.to(WIDE), im.to(WIDE)


@triton.jit
def _store_state(ptr, slot, re, im, cols, N, R, NP: tl.constexpr):
    at, inside = _state_at(slot, cols, N, R, NP)
    tl.store(ptr + at, re.to(ptr.dtype.element_ty), mask=inside)
    tl.store(ptr + at + N * R, im.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _turn(a_re, a_im, re, im):
    """The product of complex numbers."""
    return a_re * re - a_im * im, a_re * im + a_im * re


@triton.jit
def _dot(a, b, total, PRECISION: tl.constexpr):
    return tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)


@tuned(_configs((32, 4, 2), (32, 8, 2), (64, 8, 2)), key=["width", "L", "NP", "PRECISION"])
@triton.jit(do_not_specialize=_CHANGING)
def segment_kernel(
    u_ptr,
    ops_ptr,
    log_decay_ptr,
    angle_ptr,
    left_ptr,
    T,
    R,
    N,
    width,
    frames,
    pad,
    blocks,
    stride_h,
    stride_t,
    stride_b,
    P: tl.constexpr,
    L: tl.constexpr,
    NP: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BR: tl.constexpr,
):
    """The state that each segment, except the last of the walk, leaves from a zero state."""
    segments, head = tl.num_programs(1) + 1, tl.program_id(2)
    segment = tl.program_id(1) + (1 if TRANSPOSED else 0)
    cols = tl.program_id(0) * BR + tl.arange(0, BR)
    columns = _columns(cols, stride_b, P)
    u_ptr += head.to(tl.int64) * stride_h
    ops_ptr += head.to(tl.int64) * (L + 4 * L * NP)
    write_re, write_im = _write(ops_ptr, L, NP, TRANSPOSED)
    log_decay, angle = _modes(log_decay_ptr, angle_ptr, head, N, NP, TRANSPOSED)
    a_re, a_im = power(log_decay, angle, tl.full([], L, tl.int32))
    re, im = tl.zeros([NP, BR], WIDE), tl.zeros([NP, BR], WIDE)
    for step in range(blocks):
        block = blocks - 1 - step if TRANSPOSED else step
        at, inside = _tile(segment * frames - pad + block * L, 0, T, columns, stride_t, L)
        u = tl.load(u_ptr + at, mask=inside & (cols < R)[None, :], other=0.0).to(WIDE)
        re, im = _turn(a_re, a_im, re, im)
        re = _dot(write_re, u, re, PRECISION)
        im = _dot(write_im, u, im, PRECISION)
    _store_state(left_ptr, head * segments + segment, re, im, cols, N, R, NP)


@triton.jit
def _entering(
    first_ptr,
    left_ptr,
    hop_re,
    hop_im,
    cols,
    N,
    R,
    NP: tl.constexpr,
    FIRST: tl.constexpr,
    RESET: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """The state that enters this program's segment, from the states that those before it left."""
    segment, segments, head = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    WIDE: tl.constexpr = hop_re.dtype
    re, im = tl.zeros([NP, cols.shape[0]], WIDE), tl.zeros([NP, cols.shape[0]], WIDE)
    if FIRST:
        re, im = _load_state(first_ptr, head, cols, N, R, NP, WIDE)
    if not RESET:
        for i in range(segments - 1 - segment if TRANSPOSED else segment):
            slot = head * segments + (segments - 1 - i if TRANSPOSED else i)
            left_re, left_im = _load_state(left_ptr, slot, cols, N, R, NP, WIDE)
            re, im = _turn(hop_re, hop_im, re, im)
            re, im = re + left_re, im + left_im
    return re, im


@tuned(_configs((32, 4, 2), (32, 8, 2), (64, 8, 2)), key=["width", "L", "NP", "STATE", "PRECISION"])
@triton.jit(do_not_specialize=_CHANGING)
def scan_kernel(
    u_ptr,
    y_ptr,
    ops_ptr,
    log_decay_ptr,
    angle_ptr,
    first_ptr,
    left_ptr,
    saved_ptr,
    last_ptr,
    T,
    R,
    N,
    width,
    frames,
    pad,
    blocks,
    chunk,
    length,
    u_stride_h,
    u_stride_t,
    u_stride_b,
    y_stride_h,
    y_stride_t,
    y_stride_b,
    P: tl.constexpr,
    L: tl.constexpr,
    NP: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    STATE: tl.constexpr,
    RESET: tl.constexpr,
    FIRST: tl.constexpr,
    SAVE: tl.constexpr,
    LAST: tl.constexpr,
    BR: tl.constexpr,
):
    """Outputs of one segment; with SAVE also the state entering each block, with LAST the final one."""
    segment, segments, head = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    cols = tl.program_id(0) * BR + tl.arange(0, BR)
    u_columns, y_columns = _columns(cols, u_stride_b, P), _columns(cols, y_stride_b, P)
    u_ptr += head.to(tl.int64) * u_stride_h
    y_ptr += head.to(tl.int64) * y_stride_h
    ops_ptr += head.to(tl.int64) * (L + 4 * L * NP)
    kernel = _toeplitz(ops_ptr, chunk, L, TRANSPOSED)
    begin, end = _bounds(segment, frames, T, RESET)
    if STATE:
        read_re, read_im = _read(ops_ptr, L, NP, TRANSPOSED)
        write_re, write_im = _write(ops_ptr, L, NP, TRANSPOSED)
        log_decay, angle = _modes(log_decay_ptr, angle_ptr, head, N, NP, TRANSPOSED)
        a_re, a_im = power(log_decay, angle, length)
        hop_re, hop_im = power(log_decay, angle, frames)
        x_re, x_im = _entering(
            first_ptr, left_ptr, hop_re, hop_im, cols, N, R, NP, FIRST, RESET, TRANSPOSED
        )
    for step in range(blocks):
        block = blocks - 1 - step if TRANSPOSED else step
        start = segment * frames - pad + block * L
        at, inside = _tile(start, begin, end, u_columns, u_stride_t, L)
        inside = inside & (cols < R)[None, :]
        u = tl.load(u_ptr + at, mask=inside, other=0.0).to(WIDE)
        y = _dot(kernel, u, tl.zeros([L, BR], WIDE), PRECISION)
        if STATE:
            if SAVE:
                slot = (head * segments + segment) * blocks + block
                _store_state(saved_ptr, slot, x_re, x_im, cols, N, R, NP)
            y = _dot(read_re, x_re, y, PRECISION)
            y = _dot(read_im, x_im, y, PRECISION)
            x_re, x_im = _turn(a_re, a_im, x_re, x_im)
            x_re = _dot(write_re, u, x_re, PRECISION)
            x_im = _dot(write_im, u, x_im, PRECISION)
        at, _ = _tile(start, begin, end, y_columns, y_stride_t, L)
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)
    if LAST and segment == (0 if TRANSPOSED else segments - 1):
        _store_state(last_ptr, head, x_re, x_im, cols, N, R, NP)


@tuned(_configs((32, 8, 2), (32, 8, 1), (32, 8, 3)), key=["width", "L", "NP", "STATE", "PRECISION"])
@triton.jit(do_not_specialize=_CHANGING)
def gradient_kernel(
    u_ptr,
    dy_ptr,
    x_ptr,
    dx_ptr,
    partial_ptr,
    T,
    R,
    N,
    width,
    segments,
    frames,
    pad,
    blocks,
    u_stride_h,
    u_stride_t,
    u_stride_b,
    y_stride_h,
    y_stride_t,
    y_stride_b,
    P: tl.constexpr,
    L: tl.constexpr,
    NP: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    STATE: tl.constexpr,
    RESET: tl.constexpr,
    BR: tl.constexpr,
):
    """Gradients of K, R, W and a^length, summed over every `workers`-th tile of a head.

    x is the state that enters a block, dx the gradient of the one that leaves it. Each worker has its own
    sum, so that memory is bounded and the order of the additions fixed.
    """
    worker, workers, head = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    u_ptr += head.to(tl.int64) * u_stride_h
    dy_ptr += head.to(tl.int64) * y_stride_h
    kernel = tl.zeros([L, L], WIDE)
    read_re, read_im = tl.zeros([L, NP], WIDE), tl.zeros([L, NP], WIDE)
    write_re, write_im = tl.zeros([NP, L], WIDE), tl.zeros([NP, L], WIDE)
    a_re, a_im = tl.zeros([NP], WIDE), tl.zeros([NP], WIDE)
    tiles = tl.cdiv(R, BR)
    for item in range(worker, segments * blocks * tiles, workers):
        slot, cols = item // tiles, item % tiles * BR + tl.arange(0, BR)
        segment, block = slot // blocks, slot % blocks
        begin, end = _bounds(segment, frames, T, RESET)
        start = segment * frames - pad + block * L
        columns = _columns(cols, u_stride_b, P)
        at, inside = _tile(start, begin, end, columns, u_stride_t, L)
        inside = inside & (cols < R)[None, :]
        u = tl.trans(tl.load(u_ptr + at, mask=inside, other=0.0).to(WIDE))
        at, _ = _tile(start, begin, end, _columns(cols, y_stride_b, P), y_stride_t, L)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(WIDE)
        kernel = _dot(dy, u, kernel, PRECISION)
        if STATE:
            slot += head * segments * blocks
            x_re, x_im = _load_state(x_ptr, slot, cols, N, R, NP, WIDE)
            dx_re, dx_im = _load_state(dx_ptr, slot, cols, N, R, NP, WIDE)
            a_re += tl.sum(dx_re * x_re + dx_im * x_im, 1)
            a_im += tl.sum(dx_im * x_re - dx_re * x_im, 1)
            read_re = _dot(dy, tl.trans(x_re), read_re, PRECISION)
            read_im = _dot(dy, tl.trans(x_im), read_im, PRECISION)
            write_re = _dot(dx_re, u, write_re, PRECISION)
            write_im = _dot(dx_im, u, write_im, PRECISION)
    j, n = tl.arange(0, L), tl.arange(0, NP)
    partial_ptr += (head * workers + worker).to(tl.int64) * (L * L + 4 * L * NP + 2 * NP)
    tl.store(partial_ptr + j[:, None] * L + j[None, :], kernel)
    if STATE:
        read = partial_ptr + L * L + j[:, None] * NP + n[None, :]
        tl.store(read, read_re)
        tl.store(read + L * NP, read_im)
        write = partial_ptr + L * L + 2 * L * NP + n[:, None] * L + j[None, :]
        tl.store(write, write_re)
        tl.store(write + L * NP, write_im)
        tl.store(partial_ptr + L * L + 4 * L * NP + n, a_re)
        tl.store(partial_ptr + L * L + 4 * L * NP + NP + n, a_im)

"""The joint in Triton: hidden values of packed nodes, and the gradients of its two inputs.

A node is its index in the padded [B, T, U + 1]. The backward kernels recompute tanh from the inputs: that
costs no more than reading it, and gives a more exact slope than the rounded hidden value. Each result of
both sums has one owner and a fixed order: no atomic addition.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

_BLOCK_M, _BLOCK_J = 32, 128
# Arguments whose values must not cause a compilation.
_CHANGING = ["start", "stop", "first_frame", "last_frame", "T", "U1"]


class Chosen(NamedTuple):
    """Nodes that take part in the backward pass, and where those of a frame or a position are."""

    nodes_K: Tensor
    """int32, ascending."""
    starts_F: Tensor
    """First of each frame [B * T + 1], int32."""
    places_N: Tensor
    """Index of each node of the padded lattice among the chosen, -1 for the others; int32."""


class Run(NamedTuple):
    """A run of chosen nodes, and the frames (b * T + t) of its first and its last."""

    start: int
    stop: int
    first_frame: int
    last_frame: int


def join(enc_BTJ: Tensor, pred_BUJ: Tensor, nodes_M: Tensor, out_MJ: Tensor) -> Tensor:
    """tanh(enc + pred) of nodes into `out_MJ`, whose columns beyond J become zero."""
    (_, T, J), U1, (M, width) = enc_BTJ.shape, pred_BUJ.shape[1], out_MJ.shape
    grid = (triton.cdiv(M, _BLOCK_M), triton.cdiv(width, _BLOCK_J))
    join_kernel[grid](
        enc_BTJ, pred_BUJ, nodes_M, out_MJ, M, T, U1, J, width, BLOCK_M=_BLOCK_M, BLOCK_J=_BLOCK_J
    )
    return out_MJ


def add_gradients(
    grad_KJ: Tensor,
    inputs: tuple[Tensor, Tensor],
    *,
    chosen: Chosen,
    run: Run,
    out: tuple[Tensor, Tensor],
) -> None:
    """Add a run's contribution to the gradients of enc_BTJ and pred_BUJ.

    Args:
        grad_KJ: Gradient by the hidden values of the run's nodes; columns beyond J are ignored.
        inputs: enc_BTJ and pred_BUJ, contiguous.
        chosen: All chosen nodes.
        run: Which of them these are.
        out: Gradients of the inputs so far, contiguous.
    """
    (_, T, J), U1 = inputs[0].shape, inputs[1].shape[1]
    utterances = run.last_frame // T - run.first_frame // T + 1
    common = (*inputs, grad_KJ, *chosen, *run, T, U1, J, grad_KJ.stride(0))
    blocks = {"BLOCK_M": _BLOCK_M, "BLOCK_J": _BLOCK_J}
    columns = triton.cdiv(J, _BLOCK_J)
    frames = run.last_frame - run.first_frame + 1
    frame_kernel[(frames, columns)](out[0], *common, **blocks)
    position_kernel[(utterances * U1, columns)](out[1], *common, **blocks)


@triton.jit(do_not_specialize=["num_rows", "T", "U1"])
def join_kernel(
    enc_ptr,
    pred_ptr,
    nodes_ptr,
    out_ptr,
    num_rows,
    T,
    U1,
    J,
    width,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """BLOCK_J hidden values of BLOCK_M nodes."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    inside = rows < num_rows
    node = tl.load(nodes_ptr + rows, mask=inside, other=0)
    frame = node // U1
    position = frame // T * U1 + node % U1
    at = inside[:, None] & (cols < J)[None, :]
    enc = tl.load(enc_ptr + frame.to(tl.int64)[:, None] * J + cols[None, :], mask=at, other=0.0)
    pred = tl.load(
        pred_ptr + position.to(tl.int64)[:, None] * J + cols[None, :], mask=at, other=0.0
    )
    hidden = _tanh(_wide(enc) + _wide(pred)).to(out_ptr.dtype.element_ty)
    here = inside[:, None] & (cols < width)[None, :]
    tl.store(out_ptr + rows.to(tl.int64)[:, None] * width + cols[None, :], hidden, mask=here)


@triton.jit(do_not_specialize=_CHANGING)
def frame_kernel(
    out_ptr,
    enc_ptr,
    pred_ptr,
    grad_ptr,
    nodes_ptr,
    starts_ptr,
    places_ptr,
    start,
    stop,
    first_frame,
    last_frame,
    T,
    U1,
    J,
    stride,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Add to the gradient of one frame of enc: over its chosen nodes."""
    frame = first_frame + tl.program_id(0)
    cols = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    wanted = cols < J
    at_enc = frame.to(tl.int64) * J + cols
    enc = _wide(tl.load(enc_ptr + at_enc, mask=wanted, other=0.0))
    begin = tl.maximum(tl.load(starts_ptr + frame), start)
    end = tl.minimum(tl.load(starts_ptr + frame + 1), stop)
    total = tl.load(out_ptr + at_enc, mask=wanted, other=0.0)
    for row in range(begin, end, BLOCK_M):
        rows = row + tl.arange(0, BLOCK_M)
        inside = rows < end
        node = tl.load(nodes_ptr + rows, mask=inside, other=0)
        position = frame // T * U1 + node % U1
        at = inside[:, None] & wanted[None, :]
        at_pred = position.to(tl.int64)[:, None] * J + cols[None, :]
        pred = _wide(tl.load(pred_ptr + at_pred, mask=at, other=0.0))
        at_grad = (rows - start).to(tl.int64)[:, None] * stride + cols[None, :]
        grad = _wide(tl.load(grad_ptr + at_grad, mask=at, other=0.0))
        total += tl.sum(grad * _slope(enc[None, :] + pred), 0)
    tl.store(out_ptr + at_enc, total, mask=wanted)


@triton.jit(do_not_specialize=_CHANGING)
def position_kernel(
    out_ptr,
    enc_ptr,
    pred_ptr,
    grad_ptr,
    nodes_ptr,
    starts_ptr,
    places_ptr,
    start,
    stop,
    first_frame,
    last_frame,
    T,
    U1,
    J,
    stride,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Add to the gradient of one position of pred: over the frames of a run."""
    b, u = first_frame // T + tl.program_id(0) // U1, tl.program_id(0) % U1
    cols = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    wanted = cols < J
    at_pred = (b * U1 + u).to(tl.int64) * J + cols
    pred = _wide(tl.load(pred_ptr + at_pred, mask=wanted, other=0.0))
    total = tl.load(out_ptr + at_pred, mask=wanted, other=0.0)
    end = tl.minimum((b + 1) * T, last_frame + 1)
    for frame in range(tl.maximum(b * T, first_frame), end, BLOCK_M):
        frames = frame + tl.arange(0, BLOCK_M)
        place = tl.load(places_ptr + frames.to(tl.int64) * U1 + u, mask=frames < end, other=-1)
        at = ((place >= start) & (place < stop))[:, None] & wanted[None, :]
        at_enc = frames.to(tl.int64)[:, None] * J + cols[None, :]
        enc = _wide(tl.load(enc_ptr + at_enc, mask=at, other=0.0))
        at_grad = (place - start).to(tl.int64)[:, None] * stride + cols[None, :]
        grad = _wide(tl.load(grad_ptr + at_grad, mask=at, other=0.0))
        # Not zero times a slope: beyond an utterance's end `pred` may be NaN.
        total += tl.sum(tl.where(at, grad * _slope(enc + pred[None, :]), 0.0), 0)
    tl.store(out_ptr + at_pred, total, mask=wanted)


@triton.jit
def _wide(x):
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def _tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))  # at most 1: no overflow
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def _slope(x):
    """Of tanh: 1 - tanh(x)^2, without cancellation where tanh is near 1."""
    e = tl.exp(-2.0 * tl.abs(x))
    return 4.0 * e / ((1.0 + e) * (1.0 + e))

"""mh_ssm as a few dense matmuls: the form for CPU, GPU, torch.export and ONNX.

Frames are cut into blocks of L. Inside a block y = K u + R x0: K is the Toeplitz matrix of the kernel,
and R maps the entering state x0 to the output; the leaving state is a^L x0 + W u. One more (small) matmul
carries states between blocks, so there is no loop over time.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.kernels.mh_ssm.problem import Ssm

_WHOLE = 128  # up to this many frames, one block is cheaper than carrying states between blocks
_BLOCK = 64


class Operators(NamedTuple):
    """The matrices of a block of L frames, per head; constants once a model is exported.

    Attributes:
        inner_HLL: K, output from the block's own input.
        read_HL2N: R, output from the entering state.
        write_H2NL: W, leaving state from the block's own input.
        carry_re_HN: real part of a^L.
        carry_im_HN: imaginary part of a^L.
    """

    inner_HLL: Tensor
    read_HL2N: Tensor
    write_H2NL: Tensor
    carry_re_HN: Tensor
    carry_im_HN: Tensor


def powers(ssm: Ssm, exponents: Tensor) -> tuple[Tensor, Tensor]:
    """A to each of the exponents: real and imaginary parts, [H, N, *exponents.shape]."""
    shape = (*ssm.angle_HN.shape, *(1,) * exponents.dim())
    size = (ssm.log_decay_HN.reshape(shape) * exponents).exp()
    angle = ssm.angle_HN.reshape(shape) * exponents
    return size * angle.cos(), size * angle.sin()


def inner(ssm: Ssm, length: int) -> Tensor:
    """The lower-triangular Toeplitz matrix K of the kernel, [H, L, L]."""
    steps = torch.arange(length, device=ssm.skip_H.device, dtype=ssm.skip_H.dtype)
    re, im = powers(ssm, steps)
    kernel = (ssm.gain_re_HN.unsqueeze(1) @ re - ssm.gain_im_HN.unsqueeze(1) @ im).squeeze(1)
    backwards = torch.cat([kernel[:, 1:].flip(1), kernel[:, :1] + ssm.skip_H[:, None]], 1)
    # Row t of K is the window of the reversed kernel that ends with k_0 at column t.
    return F.pad(backwards, (0, length - 1)).unfold(1, length, 1).flip(1)


def operators(ssm: Ssm, length: int) -> Operators:
    """All matrices of a block of `length` frames."""
    return Operators(inner(ssm, length), *_borders(ssm, length))


def _borders(ssm: Ssm, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The matrices R and W of a block, and the real and imaginary part of a^L."""
    steps = torch.arange(length + 1, device=ssm.skip_H.device, dtype=ssm.skip_H.dtype)
    re, im = powers(ssm, steps)
    read = _read(ssm, re[..., 1:], im[..., 1:])
    write = torch.cat([re[..., :-1], im[..., :-1]], 1).flip(-1)
    return read, write, re[..., -1], im[..., -1]


def _read(ssm: Ssm, re_HNL: Tensor, im_HNL: Tensor) -> Tensor:
    """The matrix R, [H, L, 2N], from a to the powers 1 to L."""
    g_re, g_im = ssm.gain_re_HN.unsqueeze(-1), ssm.gain_im_HN.unsqueeze(-1)
    read = torch.cat([g_re * re_HNL - g_im * im_HNL, -(g_re * im_HNL + g_im * re_HNL)], 1)
    return read.transpose(1, 2)


def run_block(u_HTBP: Tensor, ops: Operators, state_H2NBP: Tensor) -> tuple[Tensor, Tensor]:
    """One block (T = L) from a given state; the streaming form.

    Returns:
        y_HTBP and the state after the block.
    """
    heads, _, batch, channels = u_HTBP.shape
    u, x = u_HTBP.flatten(2), state_H2NBP.flatten(2)
    y = ops.inner_HLL @ u + ops.read_HL2N @ x
    re, im = x.chunk(2, 1)
    c_re, c_im = ops.carry_re_HN.unsqueeze(-1), ops.carry_im_HN.unsqueeze(-1)
    x = torch.cat([c_re * re - c_im * im, c_re * im + c_im * re], 1) + ops.write_H2NL @ u
    return y.reshape(heads, -1, batch, channels), x.reshape(heads, -1, batch, channels)


class Prepared(NamedTuple):
    """The matrices of a run that depend on the parameters and the number of frames alone, per head.

    Attributes:
        inner_HLL: K of its blocks.
        read_HL2N: R of its only block, where it starts from a state.
    """

    inner_HLL: Tensor
    read_HL2N: Tensor | None


def prepare(ssm: Ssm, num_frames: int, *, reset: int, from_state: bool) -> Prepared:
    """See `todm.kernels.mh_ssm.prepare`."""
    length = reset or (num_frames if num_frames <= _WHOLE else _BLOCK)
    if not from_state or num_frames > _WHOLE:
        return Prepared(inner(ssm, length), None)
    steps = torch.arange(1, length + 1, device=ssm.skip_H.device, dtype=ssm.skip_H.dtype)
    return Prepared(inner(ssm, length), _read(ssm, *powers(ssm, steps)))


def run(
    u_HTBP: Tensor,
    ssm: Ssm,
    state_H2NBP: Tensor | None,
    *,
    reverse: bool,
    reset: int,
    want_state: bool = True,
    prepared: Prepared | None = None,
) -> tuple[Tensor, Tensor | None]:
    """See `todm.kernels.mh_ssm.mh_ssm`."""
    with torch.autocast(u_HTBP.device.type, enabled=False):
        ssm = Ssm(*(p.float() if p.dtype in (torch.bfloat16, torch.float16) else p for p in ssm))
        num_frames, entered = u_HTBP.shape[1], state_H2NBP is not None
        ops = prepared or prepare(ssm, num_frames, reset=reset, from_state=entered)
        if reset or (num_frames <= _WHOLE and not entered):
            y = _independent(u_HTBP, ops.inner_HLL, reverse=reverse)
            wanted = want_state and not (reverse or reset)
            return y, _written(u_HTBP, ssm) if wanted else None
        if reverse:
            return _blocks(u_HTBP.flip(1), ssm, None, ops.inner_HLL)[0].flip(1), None
        if state_H2NBP is not None and ops.read_HL2N is not None:
            state = state_H2NBP.to(ssm.skip_H.dtype)
            y = _from_state(u_HTBP, ops.inner_HLL, ops.read_HL2N, state)
            return y, _after(u_HTBP, ssm, state) if want_state else None
        y, last = _blocks(u_HTBP, ssm, state_H2NBP, ops.inner_HLL)
        return y, last if want_state else None


def _from_state(
    u_HTBP: Tensor, inner_HLL: Tensor, read_HL2N: Tensor, state_H2NBP: Tensor
) -> Tensor:
    """The output of a short sequence from a given state."""
    y = inner_HLL @ u_HTBP.flatten(2).to(inner_HLL.dtype) + read_HL2N @ state_H2NBP.flatten(2)
    return y.reshape(u_HTBP.shape).to(u_HTBP.dtype)


def _written(u_HTBP: Tensor, ssm: Ssm) -> Tensor:
    """The state after a short sequence from a zero state."""
    steps = torch.arange(u_HTBP.shape[1] - 1, -1, -1, device=u_HTBP.device, dtype=ssm.skip_H.dtype)
    state = torch.cat(powers(ssm, steps), 1) @ u_HTBP.flatten(2).to(ssm.skip_H.dtype)
    return state.reshape(state.shape[0], -1, *u_HTBP.shape[2:])


def _after(u_HTBP: Tensor, ssm: Ssm, state_H2NBP: Tensor) -> Tensor:
    """The state after a short sequence from a given state."""
    length = torch.tensor(u_HTBP.shape[1], device=u_HTBP.device, dtype=ssm.skip_H.dtype)
    c_re, c_im = (p[..., None, None] for p in powers(ssm, length))
    re, im = state_H2NBP.chunk(2, 1)
    carried = torch.cat([c_re * re - c_im * im, c_re * im + c_im * re], 1)
    return carried + _written(u_HTBP, ssm)


def _independent(u_HTBP: Tensor, inner_HLL: Tensor, *, reverse: bool) -> Tensor:
    """Independent blocks of L frames. Reversed, a Toeplitz matrix is transposed."""
    heads, num_frames, batch, channels = u_HTBP.shape
    length = inner_HLL.shape[1]
    matrix = (inner_HLL.transpose(1, 2) if reverse else inner_HLL).to(u_HTBP.dtype)
    if num_frames == length:
        return torch.bmm(matrix, u_HTBP.flatten(2)).reshape(u_HTBP.shape)
    # Side by side: one product per head instead of one per block.
    blocks = u_HTBP.reshape(heads, -1, length, batch * channels).transpose(1, 2)
    y = torch.bmm(matrix, blocks.reshape(heads, length, -1))
    return y.reshape(blocks.shape).transpose(1, 2).reshape(u_HTBP.shape)


def _blocks(
    u_HTBP: Tensor, ssm: Ssm, state_H2NBP: Tensor | None, inner_HLL: Tensor
) -> tuple[Tensor, Tensor]:
    """A long sequence in blocks of L frames, padded with zeros to whole blocks.

    The state that enters block c is a^(Lc) x0 + sum over c' < c of a^(L(c-1-c')) W u_c'.
    """
    heads, num_frames, batch, channels = u_HTBP.shape
    num_modes, dtype = ssm.angle_HN.shape[1], u_HTBP.dtype
    count = (
        math.ceil(num_frames / _BLOCK) if isinstance(num_frames, int) else -(-num_frames // _BLOCK)
    )
    padding = count * _BLOCK - num_frames
    u = F.pad(u_HTBP, (0, 0, 0, 0, 0, padding))
    u = u.reshape(heads, count, _BLOCK, batch * channels)
    read, write, _, _ = _borders(ssm, _BLOCK)
    written = (write.to(dtype).unsqueeze(1) @ u).to(ssm.skip_H.dtype)
    first = (
        torch.zeros_like(written[:, :1])
        if state_H2NBP is None
        else state_H2NBP.flatten(2).unsqueeze(1)
    )
    entering = _carry(ssm, torch.cat([first.to(written.dtype), written], 1), num_modes)
    y = inner_HLL.to(dtype).unsqueeze(1) @ u
    y = y + read.to(dtype).unsqueeze(1) @ entering.to(dtype)
    y = y.reshape(heads, count * _BLOCK, batch, channels)[:, :num_frames]
    return y, _last_state(ssm, u, entering, num_frames, batch)


def _carry(ssm: Ssm, sources_HC2NR: Tensor, num_modes: int) -> Tensor:
    """States entering each block, from the first state and the writes of all blocks (count + 1)."""
    count = sources_HC2NR.shape[1] - 1
    index = torch.arange(count, device=sources_HC2NR.device)
    lag = index[:, None] - index[None, :]
    re, im = powers(ssm, (lag.clamp(min=0) * _BLOCK).to(ssm.skip_H.dtype))
    keep = (lag >= 0).to(sources_HC2NR.dtype)
    re, im = re.to(keep.dtype) * keep, im.to(keep.dtype) * keep
    src_re, src_im = sources_HC2NR[:, :count].transpose(1, 2).split(num_modes, 1)
    state = torch.cat([re @ src_re - im @ src_im, re @ src_im + im @ src_re], 1)
    return state.transpose(1, 2)


def _last_state(
    ssm: Ssm, u_HCLR: Tensor, entering_HC2NR: Tensor, num_frames: int, batch: int
) -> Tensor:
    """The state after the last true frame, which may lie inside the last block."""
    heads, count, _, width = u_HCLR.shape
    rest = num_frames - (count - 1) * _BLOCK
    steps, dtype = torch.arange(_BLOCK, device=u_HCLR.device), ssm.skip_H.dtype
    ago = (rest - 1 - steps).clamp(min=0).to(dtype)
    written = (torch.cat(powers(ssm, ago), 1) * (steps < rest)) @ u_HCLR[:, -1].to(dtype)
    re, im = entering_HC2NR[:, -1].chunk(2, 1)
    c_re, c_im = powers(ssm, steps[:1].to(dtype) * 0 + rest)
    state = torch.cat([c_re * re - c_im * im, c_re * im + c_im * re], 1) + written
    return state.reshape(heads, -1, batch, width // batch)

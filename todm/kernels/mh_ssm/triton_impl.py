"""mh_ssm in Triton, for NVIDIA GPUs: one pass over the sequence, states in registers.

Forward: the operators of a block, then the recurrence. Backward: the transposed recurrence, sums for
the gradients of the operators, and one kernel from those to the parameters. Kept between the two: u, the
state that enters each block, and the operators. README.md counts bytes and work.

Letters as in `todm.kernels.mh_ssm`; L rows of a block, NP modes (padded), R columns of a head (B * P).
"""

import dataclasses
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import language as tl

from todm.errors import ConfigError
from todm.kernels._dispatch import on_device_of
from todm.kernels._tune import or_else, require_gpu
from todm.kernels.mh_ssm.problem import Ssm
from todm.kernels.mh_ssm.triton_operators import (
    gradient_size,
    operator_kernel,
    operator_size,
    parameter_kernel,
)
from todm.kernels.mh_ssm.triton_scan import gradient_kernel, scan_kernel, segment_kernel

_ROWS, _FEW_MODES, _MODES = 64, 16, 32
# Programs that fill a GPU, columns of one, and the fewest blocks of a segment.
_PROGRAMS, _COLUMNS, _SEGMENT_BLOCKS = 128, 32, 4
# Shorter lines are first copied side by side: a read would use less than a sector of memory.
_LINE_BYTES = 32


def run(
    u_HTBP: Tensor,
    ssm: Ssm,
    state_H2NBP: Tensor | None,
    *,
    reverse: bool,
    reset: int,
    want_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """See `todm.kernels.mh_ssm.mh_ssm`.

    Raises:
        ConfigError: tensors that are not on a GPU, or more modes than a program holds.
    """
    _check(u_HTBP, ssm)
    num_frames = u_HTBP.shape[1]
    rest = num_frames % _rows(ssm.angle_HN.shape[1])
    if state_H2NBP is not None and rest < num_frames and rest:
        # Whole blocks must follow: only a zero state may be entered with a short one.
        first, state_H2NBP = run(u_HTBP[:, :rest], ssm, state_H2NBP, reverse=False, reset=0)
        y, last = run(u_HTBP[:, rest:], ssm, state_H2NBP, reverse=False, reset=0)
        return torch.cat([first, y], 1), last if want_state else None
    wide = torch.promote_types(u_HTBP.dtype, torch.float32)
    parameters = tuple(p.to(wide).contiguous() for p in ssm)
    state = None if state_H2NBP is None else state_H2NBP.to(wide).contiguous()
    plan = _Plan.choose(u_HTBP, ssm, entered=state is not None, reverse=reverse, reset=reset)
    inputs = (u_HTBP, *parameters, *(() if state is None else (state,)))
    save = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    with on_device_of(u_HTBP):
        y, last = _Scan.apply(u_HTBP, *parameters, state, dataclasses.replace(plan, save=save))
    return y, last if want_state else None


def _check(u_HTBP: Tensor, ssm: Ssm) -> None:
    require_gpu("mh_ssm", u_HTBP)
    num_modes = ssm.angle_HN.shape[1]
    if num_modes > _MODES:
        raise ConfigError(
            f"mh_ssm: impl 'triton' holds at most {_MODES} modes a head, {num_modes} are given: "
            "use impl='torch'"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """How a call is cut into blocks and segments.

    A segment is `blocks` blocks of `rows` frames. If it starts from a zero state, its first block may
    begin with `pad` missing frames: zeros, which leave a zero state zero.
    """

    rows: int
    modes: int
    length: int
    """Frames of a block: `rows`, fewer only where a state enters the only block."""
    segments: int
    frames: int
    """From the start of a segment to that of the next."""
    blocks: int
    pad: int = 0
    chunk: int
    """Frames of a block that see each other."""
    state: bool = True
    """Blocks pass a state on."""
    reset: bool = False
    """Segments do not pass a state on."""
    reverse: bool
    last: bool
    """The state after the last frame is wanted."""
    precision: str
    save: bool = False

    @classmethod
    def choose(
        cls, u_HTBP: Tensor, ssm: Ssm, *, entered: bool, reverse: bool, reset: int
    ) -> "_Plan":
        heads, num_frames, batch, channels = u_HTBP.shape
        period = reset or (num_frames if reverse else 0)
        modes = max(16, triton.next_power_of_2(ssm.angle_HN.shape[1]))
        rows = min(_rows(modes), max(16, triton.next_power_of_2(period or num_frames)))
        common = {
            "rows": rows,
            "modes": modes,
            "reverse": reverse,
            "last": not reverse and not reset,
            "precision": _precision(u_HTBP.dtype),
        }
        if 0 < period <= rows:
            return cls(**common, **_packed(num_frames, period, rows))
        blocks = triton.cdiv(period or num_frames, rows)
        if reset:
            sizes = {"segments": num_frames // reset, "frames": reset, "reset": True}
            pad = blocks * rows - reset
            return cls(**common, **sizes, blocks=blocks, pad=pad, length=rows, chunk=rows)
        programs = max(1, heads * triton.cdiv(batch * channels, _COLUMNS))
        most = 1 if entered else max(1, min(_PROGRAMS // programs, blocks // _SEGMENT_BLOCKS))
        each = triton.cdiv(blocks, most)
        segments = triton.cdiv(blocks, each)
        return cls(
            **common,
            segments=segments,
            frames=each * rows,
            blocks=each,
            pad=0 if entered else segments * each * rows - num_frames,
            length=min(rows, num_frames) if entered else rows,
            chunk=rows,
        )


def _packed(num_frames: int, period: int, rows: int) -> dict[str, Any]:
    """As many whole periods as fit into one block that passes no state on."""
    frames = rows // period * period
    return {
        "segments": triton.cdiv(num_frames, frames),
        "frames": frames,
        "blocks": 1,
        "length": rows,
        "chunk": period,
        "state": False,
        "reset": True,
    }


def _rows(num_modes: int) -> int:
    """Frames of a block: half as many where twice the modes would not fit into registers."""
    return _ROWS if num_modes <= _FEW_MODES else _ROWS // 2


def _precision(dtype: torch.dtype) -> str:
    """Of the matmuls. 16-bit inputs are exact in TF32; float32 follows torch's setting."""
    if dtype == torch.float64:
        return "ieee"
    exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return "tf32x3" if exact else "tf32"


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u_HTBP: Tensor,
        *inputs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        *parameters, state_H2NBP, plan = inputs
        ctx.set_materialize_grads(False)
        u = u_HTBP if _in_lines(u_HTBP) else u_HTBP.contiguous()
        work = _Work(plan, u, tuple(parameters))
        ops = work.operators()
        y, saved, last = work.scan(u, ops, state_H2NBP, keep=plan.save, last=plan.last)
        ctx.plan, ctx.entered = plan, state_H2NBP is not None
        ctx.save_for_backward(u, ops, saved, *parameters)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        dy_HTBP: Tensor | None,
        dlast_H2NBP: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        u, ops, saved, *parameters = ctx.saved_tensors
        work = _Work(ctx.plan, u, tuple(parameters))
        dy = torch.empty_like(u)
        if dy_HTBP is None:
            dy.zero_()
        elif dy_HTBP.stride() == dy.stride():
            dy = dy_HTBP
        else:
            dy.copy_(dy_HTBP)
        dlast = None if dlast_H2NBP is None else dlast_H2NBP.contiguous()
        with on_device_of(u):
            du, dsaved, dfirst = work.scan(
                dy, ops, dlast, keep=True, last=ctx.entered, transposed=True
            )
            grads = work.operator_gradients(dy, saved, dsaved)
            return (du, *work.parameter_gradients(grads), dfirst, None)


def _in_lines(u_HTBP: Tensor) -> bool:
    """Channels lie side by side, in lines long enough to be read as they are."""
    batch, width = u_HTBP.shape[2:]
    stride_b, stride_p = u_HTBP.stride()[2:]
    whole = batch == 1 or stride_b == width or width * u_HTBP.element_size() >= _LINE_BYTES
    return whole and (width == 1 or stride_p == 1)


@dataclasses.dataclass(frozen=True)
class _Work:
    """The launches of one call: its plan, u, and the parameters, [H, N] except skip [H]."""

    plan: _Plan
    u: Tensor
    parameters: tuple[Tensor, ...]

    @property
    def wide(self) -> torch.dtype:
        """Of operators, states and sums."""
        return self.parameters[0].dtype

    def new_states(self, count: int, dtype: torch.dtype) -> Tensor:
        """Uninitialised memory for `count` states of each head, [H, count, 2N, B, P]."""
        heads, num_modes = self.parameters[0].shape
        shape = (heads, count, 2 * num_modes, *self.u.shape[2:])
        return torch.empty(shape, dtype=dtype, device=self.u.device)

    def operators(self) -> Tensor:
        """k, R and W of each head."""
        p, (heads, num_modes) = self.plan, self.parameters[0].shape
        ops = self.parameters[0].new_empty(heads, operator_size(p.rows, p.modes))
        operator_kernel[(heads,)](ops, *self.parameters, num_modes, p.length, L=p.rows, NP=p.modes)
        return ops

    def scan(
        self,
        u: Tensor,
        ops: Tensor,
        first: Tensor | None,
        *,
        keep: bool,
        last: bool,
        transposed: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The recurrence, or the transposed one, of u from the state `first`.

        Returns:
            The output, the states that enter each block (`keep`) and the one that leaves the last
            (`last`); in the order of the walk.
        """
        p, y = self.plan, torch.empty_like(self.u)
        # 16-bit inputs keep states of 16 bits: bfloat16, which has the range of a sum of many.
        kept = self.wide if u.element_size() > 2 else torch.bfloat16
        saved = self.new_states(p.segments * p.blocks, kept) if keep and p.state else None
        end = self.new_states(1, self.wide) if last else None
        left = self._left(u, ops, transposed=transposed)
        u_lines, y_lines = _lines(u, p.reverse), _lines(y, p.reverse)
        scan_kernel[lambda s: (triton.cdiv(self._columns, s["BR"]), p.segments, len(ops))](
            *(u_lines.start, y_lines.start, ops, *self.parameters[:2]),
            *(or_else(x, ops) for x in (first, left, saved, end)),
            *self._sizes,
            *(p.frames, p.pad, p.blocks, p.chunk, p.length),
            *(*u_lines.strides, *y_lines.strides),
            P=self._channels(u, y),
            **self._constants,
            TRANSPOSED=transposed,
            STATE=p.state,
            FIRST=first is not None,
            SAVE=saved is not None,
            LAST=last,
        )
        return y, saved, None if end is None else end[:, 0]

    def operator_gradients(self, dy: Tensor, saved: Tensor | None, dsaved: Tensor | None) -> Tensor:
        """Of each head's operators, from the states and state gradients that entered each block."""
        p, (heads, _) = self.plan, self.parameters[0].shape
        size = gradient_size(p.rows, p.modes)
        tiles = p.segments * p.blocks * triton.cdiv(self._columns, _COLUMNS)
        # One program per multiprocessor: more would spend more time on writing sums than they save.
        workers = min(tiles, triton.cdiv(_PROGRAMS, max(1, heads)))
        partial = self.parameters[0].new_empty(heads, workers, size)
        u_lines, dy_lines = _lines(self.u, p.reverse), _lines(dy, p.reverse)
        gradient_kernel[(workers, heads)](
            *(
                u_lines.start,
                dy_lines.start,
                or_else(saved, partial),
                or_else(dsaved, partial),
                partial,
            ),
            *self._sizes,
            *(p.segments, p.frames, p.pad, p.blocks),
            *(*u_lines.strides, *dy_lines.strides),
            P=self._channels(self.u, dy),
            **self._constants,
            STATE=p.state,
        )
        return partial.sum(1)

    def parameter_gradients(self, grads: Tensor) -> tuple[Tensor, ...]:
        """From the gradients of the operators to those of the five parameters."""
        p, (heads, num_modes) = self.plan, self.parameters[0].shape
        per_mode = grads.new_empty(4, heads, num_modes)
        skip = grads.new_empty(heads)
        parameter_kernel[(heads,)](
            *(grads, *self.parameters[:4], per_mode, skip),
            *(num_modes, p.length, p.chunk),
            L=p.rows,
            NP=p.modes,
            STATE=p.state,
        )
        return (*per_mode, skip)

    def _left(self, u: Tensor, ops: Tensor, *, transposed: bool) -> Tensor | None:
        """The states that segments pass on, if a sequence has several segments."""
        p = self.plan
        if p.reset or p.segments == 1:
            return None
        left, lines = self.new_states(p.segments, self.wide), _lines(u, p.reverse)
        constants = {k: v for k, v in self._constants.items() if k != "RESET"}
        segment_kernel[lambda s: (triton.cdiv(self._columns, s["BR"]), p.segments - 1, len(ops))](
            *(lines.start, ops, *self.parameters[:2], left),
            *self._sizes,
            *(p.frames, p.pad, p.blocks),
            *lines.strides,
            P=self._channels(u, u),
            **constants,
            TRANSPOSED=transposed,
        )
        return left

    @property
    def _columns(self) -> int:
        return self.u.shape[2] * self.u.shape[3]

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        """T, R, N, and R rounded up to a power of two, the key by which tiles are chosen."""
        width = min(256, triton.next_power_of_2(max(1, self._columns)))
        return self.u.shape[1], self._columns, self.parameters[0].shape[1], width

    @property
    def _constants(self) -> dict[str, Any]:
        p, wide = self.plan, tl.float64 if self.wide == torch.float64 else tl.float32
        sizes = {"L": p.rows, "NP": p.modes, "RESET": p.reset}
        return {**sizes, "WIDE": wide, "PRECISION": p.precision}

    def _channels(self, *tensors: Tensor) -> int:
        """P, or 0 where the columns of a frame are contiguous in all of these."""
        batch, channels = self.u.shape[2:]
        one = batch == 1 or all(x.stride(2) == channels for x in tensors)
        return 0 if one else channels


class _Lines(NamedTuple):
    """A tensor from its first frame in the order of the recurrence; strides of H, T and B."""

    start: Tensor
    strides: tuple[int, int, int]


def _lines(x_HTBP: Tensor, reverse: bool) -> _Lines:  # noqa: FBT001
    heads, frames, batch, _ = x_HTBP.stride()
    if reverse:
        return _Lines(x_HTBP[:, -1:], (heads, -frames, batch))
    return _Lines(x_HTBP, (heads, frames, batch))

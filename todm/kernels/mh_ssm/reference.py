"""The oracle of mh_ssm: the recurrence, frame by frame, as S4D writes it (arXiv 2206.11893, eq. 2)."""

import torch
from torch import Tensor

from todm.kernels.mh_ssm.problem import Ssm


def run(
    u_HTBP: Tensor,
    ssm: Ssm,
    state_H2NBP: Tensor | None,
    *,
    reverse: bool,
    reset: int,
    want_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """See `todm.kernels.mh_ssm.mh_ssm`; uses complex numbers and a loop over time."""
    a = torch.polar(ssm.log_decay_HN.exp(), ssm.angle_HN)[:, :, None, None]
    g = torch.complex(ssm.gain_re_HN, ssm.gain_im_HN)[:, :, None, None]
    skip = ssm.skip_H[:, None, None]
    num_frames, num_modes = u_HTBP.shape[1], a.shape[1]
    zero = torch.zeros(
        (a.shape[0], num_modes, *u_HTBP.shape[2:]), dtype=a.dtype, device=u_HTBP.device
    )
    x = zero
    if state_H2NBP is not None:
        x = torch.complex(
            state_H2NBP[:, :num_modes].contiguous(), state_H2NBP[:, num_modes:].contiguous()
        )
    ys: list[Tensor] = [zero.real] * num_frames
    for t in reversed(range(num_frames)) if reverse else range(num_frames):
        if reset and t % reset == (reset - 1 if reverse else 0):
            x = zero
        x = a * x + u_HTBP[:, t, None]
        ys[t] = (g * x).real.sum(1) + skip * u_HTBP[:, t]
    y = torch.stack(ys, 1)
    return y, None if reverse or reset or not want_state else torch.cat([x.real, x.imag], 1)

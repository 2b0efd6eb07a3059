"""The arguments of every implementation: discrete parameters, their discretisation, and the checks.

Letters: H heads, T frames, B sequences, P channels per head, N complex modes.
"""

from typing import NamedTuple

from torch import Tensor


class Ssm(NamedTuple):
    """Discrete parameters of one state-space model per head.

    Attributes:
        log_decay_HN: log |a|, negative.
        angle_HN: arg a, radians per frame.
        gain_re_HN: real part of the output gain g.
        gain_im_HN: imaginary part of g.
        skip_H: the direct path d.
    """

    log_decay_HN: Tensor
    angle_HN: Tensor
    gain_re_HN: Tensor
    gain_im_HN: Tensor
    skip_H: Tensor


def discretise(
    log_dt_H: Tensor, log_neg_re_HN: Tensor, im_HN: Tensor, c_HN2: Tensor, skip_H: Tensor
) -> Ssm:
    """Zero-order hold of the continuous model (lambda, B = 1, C) with step dt, per head.

    lambda = -exp(log_neg_re) + i im;  a = exp(dt lambda);  g = 2 C (a - 1) / lambda. The factor 2
    stands for the conjugate half of the modes. Axes before H are allowed everywhere.

    Args:
        log_dt_H: log of the time step.
        log_neg_re_HN: log of minus the real part of the poles.
        im_HN: imaginary part of the poles.
        c_HN2: output weights C, real and imaginary part on the last axis.
        skip_H: the direct path.
    """
    dt = log_dt_H.exp().unsqueeze(-1)
    re, im = -log_neg_re_HN.exp(), im_HN
    log_decay, angle = re * dt, im * dt
    # a - 1 without the cancellation of small steps: expm1(x) cos y - 2 sin(y / 2)^2.
    num_re = log_decay.expm1() * angle.cos() - 2 * (angle / 2).sin().square()
    num_im = log_decay.exp() * angle.sin()
    scale = 2 / (re * re + im * im)
    b_re = (num_re * re + num_im * im) * scale
    b_im = (num_im * re - num_re * im) * scale
    c_re, c_im = c_HN2.unbind(-1)
    return Ssm(log_decay, angle, c_re * b_re - c_im * b_im, c_re * b_im + c_im * b_re, skip_H)


def check(
    u_HTBP: Tensor, ssm: Ssm, state_H2NBP: Tensor | None, *, reverse: bool, reset: int
) -> None:
    """Raises ValueError with the first thing that is wrong."""
    if u_HTBP.dim() != 4 or u_HTBP.shape[0] != ssm.skip_H.shape[0]:
        raise ValueError(
            f"u is {tuple(u_HTBP.shape)} for {ssm.skip_H.shape[0]} heads: [H, T, B, P] is needed"
        )
    if u_HTBP.shape[1] == 0:
        raise ValueError("u has no frames: at least one is needed")
    if reset and u_HTBP.shape[1] % reset:
        raise ValueError(f"{u_HTBP.shape[1]} frames are not a multiple of the reset period {reset}")
    if state_H2NBP is not None and (reverse or reset):
        raise ValueError("a state is carried only by the forward recurrence without reset")
    wanted = (u_HTBP.shape[0], 2 * ssm.angle_HN.shape[1], *u_HTBP.shape[2:])
    if state_H2NBP is not None and state_H2NBP.shape != wanted:
        raise ValueError(
            f"the state is {tuple(state_H2NBP.shape)}: [H, 2N, B, P] = {wanted} is needed"
        )

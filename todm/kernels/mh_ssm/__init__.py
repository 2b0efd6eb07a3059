"""The recurrence of MH-SSM: a diagonal state-space model whose parameters are tied per head.

    x_t = a * x_{t-1} + u_t,    y_t = Re(sum_n g_n x_{t,n}) + d u_t          (S4D, arXiv 2206.11893)

a = exp(log_decay + i angle) and g = gain_re + i gain_im belong to a head; every channel of the head
runs the same recurrence with its own state. Complex numbers are written as pairs of reals, so
that the op exports to ONNX. README.md has the maths of the chunked form.

Letters: H heads, T frames, B sequences, P channels per head, N complex modes, L frames of a block.
"""

import torch
from torch import Tensor

from todm.kernels._dispatch import load_impl
from todm.kernels.mh_ssm import torch_impl
from todm.kernels.mh_ssm.loop import Loop
from todm.kernels.mh_ssm.problem import Ssm, check, discretise
from todm.kernels.mh_ssm.torch_impl import Prepared

__all__ = ["IMPLS", "Loop", "Prepared", "Ssm", "discretise", "mh_ssm", "prepare"]

IMPLS = ("torch", "triton", "reference")


def mh_ssm(
    u_HTBP: Tensor,
    ssm: Ssm,
    *,
    state_H2NBP: Tensor | None = None,
    reverse: bool = False,
    reset: int = 0,
    want_state: bool = True,
    prepared: Prepared | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run the recurrence over a whole sequence.

    Args:
        u_HTBP: input; frames beyond a sequence's length must be zero.
        ssm: discrete parameters, one set per head.
        state_H2NBP: state before the first frame (real parts, then imaginary); zero if absent. With
            one frame, or one chunk, of a stream this is its step.
        reverse: run from the last frame to the first.
        reset: start from a zero state every `reset` frames (T must be a multiple); 0 means never.
        want_state: whether the last state is needed, which costs a little.
        prepared: from `prepare`, for the same frames, reset and start.
        impl: which implementation; by default the rule of `todm.kernels._dispatch`.

    Returns:
        y_HTBP, and the state after the last frame (None with `reverse` or `reset`, or if it is not
        wanted), which is float32 at least: a frame adds too little to a slow state for 16 bits to
        represent.

    Raises:
        ValueError: shapes that do not belong together, or a state given with `reverse` or `reset`.
    """
    check(u_HTBP, ssm, state_H2NBP, reverse=reverse, reset=reset)
    chosen = load_impl("mh_ssm", IMPLS, impl, device=u_HTBP.device.type)
    options = {"reverse": reverse, "reset": reset, "want_state": want_state}
    if prepared is not None:
        assert chosen is torch_impl, "only the torch implementation has something to prepare"
        options["prepared"] = prepared
    return chosen.run(u_HTBP, ssm, state_H2NBP, **options)


def prepare(
    ssm: Ssm,
    num_frames: int,
    *,
    reset: int = 0,
    from_state: bool = False,
    impl: str | None = None,
) -> Prepared | None:
    """What several runs with the same parameters have in common, worked out once.

    Args:
        ssm: discrete parameters.
        num_frames: T.
        reset: as of `mh_ssm`.
        from_state: whether a state is given.
        impl: as of `mh_ssm`.

    Returns:
        For the argument `prepared` of `mh_ssm`; the first heads of it serve the first heads. None where
        the implementation has nothing to prepare.
    """
    chosen = load_impl("mh_ssm", IMPLS, impl, device=ssm.skip_H.device.type)
    if chosen is not torch_impl:
        return None
    with torch.autocast(ssm.skip_H.device.type, enabled=False):
        return torch_impl.prepare(ssm, num_frames, reset=reset, from_state=from_state)

"""Forward and backward sums over the lattice, in a handful of vectorised operations a frame.

Both directions run at once: reversed in time and labels, the backward lattice is a forward one and
joins the batch. `arrive` is the score of the label that leads to position u.

standard:   a(t, u) = logadd(a(t-1, u) + blank, a(t, u-1) + label). With Y the running sum over u of
            `arrive`, a - Y is one cumulative log-sum-exp over u of the frame before.
one_symbol: a(t, u) = logadd(a(t-1, u) + blank, a(t-1, u-1) + label): a shift over u. With C the
            running sum over t of blank, a - C needs one addition and one log-add.

The running sums cancel later, which is why all of this is float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from todm.kernels.rnnt_loss.problem import Topology


class Occupancy(NamedTuple):
    """Log-probability of the labels; expected visits of each node, and of its label arc."""

    log_prob_B: Tensor
    node_BTU: Tensor
    label_BTU: Tensor


def occupancy(
    label_BTU: Tensor,
    blank_BTU: Tensor,
    *,
    enc_lens_B: Tensor,
    target_lens_B: Tensor,
    valid_BTU: Tensor,
    topology: Topology,
) -> Occupancy:
    """Sum over all alignments. Scores are float64 and finite everywhere, also where padded.

    The gradients of `log_prob_B` are the occupancies of the arcs: `label_BTU` for the label
    scores, `node_BTU - label_BTU` for the blanks.
    """
    B = label_BTU.shape[0]
    reverse_BN = _reversal(label_BTU, enc_lens_B, target_lens_B)
    arrive_TBU = torch.cat([_shift(label_BTU), _reverse(label_BTU, reverse_BN)]).transpose(0, 1)
    arrive_TBU = arrive_TBU.contiguous()
    arrive_TBU[:, :, 0] = 0.0  # nothing leads to position 0; the running sum starts there
    blank_TBU = torch.cat([blank_BTU, _reverse(blank_BTU, reverse_BN)]).transpose(0, 1)
    scan = _scan_standard if topology == "standard" else _scan_one_symbol
    before_BTU, after_BTU = scan(arrive_TBU, blank_TBU.contiguous(), B)
    alpha_BTU = before_BTU[:B]
    beta_BTU = _reverse(after_BTU[B:], reverse_BN)
    batch = torch.arange(B, device=label_BTU.device)
    # Where the reversed lattice starts its last node, the whole of it has been summed.
    log_prob_B = after_BTU[B + batch, enc_lens_B - 1, target_lens_B]
    alpha_BTU = (alpha_BTU - log_prob_B[:, None, None]).masked_fill_(~valid_BTU, -torch.inf)
    label_occ_BTU = torch.zeros_like(label_BTU)
    next_BTU = _reverse(before_BTU[B:], reverse_BN) if topology == "one_symbol" else beta_BTU
    arcs_BTU = alpha_BTU[:, :, :-1] + label_BTU[:, :, :-1] + next_BTU[:, :, 1:]
    label_occ_BTU[:, :, :-1] = arcs_BTU.masked_fill_(~valid_BTU[:, :, 1:], -torch.inf).exp_()
    return Occupancy(log_prob_B, alpha_BTU.add_(beta_BTU).exp_(), label_occ_BTU)


def _scan_standard(arrive_TBU: Tensor, blank_TBU: Tensor, B: int) -> tuple[Tensor, Tensor]:
    """Sums up to each node; the same for both results. [2B, T, U + 1]."""
    sums_TBU = arrive_TBU.cumsum(2)
    # The forward half leaves a frame by the blank before it, the reversed half by its own.
    move_TBU = torch.cat([blank_TBU[:-1, :B], blank_TBU[1:, B:]], dim=1)
    steps = (sums_TBU[:-1] - sums_TBU[1:]).add_(move_TBU).unbind(0)
    out_TBU = torch.empty_like(sums_TBU)
    out_TBU[0, :B] = 0.0
    out_TBU[0, B:] = blank_TBU[0, B:, :1]
    frames = out_TBU.unbind(0)
    for t, step in enumerate(steps):
        torch.logcumsumexp(step.add_(frames[t]), 1, out=frames[t + 1])
    out_BTU = out_TBU.add_(sums_TBU).transpose(0, 1)
    return out_BTU, out_BTU


def _scan_one_symbol(arrive_TBU: Tensor, blank_TBU: Tensor, B: int) -> tuple[Tensor, Tensor]:
    """Sums before and after each frame. [2B, T, U + 1] each."""
    T, B2, U1 = blank_TBU.shape
    del B
    sums_TBU = blank_TBU.new_zeros(T + 1, B2, U1)
    torch.cumsum(blank_TBU, 0, out=sums_TBU[1:])
    steps = (arrive_TBU[:, :, 1:] + sums_TBU[:-1, :, :-1] - sums_TBU[1:, :, 1:]).unbind(0)
    out_TBU = torch.full_like(sums_TBU, -torch.inf)
    out_TBU[:, :, 0] = 0.0
    stay, come = out_TBU[:, :, 1:].unbind(0), out_TBU[:, :, :-1].unbind(0)
    for t, step in enumerate(steps):
        torch.logaddexp(stay[t], step.add_(come[t]), out=stay[t + 1])
    out_BTU = out_TBU.add_(sums_TBU).transpose(0, 1)
    return out_BTU[:, :-1], out_BTU[:, 1:]


def _shift(label_BTU: Tensor) -> Tensor:
    """Label scores by the position they lead to."""
    return torch.nn.functional.pad(label_BTU[:, :, :-1], (1, 0))


def _reversal(x_BTU: Tensor, enc_lens_B: Tensor, target_lens_B: Tensor) -> Tensor:
    """Index of (T_b - 1 - t, U_b - u) in each flattened utterance; its own inverse inside it."""
    _, T, U1 = x_BTU.shape
    t = (enc_lens_B[:, None] - 1 - torch.arange(T, device=x_BTU.device)).clamp_(min=0)
    u = (target_lens_B[:, None] - torch.arange(U1, device=x_BTU.device)).clamp_(min=0)
    return (t[:, :, None] * U1 + u[:, None, :]).flatten(1)


def _reverse(x_BTU: Tensor, index_BN: Tensor) -> Tensor:
    return x_BTU.flatten(1).gather(1, index_BN).view(x_BTU.shape)

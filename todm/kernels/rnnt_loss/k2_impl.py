"""k2's pruned loss: the joiner is evaluated at a band of S label positions a frame, not at all of them.

The band (k2's ranges) follows the probability of the nodes. Without a teacher, k2 takes that from a simple
lattice whose logits are a sum, W tanh(enc) + W tanh(pred) + b, so nothing of size T x U x V is needed.
The joiner's own W replaces the extra projections of the paper, and no extra loss trains the simple
lattice. A student takes the band of its teacher's occupancy, so that both are compared on the same nodes.

Kuang et al. 2022 (arXiv 2206.13236). Letters: B utterances, T frames, U labels, S positions kept a
frame, J joiner width, V vocabulary, N nodes in the band.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.errors import ConfigError
from todm.kernels.k2_package import load_k2
from todm.kernels.rnnt_loss.divergence import node_divergence
from todm.kernels.rnnt_loss.problem import Problem, RnntLoss, Teacher

k2: Any = load_k2("rnnt_loss with impl='k2'")

_KINDS = {"standard": "regular", "one_symbol": "modified"}


def rnnt_loss(problem: Problem, *, positions: int = 5) -> RnntLoss:
    """The op, see `todm.kernels.rnnt_loss.rnnt_loss`, on `positions` label positions of each frame.

    Occupancy and divergence are zero at the nodes left out.

    Raises:
        ConfigError: a divergence weighted uniformly over all nodes, most of which are not computed.
    """
    p = problem
    if p.teacher is not None and p.divergence.weighting == "uniform":
        raise ConfigError(
            "rnnt_loss: impl 'k2' does not support weighting='uniform', because its lattice is pruned: "
            "use weighting='occupancy' or impl='torch'"
        )
    labels_BU = p.labels()[:, :-1].contiguous()
    enc_lens_B, target_lens_B = p.lens()
    zeros_B = torch.zeros_like(enc_lens_B)
    boundary_B4 = torch.stack([zeros_B, zeros_B, target_lens_B, enc_lens_B], 1)
    own = (*p.without_padding(p.enc_BTJ, p.pred_BUJ), p.weight_VJ, p.bias_V)
    ranges_BTS = _ranges(p, own, labels_BU, boundary_B4, positions)
    logits_BTSV = _logits(own, ranges_BTS)
    label_BUT, blank_BUT = k2.get_rnnt_logprobs_pruned(
        logits=logits_BTSV,
        symbols=labels_BU,
        ranges=ranges_BTS,
        termination_symbol=0,
        boundary=boundary_B4,
        rnnt_type=_KINDS[p.topology],
    )
    log_prob_B, occupancy_BTU = _sum_paths(p, label_BUT, blank_BUT, boundary_B4)
    divergence_B = torch.zeros_like(log_prob_B)
    if p.teacher is not None:
        divergence_B = _divergence(p, p.teacher, logits_BTSV, ranges_BTS)
    return RnntLoss(-log_prob_B, divergence_B, occupancy_BTU)


@torch.no_grad()
def _ranges(
    p: Problem,
    tensors: tuple[Tensor, ...],
    labels_BU: Tensor,
    boundary_B4: Tensor,
    positions: int,
) -> Tensor:
    """The label positions kept at each frame, int64 [B, T, S], adjacent and ascending."""
    (B, U), T = labels_BU.shape, p.enc_BTJ.shape[1]
    if p.topology == "standard":  # a path may climb S - 1 positions a frame and must reach the end
        needed = max((u - 1) // t + 2 for t, u in zip(p.enc_lens, p.target_lens, strict=True))
        positions = max(positions, needed)
    if positions > U:
        return torch.arange(U + 1, device=labels_BU.device).expand(B, T, U + 1).contiguous()
    if p.teacher is not None:
        visits_BUT = p.teacher.occupancy.masked_fill(~p.valid(), 0.0).transpose(1, 2).contiguous()
        frames = T + 1 if p.topology == "standard" else T
        grads = (visits_BUT.new_zeros(B, U, frames), visits_BUT)
    else:
        enc_BTJ, pred_BUJ, weight_VJ, bias_V = tensors
        _, grads = k2.rnnt_loss_simple(
            am=_wide(F.linear(enc_BTJ.tanh(), weight_VJ)),
            lm=_wide(F.linear(pred_BUJ.tanh(), weight_VJ, bias_V)),
            symbols=labels_BU,
            termination_symbol=0,
            boundary=boundary_B4,
            rnnt_type=_KINDS[p.topology],
            reduction="none",
            return_grad=True,
        )
    return k2.get_rnnt_prune_ranges(*grads, boundary_B4, positions)


def _logits(tensors: tuple[Tensor, ...], ranges_BTS: Tensor) -> Tensor:
    """The joiner at the nodes of the band, [B, T, S, V]."""
    enc_BTJ, pred_BUJ, weight_VJ, bias_V = tensors
    enc_BTSJ, pred_BTSJ = k2.do_rnnt_pruning(am=enc_BTJ, lm=pred_BUJ, ranges=ranges_BTS)
    return _wide(F.linear(torch.tanh(enc_BTSJ + pred_BTSJ), weight_VJ, bias_V))


def _wide(x: Tensor) -> Tensor:
    """k2 sums in float32 or float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sum_paths(
    p: Problem, label_BUT: Tensor, blank_BUT: Tensor, boundary_B4: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probability of the labels [B], and occupancy [B, T, U + 1]."""
    T = blank_BUT.shape[2]
    if p.fastemit and label_BUT.requires_grad:
        label_BUT.register_hook(lambda grad: grad * (1 + p.fastemit))
    late_BT = F.pad(p.delay(), (0, label_BUT.shape[2] - T))
    log_prob_B, (label_occ, blank_occ) = k2.mutual_information_recursion(
        label_BUT + late_BT[:, None].to(label_BUT.dtype), blank_BUT, boundary_B4, return_grad=True
    )
    visits_BUT = F.pad(label_occ[:, :, :T], (0, 0, 0, 1)) + blank_occ
    return log_prob_B, visits_BUT.transpose(1, 2).detach()


def _divergence(p: Problem, teacher: Teacher, logits_BTSV: Tensor, ranges_BTS: Tensor) -> Tensor:
    """Weighted divergence of each utterance [B], over the band."""
    B, T = ranges_BTS.shape[:2]
    own_NV = logits_BTSV.flatten(0, 2)
    inputs = (*p.without_padding(teacher.enc_BTJ, teacher.pred_BUJ), *teacher[2:4])
    theirs_NV = _logits(inputs, ranges_BTS).flatten(0, 2).to(own_NV.dtype)
    labels_BTU = p.labels()[:, None].expand(B, T, -1)
    value_N, grad_NV = node_divergence(
        own_NV.detach().log_softmax(1),
        theirs_NV.log_softmax(1),
        label_N=labels_BTU.gather(2, ranges_BTS).flatten(),
        weight_N=p.node_weights().gather(2, ranges_BTS).flatten().to(own_NV.dtype),
        config=p.divergence,
    )
    linear_N = (grad_NV * own_NV).sum(1)  # has the value's gradient, known in closed form
    return (value_N + linear_N - linear_N.detach()).view(B, -1).sum(1)

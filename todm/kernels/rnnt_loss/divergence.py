"""Divergence of a student's node from its teacher's, with its gradient in closed form.

Letters: N nodes, V vocabulary. p teacher, q student, w = p/q. The alpha-divergence and, in closed
form, its gradient with respect to the student's logits (AlphaNet, arXiv 2102.07954, eq. 3):

    D = E_q[(w^alpha - 1)] / (alpha (alpha - 1))
    dD/dlogit = q (E_q[rho] - rho),   rho = w^alpha / alpha

with the limits KL(p | q) at alpha = 1 and KL(q | p) at 0, where rho = log w. w^alpha is clipped,
in value and gradient, except at those limits. With m = q rho the gradient is q sum(m) - m, and
the value follows from sum(m) too.
"""

import torch
from torch import Tensor

from todm.kernels.rnnt_loss.problem import Divergence


def node_divergence(
    logq_NV: Tensor, logp_NV: Tensor, *, label_N: Tensor, weight_N: Tensor, config: Divergence
) -> tuple[Tensor, Tensor]:
    """Weighted divergence of each node [N], and its gradient by the student's logits [N, V].

    Args:
        logq_NV: Student's log-probabilities.
        logp_NV: Teacher's.
        label_N: The label that may follow, 0 where none may (the blank's class then).
        weight_N: Factor of value and gradient.
        config: Kind and constants.
    """
    if config.kind == "collapsed":
        value_N, grad_NV = _collapsed(logq_NV.exp(), logp_NV.exp(), label_N)
        return value_N * weight_N, grad_NV.mul_(weight_N[:, None])
    ratio_NV, q_NV = logp_NV - logq_NV, logq_NV.exp()
    first = 1.0 if config.kind == "kl" else config.alpha_max
    value_N, mean_N, mass_NV = _moments(first, ratio_NV, q_NV, logp_NV, config.clip)
    if config.kind == "kl" or config.alpha_min == config.alpha_max:
        grad_NV = q_NV.mul_((weight_N * mean_N)[:, None])
        return value_N * weight_N, grad_NV.addcmul_(mass_NV, -weight_N[:, None])
    low_N, low_mean_N, low_mass_NV = _moments(
        config.alpha_min, ratio_NV, q_NV, logp_NV, config.clip
    )
    low_wins_N = low_N > value_N
    low_weight_N, high_weight_N = weight_N * low_wins_N, weight_N * ~low_wins_N
    grad_NV = q_NV.mul_((low_weight_N * low_mean_N + high_weight_N * mean_N)[:, None])
    grad_NV.addcmul_(low_mass_NV, -low_weight_N[:, None])
    grad_NV.addcmul_(mass_NV, -high_weight_N[:, None])
    return torch.maximum(low_N, value_N) * weight_N, grad_NV


def _moments(
    alpha: float, ratio_NV: Tensor, q_NV: Tensor, logp_NV: Tensor, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, sum of m, and m, at one alpha; `ratio_NV` is log w."""
    if alpha == 1.0:
        p_NV = logp_NV.exp()
        value_N = torch.linalg.vecdot(p_NV, ratio_NV)
        return value_N, torch.ones_like(value_N), p_NV
    if alpha == 0.0:
        mass_NV = q_NV * ratio_NV
        mean_N = mass_NV.sum(1)
        return -mean_N, mean_N, mass_NV
    mass_NV = (ratio_NV * alpha).exp_().clamp_(max=clip).mul_(q_NV).div_(alpha)
    mean_N = mass_NV.sum(1)
    return (alpha * mean_N - 1) / (alpha * (alpha - 1)), mean_N, mass_NV


def _collapsed(q_NV: Tensor, p_NV: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
    """KL over {blank, label, rest}: within a class the gradient is q (1 - P_class / Q_class)."""
    columns_N2 = torch.stack([torch.zeros_like(label_N), label_N], 1)
    q_N2, p_N2 = q_NV.gather(1, columns_N2), p_NV.gather(1, columns_N2)
    # The rest is summed, not subtracted from 1: near 1 nothing would be left of it.
    q_rest_N = q_NV.scatter(1, columns_N2, 0.0).sum(1)
    p_rest_N = p_NV.scatter(1, columns_N2, 0.0).sum(1)
    p_N2 = torch.stack([p_N2[:, 0], p_N2[:, 1].masked_fill(label_N == 0, 0.0)], 1)
    tiny = torch.finfo(q_NV.dtype).tiny
    ratio_N = p_rest_N / q_rest_N.clamp_min(tiny)
    value_N = torch.special.xlogy(p_N2, p_N2 / q_N2.clamp_min(tiny)).sum(1)
    value_N += torch.special.xlogy(p_rest_N, ratio_N)
    grad_NV = q_NV * (1 - ratio_N)[:, None]
    labels_N = q_N2[:, 1] - p_N2[:, 1]
    grad_NV.scatter_(1, label_N[:, None], labels_N[:, None])
    grad_NV[:, 0] = q_N2[:, 0] - p_N2[:, 0]
    return value_N, grad_NV

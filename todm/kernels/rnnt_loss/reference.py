"""The oracle: the whole lattice in memory, the recursion of Graves 2012 (eq. 16), autograd.

Slow, and of size B x T x U x V. The other implementations are tested against it in float64.
"""

import torch
from torch import Tensor

from todm.kernels.rnnt_loss.problem import Divergence, Problem, RnntLoss, Topology


def rnnt_loss(problem: Problem) -> RnntLoss:
    """The op, see `todm.kernels.rnnt_loss.rnnt_loss`."""
    p = problem
    valid_BTU = p.valid()
    inputs = p.without_padding(p.enc_BTJ, p.pred_BUJ)
    logq_BTUV = _log_probs(*inputs, p.weight_VJ, p.bias_V)
    labels_BU = p.targets_BU.long().masked_fill(~valid_BTU[:, 0, 1:], 0)
    labels_BTU = labels_BU[:, None, :].expand(-1, p.enc_BTJ.shape[1], -1)
    blank_BTU = logq_BTUV[..., 0]
    label_BTU = logq_BTUV[:, :, :-1].gather(3, labels_BTU[..., None]).squeeze(3)
    label_BTU = label_BTU + p.fastemit * (label_BTU - label_BTU.detach())
    label_BTU = label_BTU + p.delay()[:, :, None]
    loss_B = _losses(p, label_BTU, blank_BTU)
    divergence_B = torch.zeros_like(loss_B)
    if p.teacher is not None:
        t = p.teacher
        inputs = p.without_padding(t.enc_BTJ, t.pred_BUJ)
        logp_BTUV = _log_probs(*inputs, t.weight_VJ, t.bias_V)
        padded_BTU = torch.nn.functional.pad(labels_BTU, (0, 1))
        nodes_BTU = _divergence(logq_BTUV, logp_BTUV, padded_BTU, p.divergence)
        divergence_B = (nodes_BTU * p.node_weights()).sum((1, 2))
    return RnntLoss(loss_B, divergence_B, _occupancy(p, label_BTU.detach(), blank_BTU.detach()))


def _log_probs(enc_BTJ: Tensor, pred_BUJ: Tensor, weight_VJ: Tensor, bias_V: Tensor) -> Tensor:
    hidden_BTUJ = torch.tanh(enc_BTJ[:, :, None] + pred_BUJ[:, None])
    return torch.nn.functional.linear(hidden_BTUJ, weight_VJ, bias_V).log_softmax(3)


def _losses(p: Problem, label_BTU: Tensor, blank_BTU: Tensor) -> Tensor:
    """Loss of each utterance."""
    return torch.stack(
        [
            _path_sum(label_BTU[b, :T], blank_BTU[b, :T], U, p.topology)
            for b, (T, U) in enumerate(zip(p.enc_lens, p.target_lens, strict=True))
        ]
    ).neg()


def _path_sum(label_TU: Tensor, blank_TU: Tensor, U: int, topology: Topology) -> Tensor:
    """Log-probability of the labels: over t, then over u, one scalar at a time."""
    step = 0 if topology == "standard" else 1  # frames a label takes
    T = blank_TU.shape[0]
    alpha = {(0, 0): blank_TU.new_zeros(())}
    for t in range(T + 1):
        for u in range(U + 1):
            arrivals = []
            if (t - 1, u) in alpha:
                arrivals.append(alpha[t - 1, u] + blank_TU[t - 1, u])
            if (t - step, u - 1) in alpha and t - step < T:
                arrivals.append(alpha[t - step, u - 1] + label_TU[t - step, u - 1])
            if arrivals:
                alpha[t, u] = torch.logsumexp(torch.stack(arrivals), 0)
    return alpha[T, U]


def _occupancy(p: Problem, label_BTU: Tensor, blank_BTU: Tensor) -> Tensor:
    """Visits of a node are the sum over its two arcs: minus the gradients of the loss by their scores."""
    with torch.enable_grad():
        label_BTU.requires_grad_()
        blank_BTU.requires_grad_()
        loss = _losses(p, label_BTU, blank_BTU).sum()
        arcs = (label_BTU, blank_BTU)
        # With no label, or no room for a blank, one kind of arc takes no part in the loss.
        grads = torch.autograd.grad(loss, arcs, allow_unused=True)
    label_grad, blank_grad = (
        torch.zeros_like(x) if g is None else g for x, g in zip(arcs, grads, strict=True)
    )
    return -(torch.nn.functional.pad(label_grad, (0, 1)) + blank_grad)


def _divergence(
    logq_BTUV: Tensor, logp_BTUV: Tensor, labels_BTU: Tensor, config: Divergence
) -> Tensor:
    """Value, with the gradient of AlphaNet's surrogate -sum sg(q rho) log q. [B, T, U + 1]."""
    if config.kind == "collapsed":
        return _collapsed(logq_BTUV, logp_BTUV, labels_BTU)
    logw, q = (logp_BTUV - logq_BTUV).detach(), logq_BTUV.detach().exp()
    values = []
    for alpha in (config.alpha_min, config.alpha_max) if config.kind == "alpha" else (1.0,):
        if alpha == 1:
            terms, rho = q * logw.exp() * logw, logw.exp()
        elif alpha == 0:
            terms, rho = -q * logw, logw
        else:
            power = (alpha * logw).exp().clamp(max=config.clip)
            terms, rho = q * (power - 1) / (alpha * (alpha - 1)), power / alpha
        surrogate = -(q * rho * logq_BTUV).sum(3)
        values.append(terms.sum(3) + surrogate - surrogate.detach())
    if len(values) == 1:
        return values[0]
    low, high = values
    return torch.where(low.detach() > high.detach(), low, high)


def _collapsed(logq_BTUV: Tensor, logp_BTUV: Tensor, labels_BTU: Tensor) -> Tensor:
    """KL over {blank, label, rest}, by autograd."""
    blank = torch.zeros_like(logq_BTUV, dtype=torch.bool)
    blank[..., 0] = True
    label = torch.zeros_like(blank).scatter(3, labels_BTU[..., None], value=True) & ~blank
    total = torch.zeros_like(logq_BTUV[..., 0])
    for members in (blank, label, ~blank & ~label):
        q = logq_BTUV.exp().masked_fill(~members, 0.0).sum(3)
        p = logp_BTUV.exp().masked_fill(~members, 0.0).sum(3)
        some = members.any(3)
        ratio = torch.where(some, p, 1.0) / torch.where(some, q, 1.0)
        total = total + torch.xlogy(p, ratio)
    return total

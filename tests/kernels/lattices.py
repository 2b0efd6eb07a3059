"""Inputs of rnnt_loss, its results with all gradients, and their comparison, for every implementation."""

import math

import torch

from todm.kernels.rnnt_loss import Divergence

TOPOLOGIES = ("standard", "one_symbol")
KINDS = {
    "alpha": Divergence(),
    "alpha, other constants": Divergence(alpha_min=-0.5, alpha_max=2.0, clip=3.0),
    "alpha at its limits": Divergence(alpha_min=0.0, alpha_max=1.0),
    "one alpha": Divergence(alpha_min=-1.0, alpha_max=-1.0),
    "kl": Divergence(kind="kl"),
    "collapsed": Divergence(kind="collapsed"),
    "uniform": Divergence(weighting="uniform"),
    "few nodes": Divergence(min_weight=0.7),
}
NAMES = ("loss", "divergence", "occupancy", "enc", "pred", "weight", "bias")


def draw_inputs(lens, *, V=7, J=5, dtype=torch.float64):
    """Positional arguments of the op; `lens` are (frames, labels) of each utterance."""
    B, T, U = len(lens), max(t for t, _ in lens), max(u for _, u in lens)
    floats = [torch.randn(s, dtype=dtype) for s in ((B, T, J), (B, U + 1, J), (V, J), (V,))]
    enc_lens, target_lens = (torch.tensor(x) for x in zip(*lens, strict=True))
    return [*floats, torch.randint(1, V, (B, U)), enc_lens, target_lens]


def spoil_padding(inputs):
    """NaN beyond every utterance's end, and no label: what is padding must not be read."""
    enc, pred, _, _, targets, *lens = inputs
    for b, (frames, labels) in enumerate(zip(*(x.tolist() for x in lens), strict=True)):
        enc[b, frames:], pred[b, labels + 1 :], targets[b, labels:] = math.nan, math.nan, -100
    return inputs


def results(op, inputs):
    """What `op(*inputs)` returns, and the gradients for random weights of its two losses."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs[:4]]
    out = op(*leaves, *inputs[4:])
    weights = torch.linspace(0.5, 2.0, 2 * len(out.loss_B)).to(out.loss_B)
    (torch.cat([out.loss_B, out.divergence_B]) * weights).sum().backward()
    return [*(x.detach() for x in out), *(x.grad for x in leaves)]


def assert_same(got, want, *, rtol=1e-10, floor=1e-9):
    """Relative errors of `results`; a norm below `floor` counts as that much."""
    for name, a, b in zip(NAMES, got, want, strict=True):
        err = (a.double() - b.double()).norm() / b.double().norm().clamp_min(floor)
        assert err < rtol, f"{name}: relative error {err:.1e}, allowed {rtol:.0e}"

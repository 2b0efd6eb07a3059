"""Folding: a factor of each input of a layer moves into the layer before; outputs stay the same.

    W x = (W diag s) (x / s)

A norm in front divides its gain and shift by s; a linear layer in front divides the rows that make x,
and their bias. Between them may be any function f with f(x / s) = f(x) / s for positive s: the identity,
 attention over values, ReLU, the product with a gate.

Letters: N outputs, K inputs of a layer.
"""

import torch
from torch import Tensor, nn

from todm.compress.adapter import Fold
from todm.compress.calibrate import Block

_SAME = 1e-3
"""Change of a block's output, relative to its largest value, up to which a fold counts as exact: far
above rounding in float32, far below the effect of a wrong map of folds."""


def folds_of(block: Block, names: list[str]) -> list[Fold]:
    """Folds with a layer among `names` (full names), and one that folds nowhere for each of the rest."""
    folds = [f for f in block.folds if any(block.full(n) in names for n in f.layers)]
    inside = {block.full(n) for f in folds for n in f.layers}
    inner = [block.relative(n) for n in names if n not in inside]
    return folds + [Fold(layers=(n,), inspect=n) for n in inner]


def scale_inputs(layer: nn.Linear, s_K: Tensor) -> None:
    """W <- W diag s."""
    layer.weight.copy_(layer.weight.float() * s_K)


def unscale_norm(norm: nn.Module, s_K: Tensor, *, offset: float) -> None:
    """Gain and shift are divided by s.

    Args:
        norm: has a `weight` [K], and perhaps a `bias`.
        s_K: positive.
        offset: what the norm adds to its stored weight before it multiplies with it (Gemma: 1).
    """
    weight, bias = norm.get_parameter("weight"), norm._parameters.get("bias")
    weight.copy_((weight.float() + offset) / s_K - offset)
    if bias is not None:
        bias.copy_(bias.float() / s_K)


def unscale_outputs(layer: nn.Linear, s_K: Tensor) -> Tensor:
    """The last K rows of the weight and of the bias are divided by s.

    Returns:
        [N], the factor of each output from now on.
    """
    factor_N = torch.ones(layer.out_features, device=s_K.device)
    factor_N[-len(s_K) :] = 1 / s_K
    layer.weight.copy_(layer.weight.float() * factor_N[:, None])
    if layer.bias is not None:
        layer.bias.copy_(layer.bias.float() * factor_N)
    return factor_N


@torch.no_grad()
def fold(block: Block, place: Fold, s_K: Tensor) -> tuple[bool, Tensor | None]:
    """Move a factor into the layer before, if there is one and the block's output stays the same.

    Args:
        block: its weights are changed in place, and restored if its output would change.
        place: the layers and the module in front of them.
        s_K: positive, the divisor of the layers' inputs.

    Returns:
        Whether it was done, and the factor [N] of each output of a linear layer in front from now on.
    """
    if place.into is None:
        return False, None
    layers = [block.get(block.full(n)) for n in place.layers]
    into = block.get(block.full(place.into))
    if not _fits(into, len(s_K)) or not all(isinstance(m, nn.Linear) for m in layers):
        return False, None
    touched = [p for m in {*layers, into} for p in m.parameters(recurse=False)]
    before = [p.clone() for p in touched]
    expected = block.call(block.calls[0])
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        scale_inputs(layer, s_K)
    factor_N = None
    if isinstance(into, nn.Linear):
        factor_N = unscale_outputs(into, s_K)
    else:
        unscale_norm(into, s_K, offset=place.offset)
    if _same(block.call(block.calls[0]), expected):
        return True, factor_N
    for parameter, value in zip(touched, before, strict=True):
        parameter.copy_(value)
    return False, None


def _fits(into: nn.Module, num_inputs: int) -> bool:
    """Whether a module can take over a factor of so many channels."""
    weight = into._parameters.get("weight")
    if isinstance(into, nn.Linear):
        return into.out_features >= num_inputs
    return weight is not None and tuple(weight.shape) == (num_inputs,)


def _same(output: Tensor, expected: Tensor) -> bool:
    # Values of few digits (bfloat16) are rounded again by a fold.
    tolerance = max(_SAME, 8 * torch.finfo(expected.dtype).eps)
    worst = (output.float() - expected.float()).abs().max()
    return bool(worst <= tolerance * expected.float().abs().max())

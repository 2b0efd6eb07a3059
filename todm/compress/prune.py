"""One-shot N:M sparsity of linear layers and convolutions: the pass `prune`.

Of every m neighbouring inputs of an output, the n of largest score are kept:

    magnitude    |w|
    wanda        |w_nk| sqrt(mean x_k^2)                       (arXiv 2306.11695, eq. 1)
    sparsegpt    w_nk^2 / [H^-1]_kk, and the rest is updated   (arXiv 2301.00774, section 3)

A convolution is the product of its unfolded inputs; its groups of inputs lie along the channels.

Letters: N outputs, K inputs or columns of the weight's matrix (see `masks.weight_matrix`), I columns of
a group.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from todm.compress.calibrate import Block, Inputs, Means, Moment, collect, too_few_rows
from todm.compress.config import PruneConfig
from todm.compress.layers import LayerResult, num_groups, weight_of, why_not_a_layer
from todm.compress.masks import nm_mask, weight_matrix, weight_of_matrix
from todm.compress.solver import inverse_factor, obs_update


@torch.no_grad()
def run(block: Block, config: PruneConfig) -> dict[str, LayerResult]:
    """Prune the layers of a block: masks go to `block.masks`, weights are changed in place.

    Raises:
        ConfigError: a weight that is not finite.
        CorpusError: inputs that are not finite.
    """
    assert config.method != "sr_ste", "that pass trains"
    done, weights = block.candidates(lambda module: why_not(module, config))
    if config.method == "magnitude":
        for name, weight in weights.items():
            mask = nm_mask(weight.abs(), config.n, config.m, pairs=config.pairs)
            done[name] = _finish(block, name, weight, mask, what=what(config))
        return done
    make = Means if config.method == "wanda" else Moment
    for name, seen in collect(block, list(weights), make, m=config.m).items():
        if seen.why_not:
            done[name] = LayerResult(why_not=seen.why_not)
        else:
            done[name] = _from_inputs(block, name, weights[name], seen, config)
    return done


def what(config: PruneConfig) -> str:
    """The account of a pruned layer, such as `2:4 wanda`."""
    pairs = " in pairs" if config.pairs else ""
    return f"{config.n}:{config.m}{pairs} {config.method}"


def why_not(module: nn.Module, config: PruneConfig) -> str:
    """Why a layer cannot be pruned; empty if it can."""
    if reason := why_not_a_layer(module):
        return reason
    inputs = weight_of(module).shape[1]
    if inputs > config.n:
        return ""
    return f"an output reads {inputs} inputs, of which {config.n}:{config.m} prunes none"


def wanda(weight_NK: Tensor, square_K: Tensor, n: int, m: int, *, pairs: bool = False) -> Tensor:
    """Wanda's mask [N, K]; the score is |w| times the root mean square of the input."""
    return nm_mask(weight_NK.double().abs() * square_K.double().sqrt(), n, m, pairs=pairs)


def sparsegpt(
    weight_NK: Tensor, moment_KK: Tensor, n: int, m: int, *, pairs: bool = False
) -> tuple[Tensor, Tensor]:
    """SparseGPT's weight and mask: of every m columns, the n of largest w^2 / U_kk^2 are kept.

    The mask of m columns is chosen when they are reached. The paper's code calls U "Hinv", so its
    w^2 / diag(Hinv)^2 is this score.

    Args:
        weight_NK: [N, K] of which every m columns are a group.
        moment_KK: second moment of the inputs.
        n: kept.
        m: of how many.
        pairs: see `nm_mask`.

    Returns:
        [N, K] of the moment's dtype, and bool [N, K].
    """
    masks: list[Tensor] = []

    def choose(now_NI: Tensor, factor_I: Tensor, _first: int) -> Callable[[Tensor, int], Tensor]:
        mask_NI = nm_mask((now_NI / factor_I).square(), n, m, pairs=pairs)
        masks.append(mask_NI)
        return lambda now_N, i: now_N * mask_NI[:, i]

    new_NK = obs_update(weight_NK, inverse_factor(moment_KK), choose, step=m)
    return new_NK, torch.cat(masks, 1)


def _from_inputs(
    block: Block, name: str, weight: Tensor, seen: Inputs[Means | Moment], config: PruneConfig
) -> LayerResult:
    """Prune by the inputs; the groups of a convolution one after another."""
    n, m, pairs = config.n, config.m, config.pairs
    new_parts: list[Tensor] = []
    mask_parts: list[Tensor] = []
    groups = weight.chunk(num_groups(block.get(name)))
    for group, part in zip(groups, seen.parts, strict=True):
        matrix_NK = weight_matrix(group, m)
        if isinstance(part, Moment):
            matrix_NK, mask_NK = sparsegpt(matrix_NK, part.moment_KK, n, m, pairs=pairs)
        else:
            mask_NK = wanda(matrix_NK, part.square_K, n, m, pairs=pairs)
        new_parts.append(matrix_NK)
        mask_parts.append(mask_NK)
    new_NK, mask_NK = torch.cat(new_parts), torch.cat(mask_parts)
    new, mask = (weight_of_matrix(part, tuple(weight.shape), m) for part in (new_NK, mask_NK))
    few = too_few_rows(seen.rows, mask_NK.shape[1]) if config.method == "sparsegpt" else ""
    return _finish(block, name, new, mask, what=f"{what(config)}{few}", rows=seen.rows)


def _finish(
    block: Block, name: str, weight: Tensor, mask: Tensor, *, what: str, rows: int = 0
) -> LayerResult:
    """Put weight and mask into the block."""
    weight_of(block.get(name)).copy_(torch.where(mask, weight, torch.zeros_like(weight)))
    block.masks[name] = mask
    figures = {"density": float(mask.float().mean())} | ({"rows": float(rows)} if rows else {})
    return LayerResult(what=what, figures=figures)

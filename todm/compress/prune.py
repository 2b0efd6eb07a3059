"""One-shot N:M sparsity of linear layers and convolutions: the pass `prune`.

Of every m neighbouring inputs of an output, the n of largest score are kept:

    magnitude    |w|
    wanda        |w_nk| sqrt(mean x_k^2)                    (arXiv 2306.11695, eq. 1)
    sparsegpt    w_nk^2 / [H^-1]_kk, and the rest mended    (arXiv 2301.00774, section 3)

A convolution is the product of its unfolded inputs; its groups of inputs lie along the channels.

Letters: N outputs, K inputs or columns of the weight's matrix, see `masks.weight_matrix`.
"""

import torch
from torch import Tensor, nn

from todm.compress import solver
from todm.compress.affine import CONVOLUTIONS, finite_weight, num_groups, why_not_a_layer
from todm.compress.config import PruneConfig
from todm.compress.masks import nm_mask, weight_matrix, weight_of_matrix
from todm.compress.statistics import Means, Moment, Watch, too_few_rows, watch, why_no_rows
from todm.compress.work import BlockWork, LayerResult


@torch.no_grad()
def run(block: BlockWork, config: PruneConfig) -> dict[str, LayerResult]:
    """Prune the layers of a block: masks go to `block.masks`, weights are changed in place.

    Raises:
        ConfigError: a weight that is not finite.
        CorpusError: inputs that are not finite.
    """
    assert config.method != "sr_ste", "that pass trains"
    done = {name: LayerResult(why_not=_why_not(block.get(name), config)) for name in block.layers}
    names = [name for name in block.layers if not done[name].why_not]
    weights = {name: finite_weight(name, block.get(name)) for name in names}
    if config.method == "magnitude":
        for name, weight in weights.items():
            mask = nm_mask(weight.abs(), config.n, config.m, pairs=config.pairs)
            done[name] = _finish(block, name, weight, mask, _what(config))
        return done
    make = Means if config.method == "wanda" else Moment
    for name, seen in watch(block, names, make, m=config.m).items():
        done[name] = _from_inputs(block, name, weights[name], seen, config)
    return done


def wanda_scores(weight_NK: Tensor, square_K: Tensor) -> Tensor:
    """Wanda's scores: |w| times the root mean square of the input, float64 [N, K]."""
    return weight_NK.double().abs() * square_K.double().sqrt()


def _from_inputs(
    block: BlockWork,
    name: str,
    weight: Tensor,
    seen: Watch[Means | Moment],
    config: PruneConfig,
) -> LayerResult:
    """Prune by what came in; the groups of a convolution one after another."""
    if why_not := why_no_rows(seen.rows):
        return LayerResult(why_not=why_not)
    pieces = [
        _prune(weight_matrix(part_weight, config.m), part, config)
        for part_weight, part in zip(
            weight.chunk(num_groups(block.get(name))), seen.parts, strict=True
        )
    ]
    matrix_NK, mask_NK = (torch.cat(each) for each in zip(*pieces, strict=True))
    shape = tuple(weight.shape)
    new = weight_of_matrix(matrix_NK, shape, config.m)
    mask = weight_of_matrix(mask_NK, shape, config.m)
    few = too_few_rows(seen.rows, mask_NK.shape[1]) if config.method == "sparsegpt" else ""
    return _finish(block, name, new, mask, f"{_what(config)}{few}", rows=seen.rows)


def _prune(weight_NK: Tensor, part: Means | Moment, config: PruneConfig) -> tuple[Tensor, Tensor]:
    """Weight and mask of one matrix."""
    n, m = config.n, config.m
    if isinstance(part, Moment):
        return solver.prune(weight_NK, part.moment_KK, n, m, pairs=config.pairs)
    scores_NK = wanda_scores(weight_NK, part.square_K)
    return weight_NK, nm_mask(scores_NK, n, m, pairs=config.pairs)


def _finish(
    block: BlockWork, name: str, weight: Tensor, mask: Tensor, what: str, *, rows: int = 0
) -> LayerResult:
    """Put weight and mask into the block."""
    layer = block.get(name)
    assert isinstance(layer, (nn.Linear, *CONVOLUTIONS))
    layer.weight.copy_(torch.where(mask, weight, torch.zeros_like(weight)))
    block.masks[name] = mask
    figures = {"density": float(mask.float().mean())} | ({"rows": float(rows)} if rows else {})
    return LayerResult(what=what, figures=figures)


def _what(config: PruneConfig) -> str:
    pairs = " in pairs" if config.pairs else ""
    return f"{config.n}:{config.m}{pairs} {config.method}"


def _why_not(module: nn.Module, config: PruneConfig) -> str:
    """Why a layer cannot be pruned; empty if it can."""
    if why_not := why_not_a_layer(module):
        return why_not
    weight = module.weight
    assert isinstance(weight, Tensor)
    if weight.shape[1] > config.n:
        return ""
    return f"an output reads {weight.shape[1]} inputs, of which {config.n}:{config.m} prunes none"

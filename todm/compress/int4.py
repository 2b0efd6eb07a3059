"""Weights of 4 or 3 bits in groups of inputs; activations stay as they are: the pass `int4`.

    rtn     round to nearest, on the grid from the smallest to the largest weight of a group
    gptq    the same grids, but each rounded column is made good for by those after it
            (arXiv 2210.17323); see `solver.py`

Letters: N outputs, K inputs.
"""

import torch
from torch import Tensor, nn

from todm.compress import solver
from todm.compress.affine import finite_weight, why_not_packed
from todm.compress.config import Int4Config
from todm.compress.masks import is_nm
from todm.compress.packed import W4Linear
from todm.compress.statistics import Moment, too_few_rows, watch, why_no_rows
from todm.compress.work import BlockWork, LayerResult
from todm.kernels.matmul_w4 import Packed, quantise_rtn


@torch.no_grad()
def run(block: BlockWork, config: Int4Config) -> dict[str, LayerResult]:
    """Put `W4Linear` in the place of the linear layers of a block; a mask is kept.

    Raises:
        ConfigError: a weight that is not finite.
        CorpusError: inputs that are not finite.
    """
    form = f"int{config.bits}"
    done = {
        name: LayerResult(why_not=why_not_packed(block.get(name), form)) for name in block.layers
    }
    names = [name for name in block.layers if not done[name].why_not]
    weights = {name: finite_weight(name, block.get(name)) for name in names}
    grid = {"group": config.group, "symmetric": config.symmetric}
    if config.method == "rtn":
        for name, weight_NK in weights.items():
            packed = quantise_rtn(weight_NK, config.bits, **grid)
            done[name] = _replace(block, name, packed, f"{form} rtn")
        return done
    for name, seen in watch(block, names, Moment).items():
        if why_not := why_no_rows(seen.rows):
            done[name] = LayerResult(why_not=f"{why_not}, and gptq needs some")
            continue
        weight_NK, mask_NK = weights[name], block.masks.get(name)
        moment_KK = seen.parts[0].moment_KK
        packed = solver.round_to_grid(
            weight_NK, moment_KK, bits=config.bits, mask_NK=mask_NK, **grid
        )
        what = f"{form} gptq{too_few_rows(seen.rows, weight_NK.shape[1])}"
        done[name] = _replace(block, name, packed, what)
    return done


def _replace(block: BlockWork, name: str, packed: Packed, what: str) -> LayerResult:
    """Put the packed layer in its place."""
    layer, mask = block.get(name), block.masks.get(name)
    assert isinstance(layer, nn.Linear)
    _check_mask(packed, mask)
    sparse24 = mask is not None and is_nm(mask, 2, 4)
    bias = None if layer.bias is None else layer.bias.detach()
    block.replace(name, W4Linear(packed, bias, sparse24=sparse24))
    return LayerResult(what=f"{what} g{packed.group}{' 2:4' if sparse24 else ''}")


def _check_mask(packed: Packed, mask: Tensor | None) -> None:
    """Zero has a code on every grid, so what was pruned stays zero."""
    assert mask is None or not bool((packed.dequantise()[~mask] != 0).any())

"""Weights of 4 or 3 bits in groups of inputs; activations stay as they are: the pass `int4`.

    rtn     round to nearest, on the grid from the smallest to the largest weight of a group
    gptq    the same grids, but the columns after a rounded one compensate for it
            (arXiv 2210.17323); see `solver.py`

Letters: N outputs, K inputs, G groups of I inputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from todm.compress.calibrate import Block, Moment, collect, too_few_rows
from todm.compress.config import Int4Config
from todm.compress.layers import LayerResult, why_not_packed
from todm.compress.packed import W4Linear
from todm.compress.solver import inverse_factor, obs_update
from todm.kernels.matmul_w4 import Packed, pack, quantise_rtn


@torch.no_grad()
def run(block: Block, config: Int4Config) -> dict[str, LayerResult]:
    """Put `W4Linear` in the place of the linear layers of a block; a mask is kept.

    Raises:
        ConfigError: a weight that is not finite.
        CorpusError: inputs that are not finite.
    """
    form = f"int{config.bits}"
    done, weights = block.candidates(lambda module: why_not_packed(module, form))
    if config.method == "rtn":
        for name, weight_NK in weights.items():
            packed = quantise_rtn(
                weight_NK, config.bits, group=config.group, symmetric=config.symmetric
            )
            done[name] = LayerResult(what=replace_layer(block, name, packed, f"{form} rtn"))
        return done
    for name, seen in collect(block, list(weights), Moment).items():
        if seen.why_not:
            done[name] = LayerResult(why_not=f"{seen.why_not}, and gptq needs some")
            continue
        weight_NK = weights[name]
        packed = gptq(weight_NK, seen.parts[0].moment_KK, config, mask_NK=block.masks.get(name))
        what = f"{form} gptq{too_few_rows(seen.rows, weight_NK.shape[1])}"
        done[name] = LayerResult(what=replace_layer(block, name, packed, what))
    return done


def replace_layer(block: Block, name: str, packed: Packed, what: str, *, more: str = "") -> str:
    """Put a packed weight in the place of a linear layer; returns the account, with the group and 2:4."""
    layer, mask, sparse24 = block.get(name), block.masks.get(name), block.is_24(name)
    assert isinstance(layer, nn.Linear)
    # Zero has a code on every grid, so what was pruned stays zero.
    assert mask is None or not bool((packed.dequantise()[~mask] != 0).any())
    bias = None if layer.bias is None else layer.bias.detach()
    block.replace(name, W4Linear(packed, bias, sparse24=sparse24))
    return f"{what} g{packed.group}{more}{' 2:4' if sparse24 else ''}"


def gptq(
    weight_NK: Tensor, moment_KK: Tensor, config: Int4Config, *, mask_NK: Tensor | None = None
) -> Packed:
    """GPTQ's weight: every column is rounded to the grid of its group, made when the group is reached.

    Columns go in their own order (no act-order: kernels read groups as they lie).

    Args:
        weight_NK: the weight.
        moment_KK: second moment of the inputs.
        config: bits, group and symmetry of the grids.
        mask_NK: weights that are kept; others become zero, and the columns after compensate for it.
    """
    bits, symmetric = config.bits, config.symmetric
    scales: list[Tensor] = []
    zeros: list[Tensor] = []
    codes: list[Tensor] = []

    def grid(now_NI: Tensor, _factor_I: Tensor, first: int) -> Callable[[Tensor, int], Tensor]:
        mask_NI = None if mask_NK is None else mask_NK[:, first : first + now_NI.shape[1]]
        now_NI = now_NI if mask_NI is None else now_NI * mask_NI
        made = quantise_rtn(now_NI.float(), bits, group=None, symmetric=symmetric)
        middle_N1 = torch.full_like(made.scale_NG, 1 << (bits - 1), dtype=torch.uint8)
        scales.append(made.scale_NG)
        zeros.append(middle_N1 if made.zero_NG is None else made.zero_NG)
        scale_N, zero_N = scales[-1][:, 0].double(), zeros[-1][:, 0].double()

        def rounded(now_N: Tensor, i: int) -> Tensor:
            code_N = ((now_N / scale_N).round() + zero_N).clamp(0, (1 << bits) - 1)
            code_N = code_N if mask_NI is None else torch.where(mask_NI[:, i], code_N, zero_N)
            codes.append(code_N.to(torch.uint8))
            return ((code_N - zero_N) * scale_N).to(now_N.dtype)

        return rounded

    obs_update(weight_NK, inverse_factor(moment_KK), grid, step=config.group)
    zero_NG = None if symmetric else torch.cat(zeros, 1)
    codes_NK, scale_NG = torch.stack(codes, 1), torch.cat(scales, 1)
    return pack(codes_NK, scale_NG, zero_NG=zero_NG, bits=bits, group=config.group)

"""Storage of a weight of 4 or 3 bits that is 2:4: of every four codes the two kept ones.

    kept_NP   uint8, the kept codes of an output one after another, `bits` each, lowest bit first
    codes_NC  their positions, as in `todm.kernels.matmul_24`

12 bits for four weights of 4 bits instead of 16, 10 for 3 bits instead of 12. No kernel reads this:
it is expanded when it is loaded. A weight that is not kept has its group's zero point for a code.

Letters: N outputs, K inputs, G groups of inputs, H = 2 ceil(K / 4) kept codes, P = ceil(bits H / 8).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.kernels import matmul_24, matmul_w4


def keep(weight: matmul_w4.Packed) -> dict[str, Tensor]:
    """`kept_NP` and `codes_NC` of a weight.

    Raises:
        ConfigError: more than two of four weights are not zero.
    """
    N = weight.shape[0]
    steps_NK = (weight.codes_NK().short() - _zero_of_inputs(weight)).to(torch.int8)
    ones_N = torch.ones(N, device=steps_NK.device)
    packed = matmul_24.pack(steps_NK, scale_N=ones_N)
    zero_NH = _zero_of_kept(weight)
    kept_NH = (packed.values_NH.short() + zero_NH).to(torch.uint8)
    return {"kept_NP": _to_bits(kept_NH, weight.bits), "codes_NC": packed.codes_NC}


def expand(kept_NP: Tensor, codes_NC: Tensor, weight: matmul_w4.Packed) -> matmul_w4.Packed:
    """The inverse of `keep`.

    Args:
        kept_NP: stored codes.
        codes_NC: stored positions.
        weight: whose scales, zeros and sizes it has; its words are not read.

    Raises:
        ConfigError: parts that do not match.
    """
    N, K = weight.shape
    num_kept = 2 * -(-K // 4)
    kept_NH = _from_bits(kept_NP, weight.bits, num=num_kept)
    zero_NH = _zero_of_kept(weight)
    steps_NH = (kept_NH.short() - zero_NH).to(torch.int8)
    ones_N = torch.ones(N, device=steps_NH.device)
    steps_NK = matmul_24.Packed(steps_NH, codes_NC, K, ones_N).dense_NK
    codes_NK = (steps_NK.short() + _zero_of_inputs(weight)).to(torch.uint8)
    parts = {"zero_NG": weight.zero_NG, "pre_quant_scale_K": weight.pre_quant_scale_K}
    return matmul_w4.pack(codes_NK, weight.scale_NG, **parts, bits=weight.bits, group=weight.group)


def _zero_of_inputs(weight: matmul_w4.Packed) -> Tensor | int:
    """The code that stands for zero, [N, K]."""
    if weight.zero_NG is None:
        return 1 << (weight.bits - 1)
    return weight.zero_NG.short().repeat_interleave(weight.group, 1)[:, : weight.num_inputs]


def _zero_of_kept(weight: matmul_w4.Packed) -> Tensor | int:
    """The same for the kept codes, [N, H].

    A group of inputs is made of whole groups of four, unless it is the last one, or all of them.
    """
    if weight.zero_NG is None:
        return 1 << (weight.bits - 1)
    zero_NK = weight.zero_NG.short().repeat_interleave(weight.group, 1)[:, : weight.num_inputs]
    return zero_NK[:, ::4].repeat_interleave(2, 1)


def _to_bits(codes_NH: Tensor, bits: int) -> Tensor:
    """[N, P] bytes."""
    shifts = torch.arange(bits, dtype=torch.uint8, device=codes_NH.device)
    bits_NE = (codes_NH[..., None] >> shifts & 1).flatten(1)
    bits_NP8 = F.pad(bits_NE, (0, -bits_NE.shape[1] % 8)).unflatten(1, (-1, 8))
    places = torch.arange(8, dtype=torch.uint8, device=codes_NH.device)
    return (bits_NP8 << places).sum(-1, dtype=torch.int32).to(torch.uint8)


def _from_bits(bytes_NP: Tensor, bits: int, *, num: int) -> Tensor:
    """[N, H] codes."""
    places = torch.arange(8, dtype=torch.uint8, device=bytes_NP.device)
    bits_NE = (bytes_NP[..., None] >> places & 1).flatten(1)[:, : num * bits]
    shifts = torch.arange(bits, dtype=torch.uint8, device=bytes_NP.device)
    return (bits_NE.unflatten(1, (num, bits)) << shifts).sum(-1, dtype=torch.int32).to(torch.uint8)

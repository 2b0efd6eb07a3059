"""AutoAWQ's GEMM layout, in which most AWQ checkpoints are published; 4 bits only.

    qweight [K, N/8] int32    nibble i of column c: input k, output 8c + (0, 2, 4, 6, 1, 3, 5, 7)[i]
    qzeros  [G, N/8] int32    likewise
    scales  [G, N]   float16

Conversions lose nothing. N is padded to a multiple of 8; AutoAWQ itself and vLLM read only layers whose N
is one already, and whose K is a multiple of the group.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.errors import ConfigError
from todm.kernels.matmul_w4.pack import Packed, pack

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of a column's eight outputs nibble 0, 1, ... holds."""


class Awq(NamedTuple):
    """The tensors of a layer, by their names in a checkpoint."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor


def to_awq(weight: Packed) -> Awq:
    """The tensors for a checkpoint; a symmetric weight gets zero points of 8.

    Raises:
        ConfigError: a weight with 3 bits, `pre_quant_scale_K` or scales that are not float16.
    """
    if weight.bits != 4:
        raise ConfigError(
            f"AWQ's layout holds 4 bits, this weight has {weight.bits}: quantise to 4"
        )
    if weight.pre_quant_scale_K is not None:
        raise ConfigError(
            "AWQ's layout has no place for pre_quant_scale_K: fold it into the previous layer, or quantise "
            "without it"
        )
    if weight.scale_NG.dtype != torch.float16:
        raise ConfigError(
            f"AWQ's layout has float16 scales, this weight {weight.scale_NG.dtype}: round the scales "
            "before making the codes"
        )
    zero_NG = weight.zero_NG
    if zero_NG is None:
        zero_NG = torch.full_like(weight.scale_NG, 8, dtype=torch.uint8)
    scales = F.pad(weight.scale_NG, (0, 0, 0, -weight.shape[0] % 8)).t().contiguous()
    return Awq(_columns(weight.codes_NK()), _columns(zero_NG), scales)


def from_awq(tensors: Awq, *, group: int | None = 128, num_outputs: int | None = None) -> Packed:
    """The weight in the layout of the kernels.

    Args:
        tensors: Of one layer.
        group: `group_size` of the checkpoint; None for its -1, all inputs.
        num_outputs: N, where it was padded.

    Raises:
        ConfigError: tensors whose shapes do not belong together.
    """
    qweight, qzeros, scales = tensors
    fits = qweight.dim() == qzeros.dim() == scales.dim() == 2
    K = qweight.shape[0] if fits else 0
    columns, G = qweight.shape[-1] if fits else 0, -(-K // (group or max(K, 1)))
    if not fits or tuple(qzeros.shape) != (G, columns) or tuple(scales.shape) != (G, 8 * columns):
        raise ConfigError(
            f"AWQ: qweight {tuple(qweight.shape)}, qzeros {tuple(qzeros.shape)} and scales "
            f"{tuple(scales.shape)} are not the [K, N/8], [G, N/8] and [G, N] of groups of "
            f"{group or 'all'} inputs: give the checkpoint's group_size"
        )
    N = 8 * columns if num_outputs is None else num_outputs
    if not 8 * columns - 8 < N <= 8 * columns:
        raise ConfigError(f"AWQ: {columns} columns hold 8 outputs each, not {N} in all")
    zero_NG, scale_NG = _outputs(qzeros)[:N], scales.t()[:N].contiguous()
    return pack(_outputs(qweight)[:N], scale_NG, zero_NG=zero_NG, group=group)


def _columns(codes_NA: Tensor) -> Tensor:
    """[A, N/8] int32 of codes [N, A]."""
    codes_ACE = F.pad(codes_NA, (0, 0, 0, -codes_NA.shape[0] % 8)).t().unflatten(1, (-1, 8)).int()
    shifts = 4 * torch.arange(8, dtype=torch.int32, device=codes_NA.device)
    return (codes_ACE[..., list(ORDER)] << shifts).sum(-1, dtype=torch.int32)


def _outputs(words_AC: Tensor) -> Tensor:
    """Codes uint8 [8C, A] of columns [A, C]."""
    shifts = 4 * torch.arange(8, dtype=torch.int32, device=words_AC.device)
    codes_ACE = words_AC[..., None] >> shifts & 15
    back = torch.tensor(ORDER, device=words_AC.device).argsort()
    return codes_ACE[..., back].flatten(1).t().to(torch.uint8).contiguous()

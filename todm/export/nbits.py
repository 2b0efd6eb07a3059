"""Packed weights of 4 or 3 bits as constants of `com.microsoft.MatMulNBits`, without loss.

    B            uint8 [N, G, block / 2]    codes along the inputs, the first of a pair in the low bits
    scales       float32 [N, G]
    zero_points  uint8 [N, ceil(G / 2)]     packed likewise; written for symmetric weights too

Codes of 3 bits are stored unchanged in containers of 4 bits: the same weight, and no bytes saved.

Letters: N outputs, K inputs, G groups of inputs.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.errors import BundleError
from todm.kernels import matmul_w4

GROUPS = (32, 64, 128)


class NBits(NamedTuple):
    """The constants of a node, named as in the operator."""

    B: Tensor
    scales: Tensor
    zero_points: Tensor


def to_nbits(weight: matmul_w4.Packed) -> NBits:
    """The constants of a weight, without its `pre_quant_scale_K`.

    Raises:
        BundleError: the operator has no groups of that size.
    """
    if weight.group not in GROUPS:
        raise BundleError(
            f"groups of {weight.group} inputs have no ONNX operator, allowed are 32, 64 and 128: "
            "compress the model with one of these"
        )
    N, K = weight.shape
    codes_NK = F.pad(weight.codes_NK(), (0, -K % weight.group))
    zero_NG = weight.zero_NG
    if zero_NG is None:
        zero_NG = torch.full_like(weight.scale_NG, 1 << (weight.bits - 1), dtype=torch.uint8)
    blob = _pairs(codes_NK).view(N, -1, weight.group // 2)
    return NBits(blob, weight.scale_NG.float(), _pairs(F.pad(zero_NG, (0, zero_NG.shape[1] % 2))))


def _pairs(codes_NA: Tensor) -> Tensor:
    return (codes_NA[:, ::2] | codes_NA[:, 1::2] << 4).contiguous()

"""Weights of 4 or 3 bits as `com.microsoft.MatMulNBits` has them; nothing is lost on the way.

    B            uint8 [N, G, block / 2]    codes along the inputs, the first of a pair in the low bits
    scales       float32 [N, G]
    zero_points  uint8 [N, ceil(G / 2)]     likewise; there for symmetric weights too

Codes of 3 bits are written as they are into containers of 4: the same weight, and no bytes are saved.

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
    """The constants of a node, by their names in the operator."""

    B: Tensor
    scales: Tensor
    zero_points: Tensor


def to_nbits(weight: matmul_w4.Packed) -> NBits:
    """The constants of a weight; `pre_quant_scale_K` is not in them.

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


def from_nbits(
    constants: NBits, *, num_inputs: int, bits: int = 4, scales: torch.dtype = torch.float16
) -> matmul_w4.Packed:
    """The inverse; a symmetric weight comes back with its zero points written out.

    Args:
        constants: of a node.
        num_inputs: K.
        bits: of the codes in their containers.
        scales: dtype that the scales had.
    """
    blob, scale_NG, zero_NP = constants
    codes_NK = _single(blob.flatten(1))[:, :num_inputs].contiguous()
    zero_NG = _single(zero_NP)[:, : scale_NG.shape[1]].contiguous()
    group = 2 * blob.shape[2]
    return matmul_w4.pack(codes_NK, scale_NG.to(scales), zero_NG=zero_NG, bits=bits, group=group)


def _pairs(codes_NA: Tensor) -> Tensor:
    return (codes_NA[:, ::2] | codes_NA[:, 1::2] << 4).contiguous()


def _single(bytes_NP: Tensor) -> Tensor:
    return torch.stack([bytes_NP & 15, bytes_NP >> 4], -1).flatten(1)

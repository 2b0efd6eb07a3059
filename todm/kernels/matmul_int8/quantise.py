"""Symmetric int8 codes: scale = absmax / 127, code = round half to even (x / scale), in [-127, 127].

Every division here is between tensors: torch turns one by a Python number into a multiplication by
its reciprocal on a GPU, which rounds differently.
"""

import torch
from torch import Tensor

from todm.errors import ConfigError
from todm.kernels._linear import check_vector

QMAX = 127
FLOOR = 1e-30
"""Lower bound of the absmax that a scale is made from: a row of zeros gets a scale above zero."""


def absmax_scale(x_MK: Tensor) -> Tensor:
    """Scale of each row, float32 [M]; NaN or inf where the row holds one."""
    largest_M = x_MK.float().abs().amax(1).clamp_min(FLOOR)
    return largest_M / torch.full_like(largest_M, QMAX)


def encode(x_MK: Tensor, scale_M: Tensor) -> Tensor:
    """Codes of finite rows, int8 [M, K]."""
    ratio_MK = x_MK.float() / scale_M[:, None]
    return ratio_MK.round().clamp(-QMAX, QMAX).to(torch.int8)


def quantise_weight(weight_NK: Tensor, *, scale_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes and scales of a weight, one scale per output channel.

    Args:
        weight_NK: The layer's weight.
        scale_N: Scales to use, such as learnt ones; absmax / 127 where None.

    Returns:
        int8 [N, K] and float32 [N].

    Raises:
        ConfigError: a weight that is not finite, or scales that are not [N] or not above zero.
    """
    if weight_NK.dim() != 2 or 0 in weight_NK.shape or not weight_NK.is_floating_point():
        raise ConfigError(
            f"quantise_weight: the weight is {weight_NK.dtype} {tuple(weight_NK.shape)}; a floating "
            "[N, K] with N and K of at least 1 is needed"
        )
    weight_NK = weight_NK.detach()
    _check_rows("the weight holds a number that is not finite", weight_NK.isfinite().all(1))
    if scale_N is None:
        scale_N = absmax_scale(weight_NK)
    else:
        check_vector("quantise_weight", "scale_N", scale_N, weight_NK.shape[0])
        scale_N = scale_N.detach().float()
        _check_rows("the scale is not above zero and finite", (scale_N > 0) & scale_N.isfinite())
    return encode(weight_NK, scale_N), scale_N


def _check_rows(problem: str, good_N: Tensor) -> None:
    if not bool(good_N.all()):
        row = int((~good_N).nonzero()[0])
        raise ConfigError(
            f"quantise_weight: output {row}: {problem}; correct or exclude this layer"
        )

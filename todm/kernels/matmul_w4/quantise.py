"""Round to nearest; the smallest and largest weight of a group get its outermost codes.

AWQ (arXiv 2306.00978), section 2, and its code's quantiser; the search for scales that suit the activations
is elsewhere and may call this. Two things differ from that code. Zero is always in the range of a group:
otherwise a group of one sign would be clipped, because its zero point is. And codes are made with the
scale as stored, rounded to float16.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.errors import ConfigError
from todm.kernels.matmul_w4.pack import Packed, check_format, pack

_LEAST = 1e-5  # range of a group, as in AWQ's code


def quantise_rtn(
    weight_NK: Tensor,
    bits: int = 4,
    *,
    group: int | None = 128,
    symmetric: bool = False,
    pre_quant_scale_K: Tensor | None = None,
) -> Packed:
    """The packed weight; scales are float16.

    Args:
        weight_NK: The layer's weight, already multiplied by AWQ's scale if there is one.
        bits: 4 or 3.
        group: 32, 64, 128, or None for all inputs.
        symmetric: Zero is the middle code, and no zero points are stored.
        pre_quant_scale_K: Factor of each input at run time, see `Packed`.

    Raises:
        ConfigError: a weight that is not a finite floating [N, K], or too large for float16 scales.
    """
    if weight_NK.dim() != 2 or 0 in weight_NK.shape or not weight_NK.is_floating_point():
        raise ConfigError(
            f"quantise_rtn: the weight is {weight_NK.dtype} {tuple(weight_NK.shape)}; a floating "
            "[N, K] with N and K of at least 1 is needed"
        )
    K = weight_NK.shape[1]
    size = K if group is None else group
    check_format(bits, size, K)
    w_NGI = F.pad(weight_NK.detach().float(), (0, -K % size)).unflatten(1, (-1, size))
    scale_NG, zero_NG = _symmetric(w_NGI, bits) if symmetric else _asymmetric(w_NGI, bits)
    _check_scales(scale_NG)
    middle = torch.full_like(scale_NG, 1 << (bits - 1)) if zero_NG is None else zero_NG
    steps_NGI = (w_NGI / scale_NG.float()[..., None]).round() + middle.float()[..., None]
    codes_NK = steps_NGI.clamp(0, (1 << bits) - 1).to(torch.uint8).flatten(1)[:, :K]
    return pack(
        codes_NK,
        scale_NG,
        zero_NG=zero_NG,
        pre_quant_scale_K=pre_quant_scale_K,
        bits=bits,
        group=size,
    )


def _asymmetric(w_NGI: Tensor, bits: int) -> tuple[Tensor, Tensor | None]:
    largest = (1 << bits) - 1
    low_NG, high_NG = w_NGI.amin(2).clamp(max=0), w_NGI.amax(2).clamp(min=0)
    scale_NG = ((high_NG - low_NG).clamp(min=_LEAST) / largest).half()
    zero_NG = (-low_NG / scale_NG.float()).round().clamp(0, largest)
    return scale_NG, zero_NG.nan_to_num(0).to(torch.uint8)


def _symmetric(w_NGI: Tensor, bits: int) -> tuple[Tensor, Tensor | None]:
    return (w_NGI.abs().amax(2).clamp(min=_LEAST / 2) / ((1 << (bits - 1)) - 1)).half(), None


def _check_scales(scale_NG: Tensor) -> None:
    if not bool(scale_NG.isfinite().all()):
        row = int((~scale_NG.isfinite()).any(1).nonzero()[0])
        raise ConfigError(
            f"quantise_rtn: output {row} holds a number that is not finite, or too large for a "
            "float16 scale; correct or exclude this layer"
        )

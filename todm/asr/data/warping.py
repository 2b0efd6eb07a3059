"""Log-mel features warped in time and in frequency, by linear interpolation in the log domain.

Letters: B batch, T frames, F bins.
"""

import math

import torch
from torch import Tensor

from todm.asr.data.features import HIGHEST_HERTZ, NUM_BINS, bin_hertz, mel
from todm.asr.data.mixing import Draw

_KNEE = 4800.0
"""Hertz up to which frequencies are scaled; above, they are squeezed so that the highest one stays."""


def warp_time(features_BTF: Tensor, lens_B: Tensor, most: int, draw: Draw) -> Tensor:
    """Warp time about a random point of each utterance, which moves by up to `most` frames.

    Utterances of fewer than 2 * most + 2 frames are not changed. Frames are interpolated linearly,
    in the log domain.
    """
    B, T, F = features_BTF.shape
    wide_B = lens_B > 2 * most + 1
    from_B = most + 1 + draw.uniform(B) * (lens_B - 2 * most - 2)
    to_B = torch.where(wide_B, from_B + draw.uniform(B, -most, most), 1.0)
    from_B = torch.where(wide_B, from_B, 1.0)
    at_BT = torch.arange(T).expand(B, T).float()
    end_B = (lens_B - 1).float()
    left_BT = at_BT * (from_B / to_B)[:, None]
    slope_B = (end_B - from_B) / (end_B - to_B)
    right_BT = end_B[:, None] - (end_B[:, None] - at_BT) * slope_B[:, None]
    source_BT = torch.where(at_BT < to_B[:, None], left_BT, right_BT)
    beyond_BT = torch.arange(T) >= lens_B[:, None]
    source_BT = torch.where(beyond_BT | ~wide_B[:, None], at_BT, source_BT)
    low_BT = source_BT.floor().long().clamp_(0, T - 1)
    base_B1 = torch.arange(B)[:, None] * T
    rows_N = (low_BT + base_B1).flatten()
    next_N = ((low_BT + 1).minimum(lens_B[:, None] - 1) + base_B1).flatten()
    flat_NF, part_N1 = features_BTF.reshape(B * T, F), (source_BT - low_BT).flatten()[:, None]
    return torch.lerp(flat_NF[rows_N], flat_NF[next_N], part_N1).view(B, T, F)


def other_tracts(
    features_BTF: Tensor, factors: tuple[float, float], share: float, draw: Draw
) -> Tensor:
    """Vocal tract length perturbation (Jaitly and Hinton, 2013): speakers of other sizes.

    Args:
        features_BTF: log-mel.
        factors: least and greatest factor of the frequencies of formants, drawn on a log scale.
        share: of the utterances.
        draw: of all draws.
    """
    B = len(features_BTF)
    factor_B = draw.uniform(B, math.log(factors[0]), math.log(factors[1])).exp()
    factor_B = torch.where(draw.uniform(B) < share, factor_B, 1.0)
    return features_BTF @ _moved(factor_B)


def _moved(factor_B: Tensor) -> Tensor:
    """Weights [B, F, F]: a bin of the output takes what was at its frequency divided by the factor."""
    hertz_F, low, high = bin_hertz(), mel(bin_hertz()[0]), mel(bin_hertz()[-1])
    factor_B1 = factor_B[:, None]
    # Where the source reaches the knee, or the output does, whichever comes first.
    knee_B1 = _KNEE * factor_B1.clamp(max=1.0)
    slope_B1 = (HIGHEST_HERTZ - knee_B1 / factor_B1) / (HIGHEST_HERTZ - knee_B1)
    above_BF = HIGHEST_HERTZ - slope_B1 * (HIGHEST_HERTZ - hertz_F)
    source_BF = torch.where(hertz_F <= knee_B1, hertz_F / factor_B1, above_BF)
    at_BF = (mel(source_BF) - low) / (high - low) * (NUM_BINS - 1)
    bins_F1 = torch.arange(NUM_BINS)[:, None]
    return (1 - (at_BF.clamp(0, NUM_BINS - 1)[:, None] - bins_F1).abs()).clamp_(min=0)

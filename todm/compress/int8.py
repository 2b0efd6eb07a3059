"""int8 weights and activations after training, both symmetric: the pass `int8`.

    weights        a scale per output: absmax / 127, or of the least squared error (range=mse)
    activations    a scale per row at run time (dynamic), or one per layer, from the calibration data
                   (static): absmax, a percentile of the magnitudes, or the least squared error

The forms that cuBLASLt, TensorRT and QDQ files all take; range choices after Wu et al. 2020
(arXiv 2004.09602), section 3.

Letters: N outputs, K inputs.
"""

import torch
from torch import Tensor, nn

from todm.compress.calibrate import Block, Histogram, collect
from todm.compress.config import Int8Config
from todm.compress.layers import LayerResult, why_not_packed
from todm.compress.packed import Int8Linear
from todm.kernels.matmul_int8 import quantise_weight
from todm.kernels.matmul_int8.quantise import QMAX


@torch.no_grad()
def run(block: Block, config: Int8Config) -> dict[str, LayerResult]:
    """Put `Int8Linear` in the place of the linear layers of a block; a 2:4 mask is kept and used.

    Raises:
        ConfigError: a weight that is not finite.
        CorpusError: inputs that are not finite.
    """
    done, weights = block.candidates(lambda module: why_not_packed(module, "int8"))
    if config.activations == "dynamic":
        for name in weights:
            done[name] = _replace(block, name, config, None)
        return done
    for name, seen in collect(block, list(weights), Histogram).items():
        histogram = seen.parts[0]
        if seen.why_not:
            done[name] = LayerResult(why_not=f"{seen.why_not}, and a static scale needs some")
        elif histogram.absmax == 0:
            why_not = "its inputs were all zero in calibration: no static scale"
            done[name] = LayerResult(why_not=why_not)
        else:
            done[name] = _replace(block, name, config, activation_range(histogram, config))
    return done


def activation_range(histogram: Histogram, config: Int8Config) -> float:
    """The largest magnitude that is not clipped, by `range` of the settings; above zero."""
    if config.range == "mse":
        return histogram.mse_range(QMAX)
    if config.range == "percentile":
        return histogram.percentile(config.percentile)
    return histogram.absmax


def mse_scale(weight_NK: Tensor) -> Tensor:
    """Scale of each output, float32 [N]: of 1, 0.99, ... 0.5 absmax / 127, the one of least error."""
    weight_NK = weight_NK.float()
    full_N = weight_NK.abs().amax(1).clamp(min=1e-30) / QMAX
    best_N, least_N = full_N, torch.full_like(full_N, float("inf"))
    for percent in range(100, 49, -1):
        scale_N = full_N * (percent / 100)
        steps_NK = (weight_NK / scale_N[:, None]).round().clamp(-QMAX, QMAX)
        error_N = (steps_NK * scale_N[:, None] - weight_NK).square().sum(1)
        best_N = torch.where(error_N < least_N, scale_N, best_N)
        least_N = torch.minimum(error_N, least_N)
    return best_N


def _replace(block: Block, name: str, config: Int8Config, largest: float | None) -> LayerResult:
    """Quantise a layer, its activations to [-largest, largest] or dynamically."""
    layer, sparse24 = block.get(name), block.is_24(name)
    assert isinstance(layer, nn.Linear)
    weight_NK = layer.weight.detach()
    scale_N = mse_scale(weight_NK) if config.range == "mse" else None
    codes_NK, scale_N = quantise_weight(weight_NK, scale_N=scale_N)
    act_scale = None if largest is None else scale_N.new_tensor(largest / QMAX)
    bias = None if layer.bias is None else layer.bias.detach()
    packed = Int8Linear(codes_NK, scale_N, bias, act_scale=act_scale, sparse24=sparse24)
    block.replace(name, packed)
    how = "dynamic" if largest is None else f"static {config.range}"
    figures = {} if largest is None else {"range": largest}
    return LayerResult(what=f"int8 {how}{' 2:4' if sparse24 else ''}", figures=figures)

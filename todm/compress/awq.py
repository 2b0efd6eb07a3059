"""Activation-aware weights of 4 or 3 bits: the pass `awq` (AWQ, arXiv 2306.00978).

Inputs that are large on average matter more, so before rounding their weights are enlarged and the
inputs reduced: W x = (W diag s) (x / s). For each set of layers that read the same input,

    s = s_x^r                                   s_x,k = mean |x_k|          (section 3.2)
    s = s_x^r / (w_k^(1 - r) + 1e-4)            w_k = mean_n |w_nk| / max_group |w|
    s <- s / sqrt(max s min s)

and over all r and both families the s is chosen whose rounded weights change the output of the
inspected module least; s = 1, plain rounding, is a candidate. Then every group of weights is clipped to
the range that is best for its layer's inputs. 1 / s goes into the layer before (`folds.py`), or stays
with the packed layer as `pre_quant_scale`.

Letters: M rows, S rows of a sample, N outputs, K inputs, G groups of I inputs.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm.compress.adapter import Fold
from todm.compress.calibrate import Block, Call, Inputs, Means, Sample, collect
from todm.compress.config import AwqConfig
from todm.compress.folds import fold, folds_of
from todm.compress.int4 import replace_layer
from todm.compress.layers import LayerResult, why_not_packed
from todm.kernels.matmul_w4 import Packed, quantise_rtn

_NOT_CLIPPED = re.compile(r"(q|k)(_.*)?|.*(query|key|qkv).*", re.IGNORECASE)
"""Last parts of names: queries and keys meet in a product, whose error is not the layer's own."""
_CLIP_POINTS, _CLIP_DEPTH = 10, 20
_ROWS_AT_ONCE = 256


@dataclasses.dataclass
class _Layer:
    """The state of a layer between the scale search and rounding."""

    pre_quant_scale_K: Tensor | None = None
    input_factor_K: Tensor | None = None
    output_factor_N: Tensor | None = None
    where: str = ""
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """The result of the scale search.

    Attributes:
        s_K: the factor of each input's weights.
        ratio: r.
        duo: whether it is of the family that looks at weights too.
        error: mean squared change of the inspected output, relative to its power.
        plain: the same for plain rounding.
    """

    s_K: Tensor
    ratio: float
    duo: bool
    error: float
    plain: float


@torch.no_grad()
def run(block: Block, config: AwqConfig) -> dict[str, LayerResult]:
    """Put `W4Linear` in the place of the linear layers of a block; a mask is kept.

    A layer that was not chosen but reads the same input as a chosen one, or comes before it, takes its
    share of a folded scale and is accounted for as well.

    Raises:
        ConfigError: a weight that is not finite.
        CorpusError: inputs that are not finite.
    """
    done, weights = block.candidates(lambda module: why_not_packed(module, f"int{config.bits}"))
    # Every layer is calibrated before one is touched: bad data must not leave a block half done.
    seen = collect(block, list(weights), Sample)
    done |= {name: LayerResult(why_not=one.why_not) for name, one in seen.items()}
    samples = {name: one.parts[0].x_SK for name, one in seen.items() if not one.why_not}
    state = {name: _Layer() for name in samples}
    if config.scale:
        for place in folds_of(block, list(samples)):
            _scale(block, place, list(samples), config, state)
    for name, layer in state.items():
        what = _round(block, name, layer, samples[name], config) if name in samples else ""
        done[name] = LayerResult(
            what=what,
            why_not="" if what else "not chosen; it takes its share of a folded scale",
            input_factor_K=layer.input_factor_K,
            output_factor_N=layer.output_factor_N,
            figures=layer.figures,
        )
    return done


@torch.no_grad()
def search(block: Block, place: Fold, layers: Sequence[str], config: AwqConfig) -> Scale:
    """The best factor for layers that read the same input.

    Args:
        block: run on its calibration data.
        place: where they are, and which module's output is compared.
        layers: full names of those that are rounded.
        config: grid and quantiser.

    Raises:
        CorpusError: inputs that are not finite.
    """
    abs_K, calls = _observe(block, place, layers[0])
    modules = [_linear(block, name) for name in layers]
    inspected = block.get(block.full(place.inspect))
    expected = [_first(inspected(*c.args, **c.kwargs)) for c in calls]
    power = sum(float(y.double().square().sum()) for y in expected) or 1.0
    weights = [m.weight.detach() for m in modules]
    best: Scale | None = None
    for duo, ratio, s_K in candidates(abs_K, torch.cat(weights).float(), config):
        rounded = [_rounded(w, s_K, config) for w in weights]
        with _in_place_of(modules, rounded):
            limit = best.error if best else float("inf")
            error = _error(inspected, calls, expected, limit * power) / power
        if best is None:
            best = Scale(s_K=s_K, ratio=ratio, duo=duo, error=error, plain=error)
        elif error < best.error:
            best = Scale(s_K=s_K, ratio=ratio, duo=duo, error=error, plain=best.plain)
    assert best is not None
    return best


def candidates(
    abs_K: Tensor, weight_NK: Tensor, config: AwqConfig
) -> Iterator[tuple[bool, float, Tensor]]:
    """Factors to try, as (family, r, s); the first is s = 1.

    Args:
        abs_K: mean magnitude of each input.
        weight_NK: the weights of all layers that read it.
        config: `grid` points are shared by the families.
    """
    size, K = config.group, weight_NK.shape[1]
    w_NGI = F.pad(weight_NK.abs(), (0, -K % size)).unflatten(1, (-1, size))
    share_K = (w_NGI / w_NGI.amax(2, keepdim=True).clamp(min=1e-6)).mean(0).flatten()[:K]
    num_duo = config.grid // 2
    num_plain = config.grid - num_duo
    for i in range(num_plain):
        yield False, i / num_plain, _normalised(abs_K.float() ** (i / num_plain))
    for i in range(num_duo):
        r = i / num_duo
        yield True, r, _normalised(abs_K.float() ** r / (share_K ** (1 - r) + 1e-4))


@torch.no_grad()
def clip(weight_NK: Tensor, x_SK: Tensor, config: AwqConfig) -> tuple[Tensor, float]:
    """Weights clipped, in every group of an output, to the range that changes x W^T least when rounded.

    The error of a group, mean_s (sum_i x_si d_ni)^2, is d^T H d with H the group's second moment.

    Args:
        weight_NK: the weight; not changed.
        x_SK: some inputs.
        config: the quantiser.

    Returns:
        [N, K], and the share of groups that were clipped.
    """
    size, K = config.group, weight_NK.shape[1]
    pad = (0, -K % size)
    x_GSI = F.pad(x_SK.float(), pad).unflatten(1, (-1, size)).transpose(0, 1)
    moment_GII = x_GSI.transpose(1, 2) @ x_GSI / len(x_SK)
    parts = []
    for part_NK in weight_NK.float().split(_ROWS_AT_ONCE):
        w_NGI = F.pad(part_NK, pad).unflatten(1, (-1, size))
        parts.append(_clip_limits(w_NGI, moment_GII, config, K))
    limit_NG = torch.cat(parts)
    limit_NK = limit_NG.repeat_interleave(size, 1)[:, :K]
    w_NGI = F.pad(weight_NK.abs(), pad).unflatten(1, (-1, size))
    share = float((limit_NG < w_NGI.amax(2)).float().mean())
    return weight_NK.clamp(-limit_NK, limit_NK), share


def _clip_limits(w_NGI: Tensor, moment_GII: Tensor, config: AwqConfig, num_inputs: int) -> Tensor:
    """[N, G], the best range of every group."""
    absmax_NG = w_NGI.amax(2).maximum(-w_NGI.amin(2))
    best_NG, least_NG = absmax_NG, torch.full_like(absmax_NG, float("inf"))
    for i in range(_CLIP_POINTS):
        limit_NG = absmax_NG * (1 - i / _CLIP_DEPTH)
        clipped_NGI = w_NGI.clamp(-limit_NG[..., None], limit_NG[..., None])
        rounded_NK = _grid(clipped_NGI.flatten(1)[:, :num_inputs], config).dequantise()
        padded_NK = F.pad(rounded_NK, (0, w_NGI[0].numel() - num_inputs))
        change_GNI = (padded_NK.view_as(w_NGI) - w_NGI).transpose(0, 1)
        error_NG = (change_GNI @ moment_GII * change_GNI).sum(2).t()
        better_NG = error_NG < least_NG
        best_NG = torch.where(better_NG, limit_NG, best_NG)
        least_NG = torch.where(better_NG, error_NG, least_NG)
    return best_NG


def _scale(
    block: Block,
    place: Fold,
    names: Sequence[str],
    config: AwqConfig,
    state: dict[str, _Layer],
) -> None:
    """Search for the factor of a set of layers, and fold or store it."""
    layers = [n for n in map(block.full, place.layers) if n in names]
    best = search(block, place, layers, config)
    figures = {
        "ratio": best.ratio,
        "duo": float(best.duo),
        "error": best.error,
        "error of rounding": best.plain,
    }
    for name in layers:
        state[name].figures |= figures
    if bool((best.s_K == 1).all()):
        return
    folded, factor_N = fold(block, place, best.s_K) if config.fold else (False, None)
    for name in map(block.full, place.layers) if folded else layers:
        layer = state.setdefault(name, _Layer())
        if folded:
            layer.input_factor_K = 1 / best.s_K
            layer.where = f", scales in {place.into}"
        else:
            layer.pre_quant_scale_K = 1 / best.s_K
            layer.where = ", pre_quant_scale"
    if factor_N is not None:
        before = state.setdefault(block.full(place.into or ""), _Layer())
        known_N = before.output_factor_N
        before.output_factor_N = factor_N if known_N is None else known_N * factor_N


def _round(block: Block, name: str, layer: _Layer, x_SK: Tensor, config: AwqConfig) -> str:
    """Clip, round and replace a layer, given some of its inputs from before there were factors."""
    pre_quant_scale_K = layer.pre_quant_scale_K
    weight_NK = _linear(block, name).weight.detach().float()
    weight_NK = weight_NK if pre_quant_scale_K is None else weight_NK / pre_quant_scale_K
    clipped = ""
    if config.clip and not _NOT_CLIPPED.fullmatch(name.split(".")[-1]):
        factor_K = layer.input_factor_K if pre_quant_scale_K is None else pre_quant_scale_K
        x_SK = x_SK if factor_K is None else x_SK * factor_K
        weight_NK, layer.figures["clipped"] = clip(weight_NK, x_SK, config)
        clipped = ", clipped"
    packed = _grid(weight_NK, config, pre_quant_scale_K)
    return replace_layer(block, name, packed, f"int{config.bits} awq", more=layer.where + clipped)


def _observe(block: Block, place: Fold, layer: str) -> tuple[Tensor, list[Call]]:
    """Mean magnitudes of the inputs of a layer, and all calls of the inspected module."""
    means, calls = Inputs(layer, block.get(layer), Means), []
    inspect = block.full(place.inspect)

    def inspected(call: Call) -> None:
        calls.append(call)
        if inspect == layer:
            means.add(call.input)

    block.observe({layer: lambda call: means.add(call.input), inspect: inspected})
    return means.parts[0].abs_K, calls


def _error(
    inspected: nn.Module, calls: Sequence[Call], expected: Sequence[Tensor], limit: float
) -> float:
    """Squared change of the outputs; stops once it exceeds `limit`."""
    total = 0.0
    for call, y in zip(calls, expected, strict=True):
        output = _first(inspected(*call.args, **call.kwargs))
        total += float((output.double() - y.double()).square().sum())
        if total > limit:
            break
    return total


def _rounded(weight_NK: Tensor, s_K: Tensor, config: AwqConfig) -> Tensor:
    """Q(W diag s) diag(1 / s)."""
    return (_grid(weight_NK.float() * s_K, config).dequantise() / s_K).to(weight_NK.dtype)


def _grid(weight_NK: Tensor, config: AwqConfig, pre_quant_scale_K: Tensor | None = None) -> Packed:
    return quantise_rtn(
        weight_NK,
        config.bits,
        group=config.group,
        symmetric=config.symmetric,
        pre_quant_scale_K=pre_quant_scale_K,
    )


def _normalised(s_K: Tensor) -> Tensor:
    """Finite, positive, and with 1 in the middle of its range."""
    s_K = s_K.clamp(min=1e-4)
    s_K = s_K / (s_K.max() * s_K.min()).sqrt()
    return torch.where(s_K.isfinite() & (s_K > 0), s_K, 1.0)


@contextmanager
def _in_place_of(modules: Sequence[nn.Linear], weights: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the layers have these weights."""
    own = [module.weight.data for module in modules]
    try:
        for module, weight in zip(modules, weights, strict=True):
            module.weight.data = weight
        yield
    finally:
        for module, weight in zip(modules, own, strict=True):
            module.weight.data = weight


def _linear(block: Block, name: str) -> nn.Linear:
    module = block.get(name)
    assert isinstance(module, nn.Linear)
    return module


def _first(output: Any) -> Tensor:  # noqa: ANN401 - a module's own
    """The output, or the first of several."""
    return output[0] if isinstance(output, tuple) else output

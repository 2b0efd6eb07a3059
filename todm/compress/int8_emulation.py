"""How int8 will affect a net: outliers of its weights, and its error with int8 arithmetic.

A transducer trained for long can lose half of its accuracy in post-training int8 although its
float32 error is unchanged, because single weights have grown far beyond the others of their channel
and use up the range of its scale (icefall issue 2003). Training monitors both, and can clamp such
weights.

Letters: C output channels, K weights of a channel, B rows of a batch, T steps.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from todm.config import Config

_TOLERANCE = 1e-4  # of the cap: a channel that was capped is not capped again for its rounding


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantConfig(Config):
    """int8 monitoring and outlier clamping during training.

    Attributes:
        every: fraction of the updates between evaluations in int8; above 1 for none.
        outlier_cap: largest weight, as a multiple of the rms of its channel; None for no cap.
            A normal distribution reaches 3 to 4. It holds for the largest net, whose channels a
            narrower one cuts to a prefix.
    """

    every: float = 0.25
    outlier_cap: float | None = None

    def __post_init__(self) -> None:
        where, allowed = "train.quant", "a fraction above 0; above 1 for no int8 evaluation"
        self.check(where, ("every",), holds=lambda v: v > 0, allowed=allowed)
        allowed = "above 1, such as 6, or null for no cap"
        self.check(where, ("outlier_cap",), holds=lambda v: v is None or v > 1, allowed=allowed)


def weight_outliers(model: nn.Module) -> dict[str, float]:
    """Peak over rms of all channels of all matrices: `outlier_max` and `outlier_median`.

    Empty where a model has no matrix.
    """
    ratios = [_ratios(weight_CK) for weight_CK in matrices(model.named_parameters()).values()]
    if not ratios:
        return {}
    all_C = torch.cat(ratios)
    return {"outlier_max": float(all_C.max()), "outlier_median": float(all_C.median())}


def layer_outliers(state: Mapping[str, Tensor]) -> dict[str, float]:
    """Peak over rms of the worst channel of every matrix of a state dict, the worst matrix first."""
    worst = {name: float(_ratios(w).max()) for name, w in matrices(state.items()).items()}
    return dict(sorted(worst.items(), key=lambda item: -item[1]))


@torch.no_grad()
def cap_outliers(model: nn.Module, cap: float) -> int:
    """Clamp weights in place until none is beyond `cap` times the rms of its channel.

    The rms is that after clamping: a single huge weight cannot raise its own limit.

    Returns:
        The number of weights that were clamped.
    """
    clamped = 0
    for weight_CK in matrices(model.named_parameters()).values():
        bad_N = (_ratios(weight_CK) > cap * (1 + _TOLERANCE)).nonzero().squeeze(1)
        if len(bad_N):
            rows_NK = weight_CK[bad_N]
            limit_N1 = _limits(rows_NK, cap)[:, None]
            clamped += int((rows_NK.abs() > limit_N1).sum())
            weight_CK.index_copy_(0, bad_N, rows_NK.clamp(-limit_N1, limit_N1))
    return clamped


@contextlib.contextmanager
def int8_copy(model: nn.Module, *, chunk: int = 16) -> Iterator[nn.Module]:
    """Inside, the model computes as its exported int8 graphs do; its weights stay as they are.

    As in `todm/export/quantize.py`: matrices of linear layers in int8 with one scale per output
    channel, their inputs in uint8 with a range per call, embedding tables in uint8
    with one scale; all else in float32. Scales are those of the weights a call really uses, so that
    a narrow subnet has the scales of its extracted form. An activation's range is that of one row
    of the batch and `chunk` steps, since a device runs one stream chunk by chunk.

    Args:
        model: whose weights; layers of other models are not touched.
        chunk: steps (second axis of three) that share a range; 0 for all of them.
    """
    with _Int8(model, chunk):
        yield model


def matrices(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Views [C, K] of the weights of linear layers, convolutions and embeddings, detached."""
    return {
        name.removesuffix(".weight"): weight.detach().view(weight.shape[0], -1)
        for name, weight in named
        if name.endswith("weight") and weight.ndim > 1
    }


def _ratios(weight_CK: Tensor) -> Tensor:
    """Peak over rms of each channel [C]; weights that are zero do not count, int8 holds them exactly."""
    wide_CK = weight_CK.float()
    rms_C = (wide_CK.square().sum(1) / wide_CK.count_nonzero(1).clamp(min=1)).sqrt()
    return torch.where(rms_C > 0, wide_CK.abs().amax(1) / rms_C, 1.0)


def _limits(weight_NK: Tensor, cap: float) -> Tensor:
    """The limit of each channel [N] that is `cap` times the rms left once it is applied.

    With the k largest of n weights at the limit l, and r the sum of the others' squares,
    l^2 = cap^2 (k l^2 + r) / n. The right k is the first whose limit no other weight exceeds.
    """
    square_NK = weight_NK.double().square().sort(1, descending=True).values
    rest_NK = square_NK.flip(1).cumsum(1).flip(1)
    count_N1 = square_NK.count_nonzero(1)[:, None]
    k = torch.arange(square_NK.shape[1], device=weight_NK.device)
    room_NK = count_N1 - k * cap**2
    limit_NK = torch.where(room_NK > 0, cap**2 * rest_NK / room_NK, torch.inf)
    first_N1 = (limit_NK >= square_NK).int().argmax(1, keepdim=True)
    limit_N = torch.minimum(limit_NK.gather(1, first_N1), square_NK[:, :1]).squeeze(1)
    return limit_N.sqrt().to(weight_NK.dtype)


class _Int8(TorchFunctionMode):
    """Intercepts calls of torch: those that a device makes in int8 are rounded as on the device."""

    def __init__(self, model: nn.Module, chunk: int) -> None:
        super().__init__()
        self._chunk = chunk
        self._owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._known: dict[tuple[Any, ...], Tensor] = {}

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - torch's own signature, up to `kwargs`
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        handler = {F.linear: self._linear, F.embedding: self._embedding}.get(func, func)
        return handler(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
        if not self._owns(weight):
            return F.linear(input, weight, bias)
        rounded = self._once(weight, _int8_channels)
        steps = _uint8_rows(input.float(), self._chunk).to(input.dtype)
        return F.linear(steps, rounded, bias)

    def _embedding(self, input: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:  # noqa: A002, ANN401
        table = self._once(weight, _uint8) if self._owns(weight) else weight
        return F.embedding(input, table, *rest, **options)

    def _owns(self, weight: Tensor) -> bool:
        return weight.untyped_storage().data_ptr() in self._owned

    def _once(self, weight: Tensor, rounding: Any) -> Tensor:  # noqa: ANN401
        """A search calls the joiner at every frame: each slice of a weight is rounded once."""
        key = (weight.data_ptr(), weight.shape, weight.stride(), weight._version)
        if key not in self._known:
            self._known[key] = rounding(weight.detach())
        return self._known[key]


def _int8_channels(weight_CK: Tensor) -> Tensor:
    """Symmetric, -127 to 127, one scale per channel."""
    scale_C1 = weight_CK.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return (weight_CK / scale_C1).round() * scale_C1


def _uint8_rows(x: Tensor, chunk: int) -> Tensor:
    """One range per row, and per `chunk` steps of a sequence [B, T, K]."""
    if x.ndim != 3 or not chunk:
        return _uint8(x, tuple(range(1, x.ndim)) or (0,))
    steps = x.shape[1]
    padded = F.pad(x, (0, 0, 0, -steps % chunk))  # zero is in every range anyway
    blocks = padded.unflatten(1, (-1, chunk))
    return _uint8(blocks, (2, 3)).flatten(1, 2)[:, :steps]


def _uint8(x: Tensor, axes: tuple[int, ...] = (0, 1)) -> Tensor:
    """Asymmetric, 0 to 255, as ONNX's DynamicQuantizeLinear; one range over `axes`."""
    low = x.amin(axes, keepdim=True).clamp(max=0)
    high = x.amax(axes, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-30)
    zero = (-low / scale).round()
    return (((x / scale).round() + zero).clamp(0, 255) - zero) * scale

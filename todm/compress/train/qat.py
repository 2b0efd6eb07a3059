"""Quantisation-aware training with learnt scales (LSQ, arXiv 1902.08153).

A linear layer computes what its packed form will compute, with gradients: they pass through rounding,
and for a scale s of n numbers v with codes from -Q_n to Q_p (eqs. 3 to 5)

    d v^ / d s = round(v / s) - v / s   inside the range, else its end (-Q_n or Q_p)
    d v^ / d v = 1                      inside the range, else 0
    times 1 / sqrt(n Q_p)               for the gradient of s

A scale is learnt as the logarithm of its ratio to its start, so that it stays positive and a step of
Adam is relative. Training starts from the scales of post-training quantisation (`start`),
and `pack` makes the layer that runs, with the same codes. A masked weight is zero before it is rounded,
and zero has a code.

Letters: N outputs, K inputs, G groups of inputs.
"""

import abc
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm.compress.packed import Int8Linear, PackedLinear, W4Linear, check_width
from todm.kernels import matmul_w4
from todm.kernels.matmul_int8.quantise import QMAX, absmax_scale

_INSIDE = 0.49  # of a step: the distance from its code at which a weight starts that would round to another


def straight_through(value: Tensor, x: Tensor, factor: Tensor | float = 1.0) -> Tensor:
    """The value exactly, with the gradient of `factor * x`."""
    return value.detach() + (x - x.detach()) * factor


def learnt_scale(start: Tensor, log: Tensor, *, count: Tensor, largest: int) -> Tensor:
    """A scale whose gradient has LSQ's factor.

    Args:
        start: its start.
        log: learnt, of the same shape.
        count: n, the numbers it scales.
        largest: Q_p.
    """
    factor = (count.clamp(min=1) * largest).rsqrt().to(start.dtype)
    scale = start * log.exp()
    return straight_through(scale, scale, factor)


def codes(v: Tensor, scale: Tensor, low: int, high: int, *, zero: Tensor | float = 0.0) -> Tensor:
    """Codes as floating numbers: round(clamp(v / scale + zero, low, high)), LSQ eq. 1."""
    steps = (v / scale + zero).clamp(low, high)
    return straight_through(steps.round(), steps)


class FakeQuantLinear(nn.Module, abc.ABC):
    """Abstract: a linear layer [N, K] that is rounded as its packed form is, and can be trained."""

    def __init__(self, layer: nn.Linear, mask_NK: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.weight.shape
        self.weight = nn.Parameter(layer.weight.detach().float().clone())
        bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().float().clone())
        self.register_parameter("bias", bias)
        self.register_buffer("mask_NK", None if mask_NK is None else mask_NK.clone())
        self.bias: nn.Parameter | None
        self.mask_NK: Tensor | None

    @property
    def kept_NK(self) -> Tensor:
        """The weight with zeros where it is masked."""
        return self.weight if self.mask_NK is None else self.weight * self.mask_NK

    def forward(self, input: Tensor, *, out_features: int | None = None) -> Tensor:  # noqa: A002
        """The layer's output [..., N]; `out_features` as of `PackedLinear`.

        Raises:
            ConfigError: another width is requested.
        """
        check_width(out_features, self.out_features)
        return self.product(input)

    @abc.abstractmethod
    def product(self, input: Tensor) -> Tensor:  # noqa: A002
        """The layer's output [..., N]."""

    @abc.abstractmethod
    def pack(self) -> PackedLinear:
        """The layer that runs: the same codes and scales."""

    def num_kept(self) -> Tensor:
        """Weights that are not masked, [N, K] of 0 and 1."""
        ones = torch.ones_like(self.weight)
        return ones if self.mask_NK is None else ones * self.mask_NK

    @torch.no_grad()
    def _begin_at(
        self, steps_NK: Tensor, scale_NK: Tensor, zero: Tensor | float, high: int
    ) -> None:
        """Move weights that would get another code just far enough to get the given one."""
        low = -high if isinstance(zero, float) else 0
        ratio_NK = self.weight / scale_NK
        own_NK = (ratio_NK + zero).clamp(low, high).round() - zero
        near_NK = ratio_NK.clamp(steps_NK - _INSIDE, steps_NK + _INSIDE) * scale_NK
        self.weight.copy_(torch.where(own_NK == steps_NK, self.weight, near_NK))
        self.weight.copy_(self.kept_NK)


class FakeInt8Linear(FakeQuantLinear):
    """int8 weights and activations, as `Int8Linear` computes.

    A scale per output is learnt, and a static one of activations too. The dynamic scale of a row comes
    from the row itself, so none of its entries is clipped.
    """

    def __init__(self, layer: nn.Linear, packed: Int8Linear, mask_NK: Tensor | None = None) -> None:
        """Starts from the scales and codes of post-training quantisation."""
        super().__init__(layer, mask_NK)
        self.sparse24 = packed.sparse24
        self.register_buffer("start_N", packed.scale_N.clone())
        self.log_scale_N = _from_zero(packed.scale_N)
        self.start_N: Tensor
        self.register_buffer("act_start", packed.act_scale)
        self.act_start: Tensor | None
        log = None if packed.act_scale is None else _from_zero(packed.act_scale)
        self.register_parameter("log_act_scale", log)
        self.log_act_scale: nn.Parameter | None
        self._begin_at(packed.codes().float(), self.start_N[:, None], 0.0, QMAX)

    @property
    def scale_N(self) -> Tensor:
        """Scales of outputs."""
        count_N = self.num_kept().sum(1)
        return learnt_scale(self.start_N, self.log_scale_N, count=count_N, largest=QMAX)

    @property
    def act_scale(self) -> Tensor | None:
        """The scale of activations, [1]; None for one per row."""
        if self.act_start is None or self.log_act_scale is None:
            return None
        count = torch.full_like(self.act_start, self.in_features)
        return learnt_scale(self.act_start, self.log_act_scale, count=count, largest=QMAX)

    def product(self, input: Tensor) -> Tensor:  # noqa: A002
        """Sums of codes, then both scales, in the order of `todm.kernels.matmul_int8`."""
        x_MK = input.reshape(-1, self.in_features).float()
        scale = self.act_scale
        scale_M1 = absmax_scale(x_MK.detach())[:, None] if scale is None else scale
        scale_N = self.scale_N
        weight_NK = codes(self.kept_NK, scale_N[:, None], -QMAX, QMAX)
        y_MN = F.linear(codes(x_MK, scale_M1, -QMAX, QMAX), weight_NK) * scale_M1 * scale_N
        y_MN = y_MN if self.bias is None else y_MN + self.bias
        return y_MN.reshape(*input.shape[:-1], self.out_features).to(input.dtype)

    @torch.no_grad()
    def pack(self) -> Int8Linear:
        """See `FakeQuantLinear`."""
        scale_N = self.scale_N
        codes_NK = codes(self.kept_NK, scale_N[:, None], -QMAX, QMAX).to(torch.int8)
        parts = {"act_scale": self.act_scale, "sparse24": self.sparse24}
        return Int8Linear(codes_NK, scale_N, self.bias, **parts)


class FakeW4Linear(FakeQuantLinear):
    """Weights of 4 or 3 bits in groups, as `W4Linear` computes.

    Scales are rounded to the dtype they are stored in. Zero points are fixed, or learnt in units of the
    whole range: a weight beyond it moves them (LSQ+, arXiv 2004.09576).
    """

    def __init__(
        self,
        layer: nn.Linear,
        packed: W4Linear,
        mask_NK: Tensor | None = None,
        *,
        learn_zeros: bool = False,
    ) -> None:
        """Starts from the scales, zero points and codes of post-training quantisation."""
        super().__init__(layer, mask_NK)
        weight = packed.weight_w4
        assert weight.pre_quant_scale_K is None, "factors of inputs are not trained"
        self.bits, self.group, self.sparse24 = weight.bits, weight.group, packed.sparse24
        self.scale_dtype = weight.scale_NG.dtype
        self.largest = (1 << weight.bits) - 1
        self.register_buffer("start_NG", weight.scale_NG.float())
        self.start_NG: Tensor
        self.log_scale_NG = _from_zero(self.start_NG)
        middle = torch.full_like(self.start_NG, 1 << (self.bits - 1))
        self.symmetric = weight.zero_NG is None
        zero_NG = middle if weight.zero_NG is None else weight.zero_NG.float()
        self.register_buffer("zero_start_NG", zero_NG)
        self.zero_start_NG: Tensor
        moves = learn_zeros and not self.symmetric
        self.register_parameter("zero_move_NG", _from_zero(middle) if moves else None)
        self.zero_move_NG: nn.Parameter | None
        zero_NK = self._per_input(zero_NG)
        steps_NK = weight.codes_NK().float() - zero_NK
        self._begin_at(steps_NK, self._per_input(self.scale_NG), zero_NK, self.largest)

    @property
    def scale_NG(self) -> Tensor:
        """Scales of groups, as they are stored."""
        kept_NK = F.pad(self.num_kept(), (0, -self.in_features % self.group))
        count_NG = kept_NK.unflatten(1, (-1, self.group)).sum(2)
        above = self.largest // 2 if self.symmetric else self.largest
        scale_NG = learnt_scale(self.start_NG, self.log_scale_NG, count=count_NG, largest=above)
        kinds = torch.finfo(self.scale_dtype)
        stored_NG = scale_NG.clamp(kinds.smallest_normal * kinds.eps, kinds.max)
        return straight_through(stored_NG.to(self.scale_dtype).float(), scale_NG)

    @property
    def zero_NG(self) -> Tensor:
        """Zero points, whole numbers from 0 to the largest code."""
        if self.zero_move_NG is None:
            return self.zero_start_NG
        moved_NG = self.zero_start_NG + self.largest * self.zero_move_NG
        moved_NG = moved_NG.clamp(0, self.largest)
        return straight_through(moved_NG.round(), moved_NG)

    def product(self, input: Tensor) -> Tensor:  # noqa: A002
        """The product with the weight that the packed one stands for."""
        scale_NK, zero_NK = self._per_input(self.scale_NG), self._per_input(self.zero_NG)
        codes_NK = codes(self.kept_NK, scale_NK, 0, self.largest, zero=zero_NK)
        weight_NK = (codes_NK - zero_NK) * scale_NK
        return F.linear(input.float(), weight_NK, self.bias).to(input.dtype)

    @torch.no_grad()
    def pack(self) -> W4Linear:
        """See `FakeQuantLinear`."""
        scale_NK, zero_NK = self._per_input(self.scale_NG), self._per_input(self.zero_NG)
        codes_NK = codes(self.kept_NK, scale_NK, 0, self.largest, zero=zero_NK)
        packed = matmul_w4.pack(
            codes_NK.to(torch.uint8),
            self.scale_NG.to(self.scale_dtype),
            zero_NG=None if self.symmetric else self.zero_NG.to(torch.uint8),
            bits=self.bits,
            group=self.group,
        )
        return W4Linear(packed, self.bias, sparse24=self.sparse24)

    def _per_input(self, values_NG: Tensor) -> Tensor:
        return values_NG.repeat_interleave(self.group, 1)[:, : self.in_features]


def start(
    layer: nn.Linear,
    packed: PackedLinear,
    mask_NK: Tensor | None = None,
    *,
    learn_zeros: bool = False,
) -> FakeQuantLinear:
    """The trainable stand-in for a layer that was quantised after training.

    Args:
        layer: before quantisation.
        packed: after quantisation; training starts from its outputs.
        mask_NK: True where a weight is kept.
        learn_zeros: whether zero points of int4 and int3 are learnt.
    """
    if isinstance(packed, Int8Linear):
        return FakeInt8Linear(layer, packed, mask_NK)
    assert isinstance(packed, W4Linear)
    return FakeW4Linear(layer, packed, mask_NK, learn_zeros=learn_zeros)


def _from_zero(like: Tensor) -> nn.Parameter:
    """A parameter that starts at zero: ScaledAdam, whose steps are relative, would leave it there."""
    parameter = nn.Parameter(torch.zeros_like(like))
    parameter._plain_adam = True  # pyright: ignore[reportAttributeAccessIssue]
    return parameter


def scale_change(layer: FakeQuantLinear) -> float:
    """Mean relative change of a layer's scales in training, as |log ratio|."""
    log = layer.log_scale_N if isinstance(layer, FakeInt8Linear) else layer.log_scale_NG
    assert isinstance(log, Tensor)
    return math.expm1(float(log.detach().abs().mean()))

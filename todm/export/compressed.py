"""Packed layers as ONNX operators, with the same codes in the file as in the model.

While a graph is traced, a module that writes the operators of its format replaces every packed layer, so
no layer has to be recognised in the traced graph:

    int8, static scale    x -> Clip -> QuantizeLinear -> DequantizeLinear -> MatMul <- DequantizeLinear
    int8, scale per row   the arithmetic of `matmul_int8` written out, around MatMulInteger
    4 or 3 bits           x (Mul by pre_quant_scale) -> MatMulNBits
    2:4 alone             MatMul with the zeros in it: a CPU has no sparse product

Clip keeps codes in [-127, 127], as in `matmul_int8`; QuantizeLinear alone would also give -128.
DynamicQuantizeLinear is not used: it has one scale for all rows, so streams of a batch would affect each
other.

Codes of weights and activations are stored as uint8 with the zero point 128. On x86 without VNNI,
onnxruntime adds products of uint8 and int8 in 16 bits, which overflow; those of uint8 and uint8 are
exact on every processor, and on that one no slower (16 rows, 256 to 1024: 98 and 81 us, in QDQ 97 and
104). With VNNI, onnxruntime 1.31 has the faster kernel for uint8 and int8 only, but a compressed model
must give the same outputs everywhere. TensorRT takes int8 alone: `export/onnx/trtexec.py` shifts them.

Letters: N outputs, K inputs.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm.compress import packed
from todm.errors import BundleError
from todm.export.nbits import to_nbits
from todm.kernels.matmul_int8.quantise import FLOOR, QMAX

_MIDDLE = 128  # the zero point of all codes


class _Lowered(nn.Module):
    """A packed layer as operators, for tracing only."""

    def __init__(self, layer: packed.PackedLinear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        bias = layer.bias
        self.register_buffer("bias", None if bias is None else bias.float())
        self.bias: Tensor | None

    def forward(self, input: Tensor, *, out_features: int | None = None) -> Tensor:  # noqa: A002
        """The output, as the packed layer computes it.

        Raises:
            BundleError: the model is not in float32.
        """
        assert out_features in (None, self.out_features)
        if input.dtype != torch.float32:
            raise BundleError(
                f"a compressed model in {input.dtype} cannot be exported: cast it to float32 first"
            )
        y = self.product(input)
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor) -> Tensor:
        """The matrix product without the bias, [..., N]."""
        raise NotImplementedError

    def shape(self, x: Tensor) -> tuple[int | torch.SymInt, ...]:
        """The shape of the output."""
        return (*x.shape[:-1], self.out_features)


class _Zeros(_Lowered):
    """Float weights with 2:4 zeros."""

    def __init__(self, layer: packed.SparseLinear) -> None:
        super().__init__(layer)
        self.register_buffer("weight_NK", layer.dense_weight())
        self.weight_NK: Tensor

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_NK)


class _Codes(_Lowered):
    """Weights as codes about `_MIDDLE`."""

    def __init__(self, layer: packed.Int8Linear) -> None:
        super().__init__(layer)
        codes_KN = layer.codes().t().to(torch.int16) + _MIDDLE
        self.register_buffer("codes_KN", codes_KN.to(torch.uint8).contiguous())
        self.register_buffer("scale_N", layer.scale_N)
        self.register_buffer("middle", torch.tensor(_MIDDLE, dtype=torch.uint8))
        self.codes_KN: Tensor
        self.scale_N: Tensor
        self.middle: Tensor


class _Int8(_Codes):
    """int8 with one scale per row of activations."""

    def product(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True).clamp_min(FLOOR) / float(QMAX)
        codes = (x / scale).round().clamp(-QMAX, QMAX)
        parts = ((codes + _MIDDLE).to(torch.uint8), self.codes_KN, self.middle, self.middle)
        sums = torch.onnx.ops.symbolic(
            "MatMulInteger", parts, dtype=torch.int32, shape=self.shape(x)
        )
        return sums.float() * scale * self.scale_N


class _Int8Static(_Codes):
    """int8 with one scale for all activations."""

    def __init__(self, layer: packed.Int8Linear) -> None:
        super().__init__(layer)
        assert layer.act_scale is not None
        self.register_buffer("zero_N", torch.full_like(layer.scale_N, _MIDDLE, dtype=torch.uint8))
        self.register_buffer("act_scale", layer.act_scale.reshape(()))
        self.limit = QMAX * float(layer.act_scale)
        self.zero_N: Tensor
        self.act_scale: Tensor

    def product(self, x: Tensor) -> Tensor:
        x = x.clamp(-self.limit, self.limit)
        by = (self.act_scale, self.middle)
        codes = torch.onnx.ops.symbolic(
            "QuantizeLinear", (x, *by), dtype=torch.uint8, shape=x.shape
        )
        rounded = torch.onnx.ops.symbolic(
            "DequantizeLinear", (codes, *by), dtype=torch.float32, shape=x.shape
        )
        weight_KN = torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (self.codes_KN, self.scale_N, self.zero_N),
            attrs={"axis": 1},
            dtype=torch.float32,
            shape=self.codes_KN.shape,
        )
        return rounded @ weight_KN


class _NBits(_Lowered):
    """4 or 3 bits in groups."""

    def __init__(self, layer: packed.W4Linear) -> None:
        super().__init__(layer)
        for name, tensor in to_nbits(layer.weight_w4)._asdict().items():
            self.register_buffer(name, tensor)
        self.block = layer.group
        pre_quant_scale_K = layer.pre_quant_scale_K
        self.register_buffer(
            "pre_quant_scale_K", None if pre_quant_scale_K is None else pre_quant_scale_K.float()
        )
        self.B: Tensor
        self.scales: Tensor
        self.zero_points: Tensor
        self.pre_quant_scale_K: Tensor | None

    def product(self, x: Tensor) -> Tensor:
        sizes = {"K": self.in_features, "N": self.out_features}
        x = x if self.pre_quant_scale_K is None else x * self.pre_quant_scale_K
        return torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            (x, self.B, self.scales, self.zero_points),
            attrs={**sizes, "bits": 4, "block_size": self.block},
            dtype=x.dtype,
            shape=self.shape(x),
            version=1,
        )


@contextlib.contextmanager
def lowered(model: nn.Module) -> Iterator[None]:
    """A context in which the packed layers of a model are modules that an ONNX exporter can trace.

    Raises:
        BundleError: a layer has no ONNX form.
    """
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, packed.PackedLinear)
    ]
    made = {id(child): _lower(child) for _, _, child in places}
    try:
        for parent, name, child in places:
            setattr(parent, name, made[id(child)].train(child.training))
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)


def summary(models: Iterable[nn.Module]) -> dict[str, int]:
    """The number of packed layers by format, in words; a layer in two models counts once."""
    layers = {id(m): m for model in models for m in packed.layers_of(model).values()}
    return dict(Counter(_words(layer) for layer in layers.values()))


def is_rounding(model: nn.Module) -> bool:
    """Whether a layer rounds its activations: codes may differ where floats differ in the last bit."""
    return any(isinstance(layer, packed.Int8Linear) for layer in packed.layers_of(model).values())


def _words(layer: packed.PackedLinear) -> str:
    sparse24 = isinstance(layer, packed.SparseLinear) or layer.format()["sparse24"]
    zeros = ", 2:4 zeros" if sparse24 else ""
    if isinstance(layer, packed.W4Linear):
        # The operator has containers of 4 bits, so 3-bit weights make no smaller file.
        wide = " in 4-bit containers, which save no bytes over 4 bits" if layer.bits == 3 else ""
        return f"{layer.bits} bits{wide}, groups of {layer.group}{zeros}"
    if isinstance(layer, packed.SparseLinear):
        return "float32, 2:4 zeros"
    assert isinstance(layer, packed.Int8Linear)
    scale = "a scale per row" if layer.act_scale is None else "a static scale (QDQ)"
    return f"int8, {scale}{zeros}"


def _lower(layer: packed.PackedLinear) -> _Lowered:
    if isinstance(layer, packed.W4Linear):
        return _NBits(layer)
    if isinstance(layer, packed.SparseLinear):
        return _Zeros(layer)
    assert isinstance(layer, packed.Int8Linear)
    return _Int8(layer) if layer.act_scale is None else _Int8Static(layer)

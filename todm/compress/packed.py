"""Linear layers with a packed weight, as they run and as an artifact stores them.

`forward` goes through `todm.kernels`: on a GPU the kernels, on a CPU the same arithmetic in torch, so
that accuracy measured on a CPU is the deployed accuracy. There is no gradient.

The buffers of a layer are its storage alone; anything else that an op reads (an expanded 2:4 weight, a
dequantised copy) is made on first use, and dropped by `release`, `to` and `load_state_dict`. Scales keep
their dtype when a model is cast, since codes belong to the exact scale.

Letters: M rows, N outputs, K inputs, G groups of inputs, H = 2 ceil(K / 4) kept values.
"""

import abc
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from todm.compress.packed24_codes import expand, keep
from todm.errors import ArtifactError, ConfigError
from todm.kernels import matmul_24, matmul_int8, matmul_w4

Format = dict[str, Any]


class PackedLinear(nn.Module, abc.ABC):
    """A linear layer [N, K] whose buffers are its storage.

    Attributes:
        in_features: K.
        out_features: N.
        bias: [N], or None.
    """

    KIND: ClassVar[str]
    _CAST: ClassVar[tuple[str, ...]] = ("bias",)  # buffers that follow the dtype of the model

    bias: Tensor | None

    def __init__(self, shape: tuple[int, int], tensors: Mapping[str, Tensor | None]) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        for name, tensor in tensors.items():
            value = None if tensor is None else tensor.detach()
            if name == "bias" and value is not None and tuple(value.shape) != (shape[0],):
                raise ConfigError(f"bias is {tuple(value.shape)}: {shape[0]} outputs need as many")
            self.register_buffer(name, value)
        self._ready: Any = None

    @abc.abstractmethod
    def product(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Linear
        """The layer's output [..., N]."""

    @abc.abstractmethod
    def dense_weight(self) -> Tensor:
        """The weight [N, K] that a float layer would need, float32, `pre_quant_scale` included."""

    def forward(self, input: Tensor, *, out_features: int | None = None) -> Tensor:  # noqa: A002
        """The layer's output [..., N].

        Args:
            input: [..., K], as the op takes it.
            out_features: as of `ElasticLinear`; a packed layer has one width, N.

        Raises:
            ConfigError: another width is requested, or the op refuses the input.
        """
        check_width(out_features, self.out_features)
        return self.product(input)

    @property
    @abc.abstractmethod
    def weight_bits(self) -> int:
        """Of a kept weight."""

    @property
    def activation_bits(self) -> int:
        """Of the product's input; 32 if it is not quantised."""
        return 32

    @property
    def num_bytes(self) -> int:
        """Of the weight as stored: values, codes, scales, zeros, pre_quant_scale; not of the bias."""
        return sum(t.nbytes for name, t in self._storage() if name != "bias")

    def format(self) -> Format:
        """What `build` needs beside the tensors, as JSON types."""
        names = sorted(name for name, _ in self._storage())
        shape = [self.out_features, self.in_features]
        return {"kind": self.KIND, "shape": shape, "tensors": names, **self._format()}

    def release(self) -> None:
        """Drop what was derived from the buffers."""
        self._ready = None

    def extra_repr(self) -> str:
        """As of `nn.Linear`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._format()}"

    def _format(self) -> Format:
        return {}

    def _weight(self) -> matmul_24.Packed:
        """Of a layer stored as 2:4, as the op takes it."""
        if self._ready is None:
            self._ready = _weight_24(self.format(), dict(self._storage()))
        return self._ready

    def _storage(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, t) for name, t in self._buffers.items() if t is not None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":  # noqa: FBT001, FBT002 - nn.Module's
        exact = {n: t for n, t in self._storage() if n not in self._CAST}
        super()._apply(fn, recurse)
        for name, tensor in exact.items():
            moved = self._buffers[name]
            assert moved is not None
            if moved.dtype != tensor.dtype:
                self._buffers[name] = tensor.to(moved.device)
        self.release()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        super()._load_from_state_dict(*args)
        self.release()


class SparseLinear(PackedLinear):
    """2:4 with floating values, see `todm.kernels.matmul_24`."""

    KIND = "sparse24"
    _CAST = ("bias", "values_NH")

    values_NH: Tensor
    codes_NC: Tensor

    def __init__(self, weight: matmul_24.Packed, bias: Tensor | None = None) -> None:
        if weight.scale_N is not None:
            raise ConfigError("SparseLinear holds floating values: int8 ones go into Int8Linear")
        tensors = {"values_NH": weight.values_NH, "codes_NC": weight.codes_NC, "bias": bias}
        super().__init__(weight.shape, tensors)

    def product(self, input: Tensor) -> Tensor:  # noqa: A002
        """See `PackedLinear`."""
        return matmul_24.matmul_24(input, self._weight(), bias_N=self.bias)

    def dense_weight(self) -> Tensor:
        """See `PackedLinear`."""
        return self._weight().dense_NK.float()

    @property
    def weight_bits(self) -> int:
        """Those of the values' dtype."""
        return 8 * self.values_NH.element_size()


class Int8Linear(PackedLinear):
    """int8 weights and activations, see `todm.kernels.matmul_int8`; 2:4 through `matmul_24`."""

    KIND = "int8"

    scale_N: Tensor
    act_scale: Tensor | None

    def __init__(
        self,
        codes_NK: Tensor,
        scale_N: Tensor,
        bias: Tensor | None = None,
        *,
        act_scale: Tensor | None = None,
        sparse24: bool = False,
    ) -> None:
        """Keep the codes, or pack them.

        Args:
            codes_NK: int8.
            scale_N: of each output.
            bias: [N].
            act_scale: one number for all activations (static); None for a scale per row.
            sparse24: store and run it as 2:4.

        Raises:
            ConfigError: parts that do not match, or codes that are not 2:4.
        """
        self.sparse24 = sparse24
        is_matrix = codes_NK.dtype == torch.int8 and codes_NK.dim() == 2
        if not is_matrix or scale_N.shape != codes_NK.shape[:1]:
            raise ConfigError(
                f"Int8Linear: codes are {codes_NK.dtype} {tuple(codes_NK.shape)} and scales "
                f"{tuple(scale_N.shape)}; int8 [N, K] and [N] are needed"
            )
        if sparse24:
            packed = matmul_24.pack(codes_NK, scale_N=scale_N)
            weight = {"values_NH": packed.values_NH, "codes_NC": packed.codes_NC}
        else:
            weight = {"codes_NK": codes_NK}
        if act_scale is not None:
            act_scale = act_scale.float().reshape(1)
        rest = {"scale_N": scale_N.float(), "act_scale": act_scale, "bias": bias}
        super().__init__((codes_NK.shape[0], codes_NK.shape[1]), {**weight, **rest})

    def product(self, input: Tensor) -> Tensor:  # noqa: A002
        """See `PackedLinear`."""
        bias_N, act_scale = self.bias, self.act_scale
        if self.sparse24:
            weight = self._weight()
            return matmul_24.matmul_24(input, weight, bias_N=bias_N, act_scale=act_scale)
        return matmul_int8.matmul_int8(
            input, self.codes(), self.scale_N, bias_N=bias_N, act_scale=act_scale
        )

    @property
    def weight_bits(self) -> int:
        """8."""
        return 8

    @property
    def activation_bits(self) -> int:
        """8."""
        return 8

    def codes(self) -> Tensor:
        """The codes, int8 [N, K]."""
        return self._weight().dense_NK if self.sparse24 else self.get_buffer("codes_NK")

    def dense_weight(self) -> Tensor:
        """See `PackedLinear`."""
        return self.codes().float() * self.scale_N[:, None]

    def _format(self) -> Format:
        return {"sparse24": self.sparse24}


class W4Linear(PackedLinear):
    """Weights of 4 or 3 bits in groups, see `todm.kernels.matmul_w4`.

    With `sparse24`, of every four codes the two kept ones are stored, and their positions as of
    `matmul_24`: 12 bits instead of 16, or 10 instead of 12. Kernels read the weight expanded.
    """

    KIND = "w4"

    scale_NG: Tensor
    zero_NG: Tensor | None
    pre_quant_scale_K: Tensor | None

    def __init__(
        self, weight: matmul_w4.Packed, bias: Tensor | None = None, *, sparse24: bool = False
    ) -> None:
        """Keep the words, or the kept codes.

        Args:
            weight: as the op takes it.
            bias: [N].
            sparse24: store it as 2:4.

        Raises:
            ConfigError: codes that are not 2:4, or a bias that does not fit.
        """
        self.sparse24, self.bits, self.group = sparse24, weight.bits, weight.group
        stored = keep(weight) if sparse24 else {"words_NJ": weight.words_NJ}
        rest = {
            "scale_NG": weight.scale_NG,
            "zero_NG": weight.zero_NG,
            "pre_quant_scale_K": weight.pre_quant_scale_K,
        }
        super().__init__(weight.shape, {**stored, **rest, "bias": bias})

    @property
    def weight_bits(self) -> int:
        """4 or 3."""
        return self.bits

    @property
    def weight_w4(self) -> matmul_w4.Packed:
        """The weight as the op takes it."""
        if self._ready is None:
            self._ready = _weight_w4(self.format(), dict(self._storage()))
        return self._ready

    def product(self, input: Tensor) -> Tensor:  # noqa: A002
        """See `PackedLinear`."""
        # On a CPU only: there the packed weight saves no time, and in float32 the numbers are the same.
        cache = input.device.type == "cpu" and input.dtype == torch.float32
        weight = self.weight_w4
        return matmul_w4.matmul_w4(input, weight, bias_N=self.bias, cache_dequantised=cache)

    def dense_weight(self) -> Tensor:
        """See `PackedLinear`."""
        weight_NK, scale_K = self.weight_w4.dequantise(), self.pre_quant_scale_K
        return weight_NK if scale_K is None else weight_NK * scale_K.float()

    def _format(self) -> Format:
        return {"sparse24": self.sparse24, "bits": self.bits, "group": self.group}


def check_width(requested: int | None, out_features: int) -> None:
    """Raises ConfigError if a compressed layer is called as an elastic one, with another width."""
    if requested not in (None, out_features):
        raise ConfigError(
            f"{requested} outputs are requested from a compressed layer of {out_features}: a compressed "
            "model has one width, compress the subnet of that width"
        )


def pack_sparse(linear: nn.Linear) -> SparseLinear:
    """The packed form of a linear layer whose weight is 2:4.

    Raises:
        ConfigError: it is not.
    """
    return SparseLinear(matmul_24.pack(linear.weight), linear.bias)


def build(format: Format, tensors: Mapping[str, Tensor]) -> PackedLinear:  # noqa: A002
    """The layer that `format()` and the tensors of `state_dict()` describe.

    Raises:
        ArtifactError: they describe none.
    """
    try:
        kind, shape, names = format["kind"], format["shape"], format["tensors"]
        if sorted(tensors) != names or kind not in _BUILDERS:
            raise ArtifactError(
                f"a layer of kind {kind!r} needs the tensors {', '.join(names)}, and has "
                f"{', '.join(sorted(tensors)) or 'none'}: compress the model again with this todm"
            )
        layer = _BUILDERS[kind](format, tensors)
    except (KeyError, TypeError, RuntimeError, ConfigError) as error:
        raise ArtifactError(
            f"a compressed layer cannot be read ({error}): compress the model again"
        ) from None
    if [layer.out_features, layer.in_features] != shape:
        sizes = f"{layer.out_features} x {layer.in_features}"
        raise ArtifactError(
            f"a compressed layer is {sizes}, and {shape} was written: it is damaged"
        )
    return layer


def layers_of(model: nn.Module) -> dict[str, PackedLinear]:
    """All packed layers by their full name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, PackedLinear)}


def release(model: nn.Module) -> None:
    """Free what its packed layers derived from their buffers; they derive it again when they run."""
    for layer in layers_of(model).values():
        layer.release()


def _weight_24(format: Format, tensors: Mapping[str, Tensor]) -> matmul_24.Packed:  # noqa: A002
    parts = (tensors["values_NH"], tensors["codes_NC"], format["shape"][1])
    return matmul_24.Packed(*parts, tensors.get("scale_N"))


def _build_sparse(format: Format, tensors: Mapping[str, Tensor]) -> PackedLinear:  # noqa: A002
    return SparseLinear(_weight_24(format, tensors), tensors.get("bias"))


def _build_int8(format: Format, tensors: Mapping[str, Tensor]) -> PackedLinear:  # noqa: A002
    sparse24 = format["sparse24"]
    codes_NK = _weight_24(format, tensors).dense_NK if sparse24 else tensors["codes_NK"]
    options = {"act_scale": tensors.get("act_scale"), "sparse24": sparse24}
    return Int8Linear(codes_NK, tensors["scale_N"], tensors.get("bias"), **options)


def _build_w4(format: Format, tensors: Mapping[str, Tensor]) -> PackedLinear:  # noqa: A002
    weight = _weight_w4(format, tensors)
    return W4Linear(weight, tensors.get("bias"), sparse24=format["sparse24"])


def _weight_w4(format: Format, tensors: Mapping[str, Tensor]) -> matmul_w4.Packed:  # noqa: A002
    bits, (N, K) = format["bits"], format["shape"]
    optional = {name: tensors.get(name) for name in ("zero_NG", "pre_quant_scale_K")}
    parts = {"scale_NG": tensors["scale_NG"], **optional, "bits": bits, "group": format["group"]}
    if not format["sparse24"]:
        return matmul_w4.Packed(words_NJ=tensors["words_NJ"], **parts, num_inputs=K)
    kept_NP, codes_NC = tensors["kept_NP"], tensors["codes_NC"]
    no_words_NJ = codes_NC.new_zeros((N, -(-K // 128) * 4 * bits), dtype=torch.int32)
    frame = matmul_w4.Packed(words_NJ=no_words_NJ, **parts, num_inputs=K)
    return expand(kept_NP, codes_NC, frame)


_BUILDERS: dict[str, Callable[[Format, Mapping[str, Tensor]], PackedLinear]] = {
    SparseLinear.KIND: _build_sparse,
    Int8Linear.KIND: _build_int8,
    W4Linear.KIND: _build_w4,
}

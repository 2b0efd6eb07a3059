"""Compressed models as checkpoints in AutoAWQ's GEMM layout, and back.

A quantised layer NAME has NAME.qweight, NAME.qzeros and NAME.scales (`todm.kernels.matmul_w4.awq` has
the bits), every other tensor its own name. transformers, vLLM and others read it. Weights of 4 bits
only; nothing is lost in them either way.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from todm.compress.packed import PackedLinear, W4Linear, layers_of
from todm.errors import ArtifactError, ConfigError
from todm.kernels.matmul_w4 import Awq, Packed, from_awq, to_awq
from todm.kernels.matmul_w4.pack import GROUPS

_PARTS = Awq._fields
_MIDDLE = 8


def quantization_config(model: nn.Module) -> dict[str, Any]:
    """The table `quantization_config` of config.json, in AutoAWQ's words.

    Raises:
        ConfigError: a model that the layout cannot hold; see `check`.
    """
    layers = check(model)
    left = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": next(iter(layers.values())).group,
        # Zero points are written for symmetric weights too: readers of the layout expect them.
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": left,
    }


def check(model: nn.Module) -> dict[str, W4Linear]:
    """The quantised layers, if all of them fit the layout.

    Raises:
        ConfigError: one does not, or there are none.
    """
    layers: dict[str, W4Linear] = {}
    for name, layer in layers_of(model).items():
        if why := _why_not(layer):
            raise ConfigError(f"{name} {why}")
        assert isinstance(layer, W4Linear)
        layers[name] = layer
    if not layers:
        raise ConfigError("no layer has 4 bits: compress with the pass awq or int4 first")
    groups = sorted({layer.group for layer in layers.values()})
    if len(groups) > 1:
        raise ConfigError(
            f"layers have groups of {' and of '.join(map(str, groups))} inputs: an AWQ checkpoint has "
            "one group size"
        )
    return layers


def tensors_of(model: nn.Module, *, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """The tensors of a checkpoint; shared ones once.

    Args:
        model: as compressed.
        dtype: of all that is not quantised.

    Raises:
        ConfigError: a model that the layout cannot hold, or a number too large for `dtype`.
    """
    layers = check(model)
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            tensors[name] = _cast(name, parameter.detach(), dtype)
    for name, layer in layers.items():
        awq = to_awq(layer.weight_w4)
        tensors |= {f"{name}.{part}": tensor for part, tensor in zip(_PARTS, awq, strict=True)}
        if layer.bias is not None:
            tensors[f"{name}.bias"] = _cast(f"{name}.bias", layer.bias, dtype)
    return tensors


def layers_from(
    tensors: Mapping[str, Tensor], quantised: Mapping[str, Any]
) -> tuple[dict[str, W4Linear], dict[str, Tensor]]:
    """The quantised layers of a checkpoint, and its other tensors.

    Args:
        tensors: all of them.
        quantised: the table `quantization_config` of its config.json.

    Raises:
        ArtifactError: it is quantised in another way, or tensors do not belong together.
    """
    group = group_of(quantised)
    names = sorted(n.removesuffix(".qweight") for n in tensors if n.endswith(".qweight"))
    layers: dict[str, W4Linear] = {}
    for name in names:
        try:
            parts = Awq(*(tensors[f"{name}.{part}"] for part in _PARTS))
            weight = _without_middle(from_awq(parts, group=group))
            layers[name] = W4Linear(weight, _bias(tensors, name))
        except (KeyError, ConfigError, RuntimeError) as error:
            raise ArtifactError(
                f"the AWQ layer {name} is damaged ({error}): copy the checkpoint again"
            ) from None
    used = {f"{n}.{part}" for n in names for part in (*_PARTS, "bias")}
    return layers, {n: t for n, t in tensors.items() if n not in used}


def group_of(quantised: Mapping[str, Any]) -> int:
    """Inputs of a group of a checkpoint in this layout.

    Raises:
        ArtifactError: it is quantised in another way.
    """
    method = quantised.get("quant_method")
    version = str(quantised.get("version", quantised.get("format", "gemm"))).lower()
    bits = quantised.get("bits", quantised.get("w_bit"))
    group = quantised.get("group_size", quantised.get("q_group_size"))
    if (method, version, bits) != ("awq", "gemm", 4) or group not in GROUPS:
        raise ArtifactError(
            f"the checkpoint is quantised already, by {method} {version} with {bits} bits and groups of "
            f"{group}: AWQ's gemm with 4 bits and groups of {', '.join(map(str, GROUPS))} is read; for "
            "the rest give the model it was made of"
        )
    return int(group)


def _why_not(layer: PackedLinear) -> str:
    """Why the layout cannot hold a layer."""
    if not isinstance(layer, W4Linear):
        return (
            f"is {layer.KIND}: an AWQ checkpoint holds weights of 4 bits; use the pass awq or int4"
        )
    if layer.bits != 4:
        return f"has {layer.bits} bits: an AWQ checkpoint holds 4; compress with awq.bits=4"
    if layer.pre_quant_scale_K is not None:
        return (
            "keeps a pre_quant_scale, since its scale folds into no layer before it, and an AWQ "
            "checkpoint has no place for it: compress with awq.scale=false, or exclude the layer"
        )
    if layer.in_features % layer.group:
        return (
            f"has {layer.in_features} inputs, and an AWQ checkpoint needs a multiple of the group "
            f"{layer.group}: choose a smaller awq.group, or exclude the layer"
        )
    if layer.out_features % 8:
        return (
            f"has {layer.out_features} outputs, and an AWQ checkpoint packs 8 at a time: exclude it"
        )
    return ""


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = tensor.to(dtype)
    if not bool(cast.isfinite().all()):
        raise ConfigError(f"{name} holds numbers that {dtype} cannot: write it as float32")
    return cast


def _bias(tensors: Mapping[str, Tensor], name: str) -> Tensor | None:
    bias = tensors.get(f"{name}.bias")
    return None if bias is None else bias.float()


def _without_middle(weight: Packed) -> Packed:
    """Zero points that are all in the middle are those of a symmetric weight, and not stored."""
    zero_NG = weight.zero_NG
    if zero_NG is None or bool((zero_NG != _MIDDLE).any()):
        return weight
    return Packed(
        words_NJ=weight.words_NJ,
        scale_NG=weight.scale_NG,
        bits=weight.bits,
        group=weight.group,
        num_inputs=weight.num_inputs,
    )

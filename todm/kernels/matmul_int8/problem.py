"""What every implementation is given, and the checks. Letters: M rows, K inputs, N outputs."""

import dataclasses

import torch
from torch import Tensor

from todm.errors import ConfigError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_INPUTS = 2**31 // (127 * 128)
"""More inputs than this could overflow the int32 sum."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One call. An implementation gets the activation's leading axes folded into M, M >= 1."""

    x_MK: Tensor
    weight_NK: Tensor
    weight_scale_N: Tensor
    bias_N: Tensor | None
    act_scale: Tensor | None
    out_dtype: torch.dtype

    def check(self) -> None:
        """Raises ConfigError with the first thing that is wrong."""
        weight = self.weight_NK
        if weight.dim() != 2 or weight.dtype != torch.int8 or 0 in weight.shape:
            raise ConfigError(
                f"matmul_int8: weight_NK is {weight.dtype} {tuple(weight.shape)}; int8 [N, K] with "
                "N and K of at least 1 is needed: quantise_weight makes it"
            )
        num_outputs, num_inputs = weight.shape
        if num_inputs > MAX_INPUTS:
            raise ConfigError(
                f"matmul_int8: {num_inputs} inputs could overflow an int32 sum, allowed are "
                f"{MAX_INPUTS}: split the layer along K"
            )
        check_activation("matmul_int8", self.x_MK, num_inputs)
        check_act_scale("matmul_int8", self.act_scale)
        check_vector("matmul_int8", "weight_scale_N", self.weight_scale_N, num_outputs)
        check_vector("matmul_int8", "bias_N", self.bias_N, num_outputs)
        check_out_dtype("matmul_int8", self.out_dtype)
        given = (self.x_MK, weight, self.weight_scale_N, self.bias_N, self.act_scale)
        check_together("matmul_int8", given)


def check_activation(op: str, x: Tensor, num_inputs: int) -> None:
    """Raises ConfigError unless x is a floating [..., K]."""
    if x.dtype not in DTYPES:
        raise ConfigError(
            f"{op}: the activation is {x.dtype}, allowed are {_names(DTYPES)}: convert it first"
        )
    if x.dim() < 1 or x.shape[-1] != num_inputs:
        raise ConfigError(
            f"{op}: the activation has shape {tuple(x.shape)}; the weight's {num_inputs} inputs "
            "must be its last axis"
        )


def check_act_scale(op: str, act_scale: Tensor | None) -> None:
    """Raises ConfigError unless it is one number, or None."""
    if act_scale is not None and (act_scale.numel() != 1 or act_scale.dtype not in DTYPES):
        raise ConfigError(
            f"{op}: act_scale is {act_scale.dtype} {tuple(act_scale.shape)}; one floating number "
            "for the whole tensor is needed, or None for a scale per row"
        )


def check_vector(op: str, name: str, vector: Tensor | None, num_outputs: int) -> None:
    """Raises ConfigError unless it is a floating [N], or None."""
    if vector is None:
        return
    if tuple(vector.shape) != (num_outputs,) or vector.dtype not in DTYPES:
        raise ConfigError(
            f"{op}: {name} is {vector.dtype} {tuple(vector.shape)}; with {num_outputs} outputs a "
            f"floating ({num_outputs},) is needed"
        )


def check_out_dtype(op: str, out_dtype: torch.dtype) -> None:
    """Raises ConfigError for what a result cannot be."""
    if out_dtype not in DTYPES:
        raise ConfigError(f"{op}: out_dtype is {out_dtype}, allowed are {_names(DTYPES)}")


def check_together(op: str, tensors: tuple[Tensor | None, ...]) -> None:
    """Raises ConfigError for tensors on several devices, or one that wants a gradient."""
    there = [t for t in tensors if t is not None]
    devices = sorted({str(t.device) for t in there})
    if len(devices) > 1:
        raise ConfigError(f"{op}: tensors are on {' and '.join(devices)}: move them to one device")
    if torch.is_grad_enabled() and any(t.requires_grad for t in there):
        raise ConfigError(
            f"{op}: it has no gradient and one is asked for: call it under torch.no_grad(), and "
            "train with a layer that simulates it in floating point"
        )


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)

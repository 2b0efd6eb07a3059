"""Shared by the linear layers: the checks of their arguments, and the call of an implementation."""

import dataclasses
from typing import Protocol

import torch
from torch import Tensor

from todm.errors import ConfigError
from todm.kernels._choice import Problem
from todm.kernels._dispatch import load_impl, on_device_of

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_INPUTS = 2**31 // (127 * 128)
"""More int8 inputs than this could overflow the int32 sum."""


class LinearProblem(Problem, Protocol):
    """A call of a linear layer. Letters: M rows, K inputs, N outputs."""

    @property
    def num_outputs(self) -> int:
        """N."""
        ...

    @property
    def out_dtype(self) -> torch.dtype:
        """Of the result."""
        ...

    def check(self) -> None:
        """Raises ConfigError with the first thing that is wrong."""
        ...


def run_linear(
    op: str, problem: LinearProblem, *, names: tuple[str, ...], impl: str | None
) -> Tensor:
    """Check a call, and run it with the activation's leading axes folded into M; [..., N].

    Args:
        op: The op's folder.
        problem: The call.
        names: The op's implementations.
        impl: The caller's choice of one, or None.
    """
    problem.check()
    x = problem.x_MK
    shape = (*x.shape[:-1], problem.num_outputs)
    if x.numel() == 0:
        return x.new_empty(shape, dtype=problem.out_dtype)
    chosen = load_impl(op, names, impl, device=x.device.type)
    problem = dataclasses.replace(problem, x_MK=x.reshape(-1, x.shape[-1]))
    with on_device_of(x):
        return chosen.run(problem).reshape(shape)


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
    """Raises ConfigError for a dtype that a result cannot have."""
    if out_dtype not in DTYPES:
        raise ConfigError(f"{op}: out_dtype is {out_dtype}, allowed are {_names(DTYPES)}")


def check_int8_inputs(op: str, num_inputs: int) -> None:
    """Raises ConfigError where a sum of products of int8 codes could overflow."""
    if num_inputs > MAX_INPUTS:
        raise ConfigError(
            f"{op}: {num_inputs} inputs could overflow an int32 sum, allowed are {MAX_INPUTS}: "
            "split the layer along K"
        )


def check_together(op: str, *tensors: Tensor | None) -> None:
    """Raises ConfigError for tensors on several devices, or for one that needs a gradient."""
    present = [t for t in tensors if t is not None]
    devices = sorted({str(t.device) for t in present})
    if len(devices) > 1:
        raise ConfigError(f"{op}: tensors are on {' and '.join(devices)}: move them to one device")
    if torch.is_grad_enabled() and any(t.requires_grad for t in present):
        raise ConfigError(
            f"{op}: it has no gradient, but an argument requires one: call it under torch.no_grad(), "
            "and train with a layer that simulates it in floating point"
        )


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)

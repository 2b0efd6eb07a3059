"""Shared by the hosts of Triton kernels: the check of the device, tuning, the interpreter's limits."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton import language as tl
from triton.runtime.interpreter import InterpretedFunction

from todm.errors import ConfigError


def require_gpu(op: str, x: Tensor) -> None:
    """Check that Triton can run: on a GPU, or in its interpreter.

    Raises:
        ConfigError: `x` is not on a GPU, and kernels are compiled.
    """
    kind = x.device.type
    if kind != "cuda" and not triton.knobs.runtime.interpret:
        raise ConfigError(
            f"{op}: impl 'triton' runs on CUDA devices, the tensors are on {kind!r}: "
            "use impl='torch' (or set TRITON_INTERPRET=1 to debug it)"
        )


def or_else(tensor: Tensor | None, other: Tensor) -> Tensor:
    """The tensor, or a pointer in its place that the kernel never reads."""
    return other if tensor is None else tensor


def dot_dtype(dtype: torch.dtype) -> tl.dtype:
    """Of the factors of `tl.dot`: the interpreter multiplies bfloat16 as if it were integers."""
    if triton.knobs.runtime.interpret and dtype == torch.bfloat16:
        return tl.float32
    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[
        dtype
    ]


def tuned(configs: Sequence[triton.Config], key: Sequence[str]) -> Callable[[Any], Any]:
    """`triton.autotune`; under `TRITON_INTERPRET=1`, where timing means nothing, the first configuration.

    Args:
        configs: choices; the first one suits small shapes.
        key: arguments of the kernel whose change requires a new choice.
    """

    def wrap(kernel: Any) -> Any:  # noqa: ANN401 - Triton's own types
        if isinstance(kernel, InterpretedFunction):
            return _First(kernel, dict(configs[0].kwargs))
        return triton.autotune(list(configs), list(key), cache_results=True)(kernel)

    return wrap


class _First:
    """A kernel that is always launched with the same configuration."""

    def __init__(self, kernel: Any, settings: dict[str, Any]) -> None:  # noqa: ANN401
        self._kernel, self._settings = kernel, settings

    def __getitem__(self, grid: Any) -> Callable[..., None]:  # noqa: ANN401
        def launch(*args: object, **kwargs: object) -> None:
            names = dict(zip(self._kernel.arg_names, args, strict=False))
            chosen = grid({**names, **kwargs, **self._settings}) if callable(grid) else grid
            self._kernel[chosen](*args, **kwargs, **self._settings)

        return launch

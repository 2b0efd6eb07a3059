"""Autotuning of Triton kernels, with a rule for the interpreter, where timing means nothing."""

from collections.abc import Callable, Sequence
from typing import Any

import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from todm.errors import ConfigError


def require_gpu(op: str, x: Tensor) -> None:
    """Triton's kernels need a GPU, or its interpreter.

    Raises:
        ConfigError: `x` is not on a GPU, and kernels are compiled.
    """
    kind = x.device.type
    if kind != "cuda" and not triton.knobs.runtime.interpret:
        raise ConfigError(
            f"{op}: impl 'triton' runs on CUDA devices, the tensors are on {kind!r}: "
            "use impl='torch' (or set TRITON_INTERPRET=1 to debug it)"
        )


def tuned(configs: Sequence[triton.Config], key: Sequence[str]) -> Callable[[Any], Any]:
    """`triton.autotune`; under `TRITON_INTERPRET=1` the first configuration is used as it is.

    Args:
        configs: choices; order them so that the first is right for small shapes.
        key: arguments of the kernel whose change calls for a new choice.
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

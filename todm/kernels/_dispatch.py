"""Which implementation of an op runs, and the state of torch that it runs in.

An explicit `impl=` wins, then the variable `TODM_IMPL`, then the default: `triton` for tensors on a GPU
where the op has it, else the op's first name. `TODM_IMPL` is one name for every op (`reference`) or a
list (`rnnt_loss=reference,mh_ssm=torch`). Nothing falls back silently.
"""

import contextlib
import importlib
import os
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from todm.errors import ConfigError, MissingExtra

VARIABLE = "TODM_IMPL"


@contextlib.contextmanager
def on_device_of(x: Tensor) -> Iterator[None]:
    """Launches go to the device of `x`, and products keep the dtypes they are given.

    Triton launches on the current device, which need not be the tensors'. Autocast would turn sums
    that an op keeps in float32 into bfloat16; a backward pass does not inherit this state from its
    forward pass.
    """
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        yield


def load_impl(
    op: str, names: tuple[str, ...], impl: str | None = None, *, device: str = "cpu"
) -> ModuleType:
    """The module that implements `op`, imported now.

    Args:
        op: The op's folder in `todm/kernels`.
        names: The implementations it has, the default first.
        impl: The caller's choice; None leaves it to `TODM_IMPL`, then to the default.
        device: Type of the device that the tensors are on, such as "cuda".

    Raises:
        ConfigError: `op` has no such implementation, or `TODM_IMPL` cannot be read.
        MissingExtra: the implementation's package is not installed.
    """
    name, origin = (impl, "impl") if impl is not None else (_from_environment(op), VARIABLE)
    if name is None:
        name = "triton" if device == "cuda" and "triton" in names else names[0]
    if name not in names:
        raise ConfigError(
            f"{origin} asks for {name!r}, which {op} does not have: choose one of {', '.join(names)}"
        )
    module = "reference" if name == "reference" else f"{name}_impl"
    try:
        return importlib.import_module(f"todm.kernels.{op}.{module}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "todm"):
            raise
        raise MissingExtra(package, "train", f"{op} with impl={name!r}") from None


def _from_environment(op: str) -> str | None:
    """The implementation that `TODM_IMPL` names for `op`, if it does."""
    setting = os.environ.get(VARIABLE, "").strip()
    if "=" not in setting:
        return setting or None
    ops = sorted(m.name for m in pkgutil.iter_modules([os.path.dirname(__file__)]) if m.ispkg)
    chosen: str | None = None
    for item in setting.split(","):
        key, sep, name = (part.strip() for part in item.partition("="))
        if not sep or not name or key not in ops:
            raise ConfigError(
                f"{VARIABLE}={setting!r}: {item.strip()!r} is not OP=IMPL with an op among "
                f"{', '.join(ops)}; write for example {VARIABLE}=rnnt_loss=reference"
            )
        chosen = name if key == op else chosen
    return chosen

"""Which implementation of an op runs: one rule, one environment variable.

An explicit `impl=` wins, then `TODM_IMPL`, then the default: `triton` for tensors on a GPU where the
op has it, else the op's first name. `TODM_IMPL` is one name for every op (`reference`) or a list
(`rnnt_loss=reference,mh_ssm=torch`). Nothing falls back silently.
"""

import importlib
import os
import pkgutil
from types import ModuleType

from todm.errors import ConfigError, MissingExtra

VARIABLE = "TODM_IMPL"


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
        ConfigError: no such implementation or, in `TODM_IMPL`, no such op.
        MissingExtra: the implementation's package is not installed.
    """
    name, origin = (impl, "impl") if impl is not None else (_from_environment(op), VARIABLE)
    name = _default(names, device) if name is None else name
    if name not in names:
        raise ConfigError(
            f"{origin} asks for {name!r}, which {op} has not: choose one of {', '.join(names)}"
        )
    module = "reference" if name == "reference" else f"{name}_impl"
    try:
        return importlib.import_module(f"todm.kernels.{op}.{module}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "todm"):
            raise
        raise MissingExtra(package, "train", f"{op} with impl={name!r}") from None


def _default(names: tuple[str, ...], device: str) -> str:
    return "triton" if device == "cuda" and "triton" in names else names[0]


def _from_environment(op: str) -> str | None:
    """What `TODM_IMPL` says of `op`, None where it says nothing."""
    setting = os.environ.get(VARIABLE, "").strip()
    if "=" not in setting:
        return setting or None
    chosen: str | None = None
    for item in setting.split(","):
        key, sep, name = (part.strip() for part in item.partition("="))
        if not sep or not name or key not in _ops():
            raise ConfigError(
                f"{VARIABLE}={setting!r}: {item.strip()!r} is not OP=IMPL with an op among "
                f"{', '.join(_ops())}; write for example {VARIABLE}=rnnt_loss=reference"
            )
        chosen = name if key == op else chosen
    return chosen


def _ops() -> list[str]:
    """The ops: every folder of `todm.kernels`."""
    path = importlib.import_module("todm.kernels").__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if m.ispkg)

"""todm: train one RNN-T supernet once, deploy a subnet of it to every device.

`todm.load` is the recogniser of a bundle, `todm.stages` has a function for each verb of the command
line; docs/api.md lists what stays. Both are imported when they are first used;
`__init__.pyi` has their types.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "stages"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is public
    """Import what is public, when it is first used."""
    if name == "load":
        return importlib.import_module("todm.device.load").load
    if name == "stages":
        return importlib.import_module("todm.stages")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All that there is, imported or not."""
    return sorted({*globals(), *__all__})

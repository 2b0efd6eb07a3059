"""Costs of a choice: a subnet's own figures, added up over its blocks, in a compression.

Counted on the plain model built without memory; latency comes from a device's table (`latency.py`).
"""

import functools
from collections.abc import Callable, Mapping

import torch
from torch import nn

from todm.search.choice import COMPRESSIONS, Choice, Compression
from todm.search.latency import LatencyModel
from todm.supernet.space import Subnet

_GROUP = 32  # inputs that share a scale in int4
# Fitted to files of 0.8 to 80 MiB in onnxruntime 1.31 on x86, fp32 and int8: within 15 %.
_RUNTIME = 11 * 2.0**20
_COPIES = 1.6  # of the weights while they are loaded: the file's and the runtime's packed ones


def costs(build: Callable[[], nn.Module], compression: Compression = "none") -> dict[str, float]:
    """Parameters, and bytes of the weights and constants in a compression.

    Counts what post-training quantisation of the exported graphs stores. `int8`: one byte per weight
    of a linear layer, a scale and a zero point per output. `int4`: half a byte, and a scale and half
    a byte of zero point per 32 inputs. Everything else is four bytes a number.

    Args:
        build: makes the model with the constants it is exported with; called on torch's meta device.
        compression: of the weights on disk.
    """
    with torch.device("meta"):
        model = build()
    params = sum(p.numel() for p in model.parameters())
    size = 4.0 * (params + sum(b.numel() for b in model.buffers()))
    if compression != "none":
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        size += sum(_stored(m, compression) - 4.0 * m.weight.numel() for m in linears)
    return {"params": float(params), "size": size}


def sizes(build: Callable[[], nn.Module]) -> dict[str, float]:
    """`params`, and the bytes of every compression as `size none`, `size int8`, `size int4`."""
    with torch.device("meta"):
        model = build()
    found = {name: costs(lambda: model, name) for name in COMPRESSIONS}
    return {
        "params": found["none"]["params"],
        **{f"size {name}": value["size"] for name, value in found.items()},
    }


class StackCosts:
    """Costs of any subnet by addition: of each block by its widths, and of everything around the blocks.

    Building a model takes tens of milliseconds even without memory, and a search prices thousands. Exact
    for costs that add up over blocks, if all blocks of the stack are of one kind.
    """

    def __init__(self, price: Callable[[Subnet], Mapping[str, float]]) -> None:
        """`price` counts a subnet's own figures on its model."""
        self._price = functools.cache(price)
        self._rest: dict[str, float] = {}

    def __call__(self, subnet: Subnet) -> dict[str, float]:
        """The figures that `price` gives."""
        ones = [self._price(_repeat(subnet, i, 1)) for i in range(subnet.depth)]
        if not self._rest:
            two = self._price(_repeat(subnet, 0, 2))
            self._rest = {name: 2 * ones[0][name] - two[name] for name in two}
        return {
            name: rest + sum(one[name] - rest for one in ones) for name, rest in self._rest.items()
        }


class Prices:
    """All costs of a choice by the names that budgets use."""

    def __init__(
        self, stack: Callable[[Subnet], Mapping[str, float]], devices: Mapping[str, LatencyModel]
    ) -> None:
        """Put them together.

        Args:
            stack: `sizes`, `macs` and `state` of a subnet.
            devices: by the name that stands after @ in a budget.
        """
        self._stack, self._devices = stack, devices
        self._priced = functools.cache(self._price)

    def __call__(self, choice: Choice) -> dict[str, float]:
        """`params`, `size`, `macs`, `state`, `memory`, and `latency` and `rtf` of every device.

        `memory` is the peak that decoding adds to a process that has imported onnxruntime: its sessions,
        the weights in the file and as the runtime packs them, and the state before and after a chunk.
        """
        return self._priced(choice)

    def _price(self, choice: Choice) -> dict[str, float]:
        own = self._stack(choice.subnet)
        size = own[f"size {choice.compression}"]
        found = {"params": own["params"], "size": size, "macs": own["macs"], "state": own["state"]}
        found["memory"] = _RUNTIME + _COPIES * size + 2 * own["state"]
        for name, device in self._devices.items():
            found[f"latency@{name}"] = device.latency(choice)
            found[f"rtf@{name}"] = device.rtf(choice)
        return found


def _stored(layer: nn.Linear, compression: Compression) -> float:
    """Bytes of a linear layer's weight."""
    if compression == "int8":
        return float(layer.weight.numel() + 5 * layer.out_features)
    groups = layer.out_features * -(-layer.in_features // _GROUP)
    return groups * (_GROUP / 2 + 4 + 0.5)


def _repeat(subnet: Subnet, position: int, times: int) -> Subnet:
    """A stack of one kept block of a subnet, so many times."""
    widths = tuple((name, (values[position],) * times) for name, values in subnet.widths)
    return Subnet(blocks=tuple(range(times)), widths=widths)

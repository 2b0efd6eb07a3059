"""What a subnet costs, from its plain model built without memory."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from todm.supernet.space import Subnet

Compression = Literal["none", "int8"]


def costs(build: Callable[[], nn.Module], compression: Compression = "none") -> dict[str, float]:
    """Parameters, and bytes of the weights and constants in a compression.

    `int8` counts what post-training quantisation of the exported graphs stores: one byte per weight
    of a linear layer, a scale and a zero point per output, four bytes for everything else.

    Args:
        build: makes the model with the constants it is exported with; called with torch's meta device.
        compression: of the weights on disk.
    """
    with torch.device("meta"):
        model = build()
    params = sum(p.numel() for p in model.parameters())
    size = 4.0 * (params + sum(b.numel() for b in model.buffers()))
    if compression == "int8":
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        size += sum(-3.0 * m.weight.numel() + 5.0 * m.out_features for m in linears)
    return {"params": float(params), "size": size}


class StackCosts:
    """Costs of any subnet by addition: of each block by its widths, and of what is no block.

    To build a model takes tens of milliseconds even without memory, and hundreds of subnets are to be
    priced. Exact where all blocks of the stack are of one kind.
    """

    def __init__(
        self, build: Callable[[Subnet], nn.Module], compression: Compression = "none"
    ) -> None:
        self._build = build
        self._compression: Compression = compression
        self._of_one: dict[Subnet, dict[str, float]] = {}
        self._rest: dict[str, float] = {}

    def __call__(self, subnet: Subnet) -> dict[str, float]:
        """As `costs` of the subnet's plain model."""
        ones = [self._one(_repeat(subnet, i, 1)) for i in range(subnet.depth)]
        if not self._rest:
            two = costs(lambda: self._build(_repeat(subnet, 0, 2)), self._compression)
            self._rest = {name: 2 * ones[0][name] - two[name] for name in two}
        return {
            name: rest + sum(one[name] - rest for one in ones) for name, rest in self._rest.items()
        }

    def _one(self, subnet: Subnet) -> dict[str, float]:
        if subnet not in self._of_one:
            self._of_one[subnet] = costs(lambda: self._build(subnet), self._compression)
        return self._of_one[subnet]


def _repeat(subnet: Subnet, position: int, times: int) -> Subnet:
    """A stack of one kept block of a subnet, so many times."""
    widths = tuple((name, (values[position],) * times) for name, values in subnet.widths)
    return Subnet(blocks=tuple(range(times)), widths=widths)

"""What a subnet costs, from its plain model built without memory."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

Compression = Literal["none", "int8"]


def costs(build: Callable[[], nn.Module], compression: Compression = "none") -> dict[str, float]:
    """Parameters, and bytes of the weights in a compression.

    `int8` counts what post-training quantisation of the exported graphs stores: one byte per weight
    of a linear layer, a scale and a zero point per output, four bytes for everything else.

    Args:
        build: makes the plain model; called with torch's meta device.
        compression: of the weights on disk.
    """
    with torch.device("meta"):
        model = build()
    params = sum(p.numel() for p in model.parameters())
    size = 4.0 * params
    if compression == "int8":
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        size += sum(-3.0 * m.weight.numel() + 5.0 * m.out_features for m in linears)
    return {"params": float(params), "size": size}

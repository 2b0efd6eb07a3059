"""Evaluation of the two ends of a supernet during training, and of the largest net in int8."""

import contextlib
from typing import Any

from torch import nn

from todm.backend import Backend
from todm.compress.int8_emulation import int8_copy
from todm.supernet.space import Subnet
from todm.train.config import TrainConfig

INT8 = "largest int8"


def is_due(update: int, total: int, fraction: float) -> bool:
    """Whether `update` is a multiple of `fraction` of `total`, and not the last."""
    return update % max(1, round(fraction * total)) == 0 and update < total


def int8_is_due(update: int, config: TrainConfig) -> bool:
    """Whether this is the first evaluation at or after a multiple of `quant.every`, or the last."""
    if config.quant.every > 1:
        return False
    every = max(1, round(config.quant.every * config.num_updates))
    step = max(1, round(config.eval_every * config.num_updates))
    return update == config.num_updates or update // every > (update - step) // every


def evaluate(
    backend: Backend, model: nn.Module, *, sandwich: bool, int8: bool, limit: int
) -> dict[str, dict[str, Any]]:
    """Dev figures by the name of a net: the largest, the smallest, the largest in int8.

    Args:
        backend: the modality.
        model: the supernet, with the weights to be judged.
        sandwich: whether there is more than the largest net.
        int8: whether to evaluate an int8 copy as well.
        limit: dev examples; 0 for all.
    """
    nets = {"largest": backend.space.largest, "smallest": backend.space.smallest}
    if not sandwich:
        nets.pop("smallest")

    def figures(net: Subnet) -> dict[str, Any]:
        return backend.evaluate(model, subnet=net, split="dev", limit=limit)

    found = {name: figures(net) for name, net in nets.items()}
    with int8_copy(model) if int8 else contextlib.nullcontext():
        return found | ({INT8: figures(backend.space.largest)} if int8 else {})

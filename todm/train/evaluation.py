"""Evaluation of the largest and the smallest net during training, and of the largest in int8."""

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
    """Whether an evaluation is the first at or after a multiple of `quant.every`."""
    every = max(1, round(config.quant.every * config.num_updates))
    step = max(1, round(config.eval_every * config.num_updates))
    return config.quant.every <= 1 and update // every > (update - step) // every


def evaluate(
    backend: Backend, model: nn.Module, *, sandwich: bool, int8: bool, limit: int
) -> dict[str, dict[str, Any]]:
    """Dev figures by the name of a net: the largest, the smallest, the largest in int8.

    Args:
        backend: the modality.
        model: the supernet, with the weights to evaluate.
        sandwich: whether there are other nets than the largest.
        int8: whether to evaluate an int8 copy as well.
        limit: dev examples; 0 for all.
    """
    nets = {"largest": backend.space.largest}
    if sandwich:
        nets["smallest"] = backend.space.smallest

    def figures(net: Subnet) -> dict[str, Any]:
        return backend.evaluate(model, subnet=net, split="dev", limit=limit)

    results = {name: figures(net) for name, net in nets.items()}
    if int8:
        with int8_copy(model):
            results[INT8] = figures(backend.space.largest)
    return results

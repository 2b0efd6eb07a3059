"""The mean of the weights over the last part of training, which evaluation and the artifact use.

After n updates of that part it is the mean of n parameter vectors with equal weights. It is float32
as the parameters are: autocast converts copies. Training goes on from the raw weights.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn


def running_average(model: nn.Module) -> AveragedModel:
    """An average of no weights yet; `update_parameters(model)` adds those of `model`."""
    return AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())


def in_window(step: int, total: int, fraction: float) -> bool:
    """Whether the update `step` (from 0) lies in the last `fraction` of `total` updates."""
    return step >= total * (1 - fraction)


@torch.no_grad()
def apply_average(average: AveragedModel, model: nn.Module) -> None:
    """Write the average into `model`; does nothing while it is empty."""
    if average.n_averaged:
        for p, mean in zip(model.parameters(), average.parameters(), strict=True):
            p.copy_(mean)


@contextlib.contextmanager
def averaged(average: AveragedModel, model: nn.Module) -> Iterator[nn.Module]:
    """Inside, `model` has the averaged weights; the raw ones come back afterwards."""
    raw = [p.detach().clone() for p in model.parameters()]
    try:
        apply_average(average, model)
        yield model
    finally:
        with torch.no_grad():
            for p, value in zip(model.parameters(), raw, strict=True):
                p.copy_(value)

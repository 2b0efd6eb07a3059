"""The sandwich step: the largest net, the smallest and k random ones share one optimizer step.

The largest is the teacher of the others in the same step (BigNAS, arXiv 2003.11142; AlphaNet, arXiv
2102.07954), so it goes first. Every net of a step counts alike: gradients add up, as in both, and are
not averaged, since neither ScaledAdam nor Adam depends on the scale of the sum. The smallest has its
share in every update, and its weights, being a prefix of all others, get every net's gradient. The
largest touches every weight in every update; without it, moments of blocks that are not drawn would
decay (ScaledAdam counts a missing gradient as zeros).

Each backward follows its forward, so that memory holds one net's activations. Under
DistributedDataParallel only the last backward synchronises.
"""

import contextlib
import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from todm.supernet.space import SearchSpace, Subnet


def draw_subnets(space: SearchSpace, *, seed: int, update: int, num_random: int) -> list[Subnet]:
    """Largest first, then k random ones, then the smallest. The same on every rank and on resume."""
    rng = random.Random(f"{seed}/{update}")
    draws = [space.sample(rng) for _ in range(num_random)]
    return [space.largest, *draws, space.smallest]


def sandwich_step(
    objective: nn.Module,
    batch: object,
    *,
    subnets: Sequence[Subnet],
    progress: float,
    student_weight: float = 1.0,
) -> list[dict[str, Tensor]]:
    """Forward and backward of every subnet; gradients are summed into the parameters.

    Args:
        objective: `Backend.objective`, perhaps wrapped for several processes.
        batch: what the objective takes.
        subnets: the largest first; it teaches the others.
        progress: fraction of the planned updates done, for the objective's ramps.
        student_weight: what the losses of all but the largest count. Below 1 the largest, which
            the others learn from, is disturbed less (docs/results.md).

    Returns:
        The figures of every pass, detached.
    """
    figures, teacher = [], None
    for position, subnet in enumerate(subnets):
        last = position == len(subnets) - 1
        sync = (
            contextlib.nullcontext()
            if last
            else getattr(objective, "no_sync", contextlib.nullcontext)()
        )
        with sync:
            out, told = objective(batch, subnet=subnet, teacher=teacher, progress=progress)
            (out["loss"] if position == 0 else student_weight * out["loss"]).backward()
        if position == 0:
            teacher = told
        figures.append({k: v.detach() for k, v in out.items() if isinstance(v, torch.Tensor)})
    return figures

"""The sandwich step: the largest net, the smallest and k random ones share one optimizer step.

The largest is the teacher of the others in the same step (BigNAS, arXiv 2003.11142; AlphaNet, arXiv
2102.07954), so it goes first. Gradients add up, as in both papers, and are not averaged, since neither
ScaledAdam nor Adam depends on the scale of the sum. The smallest is part of every update, and its
weights, a prefix of all others, get every net's gradient. The largest touches every weight in every
update; without it, the moments of blocks that are not drawn would decay (ScaledAdam counts a missing
gradient as zeros).

Each backward follows its forward, so that memory holds one net's activations.
"""

import random
from collections.abc import Sequence

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
        objective: `Backend.objective`.
        batch: what the objective takes.
        subnets: the largest first, as the teacher of the others.
        progress: fraction of the planned updates done, for the objective's ramps.
        student_weight: factor of the losses of all but the largest. Below 1, the students disturb their
            teacher, the largest, less (docs/results.md).

    Returns:
        The figures of every pass, detached; gradients are local to this process.
    """
    figures, active_teacher = [], None
    for position, subnet in enumerate(subnets):
        out, teacher_out = objective(
            batch, subnet=subnet, teacher=active_teacher, progress=progress
        )
        if position == 0:
            active_teacher = teacher_out
            out["loss"].backward()
        else:
            (student_weight * out["loss"]).backward()
        figures.append({k: v.detach() for k, v in out.items() if isinstance(v, Tensor)})
    return figures

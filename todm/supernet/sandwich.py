"""The sandwich step: the largest net, the smallest and k random ones share one optimizer step.

The largest is the teacher of the others in the same step (BigNAS, arXiv 2003.11142; AlphaNet, arXiv
2102.07954), so it goes first. Gradients add up, as in both papers, and are not averaged, since neither
ScaledAdam nor Adam depends on the scale of the sum. The smallest is part of every update, and its
weights, a prefix of all others, get every net's gradient. The largest touches every weight in every
update; without it, the moments of blocks that are not drawn would decay (ScaledAdam counts a missing
gradient as zeros).

Each backward follows its forward, so that memory holds one net's activations. What all nets compute
alike is worked out once (`todm.supernet.shared`).
"""

import random
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from todm.supernet.shared import Share, Shared
from todm.supernet.space import SearchSpace, Subnet


class Objective(nn.Module):
    """Wraps a model: the loss of one subnet on one batch.

    Called with (batch, subnet=, teacher=, progress=, common=), returns (figures, teacher). `figures["loss"]`
    is the scalar to call backward on; `teacher` is the detached output of the first (largest) subnet of
    a step, which the others learn from; `common` is what the method of that name returned.
    """

    def common(self, batch: Any, *, progress: float, share: Share) -> Any:  # noqa: ANN401 - its own
        """What the passes of a step compute alike, every tensor passed through `share`."""
        del batch, progress, share


def draw_subnets(space: SearchSpace, *, seed: int, update: int, num_random: int) -> list[Subnet]:
    """Largest first, then k random ones, then the smallest. The same on every rank and on resume."""
    rng = random.Random(f"{seed}/{update}")
    draws = [space.sample(rng) for _ in range(num_random)]
    return [space.largest, *draws, space.smallest]


def sandwich_step(
    objective: Objective,
    batch: object,
    *,
    subnets: Sequence[Subnet],
    progress: float,
    student_weight: float = 1.0,
) -> list[dict[str, Tensor]]:
    """Forward and backward of every subnet; gradients are summed into the parameters.

    Args:
        objective: `Backend.objective`: called once for every subnet.
        batch: what the objective takes.
        subnets: the largest first, as the teacher of the others.
        progress: fraction of the planned updates done, for the objective's ramps.
        student_weight: factor of the losses of all but the largest. Below 1, the students disturb their
            teacher, the largest, less (docs/results.md).

    Returns:
        The figures of every pass, detached; gradients are local to this process.
    """
    figures, active_teacher, shared = [], None, Shared()
    common = objective.common(batch, progress=progress, share=shared)
    for position, subnet in enumerate(subnets):
        out, teacher_out = objective(
            batch, subnet=subnet, teacher=active_teacher, progress=progress, common=common
        )
        if position == 0:
            active_teacher = teacher_out
            out["loss"].backward()
        else:
            (student_weight * out["loss"]).backward()
        figures.append({k: v.detach() for k, v in out.items() if isinstance(v, Tensor)})
    shared.backward()
    return figures

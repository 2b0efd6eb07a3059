"""The search for one budget: random choices at its edge, then those that the estimate likes best.

The first choices are the uniform subnets that use most of the budget and random ones at its edge. A model of
their scores (`estimate.py`) picks each following round from many more such draws.
"""

import dataclasses
import random
from collections.abc import Callable, Iterable, Sequence

from todm.config import Config
from todm.errors import ConfigError
from todm.search.choice import Choice
from todm.search.draws import edge_draws, uniform_scaling
from todm.search.estimate import Estimate
from todm.search.evaluations import Evaluations
from todm.search.problem import Problem

NUM_UNIFORM = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(Config):
    """Settings of a search.

    Attributes:
        evaluations: for each budget.
        rounds: in which the second half of them is chosen, each with a model of all before.
        pool: random choices at the edge of the budget from which a round is chosen.
        seed: of all draws.
    """

    evaluations: int = 24
    rounds: int = 3
    pool: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("evaluations", "rounds", "pool"):
            if getattr(self, name) < 1:
                raise ConfigError(f"search.{name} is {getattr(self, name)}: at least 1")


def explore(
    problem: Problem,
    evaluations: Evaluations,
    config: SearchConfig,
    *,
    known: Iterable[Choice] = (),
    progress: Callable[[int], None] | None = None,
) -> list[Choice]:
    """Evaluate choices for a budget; returns them in order.

    Args:
        problem: the budget.
        evaluations: the function that is searched. What an interrupted search left there is used only in
            its turn, so that the search continues as it would have without the interruption.
        config: how to search.
        known: choices evaluated for other budgets, from which the model learns too.
        progress: called with the number of evaluations.
    """
    rng = random.Random(f"{config.seed} {problem.budget.text}")
    known, found = list(known), list[Choice]()

    def take(choices: Sequence[Choice]) -> None:
        for choice in choices[: config.evaluations - len(found)]:
            evaluations(choice)
            found.append(choice)
            if progress:
                progress(len(found))

    first = uniform_scaling(problem, NUM_UNIFORM)
    half = max(1, config.evaluations // 2)
    take([*first, *edge_draws(problem, max(0, half - len(first)), rng, without=first)])
    size = -(-half // config.rounds)
    while len(found) < config.evaluations:
        pool = edge_draws(problem, config.pool, rng, without=set(found))
        if not pool:
            break  # everything at the edge has been seen
        take(sorted(pool, key=Estimate(problem.space, [*known, *found], evaluations))[:size])
    return found

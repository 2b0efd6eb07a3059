"""Evolutionary search for one budget, kept for a comparison with `explore`.

Evolution starts from uniform and random subnets at the edge of the budget. In each generation, the
best choices so far and those on their front (error against use of the budget) have children by mutation
and crossover, which are moved to the edge of the budget. Of many children, those with the best prediction
of a linear model of all evaluations so far are evaluated, and some at random.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence

from todm.config import Config
from todm.errors import ConfigError
from todm.search.choice import Choice
from todm.search.draws import fit, uniform_scaling
from todm.search.estimate import Estimate
from todm.search.evaluations import Evaluations
from todm.search.moves import cross, mutate
from todm.search.problem import Problem
from todm.search.run import front

Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvolutionConfig(Config):
    """Settings of a search.

    Attributes:
        evaluations: by evolution for each budget, and as many by random search.
        generation: children evaluated before new parents are chosen.
        parents: the best choices that have children, beside those on the front.
        pool: children from which the evaluated ones are chosen.
        at_random: share of the evaluated children that are chosen without the model.
        seed: of all draws.
    """

    evaluations: int = 24
    generation: int = 8
    parents: int = 8
    pool: int = 96
    at_random: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("evaluations", "generation", "parents", "pool"):
            if getattr(self, name) < 1:
                raise ConfigError(f"search.{name} is {getattr(self, name)}: at least 1")


def evolve(
    problem: Problem,
    evaluations: Evaluations,
    config: EvolutionConfig,
    *,
    known: Sequence[Choice] = (),
    progress: Progress | None = None,
) -> list[Choice]:
    """Search; returns the choices it evaluated, in order.

    Args:
        problem: the budget.
        evaluations: the function that is searched.
        config: how to search.
        known: choices evaluated for other budgets, for the model to learn from.
            Evaluations left by an interrupted search are used only in their turn, so that the
            search continues as it would have without the interruption.
        progress: called with the number of evaluations.
    """
    rng = random.Random(f"{config.seed} {problem.budget.text}")
    found: list[Choice] = []

    def take(choices: Sequence[Choice]) -> None:
        _evaluate(choices, found, evaluations, config, progress)

    take(_first(problem, config, rng))
    while len(found) < config.evaluations:
        pool = _children(problem, _parents(problem, found, evaluations, config), found, config, rng)
        if not pool:
            break  # everything near has been seen
        pool.sort(key=Estimate(problem.space, [*known, *found], evaluations))
        num = min(config.generation, config.evaluations - len(found))
        guided = pool[: num - int(config.at_random * num)]
        rest = pool[len(guided) :]
        take([*guided, *rng.sample(rest, min(num - len(guided), len(rest)))])
    return found


def _first(problem: Problem, config: EvolutionConfig, rng: random.Random) -> list[Choice]:
    """The first generation: uniform subnets, and random ones moved to the edge of the budget."""
    half = max(1, config.evaluations // 6)
    chosen = dict.fromkeys(uniform_scaling(problem, half))
    for _ in range(20 * half):
        if len(chosen) >= 2 * half:
            break
        start = Choice(problem.space.sample(rng), rng.choice(problem.compressions))
        fitted = fit(start, problem.space, problem.holds, rng)
        if fitted is not None:
            chosen[fitted] = None
    return list(chosen)


def _parents(
    problem: Problem, found: Sequence[Choice], evaluations: Evaluations, config: EvolutionConfig
) -> list[Choice]:
    ranked = sorted(found, key=lambda c: evaluations(c)["score"])[: config.parents]
    on_front = front(found, lambda c: (evaluations(c)["score"], problem.use(c)))
    return list(dict.fromkeys([*ranked, *on_front]))


def _children(
    problem: Problem,
    parents: Sequence[Choice],
    found: Sequence[Choice],
    config: EvolutionConfig,
    rng: random.Random,
) -> list[Choice]:
    """New choices at the edge of the budget, all different."""
    seen, pool = set(found), dict[Choice, None]()
    for _ in range(2 * config.pool):
        if len(pool) >= config.pool:
            break
        child = rng.choice(parents)
        if rng.random() < 0.5:
            child = cross(child, rng.choice(parents), problem.space, rng)
        child = mutate(child, problem.space, problem.compressions, rng)
        fitted = fit(child, problem.space, problem.holds, rng)
        if fitted is not None and fitted not in seen:
            pool[fitted] = None
    return list(pool)


def _evaluate(
    choices: Sequence[Choice],
    found: list[Choice],
    evaluations: Evaluations,
    config: EvolutionConfig,
    progress: Progress | None,
) -> None:
    for choice in choices[: config.evaluations - len(found)]:
        evaluations(choice)
        found.append(choice)
        if progress:
            progress(len(found))

"""Evolutionary search for one budget, and its baselines: random search and uniform scaling.

Evolution starts from uniform and random subnets at the edge of the budget. In each generation, the
best choices so far and those on their front (error against use of the budget) have children by mutation
and crossover, which are moved to the edge of the budget. Of many children, those with the best prediction
of a linear model of all evaluations so far are evaluated, and some at random.
"""

import dataclasses
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from todm.config import Config
from todm.errors import BudgetError, ConfigError
from todm.search.budget import Budget, describe
from todm.search.choice import Choice, Compression
from todm.search.evaluations import Evaluations
from todm.search.moves import cross, fit, mutate
from todm.supernet.space import SearchSpace

Costs = Callable[[Choice], Mapping[str, float]]
Progress = Callable[[int], None]
_EDGE = 0.8  # random search skips choices that leave more of the budget unused
_RIDGE = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(Config):
    """Settings of a search.

    Attributes:
        evaluations: by evolution for each budget, and as many by random search.
        generation: children evaluated before new parents are chosen.
        parents: the best choices that have children, beside those on the front.
        pool: children from which the evaluated ones are chosen.
        at_random: share of the evaluated children that are chosen without the model.
        seed: of all draws.
    """

    evaluations: int = 48
    generation: int = 8
    parents: int = 8
    pool: int = 96
    at_random: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("evaluations", "generation", "parents", "pool"):
            if getattr(self, name) < 1:
                raise ConfigError(f"search.{name} is {getattr(self, name)}: at least 1")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A budget, the choices that may meet it, and their costs.

    Attributes:
        space: the subnets.
        budget: the limits.
        compressions: those that may be chosen.
        costs: gives the costs of a choice.
    """

    space: SearchSpace
    budget: Budget
    compressions: Sequence[Compression]
    costs: Costs

    def holds(self, choice: Choice) -> bool:
        """Whether a choice keeps the budget."""
        return self.budget.holds(self.costs(choice))

    def use(self, choice: Choice) -> float:
        """The share of the budget that it uses."""
        return self.budget.use(self.costs(choice))

    def check(self) -> None:
        """Refuse an impossible budget before anything is evaluated.

        Raises:
            BudgetError: no subnet keeps it; the message names the nearest one and its costs.
        """
        smallest = [Choice(self.space.smallest, c) for c in self.compressions]
        nearest = min(smallest, key=self.use)
        if not self.holds(nearest):
            names = [
                *self.budget.limits,
                *(n for n in ("params", "size") if n not in self.budget.limits),
            ]
            costs = self.costs(nearest)
            raise BudgetError(
                f"no subnet keeps the budget {self.budget.text}: the nearest ({nearest}) has "
                f"{describe({name: costs[name] for name in names})}; raise the budget, allow another "
                "compression or train a supernet with a smaller subnet"
            )


def evolve(
    problem: Problem,
    evaluations: Evaluations,
    config: SearchConfig,
    *,
    archive: dict[Choice, None] | None = None,
    progress: Progress | None = None,
) -> list[Choice]:
    """Search; returns the choices it evaluated, in order.

    Args:
        problem: the budget.
        evaluations: the function that is searched.
        config: how to search.
        archive: choices evaluated for other budgets, for the model to learn from; this search adds its
            own. Evaluations left by an interrupted search are used only in their turn, so that the
            search continues as it would have without the interruption.
        progress: called with the number of evaluations.
    """
    rng = random.Random(f"{config.seed} {problem.budget.text}")
    archive = {} if archive is None else archive
    found: list[Choice] = []

    def take(choices: Sequence[Choice]) -> None:
        _evaluate(choices, found, evaluations, config, progress)
        archive.update(dict.fromkeys(found))

    take(_first(problem, config, rng))
    while len(found) < config.evaluations:
        pool = _children(problem, _parents(problem, found, evaluations, config), found, config, rng)
        if not pool:
            break  # everything near has been seen
        pool.sort(key=_promise(problem.space, list(archive), evaluations))
        num = min(config.generation, config.evaluations - len(found))
        guided = pool[: num - int(config.at_random * num)]
        rest = pool[len(guided) :]
        take([*guided, *rng.sample(rest, min(num - len(guided), len(rest)))])
    return found


def random_search(
    problem: Problem,
    evaluations: Evaluations,
    config: SearchConfig,
    *,
    progress: Progress | None = None,
) -> list[Choice]:
    """As many random choices that keep the budget, without those that leave much of it unused."""
    rng = random.Random(f"{config.seed} random {problem.budget.text}")
    drawn = dict.fromkeys(
        Choice(problem.space.sample(rng), rng.choice(problem.compressions))
        for _ in range(40 * config.evaluations)
    )
    fitting = [c for c in drawn if problem.holds(c)]
    full = [c for c in fitting if problem.use(c) >= _EDGE]
    if len(full) < config.evaluations:
        full = sorted(fitting, key=lambda c: -problem.use(c))
    found: list[Choice] = []
    _evaluate(full[: config.evaluations], found, evaluations, config, progress)
    return found


def uniform_scaling(problem: Problem, num: int = 3) -> list[Choice]:
    """The subnets with the same widths in all blocks that use most of the budget."""
    every = [Choice(s, c) for s in problem.space.uniforms() for c in problem.compressions]
    fitting = [c for c in every if problem.holds(c)]
    return sorted(fitting, key=lambda c: -problem.use(c))[:num]


def best(choices: Iterable[Choice], evaluations: Evaluations) -> Choice | None:
    """The choice with the least score; None if there are no choices."""
    return min(choices, key=lambda c: evaluations(c)["score"], default=None)


def front(choices: Sequence[Choice], values: Callable[[Choice], Sequence[float]]) -> list[Choice]:
    """The Pareto front: choices that no other one dominates; less is better."""
    points = np.array([values(c) for c in choices])
    kept = []
    for choice, point in zip(choices, points, strict=True):
        no_worse = (points <= point).all(1)
        if not (no_worse & (points < point).any(1)).any():
            kept.append(choice)
    return kept


def _first(problem: Problem, config: SearchConfig, rng: random.Random) -> list[Choice]:
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
    problem: Problem, found: Sequence[Choice], evaluations: Evaluations, config: SearchConfig
) -> list[Choice]:
    ranked = sorted(found, key=lambda c: evaluations(c)["score"])[: config.parents]
    on_front = front(found, lambda c: (evaluations(c)["score"], problem.use(c)))
    return list(dict.fromkeys([*ranked, *on_front]))


def _children(
    problem: Problem,
    parents: Sequence[Choice],
    found: Sequence[Choice],
    config: SearchConfig,
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


def _promise(
    space: SearchSpace, known: Sequence[Choice], evaluations: Evaluations
) -> Callable[[Choice], float]:
    """A linear model of the score's logarithm, fitted to the known choices."""
    rows = np.array([_row(space, c) for c in known])
    target = np.log([max(evaluations(c)["score"], 1e-12) for c in known])
    mean = rows.mean(0)
    centred = rows - mean
    gram = centred.T @ centred + _RIDGE * np.eye(rows.shape[1])
    slope = np.linalg.solve(gram, centred.T @ (target - target.mean()))
    return lambda choice: float((_row(space, choice) - mean) @ slope)


def _row(space: SearchSpace, choice: Choice) -> np.ndarray:
    """Per block of the supernet: kept or not, and its widths as a share of the largest and its root."""
    names = list(space.config.widths)
    table = np.zeros((space.num_blocks, 1 + 2 * len(names)))
    for position, block in enumerate(choice.subnet.blocks):
        table[block, 0] = 1
        for i, name in enumerate(names):
            share = choice.subnet.width(name, position) / space.config.widths[name][-1]
            table[block, 1 + 2 * i : 3 + 2 * i] = share, share**0.5
    return np.append(table.ravel(), [choice.compression == "int8", choice.compression == "int4"])


def _evaluate(
    choices: Sequence[Choice],
    found: list[Choice],
    evaluations: Evaluations,
    config: SearchConfig,
    progress: Progress | None,
) -> None:
    for choice in choices[: config.evaluations - len(found)]:
        evaluations(choice)
        found.append(choice)
        if progress:
            progress(len(found))

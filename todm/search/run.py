"""A whole search: every budget, then the best choice for each of them and the front."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from todm.files import Progress, no_progress
from todm.search.budget import Budget
from todm.search.choice import Choice
from todm.search.draws import uniform_scaling
from todm.search.estimate import Estimate
from todm.search.evaluations import Evaluations, Figures
from todm.search.explore import SearchConfig, explore
from todm.search.problem import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The result for one budget.

    Attributes:
        budget: the request.
        chosen: of all evaluated choices that keep the budget, the one with the best estimate.
        uniform: the best of the uniform subnets that use most of the budget, for comparison.
        evaluations: for this budget.
    """

    budget: Budget
    chosen: Choice
    uniform: Choice
    evaluations: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A finished search: its answers, and every choice with costs, figures and estimated score."""

    answers: tuple[Answer, ...]
    costs: Mapping[Choice, Mapping[str, float]]
    figures: Mapping[Choice, Figures]
    estimates: Mapping[Choice, float]
    on_front: frozenset[Choice]
    seconds: float
    cpu_seconds: float

    def rows(self) -> list[dict[str, Any]]:
        """Every choice as JSON, the best first."""
        return [
            {
                **choice.to_json(),
                "costs": dict(self.costs[choice]),
                "figures": dict(self.figures[choice]),
                "estimate": self.estimates[choice],
                "on_front": choice in self.on_front,
            }
            for choice in sorted(self.figures, key=self.estimates.__getitem__)
        ]


def search(
    problems: Sequence[Problem],
    evaluations: Evaluations,
    config: SearchConfig,
    *,
    progress: Progress = no_progress,
) -> Found:
    """Search for every budget.

    Args:
        problems: one for each budget, over one space and with one function of costs.
        evaluations: the function that is searched; what it knows already costs no time.
        config: how to search.
        progress: called with (what, done, all); first with a forecast of the time.

    Raises:
        BudgetError: no subnet keeps a budget; nothing has been evaluated then.
    """
    for problem in problems:
        problem.check()
    started, cpu = time.perf_counter(), time.process_time()
    _forecast(problems, evaluations, config, progress)
    explored: list[list[Choice]] = []
    for problem in problems:
        what = f"subnets for {problem.budget.text}"
        explored.append(
            explore(
                problem,
                evaluations,
                config,
                known=[c for choices in explored for c in choices],
                progress=lambda done, what=what: progress(what, done, config.evaluations),
            )
        )
    uniform = [uniform_scaling(p) for p in problems]
    for choice in (c for choices in uniform for c in choices):
        evaluations(choice)
    seen = list(evaluations)
    space, price = problems[0].space, problems[0].costs
    estimate = Estimate(space, seen, evaluations)
    estimates = {choice: estimate(choice) for choice in seen}
    limits = dict.fromkeys(name for p in problems for name in p.budget.limits)
    answers = [
        Answer(
            budget=problem.budget,
            chosen=min(filter(problem.holds, seen), key=estimates.__getitem__),
            uniform=min(equal, key=estimates.__getitem__),
            evaluations=len(choices),
        )
        for problem, choices, equal in zip(problems, explored, uniform, strict=True)
    ]
    return Found(
        answers=tuple(answers),
        costs={choice: price(choice) for choice in seen},
        figures={choice: evaluations(choice) for choice in seen},
        estimates=estimates,
        on_front=frozenset(front(seen, lambda c: (estimates[c], *(price(c)[n] for n in limits)))),
        seconds=time.perf_counter() - started,
        cpu_seconds=time.process_time() - cpu,
    )


def front(choices: Sequence[Choice], values: Callable[[Choice], Sequence[float]]) -> list[Choice]:
    """The Pareto front: choices that no other one dominates; less is better."""
    points = np.array([values(c) for c in choices])
    kept = []
    for choice, point in zip(choices, points, strict=True):
        no_worse = (points <= point).all(1)
        if not (no_worse & (points < point).any(1)).any():
            kept.append(choice)
    return kept


def _forecast(
    problems: Sequence[Problem], evaluations: Evaluations, config: SearchConfig, progress: Progress
) -> None:
    """Say how many evaluations there will be and how long they take, from two that are needed anyway."""
    every = dict.fromkeys(c for p in problems for c in uniform_scaling(p))
    first = [c for c in every if c not in evaluations][:2]
    if len(first) < 2:
        return  # most of the search is known from before
    evaluations(first[0])  # computes features too, which is not counted
    started = time.perf_counter()
    evaluations(first[1])
    total = config.evaluations * len(problems)
    minutes = (time.perf_counter() - started) * total / 60
    progress(f"the first of {total} subnets, about {minutes:.1f} minutes in all", 2, 2)

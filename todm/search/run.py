"""A whole search: every budget by evolution, by random search and by uniform scaling, then the front."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from todm.files import Progress, no_progress
from todm.search.budget import Budget
from todm.search.choice import Choice
from todm.search.evaluations import Evaluations, Figures
from todm.search.evolve import (
    Problem,
    SearchConfig,
    best,
    evolve,
    front,
    random_search,
    uniform_scaling,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The result for one budget.

    Attributes:
        budget: the request.
        chosen: the best of all evaluated choices that keep the budget.
        evolution: the best that evolution alone found.
        random: the best of as many random choices.
        uniform: the best of the uniform subnets that use most of the budget.
        evaluations: by evolution, and as many by random search.
    """

    budget: Budget
    chosen: Choice
    evolution: Choice
    random: Choice | None
    uniform: Choice | None
    evaluations: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A finished search: its answers, and every choice with costs and figures."""

    answers: tuple[Answer, ...]
    costs: Mapping[Choice, Mapping[str, float]]
    figures: Mapping[Choice, Figures]
    on_front: frozenset[Choice]
    seconds: float
    cpu_seconds: float

    def rows(self) -> list[dict[str, Any]]:
        """Every choice as JSON, the best first."""
        ranked = sorted(self.figures, key=lambda c: self.figures[c]["score"])
        return [
            {
                **choice.to_json(),
                "costs": dict(self.costs[choice]),
                "figures": dict(self.figures[choice]),
                "on_front": choice in self.on_front,
            }
            for choice in ranked
        ]


def search(
    problems: Sequence[Problem],
    evaluations: Evaluations,
    config: SearchConfig,
    *,
    baselines: bool = True,
    progress: Progress = no_progress,
) -> Found:
    """Search for every budget.

    Args:
        problems: one for each budget, over one space and with one function of costs.
        evaluations: the function that is searched; what it knows already costs no time.
        config: how to search.
        baselines: also run random search and uniform scaling.
        progress: called with (what, done, all).

    Raises:
        BudgetError: no subnet keeps a budget; nothing has been evaluated then.
    """
    for problem in problems:
        problem.check()
    started, cpu = time.perf_counter(), time.process_time()

    def counted(what: str) -> Callable[[int], None]:
        return lambda done: progress(what, done, config.evaluations)

    archive: dict[Choice, None] = {}
    evolved = [
        evolve(
            p,
            evaluations,
            config,
            archive=archive,
            progress=counted(f"evolution for {p.budget.text}"),
        )
        for p in problems
    ]
    drawn = [
        random_search(
            p, evaluations, config, progress=counted(f"random search for {p.budget.text}")
        )
        if baselines
        else []
        for p in problems
    ]
    uniform = [uniform_scaling(p) if baselines else [] for p in problems]
    for choice in (c for choices in uniform for c in choices):
        evaluations(choice)
    seen = list(evaluations)
    answers = [
        _answer(problem, evaluations, *choices)
        for problem, *choices in zip(problems, evolved, drawn, uniform, strict=True)
    ]
    price = problems[0].costs
    limits = dict.fromkeys(name for p in problems for name in p.budget.limits)
    return Found(
        answers=tuple(answers),
        costs={choice: price(choice) for choice in seen},
        figures={choice: evaluations(choice) for choice in seen},
        on_front=frozenset(
            front(seen, lambda c: (evaluations(c)["score"], *(price(c)[n] for n in limits)))
        ),
        seconds=time.perf_counter() - started,
        cpu_seconds=time.process_time() - cpu,
    )


def _answer(
    problem: Problem,
    evaluations: Evaluations,
    evolved: Sequence[Choice],
    drawn: Iterable[Choice],
    uniform: Iterable[Choice],
) -> Answer:
    evolution = best(evolved, evaluations)
    chosen = best([c for c in evaluations if problem.holds(c)], evaluations)
    assert evolution is not None, "a budget that can be met has a uniform subnet"
    assert chosen is not None
    return Answer(
        budget=problem.budget,
        chosen=chosen,
        evolution=evolution,
        random=best(drawn, evaluations),
        uniform=best(uniform, evaluations),
        evaluations=len(evolved),
    )

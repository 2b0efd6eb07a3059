"""The subnet for a budget: candidates that use it well, scored on a dev subset inside the supernet."""

import dataclasses
import random
from collections.abc import Callable, Mapping

from torch import nn

from todm.backend import Backend
from todm.errors import BudgetError
from todm.search.budget import Budget
from todm.search.cost import Compression, StackCosts, costs
from todm.supernet.space import SearchSpace, Subnet

_DRAWS = 400


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A subnet, what it costs, and its dev error (None before it is scored)."""

    subnet: Subnet
    costs: Mapping[str, float]
    error: float | None = None


def candidates(
    backend: Backend, budget: Budget, *, num: int, seed: int, compression: Compression
) -> list[Candidate]:
    """Subnets that keep the budget, those that use most of it first.

    Uniform subnets and random ones; a random draw says nothing of its size, so many are drawn.

    Raises:
        BudgetError: not even the smallest subnet keeps the budget.
    """
    space = backend.space

    def priced(subnet: Subnet) -> Candidate:
        return Candidate(subnet, costs(lambda: backend.deployed(subnet), compression))

    smallest = priced(space.smallest)
    if not budget.holds(smallest.costs):
        raise BudgetError(
            f"no subnet keeps the budget {budget.text}: the smallest ({space.smallest}) has "
            f"{describe(smallest.costs)}; raise the budget or train a supernet with a smaller one"
        )
    if budget.holds((largest := priced(space.largest)).costs):
        return [largest]
    estimate = StackCosts(backend.deployed, compression)
    drawn = [(budget.use(estimate(s)), s) for s in _draws(space, seed)]
    fitting = sorted((d for d in drawn if d[0] <= 1), key=lambda d: -d[0])
    found = [c for _, s in fitting[:num] if budget.holds((c := priced(s)).costs)]
    return found or [smallest]


def choose(
    backend: Backend,
    supernet: nn.Module,
    shortlist: list[Candidate],
    *,
    limit: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Candidate]:
    """Score candidates on the dev split inside the supernet; the best first.

    Args:
        backend: the modality.
        supernet: the trained supernet.
        shortlist: what to score.
        limit: dev examples to score on.
        progress: called with (scored, all).
    """
    scored = []
    for done, candidate in enumerate(shortlist):
        if progress:
            progress(done, len(shortlist))
        result = backend.evaluate(supernet, subnet=candidate.subnet, split="dev", limit=limit)
        scored.append(dataclasses.replace(candidate, error=result["error"]))
    if progress:
        progress(len(shortlist), len(shortlist))
    return sorted(scored, key=lambda c: (c.error or 0.0, c.costs["params"]))


def describe(costs_of: Mapping[str, float]) -> str:
    """Costs in words."""
    return (
        f"{costs_of['params'] / 1e6:.3f}M parameters, {costs_of['size'] / 2**20:.2f} MiB of weights"
    )


def _draws(space: SearchSpace, seed: int) -> list[Subnet]:
    rng = random.Random(seed)
    drawn = [*space.uniforms(), *(space.sample(rng) for _ in range(_DRAWS))]
    return list(dict.fromkeys(drawn))

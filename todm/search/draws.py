"""Draws of choices that keep a budget: at its edge, anywhere within it, or with equal blocks."""

import random
from collections.abc import Callable, Collection, Iterator

from todm.search.choice import Choice
from todm.search.problem import Problem
from todm.supernet.space import SearchSpace

Holds = Callable[[Choice], bool]
_EDGE = (
    0.8  # draws from within a budget leave no more of it unused, if there are enough such choices
)
_TRIES = 5  # starts for every choice at the edge that is wanted
_MANY = 200  # draws for every choice within a budget that is wanted


def edge_draws(
    problem: Problem, num: int, rng: random.Random, *, without: Collection[Choice] = ()
) -> list[Choice]:
    """So many different choices that have no room to grow within the budget; fewer if there are not so many.

    Args:
        problem: the budget.
        num: of choices.
        rng: draws.
        without: choices that are not wanted.
    """
    found = dict[Choice, None]()
    for _ in range(_TRIES * num):
        if len(found) >= num:
            break
        start = Choice(problem.space.sample(rng), rng.choice(problem.compressions))
        fitted = fit(start, problem.space, problem.holds, rng)
        if fitted is not None and fitted not in without:
            found[fitted] = None
    return list(found)


def inner_draws(problem: Problem, num: int, rng: random.Random) -> list[Choice]:
    """So many different choices that keep the budget, without those that leave much of it unused."""
    drawn = dict.fromkeys(
        Choice(problem.space.sample(rng), rng.choice(problem.compressions))
        for _ in range(_MANY * num)
    )
    fitting = [c for c in drawn if problem.holds(c)]
    full = [c for c in fitting if problem.use(c) >= _EDGE]
    return (full if len(full) >= num else sorted(fitting, key=lambda c: -problem.use(c)))[:num]


def uniform_scaling(problem: Problem, num: int = 3) -> list[Choice]:
    """The subnets with the same widths in all blocks that use most of the budget."""
    every = [Choice(s, c) for s in problem.space.uniforms() for c in problem.compressions]
    fitting = [c for c in every if problem.holds(c)]
    return sorted(fitting, key=lambda c: -problem.use(c))[:num]


def fit(choice: Choice, space: SearchSpace, holds: Holds, rng: random.Random) -> Choice | None:
    """Shrink a choice at random until it keeps the budget, then widen it until nothing more fits.

    A wider net is nearly always better, so the best ones lie at the edge of the budget. Returns None if
    even the smallest subnet in this compression does not fit.
    """
    while not holds(choice):
        smaller = list(_steps(choice, space, -1))
        if not smaller:
            return None
        choice = rng.choice(smaller)
    while True:
        larger = list(_steps(choice, space, 1))
        rng.shuffle(larger)
        following = next((c for c in larger if holds(c)), None)
        if following is None:
            return choice
        choice = following


def _steps(choice: Choice, space: SearchSpace, sign: int) -> Iterator[Choice]:
    """All choices one step wider or deeper (1), or narrower or shallower (-1)."""
    subnet = choice.subnet
    for name, values in subnet.widths:
        allowed = space.config.widths[name]
        for i, old in enumerate(values):
            at = allowed.index(old) + sign
            if 0 <= at < len(allowed):
                widths = {n: list(v) for n, v in subnet.widths}
                widths[name][i] = allowed[at]
                yield _choice(space, subnet.depth, widths, choice)
    depths = space.config.depths
    at = depths.index(subnet.depth) + sign
    if 0 <= at < len(depths):
        kept = {block: i for i, block in enumerate(subnet.blocks)}
        widths = {
            name: [
                values[kept[b]] if b in kept else space.config.widths[name][0]
                for b in space.kept_blocks(depths[at])
            ]
            for name, values in subnet.widths
        }
        yield _choice(space, depths[at], widths, choice)


def _choice(space: SearchSpace, depth: int, widths: dict[str, list[int]], like: Choice) -> Choice:
    subnet = space.subnet(depth, {name: tuple(values) for name, values in widths.items()})
    return Choice(subnet, like.compression)

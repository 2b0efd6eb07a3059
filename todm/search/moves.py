"""Moves in a search space: to a neighbour, between two parents, and up to the edge of a budget."""

import random
from collections.abc import Callable, Iterator, Sequence

from todm.search.choice import Choice, Compression
from todm.supernet.space import SearchSpace, Subnet

Holds = Callable[[Choice], bool]
Widths = dict[str, list[int]]
_CHANGES = 0.25  # chance of each width, of the depth and of the compression


def mutate(
    choice: Choice, space: SearchSpace, compressions: Sequence[Compression], rng: random.Random
) -> Choice:
    """A choice near this one: some widths, and perhaps the depth or the compression, are redrawn."""
    subnet, compression = choice.subnet, choice.compression
    if rng.random() < _CHANGES:
        subnet = with_depth(subnet, space, rng.choice(space.config.depths), rng)
    if rng.random() < _CHANGES:
        compression = rng.choice(compressions)
    widths = _widths(subnet)
    for name, values in widths.items():
        allowed = space.config.widths[name]
        for i, old in enumerate(values):
            if rng.random() < _CHANGES:
                step = rng.choice((-1, 1))
                at = min(max(allowed.index(old) + step, 0), len(allowed) - 1)
                values[i] = allowed[at]
    return Choice(_subnet(space, subnet.depth, widths), compression)


def cross(first: Choice, second: Choice, space: SearchSpace, rng: random.Random) -> Choice:
    """A child with the depth of one parent, and each block's widths from either."""
    one, other = first.subnet, with_depth(second.subnet, space, first.subnet.depth, rng)
    widths, theirs = _widths(one), _widths(other)
    for i in range(one.depth):
        if rng.random() < 0.5:
            for name, values in widths.items():
                values[i] = theirs[name][i]
    compression = rng.choice((first.compression, second.compression))
    return Choice(_subnet(space, one.depth, widths), compression)


def with_depth(subnet: Subnet, space: SearchSpace, depth: int, rng: random.Random) -> Subnet:
    """The same widths in the blocks that stay; an added block copies a random one."""
    at = {block: i for i, block in enumerate(subnet.blocks)}
    source = [at.get(b, rng.randrange(subnet.depth)) for b in space.kept_blocks(depth)]
    old = _widths(subnet)
    return _subnet(
        space, depth, {name: [values[i] for i in source] for name, values in old.items()}
    )


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
                widths = _widths(subnet)
                widths[name][i] = allowed[at]
                yield Choice(_subnet(space, subnet.depth, widths), choice.compression)
    depths = space.config.depths
    at = depths.index(subnet.depth) + sign
    if 0 <= at < len(depths):
        kept = {block: i for i, block in enumerate(subnet.blocks)}
        widths = {
            name: [
                values[kept[b]] if b in kept else space.config.widths[name][0]
                for b in space.kept_blocks(depths[at])
            ]
            for name, values in _widths(subnet).items()
        }
        yield Choice(_subnet(space, depths[at], widths), choice.compression)


def _widths(subnet: Subnet) -> Widths:
    return {name: list(values) for name, values in subnet.widths}


def _subnet(space: SearchSpace, depth: int, widths: Widths) -> Subnet:
    return space.subnet(depth, {name: tuple(values) for name, values in widths.items()})

"""Moves in a search space: to a neighbour, between two parents, and up to the edge of a budget."""

import random
from collections.abc import Callable, Sequence

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


def _widths(subnet: Subnet) -> Widths:
    return {name: list(values) for name, values in subnet.widths}


def _subnet(space: SearchSpace, depth: int, widths: Widths) -> Subnet:
    return space.subnet(depth, {name: tuple(values) for name, values in widths.items()})

import random

import pytest

from todm.search.choice import Choice
from todm.search.moves import cross, fit, mutate, with_depth

BOTH = ("none", "int8")


def _size(choice):
    subnet = choice.subnet
    return sum(dict(subnet.widths)["ffn"]) + 16 * sum(dict(subnet.widths)["pairs"])


@pytest.mark.parametrize("seed", range(5))
def test_moves_stay_in_the_space(space, seed):
    rng = random.Random(seed)
    choice = Choice(space.sample(rng), "none")
    for _ in range(30):
        other = Choice(space.sample(rng), rng.choice(BOTH))
        choice = cross(mutate(choice, space, BOTH, rng), other, space, rng)
        again = space.subnet(choice.subnet.depth, dict(choice.subnet.widths))
        assert again == choice.subnet


def test_a_mutation_is_near(space):
    rng = random.Random(0)
    start = Choice(space.uniform(4, {"ffn": 32, "pairs": 2}))
    children = [mutate(start, space, ("none",), rng) for _ in range(60)]
    same_depth = [c.subnet for c in children if c.subnet.depth == 4]
    assert {w for s in same_depth for w in dict(s.widths)["ffn"]} == {16, 32, 48}
    assert len(set(children)) > 20
    assert {c.subnet.depth for c in children} == {2, 3, 4}


def test_a_child_has_widths_of_its_parents(space):
    low, high = (Choice(space.uniform(3, {"ffn": f, "pairs": p})) for f, p in ((16, 1), (64, 3)))
    children = {cross(low, high, space, random.Random(seed)).subnet for seed in range(40)}
    blocks = {(c.width("ffn", i), c.width("pairs", i)) for c in children for i in range(3)}
    assert blocks == {(16, 1), (64, 3)}
    assert len(children) == 8


def test_blocks_keep_their_widths_over_a_change_of_depth(space):
    deep = space.subnet(4, {"ffn": (16, 32, 48, 64), "pairs": (1, 2, 3, 1)})
    shallow = with_depth(deep, space, 2, random.Random(0))
    assert shallow == space.subnet(2, {"ffn": (16, 64), "pairs": (1, 1)})


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("limit", [70, 120, 200, 300])
def test_a_choice_is_brought_to_the_edge(space, seed, limit):
    rng = random.Random(seed)
    found = fit(Choice(space.sample(rng)), space, lambda c: _size(c) <= limit, rng)
    assert found is not None
    assert limit - 32 < _size(found) <= limit


def test_what_cannot_fit_is_none(space):
    assert fit(Choice(space.largest), space, lambda c: False, random.Random(0)) is None


def test_with_room_for_everything_the_largest_is_left(space):
    found = fit(Choice(space.smallest, "int8"), space, lambda c: True, random.Random(0))
    assert found == Choice(space.largest, "int8")

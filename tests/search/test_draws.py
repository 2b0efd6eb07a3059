import random

import pytest

from todm.search.choice import Choice
from todm.search.draws import edge_draws, fit, inner_draws, uniform_scaling


def _size(choice):
    subnet = choice.subnet
    return sum(dict(subnet.widths)["ffn"]) + 16 * sum(dict(subnet.widths)["pairs"])


@pytest.mark.parametrize("text", ["55k", "size=150kB", "macs=130k", "memory=11.3MiB,60k"])
@pytest.mark.parametrize("draw", [edge_draws, inner_draws])
def test_draws_keep_the_budget_and_differ(problem, text, draw):
    asked = problem(text)
    found = draw(asked, 20, random.Random(0))
    assert 0 < len(found) <= 20
    assert len(set(found)) == len(found)
    assert all(asked.holds(c) for c in found)
    assert found == draw(asked, 20, random.Random(0))


def test_draws_at_the_edge_have_no_room_to_grow(problem):
    asked = problem("60k", ("none",))
    for choice in edge_draws(asked, 10, random.Random(1)):
        assert fit(choice, asked.space, asked.holds, random.Random(0)) == choice


def test_draws_at_the_edge_leave_out_what_is_known(problem):
    asked = problem("60k")
    first = edge_draws(asked, 10, random.Random(1))
    assert not set(first) & set(edge_draws(asked, 10, random.Random(1), without=first))


def test_inner_draws_use_most_of_the_budget(problem):
    asked = problem("60k", ("none",))
    found = inner_draws(asked, 10, random.Random(1))
    assert len(found) == 10
    assert all(0.8 <= asked.use(c) <= 1 for c in found)


def test_a_budget_with_few_choices_gives_the_fullest(problem):
    """Those with little use of the budget are taken too where there are too few others."""
    asked = problem("params=39k", ("none",))
    found = inner_draws(asked, 50, random.Random(0))
    used = [asked.use(c) for c in found]
    assert 1 < len(found) < 50
    assert used == sorted(used, reverse=True)


def test_uniform_subnets_that_use_most(problem):
    asked = problem("60k")
    found = uniform_scaling(asked)
    assert len(found) == 3
    used = [asked.use(c) for c in found]
    assert used == sorted(used, reverse=True)
    assert all(len(set(v)) == 1 for c in found for _, v in c.subnet.widths)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("limit", [70, 120, 200, 300])
def test_a_choice_is_brought_to_the_edge(space, seed, limit):
    rng = random.Random(seed)
    found = fit(Choice(space.sample(rng)), space, lambda c: _size(c) <= limit, rng)
    assert found is not None
    assert limit - 32 < _size(found) <= limit
    assert space.subnet(found.subnet.depth, dict(found.subnet.widths)) == found.subnet


def test_what_cannot_fit_is_none(space):
    assert fit(Choice(space.largest), space, lambda c: False, random.Random(0)) is None


def test_with_room_for_everything_the_largest_is_left(space):
    found = fit(Choice(space.smallest, "int8"), space, lambda c: True, random.Random(0))
    assert found == Choice(space.largest, "int8")

import itertools

import pytest

from todm.errors import BudgetError, ConfigError
from todm.search.budget import parse
from todm.search.choice import Choice
from todm.search.cost import Prices, StackCosts
from todm.search.evaluations import Evaluations
from todm.search.evolve import (
    Problem,
    SearchConfig,
    best,
    evolve,
    front,
    random_search,
    uniform_scaling,
)

CONFIG = SearchConfig(evaluations=32, generation=6, parents=4, pool=24)
BOTH = ("none", "int8")


@pytest.fixture
def problem(space, price):
    """Makes a problem of a budget; prices are kept."""
    prices = Prices(StackCosts(price), {})

    def make(text, compressions=BOTH):
        return Problem(space, parse(text), compressions, prices)

    return make


@pytest.mark.parametrize("text", ["55k", "size=150kB", "macs=130k", "memory=11.3MiB,60k"])
def test_all_that_is_evaluated_keeps_the_budget(problem, figures, text):
    asked, evaluations = problem(text), Evaluations(figures)
    for search in (evolve, random_search):
        found = search(asked, evaluations, CONFIG)
        assert 0 < len(found) <= CONFIG.evaluations
        assert len(set(found)) == len(found)
        assert all(asked.holds(c) for c in found)


def test_evolution_finds_what_no_smaller_search_does(problem, figures):
    """Against the true optimum of the whole space, which has 3 ^ 12 subnets of depth 4 alone."""
    wins = 0
    for seed, text in itertools.product(range(3), ("55k", "65k", "size=150kB")):
        asked, evaluations = problem(text), Evaluations(figures)
        config = CONFIG.replace(seed=seed)
        evolved = best(evolve(asked, evaluations, config), evaluations)
        drawn = best(random_search(asked, Evaluations(figures), config), evaluations)
        uniform = best(uniform_scaling(asked), evaluations)
        scores = [evaluations(c)["score"] for c in (evolved, drawn, uniform)]
        assert scores[0] <= min(scores[1:])
        wins += scores[0] < min(scores[1:])
    assert wins >= 7


def test_a_byte_budget_is_met_by_a_larger_subnet_in_int8(problem, figures):
    asked, evaluations = problem("size=150kB"), Evaluations(figures)
    chosen = best(evolve(asked, evaluations, CONFIG), evaluations)
    in_fp32 = best(evolve(problem("size=150kB", ("none",)), evaluations, CONFIG), evaluations)
    assert chosen.compression == "int8"
    assert asked.costs(chosen)["params"] > asked.costs(in_fp32)["params"]


def test_where_bytes_do_not_count_fp32_is_better(problem, figures):
    evaluations = Evaluations(figures)
    assert best(evolve(problem("60k"), evaluations, CONFIG), evaluations).compression == "none"


def test_a_search_depends_on_its_seed_alone(problem, figures):
    first, again, other = (
        evolve(problem("60k"), Evaluations(figures), CONFIG.replace(seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_an_interrupted_search_goes_on_as_it_would_have(problem, figures):
    """What is known already from later generations changes nothing."""
    asked, evaluations = problem("60k"), Evaluations(figures)
    first = evolve(asked, evaluations, CONFIG)
    assert evolve(asked, evaluations, CONFIG) == first
    assert len(evaluations) == len(first)


def test_progress_counts_up(problem, figures):
    told = []
    evolve(problem("60k"), Evaluations(figures), CONFIG, progress=told.append)
    assert told == list(range(1, CONFIG.evaluations + 1))


def test_a_space_that_is_seen_ends_the_search(problem, figures):
    """A budget that the smallest subnet alone keeps."""
    asked = problem("size=111kB", ("none",))
    smallest = Choice(asked.space.smallest)
    asked = Problem(
        asked.space, parse(f"params={asked.costs(smallest)['params']:.0f}"), ("none",), asked.costs
    )
    assert evolve(asked, Evaluations(figures), CONFIG) == [smallest]


@pytest.mark.parametrize("text", ["1k", "size=1kB", "macs=1k", "params=1k,size=1GB"])
def test_an_impossible_budget_names_the_nearest(problem, text):
    asked = problem(text)
    with pytest.raises(BudgetError, match=f"no subnet keeps the budget {text}") as raised:
        asked.check()
    nearest = Choice(asked.space.smallest, "int8" if text.startswith("size") else "none")
    assert f"the nearest ({nearest}) has" in str(raised.value)
    params = asked.costs(nearest)["params"]
    assert f"{params / 1e6:.3f}M parameters" in str(raised.value)


def test_a_possible_budget_passes(problem):
    problem("55k").check()


def test_uniform_subnets_that_use_most(problem):
    asked = problem("60k")
    found = uniform_scaling(asked)
    assert len(found) == 3
    used = [asked.use(c) for c in found]
    assert used == sorted(used, reverse=True)
    assert all(len(set(v)) == 1 for c in found for _, v in c.subnet.widths)


def test_the_front_has_what_nothing_beats(space):
    choices = [Choice(s) for s in itertools.islice(space.uniforms(), 5)]
    values = dict(zip(choices, [(1, 5), (2, 4), (2, 5), (3, 1), (3, 1)], strict=True))
    assert front(choices, values.__getitem__) == [choices[i] for i in (0, 1, 3, 4)]


@pytest.mark.parametrize("name", ["evaluations", "generation", "parents", "pool"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=f"search.{name} is 0"):
        SearchConfig(**{name: 0})

import itertools
import random

import pytest

from todm.errors import ConfigError
from todm.search.choice import Choice
from todm.search.draws import inner_draws, uniform_scaling
from todm.search.evaluations import Evaluations
from todm.search.explore import SearchConfig, explore

CONFIG = SearchConfig(evaluations=32, pool=64)


def _best(choices, evaluations):
    return min(choices, key=lambda c: evaluations(c)["score"])


@pytest.mark.parametrize("text", ["55k", "size=150kB", "macs=130k", "memory=11.3MiB,60k"])
def test_all_that_is_evaluated_keeps_the_budget(problem, figures, text):
    asked = problem(text)
    found = explore(asked, Evaluations(figures), CONFIG)
    assert 0 < len(found) <= CONFIG.evaluations
    assert len(set(found)) == len(found)
    assert all(asked.holds(c) for c in found)


def test_a_search_beats_as_many_random_draws_and_uniform_subnets(problem, figures):
    """In a space of 3 ^ 12 subnets of depth 4 alone, with scores that fall with some widths most."""
    wins = 0
    for seed, text in itertools.product(range(3), ("55k", "65k", "size=150kB")):
        asked, evaluations = problem(text), Evaluations(figures)
        found = _best(explore(asked, evaluations, CONFIG.replace(seed=seed)), evaluations)
        drawn = _best(inner_draws(asked, 32, random.Random(seed)), evaluations)
        uniform = _best(uniform_scaling(asked), evaluations)
        scores = [evaluations(c)["score"] for c in (found, drawn, uniform)]
        assert scores[0] <= min(scores[1:])
        wins += scores[0] < min(scores[1:])
    assert wins >= 7


def test_a_byte_budget_is_met_by_a_larger_subnet_in_int8(problem, figures):
    asked, evaluations = problem("size=150kB"), Evaluations(figures)
    chosen = _best(explore(asked, evaluations, CONFIG), evaluations)
    in_fp32 = _best(explore(problem("size=150kB", ("none",)), evaluations, CONFIG), evaluations)
    assert chosen.compression == "int8"
    assert asked.costs(chosen)["params"] > asked.costs(in_fp32)["params"]


def test_where_bytes_do_not_count_fp32_is_better(problem, figures):
    evaluations = Evaluations(figures)
    assert _best(explore(problem("60k"), evaluations, CONFIG), evaluations).compression == "none"


def test_a_search_depends_on_its_seed_alone(problem, figures):
    first, again, other = (
        explore(problem("60k"), Evaluations(figures), CONFIG.replace(seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_an_interrupted_search_goes_on_as_it_would_have(problem, figures):
    """What is known already from later rounds changes nothing."""
    asked, evaluations = problem("60k"), Evaluations(figures)
    first = explore(asked, evaluations, CONFIG)
    assert explore(asked, evaluations, CONFIG) == first
    assert len(evaluations) == len(first)


def test_what_is_known_of_other_budgets_guides_the_second_half(problem, figures):
    evaluations = Evaluations(figures)
    known = explore(problem("65k"), evaluations, CONFIG)
    alone = explore(problem("55k"), evaluations, CONFIG)
    guided = explore(problem("55k"), evaluations, CONFIG, known=known)
    assert alone[:16] == guided[:16]
    assert alone[16:] != guided[16:]


def test_progress_counts_up(problem, figures):
    told = []
    explore(problem("60k"), Evaluations(figures), CONFIG, progress=told.append)
    assert told == list(range(1, CONFIG.evaluations + 1))


@pytest.mark.parametrize("evaluations", [1, 2, 5])
def test_a_short_search_evaluates_as_many_as_were_asked_for(problem, figures, evaluations):
    config = SearchConfig(evaluations=evaluations)
    assert len(explore(problem("60k"), Evaluations(figures), config)) == evaluations


def test_a_space_that_is_seen_ends_the_search(problem, figures):
    """A budget that the smallest subnet alone keeps."""
    smallest = Choice(problem("60k").space.smallest)
    params = problem("60k").costs(smallest)["params"]
    asked = problem(f"params={params:.0f}", ("none",))
    assert explore(asked, Evaluations(figures), CONFIG) == [smallest]


@pytest.mark.parametrize("name", ["evaluations", "rounds", "pool"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=f"search.{name} is 0"):
        SearchConfig(**{name: 0})

"""Ingredients add up, and every training's settings are settings of the recipe."""

import itertools

import pytest

from benchmarks.studies.orders.data import RECIPE
from benchmarks.studies.orders.plan import FULL, INGREDIENTS, run_named, runs
from todm.errors import ConfigError
from todm.recipe import named


def test_every_row_has_what_the_row_before_has():
    found = list(runs(short=10, full=30))
    assert [run.name for run in found] == [*INGREDIENTS, FULL]
    for before, run in itertools.pairwise(found):
        names = {s.partition("=")[0] for s in before.train}
        assert names <= {s.partition("=")[0] for s in run.train}
        assert run.natural or not before.natural
    assert [s for s in found[0].train if "updates" in s] == ["train.num_updates=10"]
    assert [s for s in found[-1].train if "updates" in s] == ["train.num_updates=30"]


@pytest.mark.parametrize("run", list(runs()), ids=lambda run: run.name)
def test_the_recipe_has_all_settings(run):
    recipe = named(RECIPE).override([*run.material, *run.prepare, *run.train])
    assert recipe.train.sandwich == (run.name in ("supernet", FULL))


def test_an_unknown_row_is_a_sentence():
    with pytest.raises(ConfigError, match="unknown row 'salt': choose one of espeak, natural"):
        run_named("salt")

import pytest

from todm.errors import BudgetError
from todm.search.choice import Choice


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

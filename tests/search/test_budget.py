import pytest

from todm.errors import BudgetError
from todm.search.budget import parse


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("2M", {"params": 2e6}),
        ("2m", {"params": 2e6}),
        ("1.5M", {"params": 1.5e6}),
        ("800k", {"params": 8e5}),
        ("0.01G", {"params": 1e7}),
        ("123456", {"params": 123456}),
        ("params=2M", {"params": 2e6}),
        (" params = 2 M ", {"params": 2e6}),
        ("size=3MiB", {"size": 3 * 2**20}),
        ("size=3MB", {"size": 3e6}),
        ("size=700KiB", {"size": 700 * 1024}),
        ("size=2000000B", {"size": 2e6}),
        ("2M,size=3MiB", {"params": 2e6, "size": 3 * 2**20}),
        ("size=3MiB, params=2M", {"params": 2e6, "size": 3 * 2**20}),
    ],
)
def test_a_budget_is_read(text, limits):
    budget = parse(text)
    assert budget.limits == pytest.approx(limits)
    assert budget.text == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is not a size"),
        ("big", "'big' is not a size"),
        ("0", "'0' is not a size"),
        ("-2M", "'-2M' is not a size"),
        ("2MB", "'2MB' is not a size"),
        ("2 M M", "is not a size"),
        ("size=3M", "'3M' is not a size"),
        ("size=", "'' is not a size"),
        ("size=1MB,", "'' is not a size"),
        ("nan", "'nan' is not a size"),
        ("1e6", "'1e6' is not a size"),
        ("latency=3", "'latency' is not a constraint known here"),
        ("2M,params=3M", "limits params twice"),
        ("a=b=2M", "'a=b' is not a constraint"),
    ],
)
def test_what_cannot_be_read_says_how_to_write_it(text, words):
    with pytest.raises(BudgetError, match=words) as raised:
        parse(text)
    assert f"budget {text!r}" in str(raised.value)
    assert "write  2M  or  params=2M" in str(raised.value)


def test_every_limit_must_hold():
    budget = parse("1k,size=3kB")
    assert budget.holds({"params": 1000, "size": 3000})
    assert not budget.holds({"params": 1001, "size": 10})
    assert not budget.holds({"params": 10, "size": 3001})


def test_use_is_that_of_the_tightest_limit():
    assert parse("1k,size=4kB").use({"params": 500, "size": 3000}) == pytest.approx(0.75)
    assert parse("1k").use({"params": 1500, "size": 0}) == pytest.approx(1.5)

import pytest

from todm.errors import BudgetError
from todm.search.budget import describe, parse


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
        ("macs=400M", {"macs": 4e8}),
        ("memory=40MiB", {"memory": 40 * 2**20}),
        ("latency=20ms@pi5", {"latency@pi5": 0.02}),
        ("latency = 0.5 s @ local", {"latency@local": 0.5}),
        ("latency=900us@./my/pi5.json", {"latency@./my/pi5.json": 9e-4}),
        ("rtf=0.1@local", {"rtf@local": 0.1}),
        ("latency=1ms@a,latency=2ms@b", {"latency@a": 1e-3, "latency@b": 2e-3}),
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
        ("speed=3", "'speed' is not a constraint;"),
        ("latency=3ms", "latency needs a device after @, such as @local"),
        ("latency=3ms@", "latency needs a device after @"),
        ("latency=3@local", "'3' is not a size \\(units: us, ms, s\\)"),
        ("rtf=10%@local", "'10%' is not a size \\(units: none\\)"),
        ("size=3MiB@local", "size has no device"),
        ("latency=1ms@a,latency=2ms@a", "limits latency@a twice"),
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


def test_devices_are_named_once():
    assert parse("latency=1ms@a,rtf=0.1@a,rtf=0.2@b,2M").devices == ("a", "b")


def test_costs_in_words():
    costs = {"params": 1.5e6, "size": 6e6, "macs": 2e7, "latency@pi5": 0.0125, "rtf@pi5": 0.02}
    assert describe(costs) == (
        "1.500M parameters, 5.72 MiB of weights, 20.0M MACs a second, 12.5 ms a chunk on pi5, "
        "RTF 0.02 on pi5"
    )

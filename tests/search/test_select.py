import pytest

from todm.errors import BudgetError
from todm.search.budget import parse
from todm.search.select import candidates, choose, describe


def _shortlist(backend, text, *, num=12, seed=1, compression="none"):
    return candidates(backend, parse(text), num=num, seed=seed, compression=compression)


def _budget(num_params, space, share):
    """A budget that lies at a share of the way from the smallest to the largest subnet."""
    low, high = num_params(space.smallest), num_params(space.largest)
    return str(int(low + share * (high - low)))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 0.99])
def test_candidates_keep_the_budget_and_use_it(make_backend, num_params, share):
    backend = make_backend()
    text = _budget(num_params, backend.space, share)
    found = _shortlist(backend, text)
    assert 1 <= len(found) <= 12
    assert len({c.subnet for c in found}) == len(found)
    used = [parse(text).use(c.costs) for c in found]
    assert all(u <= 1 for u in used)
    assert used == sorted(used, reverse=True)
    assert used[0] > 0.9
    assert all(c.costs["params"] == num_params(c.subnet) for c in found[:3])


def test_candidates_depend_on_the_seed_alone(make_backend, num_params):
    text = _budget(num_params, make_backend().space, 0.5)
    first, again, other = (
        [c.subnet for c in _shortlist(make_backend(), text, seed=s)] for s in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_budget_above_the_largest_gives_the_supernet(make_backend):
    backend = make_backend()
    assert [c.subnet for c in _shortlist(backend, "1G")] == [backend.space.largest]


def test_exactly_the_smallest(make_backend, num_params):
    backend = make_backend()
    found = _shortlist(backend, str(num_params(backend.space.smallest)))
    assert [c.subnet for c in found] == [backend.space.smallest]


@pytest.mark.parametrize("text", ["1k", "params=1k,size=1GB", "size=1kB"])
def test_an_impossible_budget_names_the_smallest(make_backend, num_params, text):
    backend = make_backend()
    smallest = num_params(backend.space.smallest)
    with pytest.raises(BudgetError, match=f"no subnet keeps the budget {text}") as raised:
        _shortlist(backend, text)
    message = str(raised.value)
    assert (
        f"the smallest ({backend.space.smallest}) has {smallest / 1e6:.3f}M parameters" in message
    )
    assert "raise the budget" in message


def test_size_is_counted_in_the_compression(make_backend):
    """A size that int8 keeps and float32 does not."""
    backend = make_backend()
    int8 = _shortlist(backend, "size=60kB", compression="int8")
    assert all(c.costs["size"] <= 60e3 < 4 * c.costs["params"] for c in int8)
    with pytest.raises(BudgetError):
        _shortlist(backend, "size=60kB")


def test_the_least_error_is_chosen(make_backend, num_params):
    backend = make_backend(lambda subnet: abs(subnet.width("ffn", 0) - 32) + subnet.depth / 10)
    supernet = backend.build(None)
    shortlist = _shortlist(backend, _budget(num_params, backend.space, 0.5))
    calls = []
    ranked = choose(
        backend, supernet, shortlist, limit=7, progress=lambda done, num: calls.append((done, num))
    )
    errors = [c.error for c in ranked]
    assert errors == sorted(errors)
    assert errors[0] == min(backend.error(c.subnet) for c in shortlist)
    assert {c.subnet for c in ranked} == {c.subnet for c in shortlist}
    assert backend.evaluated == [(c.subnet, "dev", 7) for c in shortlist]
    assert calls == [(i, len(shortlist)) for i in range(len(shortlist) + 1)]


def test_of_equal_errors_the_smaller_wins(make_backend, num_params):
    backend = make_backend(lambda subnet: 0.5)
    shortlist = _shortlist(backend, _budget(num_params, backend.space, 0.5))
    best = choose(backend, backend.build(None), shortlist, limit=1)[0]
    assert best.costs["params"] == min(c.costs["params"] for c in shortlist)


def test_costs_in_words():
    assert describe({"params": 1.5e6, "size": 6e6}) == "1.500M parameters, 5.72 MiB of weights"

"""Texts to slots: exact, nearest, and against an enumeration of a whole grammar."""

import itertools

import kaldialign
import numpy as np
import pytest

from benchmarks.studies.orders.parsing import Parser
from benchmarks.studies.orders.scoring import order_parser
from todm.asr.corpora import grammar

SMALL = """
size = (small|[very] large)
what = (tea|iced tea|milk)
bring [me] [<size>] <what>
<what> please
"""


@pytest.fixture(scope="module")
def orders():
    return order_parser()


@pytest.fixture
def small():
    return Parser(grammar.parse(SMALL), ("size", "what"))


def test_a_sentence_of_the_grammar_has_its_slots_and_no_cost(orders):
    found = orders.parse(
        "CAN I HAVE A DARK ROAST LARGE LATTE WITH A BIT OF BROWN SUGAR AND SOME MILK"
    )
    assert found.is_exact
    assert found.slots == {
        "roast": "dark roast",
        "size": "large",
        "coffeeDrink": "latte",
        "sugarAmount": "a bit of brown sugar",
        "milkAmount": "some milk",
    }


def test_every_sentence_that_the_grammar_draws_is_exact(orders):
    drawn = grammar.read("recipes/orders/grammar.txt")
    rng = np.random.default_rng(0)
    for _ in range(50):
        sentence = drawn.sample(rng)
        assert orders.parse(sentence).sentence == sentence
        assert orders.parse(sentence).is_exact


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("i would like an ice mocha", "i'd like an iced mocha"),
        ("uh can i get a twelve ounces americana please", "can i get a twelve ounce americano"),
        ("get me a devil shot espresso", "get me a double shot espresso"),
    ],
)
def test_the_nearest_sentence_replaces_drops_and_adds_words(orders, text, sentence):
    found = orders.parse(text)
    assert not found.is_exact
    assert found.sentence == sentence


def test_a_text_without_words_has_no_parse(orders):
    assert orders.parse("  ") is None


def _sentences():
    """All sentences of the small grammar, by hand."""
    sizes, whats = ["", "small", "large", "very large"], ["tea", "iced tea", "milk"]
    for me, size, what in itertools.product(["", "me"], sizes, whats):
        yield " ".join(f"bring {me} {size} {what}".split())
    yield from (f"{what} please" for what in whats)


@pytest.mark.parametrize("seed", range(20))
def test_the_cost_is_at_most_the_edits_to_any_sentence(small, seed):
    rng = np.random.default_rng(seed)
    words = ["bring", "me", "very", "large", "small", "iced", "tea", "milk", "please", "zq", "000"]
    text = [words[i] for i in rng.integers(len(words), size=rng.integers(1, 8))]
    edits = [kaldialign.edit_distance(s.split(), text)["total"] for s in _sentences()]
    found = small.parse(" ".join(text))
    assert found.sentence in set(_sentences())
    assert found.cost <= min(edits)
    assert (found.cost == 0) == (min(edits) == 0)
    if found.cost == 0:
        assert found.sentence == " ".join(text)


@pytest.mark.parametrize("seed", range(10))
def test_the_cost_is_levenshteins_where_no_letters_are_shared(seed):
    text = "p = (aa|bb cc)\n[dd] <p> [ee ff]\ngg <p>"
    parser = Parser(grammar.parse(text), ("p",))
    every = [
        " ".join(f"{d} {p} {e}".split())
        for d, p, e in itertools.product(["", "dd"], ["aa", "bb cc"], ["", "ee ff"])
    ] + ["gg aa", "gg bb cc"]
    rng = np.random.default_rng(seed)
    letters = [2 * c for c in "abcdefghij"]
    said = [letters[i] for i in rng.integers(len(letters), size=rng.integers(1, 7))]
    found = parser.parse(" ".join(said))
    assert found.cost == min(kaldialign.edit_distance(s.split(), said)["total"] for s in every)
    assert kaldialign.edit_distance(found.sentence.split(), said)["total"] == found.cost


def test_of_several_letters_the_like_word_is_taken(small):
    assert small.parse("bring me smell tee").slots == {"size": "small", "what": "tea"}
    assert small.parse("bring me larges tea").slots["size"] == "large"

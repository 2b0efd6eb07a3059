import itertools

import numpy as np
import pytest

from todm.asr.corpora import commands, grammar
from todm.asr.corpora.near_misses import beginning, near_misses, normalised
from todm.errors import CorpusError

RULES = grammar.parse(
    """
    room = (kitchen|living room)
    <room> [light] (on|off)
    stop [<room>] [timer] now
    """
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kitchen on", (2, True)),
        ("living room light off", (4, True)),
        ("living room light", (3, False)),
        ("living light", (1, False)),
        ("light on", (0, False)),
        ("kitchen on now", (2, False)),
        ("stop living room timer now", (5, True)),
        ("", (0, False)),
    ],
)
def test_how_much_of_a_sentence_begins_a_command(text, expected):
    assert beginning(RULES, text.split()) == expected


def test_every_command_is_one():
    rules, rng = commands.commands(), np.random.default_rng(0)
    for _ in range(200):
        words = rules.sample(rng).split()
        assert beginning(rules, words) == (len(words), True)


def test_near_misses_are_no_commands_and_leave_the_grammar_at_once():
    rules = commands.commands()
    made = itertools.islice(near_misses(rules, ["banana"], np.random.default_rng(0)), 300)
    sentences = [sentence.split() for sentence in made]
    for words in sentences:
        furthest, whole = beginning(rules, words)
        assert furthest <= 1
        assert not whole
    known = rules.words()
    assert {w for words in sentences for w in words} - known == {"banana"}
    assert sum(set(words) <= known for words in sentences) > 150
    assert len({" ".join(words) for words in sentences}) > 200


def test_a_grammar_of_any_order_has_none():
    rules = grammar.parse("w = (a|b)\n<w> [<w>] [<w>]")
    with pytest.raises(CorpusError, match="nearly any order of its words"):
        next(near_misses(rules, ["a"], np.random.default_rng(0)))


def test_the_alphabet_of_the_tokens():
    rules = normalised(grammar.parse("n = (Twenty-One|two)\n<n> lights"), "lower")
    assert beginning(rules, ["twenty", "one", "lights"]) == (3, True)
    assert beginning(rules, ["two", "lights"]) == (2, True)

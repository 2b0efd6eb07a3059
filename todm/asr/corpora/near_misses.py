"""Sentences that sound like commands and are none: grammar words out of order, with others, or an end alone.

Words alone must not be the cue: with other words in all other speech, a net would learn that any word of
the grammar is a command. A near miss leaves the grammar at its second word at the latest. One that began
like a command for longer could only be refused by a net that holds every command back until its end.
"""

from collections.abc import Iterator

import numpy as np

from todm.asr.corpora.grammar import Choice, Grammar, Name, Node, Sequence, Words
from todm.asr.tokens import Rule, normalise
from todm.errors import CorpusError

_MOST_TRIES = 2000
_LONGEST_BEGINNING = 1  # words at the start of a near miss that may begin a command


def near_misses(grammar: Grammar, others: list[str], rng: np.random.Generator) -> Iterator[str]:
    """Endless near misses of the grammar's commands.

    Args:
        grammar: of the commands.
        others: common words, some of which take the place of a command's.
        rng: draws.

    Raises:
        CorpusError: nearly every order of its words is in the grammar, so that none was found.
    """
    words = sorted(grammar.words())
    tries = 0
    while True:
        made = _changed(grammar.sample(rng).split(), words, others, rng)
        tries += 1
        if made and _is_near_miss(grammar, made):
            yield " ".join(made)
            tries = 0
        elif tries > _MOST_TRIES:
            raise CorpusError(
                "the grammar takes nearly any order of its words, so that nothing sounds like a command and "
                "is none: set asr.data.negatives=0, or write fewer optional parts"
            )


def normalised(grammar: Grammar, rule: Rule) -> Grammar:
    """The grammar in the alphabet of the tokens, in which a word may be several.

    Raises:
        ValueError: a word is outside of the alphabet.
    """

    def change(node: Node) -> Node:
        if isinstance(node, Words):
            words = tuple(map(Words, normalise(node.text, rule).split()))
            return words[0] if len(words) == 1 else Sequence(words)
        if isinstance(node, Sequence):
            return Sequence(tuple(map(change, node.parts)))
        return Choice(tuple(map(change, node.options))) if isinstance(node, Choice) else node

    definitions = {name: change(node) for name, node in grammar.definitions.items()}
    return Grammar(list(map(change, grammar.patterns)), definitions, grammar.pronunciations)


def beginning(grammar: Grammar, words: list[str]) -> tuple[int, bool]:
    """How many of the first words begin a command, and whether all of them are one."""
    furthest = 0

    def ends(node: Node, start: int) -> set[int]:
        nonlocal furthest
        if isinstance(node, Words):
            if start == len(words) or words[start] != node.text:
                return set()
            furthest = max(furthest, start + 1)
            return {start + 1}
        if isinstance(node, Name):
            return ends(grammar.definitions[node.name], start)
        if isinstance(node, Choice):
            return set().union(*(ends(option, start) for option in node.options))
        assert isinstance(node, Sequence)
        places = {start}
        for part in node.parts:
            places = set().union(*(ends(part, place) for place in places))
        return places

    whole = any(len(words) in ends(pattern, 0) for pattern in grammar.patterns)
    return furthest, whole


def _is_near_miss(grammar: Grammar, words: list[str]) -> bool:
    furthest, whole = beginning(grammar, words)
    return not whole and furthest <= _LONGEST_BEGINNING


def _changed(
    command: list[str], words: list[str], others: list[str], rng: np.random.Generator
) -> list[str]:
    """A command in another order, its end alone, or with another word among its first two."""
    kind = int(rng.integers(3))
    if kind == 0:
        return [command[i] for i in rng.permutation(len(command))]
    if kind == 1:
        return command[int(rng.integers(1, max(2, len(command)))) :]
    place = int(rng.integers(min(2, len(command))))
    pool = others if rng.random() < 0.5 else words
    return [*command[:place], pool[int(rng.integers(len(pool)))], *command[place + 1 :]]

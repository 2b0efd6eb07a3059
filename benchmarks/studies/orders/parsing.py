"""Free text to intent and slots by a grammar: the nearest sentence of the grammar, word by word.

The grammar becomes an acyclic automaton whose arcs carry a word, or none, and the slot that the word
belongs to. A sentence is found by dynamic programming over (words read, state): reading an arc's word is
free if it is the same, another word in its place costs the share of letters that differ, and a word too many
or too few costs 1. At a cost of 0 the text is itself a sentence of the grammar.

Letters: N words of the text; Q states.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from todm.asr.corpora.grammar import Choice, Grammar, Name, Node, Words
from todm.asr.corpora.grammar import Sequence as Parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parse:
    """What a text says.

    Attributes:
        cost: edits from the text to the sentence; 0 if the text is a sentence of the grammar.
        sentence: of the grammar.
        slots: the words of each slot that the sentence has, in lower case.
    """

    cost: float
    sentence: str
    slots: dict[str, str]

    @property
    def is_exact(self) -> bool:
        """Whether the text is a sentence of the grammar."""
        return self.cost == 0


@dataclasses.dataclass(frozen=True)
class _Arc:
    source: int
    target: int
    word: str | None
    slot: str | None


class _Cell(NamedTuple):
    """A state after some words: the cost to get there, the arc last taken, and whether a word was read."""

    cost: float = math.inf
    arc: _Arc | None = None
    has_read: bool = False


_Table = list[list[_Cell]]


class Parser:
    """Parses texts by a grammar, of which some definitions are slots."""

    def __init__(self, grammar: Grammar, slots: Sequence[str]) -> None:
        """Build the automaton.

        Args:
            grammar: what may be said.
            slots: names of definitions; a slot lies in no other.
        """
        assert set(slots) <= grammar.definitions.keys(), "a slot is not a definition of the grammar"
        self._grammar, self._slots = grammar, frozenset(slots)
        self._arcs: list[_Arc] = []
        self._num_states = 1
        ends = [self._add(pattern, 0, None) for pattern in grammar.patterns]
        self._final = self._join(ends, None)
        # Every arc leads to a state of a higher number, so that one pass in this order settles all.
        self._arcs.sort(key=lambda arc: arc.source)

    @functools.lru_cache(maxsize=100_000)  # noqa: B019 - a parser lives as long as the process
    def parse(self, text: str) -> Parse | None:
        """The nearest sentence of the grammar; None for a text without words.

        Case does not matter. Of equally near sentences the one that the grammar names first is taken.
        """
        words = text.lower().split()
        if not words:
            return None
        return self._trace(self._forward(words), words)

    def _forward(self, words: Sequence[str]) -> _Table:
        """The cheapest way to each state, for each number of words read."""
        table = [[_Cell()] * self._num_states for _ in range(len(words) + 1)]
        table[0][0] = _Cell(cost=0.0)
        for read, row in enumerate(table):
            self._skip(row)
            if read < len(words):
                self._take(words[read], row, table[read + 1])
        return table

    def _skip(self, row: list[_Cell]) -> None:
        """Follow arcs without reading: for nothing where they have no word, at a cost where they have."""
        for arc in self._arcs:
            cost = row[arc.source].cost + (arc.word is not None)
            if cost < row[arc.target].cost:
                row[arc.target] = _Cell(cost, arc)

    def _take(self, word: str, row: list[_Cell], following: list[_Cell]) -> None:
        """Read a word: as that of an arc, or as one that is not of the grammar."""
        for arc in self._arcs:
            if arc.word is not None:
                cost = row[arc.source].cost + _difference(word, arc.word)
                if cost < following[arc.target].cost:
                    following[arc.target] = _Cell(cost, arc, has_read=True)
        for state, cell in enumerate(row):
            if cell.cost + 1 < following[state].cost:
                following[state] = _Cell(cell.cost + 1, None, has_read=True)

    def _trace(self, table: _Table, words: Sequence[str]) -> Parse:
        """The sentence of the cheapest way, followed back from its end."""
        read, state = len(words), self._final
        said: list[_Arc] = []
        while read or state:
            cell = table[read][state]
            read -= cell.has_read
            if cell.arc is not None:
                said += [cell.arc] if cell.arc.word is not None else []
                state = cell.arc.source
        said.reverse()
        slots: dict[str, str] = {}
        for arc in said:
            if arc.slot is not None:
                slots[arc.slot] = f"{slots.get(arc.slot, '')} {arc.word}".strip()
        cost = table[len(words)][self._final].cost
        return Parse(cost=cost, sentence=" ".join(a.word or "" for a in said), slots=slots)

    def _add(self, node: Node, start: int, slot: str | None) -> int:
        """Add a part of the grammar after a state; the state after it."""
        if isinstance(node, Words):
            return self._join([start], slot, word=node.text.lower())
        if isinstance(node, Name):
            inner = node.name if node.name in self._slots else slot
            return self._add(self._grammar.definitions[node.name], start, inner)
        if isinstance(node, Parts):
            for part in node.parts:
                start = self._add(part, start, slot)
            return start
        assert isinstance(node, Choice)
        return self._join([self._add(option, start, slot) for option in node.options], slot)

    def _join(self, starts: Sequence[int], slot: str | None, *, word: str | None = None) -> int:
        """A new state after some others."""
        state = self._num_states
        self._num_states += 1
        self._arcs += [_Arc(start, state, word, slot) for start in dict.fromkeys(starts)]
        return state


@functools.lru_cache(maxsize=100_000)
def _difference(word: str, other: str) -> float:
    """The share of letters in which two words differ: 0 if they are the same, at most 1."""
    if word == other:
        return 0.0
    row = list(range(len(other) + 1))
    for i, letter in enumerate(word, 1):
        row = list(_next_row(row, i, letter, other))
    return row[-1] / max(len(word), len(other))


def _next_row(row: list[int], first: int, letter: str, other: str) -> Iterator[int]:
    last = first
    yield last
    for j, theirs in enumerate(other, 1):
        last = min(row[j] + 1, last + 1, row[j - 1] + (letter != theirs))
        yield last

"""A small grammar language, one phrase or pattern per line.

    # a comment
    room = (kitchen|bedroom|living room)
    turn (on|off) the [<room>] lights
    wake me at <hour>
    nguyen: win /wˈɪn/

`(a|b)` is a choice, `[a]` is optional, `<name>` stands for the definition `name = ...`. A line
with a colon says how a word is pronounced (`voices/lexicon.py`). Every other line is a pattern; patterns
are drawn equally often, and so are the alternatives of a choice.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np

from todm.asr.corpora.voices import lexicon
from todm.asr.corpora.voices.engine import Lexicon
from todm.errors import CorpusError

_DEFINITION = re.compile(r"\s*([A-Za-z_][\w-]*)\s*=(.*)$")
_TOKEN = re.compile(r"\s*([()\[\]|]|<[^<>]*>|[^\s()\[\]|<>]+|[<>])")


@dataclasses.dataclass(frozen=True)
class Words:
    """Literal words."""

    text: str


@dataclasses.dataclass(frozen=True)
class Name:
    """A reference to a definition."""

    name: str


@dataclasses.dataclass(frozen=True)
class Sequence:
    """Parts one after the other."""

    parts: "tuple[Node, ...]"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several alternatives."""

    options: "tuple[Node, ...]"


Node = Words | Name | Sequence | Choice


class Grammar:
    """Patterns and definitions, checked: every name is defined and none contains itself."""

    def __init__(
        self, patterns: list[Node], definitions: dict[str, Node], pronunciations: Lexicon
    ) -> None:
        self.patterns = patterns
        self.definitions = definitions
        self.pronunciations = pronunciations

    def sample(self, rng: np.random.Generator, number: int | None = None) -> str:
        """One sentence, with single spaces between words; of any pattern, or of that of a number."""
        which = int(rng.integers(len(self.patterns))) if number is None else number
        pattern = self.patterns[which]
        return " ".join(self._words(pattern, rng))

    def words(self) -> set[str]:
        """Every distinct word that a sentence can contain."""
        nodes = [*self.patterns, *self.definitions.values()]
        leaves = (leaf for node in nodes for leaf in _leaves(node))
        return {leaf.text for leaf in leaves if isinstance(leaf, Words)}

    def choices(self) -> Iterator[list[str]]:
        """The phrases of every choice, and those patterns that are plain phrases: each set without repeats.

        An alternative that holds a choice of its own is left out.
        """
        yield list(dict.fromkeys(filter(None, map(self._phrase, self.patterns))))
        for node in [*self.patterns, *self.definitions.values()]:
            for inner in _nodes(node):
                if isinstance(inner, Choice):
                    yield list(dict.fromkeys(filter(None, map(self._phrase, inner.options))))

    def _phrase(self, node: Node) -> str:
        """A node's words if it has one reading, else nothing."""
        if isinstance(node, Words):
            return node.text
        if isinstance(node, Name):
            return self._phrase(self.definitions[node.name])
        if isinstance(node, Choice) or not node.parts:
            return ""
        parts = [self._phrase(part) for part in node.parts]
        return " ".join(parts) if all(parts) else ""

    def _words(self, node: Node, rng: np.random.Generator) -> Iterator[str]:
        if isinstance(node, Words):
            yield node.text
        elif isinstance(node, Name):
            yield from self._words(self.definitions[node.name], rng)
        elif isinstance(node, Sequence):
            for part in node.parts:
                yield from self._words(part, rng)
        else:
            yield from self._words(node.options[int(rng.integers(len(node.options)))], rng)


def parse(text: str, *, where: str = "grammar") -> Grammar:
    """A grammar from its text.

    Args:
        text: the lines.
        where: name of the text in errors, which add `:LINE`.

    Raises:
        CorpusError: a line cannot be read, a name is unknown or circular, or there is no pattern.
    """
    patterns: list[Node] = []
    definitions: dict[str, Node] = {}
    lines: dict[str, str] = {}
    places: list[tuple[Node, str]] = []
    pronunciations: Lexicon = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line, at = raw.split("#", 1)[0].strip(), f"{where}:{number}"
        if not line:
            continue
        if said := lexicon.read_line(line, at):
            pronunciations[said[0]] = said[1]
            continue
        match = _DEFINITION.match(line)
        node = _Line(match[2] if match else line, at).parse()
        places.append((node, at))
        if not match:
            patterns.append(node)
        elif match[1] in definitions:
            raise CorpusError(f"{at}: {match[1]!r} is defined a second time: choose another name")
        else:
            definitions[match[1]], lines[match[1]] = node, at
    if not patterns:
        raise CorpusError(f"{where} has no pattern: write one phrase per line, such as 'lights on'")
    for node, at in places:
        _check_names(node, definitions, at)
    _check_circles(definitions, lines)
    _check_empty(patterns, definitions, places)
    grammar = Grammar(patterns, definitions, pronunciations)
    _check_pronunciations(grammar, where)
    return grammar


def _check_pronunciations(grammar: Grammar, where: str) -> None:
    words = {word.lower() for word in grammar.words()}
    for word in grammar.pronunciations:
        if word not in words:
            raise CorpusError(
                f"{where} says how {word!r} is pronounced, and no pattern has that word: correct it"
                " or remove the line"
            )


def read(path: str | Path) -> Grammar:
    """The grammar in a file.

    Raises:
        CorpusError: the file cannot be read, or as `parse`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    else:
        return parse(text, where=str(path))
    raise CorpusError(f"the grammar {path} cannot be read: {reason}")


class _Line:
    """A recursive-descent parser of one pattern."""

    def __init__(self, text: str, where: str) -> None:
        self.tokens = [m[1] for m in _TOKEN.finditer(text)]
        self.where = where
        self.next = 0

    def parse(self) -> Node:
        node = self._choice()
        if self.next < len(self.tokens):
            raise CorpusError(f"{self.where}: {self.tokens[self.next]!r} closes nothing: remove it")
        return node

    def _choice(self) -> Node:
        options = [self._sequence()]
        while self._peek() == "|":
            self.next += 1
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._peek() not in (None, "|", ")", "]"):
            parts.append(self._part())
        if not parts:
            raise CorpusError(
                f"{self.where}: an alternative is empty: write [..] for an optional part"
            )
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _part(self) -> Node:
        token = self.tokens[self.next]
        self.next += 1
        if token == "(":
            return self._closed(")")
        if token == "[":
            return Choice((self._closed("]"), Sequence(())))
        if token in "<>":
            raise CorpusError(f"{self.where}: a name is written <name>, with both signs")
        if token.startswith("<"):
            return Name(token[1:-1].strip())
        return self._literal(token)

    def _closed(self, end: str) -> Node:
        node = self._choice()
        if self._peek() != end:
            raise CorpusError(
                f"{self.where}: a {'(' if end == ')' else '['} is not closed: add {end!r}"
            )
        self.next += 1
        return node

    def _literal(self, token: str) -> Node:
        if not all(c.isalpha() or c in "'-" for c in token) or not any(map(str.isalpha, token)):
            raise CorpusError(f"{self.where}: {token!r} is not a word: spell out numbers and signs")
        return Words(token)

    def _peek(self) -> str | None:
        return self.tokens[self.next] if self.next < len(self.tokens) else None


def _children(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Sequence):
        return node.parts
    return node.options if isinstance(node, Choice) else ()


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in _children(node):
        yield from _nodes(child)


def _leaves(node: Node) -> Iterator[Words | Name]:
    for inner in _nodes(node):
        if isinstance(inner, (Words, Name)):
            yield inner


def _names(node: Node) -> Iterator[str]:
    return (leaf.name for leaf in _leaves(node) if isinstance(leaf, Name))


def _check_names(node: Node, definitions: dict[str, Node], where: str) -> None:
    for name in _names(node):
        if name not in definitions:
            near = difflib.get_close_matches(name, definitions, 1)
            hint = f"did you mean <{near[0]}>?" if near else f"add a line  {name} = (..|..)"
            raise CorpusError(f"{where}: <{name}> is not defined: {hint}")


def _check_circles(definitions: dict[str, Node], lines: dict[str, str]) -> None:
    try:
        TopologicalSorter({name: set(_names(node)) for name, node in definitions.items()}).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]
        raise CorpusError(
            f"{lines[circle[0]]}: {circle[0]!r} contains itself ({' -> '.join(circle)}): "
            "break the circle"
        ) from None


def _check_empty(
    patterns: list[Node], definitions: dict[str, Node], places: list[tuple[Node, str]]
) -> None:
    def may_be_empty(node: Node) -> bool:
        if isinstance(node, Words):
            return False
        if isinstance(node, Name):
            return may_be_empty(definitions[node.name])
        if isinstance(node, Sequence):
            return all(may_be_empty(p) for p in node.parts)
        return any(may_be_empty(o) for o in node.options)

    for node, where in places:
        if any(node is p for p in patterns) and may_be_empty(node):
            raise CorpusError(f"{where}: everything is optional: keep at least one word")

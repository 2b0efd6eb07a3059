"""Pronunciations given by hand: a line a word, spelt as it sounds, and in IPA for engines that take it.

    siobhan: shivawn
    nguyen: win /wˈɪn/

They stand among the lines of a grammar, or in a file of their own.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from todm.asr.corpora.utterances import text_lines
from todm.asr.corpora.voices.engine import Lexicon, Pronunciation
from todm.errors import CorpusError

_LINE = re.compile(r"\s*(\S+)\s*:\s*([^/]*?)\s*(?:/([^/]+)/)?\s*$")
_WORD = re.compile(r"\S+")


def read_line(line: str, where: str) -> tuple[str, Pronunciation] | None:
    """The word of a line and how it is said; None if the line gives no pronunciation.

    Raises:
        CorpusError: the line has a colon, and no word on one of its sides.
    """
    if ":" not in line:
        return None
    match = _LINE.match(line)
    said = match[2] if match else ""
    if not match or not said or not any(map(str.isalpha, said)):
        raise CorpusError(
            f"{where}: {line.strip()!r} is not a pronunciation: write  word: spelt as it sounds"
            "  and if you like its phonemes behind, /wˈɪn/"
        )
    return match[1].lower(), Pronunciation(said.lower(), (match[3] or "").strip())


def read(path: str | Path) -> Lexicon:
    """The pronunciations in a file; what follows # is a comment.

    Raises:
        CorpusError: the file cannot be read, or a line is none.
    """
    found: Lexicon = {}
    for number, raw in text_lines(Path(path)):
        line = (raw or "").split("#", 1)[0].strip()
        if not line:
            continue
        where = f"{path}:{number}"
        entry = read_line(line, where) or read_line(f":{line}", where)
        assert entry
        found[entry[0]] = entry[1]
    return found


def respell(text: str, lexicon: Lexicon) -> str:
    """A text in lower case, its words spelt as they sound."""
    if not lexicon:
        return text
    return " ".join(lexicon[w].respelling if w in lexicon else w for w in text.split())


def mark(text: str, lexicon: Lexicon, form: str) -> str:
    """A text in lower case whose words with phonemes are written in a form, and the others respelt.

    Args:
        text: in lower case.
        lexicon: pronunciations.
        form: how the engine takes phonemes, with `{word}` and `{ipa}`.
    """
    if not lexicon:
        return text
    words = []
    for word in text.split():
        said = lexicon.get(word)
        if said is None:
            words.append(word)
        else:
            words.append(form.format(word=word, ipa=said.ipa) if said.ipa else said.respelling)
    return " ".join(words)


class Part(NamedTuple):
    """A stretch of text, and its phonemes where they are given."""

    text: str
    ipa: str = ""


def parts(text: str, lexicon: Lexicon) -> list[Part]:
    """A text in lower case, cut where the phonemes of a word are given; other words are respelt."""
    found: list[Part] = []
    for word in text.split():
        said = lexicon.get(word)
        if said is not None and said.ipa:
            found.append(Part(said.respelling, said.ipa))
            continue
        spelt = said.respelling if said else word
        if found and not found[-1].ipa:
            found[-1] = Part(f"{found[-1].text} {spelt}")
        else:
            found.append(Part(spelt))
    return found


def begins_of(
    text: str, said: str, begins: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """The (letter, sample) of word begins in `said`, its letters replaced by those of `text`.

    Unchanged if the two have other numbers of words: such begins fit no text.
    """
    ours = [m.start() for m in _WORD.finditer(text)]
    theirs = [m.start() for m in _WORD.finditer(said)]
    if text == said or len(ours) != len(theirs):
        return tuple(begins)
    place = dict(zip(theirs, ours, strict=True))
    return tuple((place.get(letter, -1), sample) for letter, sample in begins)

"""What the maker of a grammar should know before it is spoken: phrases that sound alike, unsayable words."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from todm.asr.corpora.grammar import Grammar

Phonemes = Callable[[Sequence[str]], list[str]]
"""Texts in IPA; empty for one that says nothing."""
_NEAR = 0.2
"""Edits of phonemes, as a share of the longer phrase, up to which two are taken for alike."""
_MOST_PHRASES = 40
_MARKS = str.maketrans("ɾ", "t", "ˈˌː ‍")
"""Stress, length, flaps and the seams between words are what people vary."""


def advice(grammar: Grammar, phonemes: Phonemes) -> list[str]:
    """A sentence for each thing to look at."""
    words, choices = sorted(grammar.words()), list(grammar.choices())
    spelt = [" ".join(word) for word in words]
    texts = list(dict.fromkeys(itertools.chain(words, spelt, *choices)))
    said = dict(zip(texts, phonemes(texts), strict=True))
    found = [
        f"warning: {word!r} is {how}: give its pronunciation on a line of the grammar,  {word}: ..."
        for word, how in unsayable(words, said)
    ]
    for one, other in sound_alike(choices, said):
        found.append(
            f"warning: {one!r} and {other!r} sound alike ({said[one]}, {said[other]}) where either may"
            " be said: another wording is recognised better"
        )
    return found


def unsayable(words: Sequence[str], said: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Words that are not spoken as a word, and what becomes of them.

    Args:
        words: of the grammar.
        said: phonemes of each word, and of its letters with spaces between.
    """
    for word in words:
        if not _plain(said[word]):
            yield word, "not spoken at all"
        elif len(word) > 1 and _plain(said[word]) == _plain(said[" ".join(word)]):
            yield word, "spelt out letter by letter"


def sound_alike(choices: Sequence[Sequence[str]], said: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs of phrases between which a speaker chooses, and which differ in few phonemes.

    Args:
        choices: the phrases of each choice.
        said: phonemes of each phrase.
    """
    pairs: dict[tuple[str, str], None] = {}
    for options in choices:
        plain = {text: _plain(said[text]) for text in options[:_MOST_PHRASES]}
        for one, other in itertools.combinations(sorted(plain), 2):
            if _near(plain[one], plain[other]):
                pairs[one, other] = None
    return list(pairs)


def _near(one: str, other: str) -> bool:
    import kaldialign

    longest = max(len(one), len(other))
    if min(len(one), len(other)) == 0:
        return False
    edits = kaldialign.edit_distance(list(one), list(other))["total"]
    # One phoneme of three or four is all that tells "light" from "right".
    return edits <= max(_NEAR * longest, 1 if longest >= 3 else 0)


def _plain(said: str) -> str:
    return said.translate(_MARKS)

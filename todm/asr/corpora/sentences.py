"""The sentences that are spoken in each split: drawn from a grammar, or lines of text."""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from todm.asr.corpora.config import SPLITS, DataConfig, Split
from todm.asr.corpora.grammar import Grammar
from todm.asr.corpora.utterances import text_lines
from todm.asr.tokens import Rule, normalise
from todm.errors import CorpusError

_LIBRISPEECH_ID = re.compile(r"\d+-\d+-\d+$")
# Measured over the train voices at the default rates, spaces included.
_LETTERS_PER_SECOND = 20.0
_CANDIDATES, _REPEATED = 20, 0.3


def from_grammar(grammar: Grammar, config: DataConfig) -> dict[Split, list[str]]:
    """Sentences of every split, with balanced words and few repetitions.

    Of some candidates the one with the rarest word is taken; a sentence used before, in any split,
    counts less.

    Raises:
        CorpusError: a word of the grammar is outside the alphabet.
    """
    rule = config.tokens.normalise
    _check_alphabet(grammar, rule)
    used: set[str] = set()
    chosen: dict[Split, list[str]] = {}
    for index, split in enumerate(SPLITS):
        rng = np.random.default_rng([config.seed, 1, index])
        counts: Counter[str] = Counter()
        chosen[split] = [
            normalise(_rarest(grammar, rng, counts, used), rule) for _ in range(config.num(split))
        ]
    return chosen


def _check_alphabet(grammar: Grammar, rule: Rule) -> None:
    for word in sorted(grammar.words()):
        try:
            normalise(word, rule)
        except ValueError as error:
            raise CorpusError(
                f"the grammar's word {word!r} has {error}: spell it in letters, "
                "or set tokens.normalise to 'none'"
            ) from None


def _rarest(
    grammar: Grammar, rng: np.random.Generator, counts: Counter[str], used: set[str]
) -> str:
    def merit(sentence: str) -> float:
        rarity = 1 / (1 + min(counts[w] for w in sentence.split()))
        return rarity * (_REPEATED if sentence in used else 1)

    candidates = [grammar.sample(rng) for _ in range(_CANDIDATES)]
    best = max(candidates, key=merit)
    used.add(best)
    counts.update(best.split())
    return best


def read_lines(path: str | Path) -> list[str]:
    """Sentences of a text file, plain or gzipped, one per line; a leading LibriSpeech id is dropped.

    Raises:
        CorpusError: the file cannot be read.
    """
    sentences: list[str] = []
    for number, line in text_lines(Path(path)):
        if line is None:
            raise CorpusError(f"the text {path} cannot be read: line {number} is not UTF-8")
        sentences.append(_without_id(line.strip()))
    return sentences


def _without_id(line: str) -> str:
    first, _, rest = line.partition(" ")
    return rest if _LIBRISPEECH_ID.match(first) else line


def from_lines(
    lines: list[str], config: DataConfig
) -> tuple[dict[Split, list[str]], list[tuple[int, str, str]]]:
    """Disjoint sentences of every split, and the lines left out as (number, line, reason).

    At most a tenth of the distinct sentences goes to dev and to test each. Train gets an estimated
    `hours` of speech (or `num_train` sentences); if the text is too short for that, other voices
    speak its sentences again.

    Raises:
        CorpusError: fewer than three usable sentences.
    """
    usable, rejected = _usable(lines, config)
    if len(usable) < 3:
        raise CorpusError(
            f"{config.text} has {len(usable)} usable sentences: at least 3 are needed, one for each split"
        )
    rng = np.random.default_rng([config.seed, 2])
    usable = [usable[i] for i in rng.permutation(len(usable))]
    share = max(1, len(usable) // 10)
    num_dev, num_test = min(config.num_dev, share), min(config.num_test, share)
    pool = usable[num_dev + num_test :]
    chosen: dict[Split, list[str]] = {
        "train": _until(pool, config),
        "dev": usable[:num_dev],
        "test": usable[num_dev : num_dev + num_test],
    }
    return chosen, rejected


def _usable(lines: list[str], config: DataConfig) -> tuple[list[str], list[tuple[int, str, str]]]:
    """Distinct normalised sentences that are not too long, in order, and the lines left out."""
    usable: dict[str, None] = {}
    rejected: list[tuple[int, str, str]] = []
    for number, line in enumerate(lines, 1):
        try:
            text = normalise(line, config.tokens.normalise)
        except ValueError:
            rejected.append((number, line, "transcript outside the alphabet"))
            continue
        if text in usable:
            rejected.append((number, line, "repeated sentence"))
        elif estimate_seconds(text) > config.max_seconds:
            rejected.append((number, line, "sentence too long"))
        else:
            usable[text] = None
    return list(usable), rejected


def _until(pool: list[str], config: DataConfig) -> list[str]:
    """Sentences of `pool`, repeated until the requested hours or number are reached."""
    seconds = config.hours * 3600 if config.hours is not None else None
    chosen: list[str] = []
    total = 0.0
    while (total < seconds) if seconds is not None else (len(chosen) < config.num_train):
        chosen.append(pool[len(chosen) % len(pool)])
        total += estimate_seconds(chosen[-1]) + sum(config.speech.silence)
    return chosen


def estimate_seconds(text: str) -> float:
    """Estimated duration of a spoken sentence."""
    return len(text) / _LETTERS_PER_SECOND + 0.1

"""Who speaks which sentence: shares of engines, and the voices of each engine in turn."""

from collections.abc import Mapping

from todm.asr.corpora.config import SPLITS, Split
from todm.asr.corpora.voices.engine import Engine, Voice
from todm.errors import ConfigError

_SHIFTS = (1.0, 1.08, 0.93, 1.15, 0.87)
"""A voice becomes five speakers; beyond these it no longer sounds like a person (docs/log.md)."""
_FIRST_SPEAKER: dict[Split, int] = {"train": 1000, "dev": 2000, "test": 3000}
_UNSEEN, _ENGINE_STEP = 4000, 10_000


def parse(text: str) -> dict[str, int]:
    """Shares by engine of `espeak=60,kokoro=40`; a name alone has all, or an equal share of it.

    Raises:
        ConfigError: something else.
    """
    shares: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, number = item.partition("=")
        if (equals and not number.isdecimal()) or name in shares:
            raise ConfigError(
                f"--voices is {text!r}: write engines and whole shares, as in espeak=60,kokoro=40"
            )
        shares[name] = int(number) if equals else 100
    if not shares:
        raise ConfigError(f"--voices is {text!r}: name an engine, as in espeak=60,kokoro=40")
    return shares


def deal(num: int, shares: Mapping[str, int]) -> dict[str, list[int]]:
    """For each engine the numbers of its sentences, of `num`: always the one furthest behind its share.

    Of more sentences the first ones go to the same engines.
    """
    total = sum(shares.values())
    dealt: dict[str, list[int]] = {name: [] for name in shares}
    for index in range(num):
        name = max(shares, key=lambda n: shares[n] * (index + 1) / total - len(dealt[n]))
        dealt[name].append(index)
    return dealt


def voices(engine: Engine, number: int, split: Split, num: int) -> list[Voice]:
    """At most `num` voices of an engine in a split; where it has fewer, they are shifted too.

    Args:
        engine: who speaks.
        number: of the engine among all; speakers of different engines have different ids.
        split: no voice is in two.
        num: how many.
    """
    names = engine.speakers(split, num)
    shifts = _SHIFTS if engine.natural else (1.0,)
    pairs = [(name, shift) for shift in shifts for name in names][:num]
    first = _FIRST_SPEAKER[split] + number * _ENGINE_STEP
    return [Voice(first + i, engine.name, *pair) for i, pair in enumerate(pairs)]


def unseen_voices(engine: Engine, number: int, num: int) -> list[Voice]:
    """At most `num` of all voices of an engine that training does not hear, as they are."""
    names = [name for split in SPLITS for name in engine.speakers(split, num)][:num]
    first = _UNSEEN + number * _ENGINE_STEP
    return [Voice(first + i, engine.name, name) for i, name in enumerate(names)]

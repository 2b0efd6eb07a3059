"""What a user should read before a corpus is spoken: who speaks, at which licence, how long it takes."""

from collections.abc import Iterator, Sequence

from todm.asr.corpora.advice import advice
from todm.asr.corpora.config import DataConfig
from todm.asr.corpora.script import Script
from todm.asr.corpora.sentences import estimate_seconds
from todm.asr.corpora.voices import catalogue, shares
from todm.asr.corpora.voices.espeak import Espeak
from todm.errors import CorpusError, MissingExtra

_NATURAL_PACE = 1.4
"""Natural voices take so much longer over a sentence than the estimate, which is espeak-ng's."""


def lines(config: DataConfig, script: Script) -> Iterator[str]:
    """A line for each engine, then warnings."""
    spoken: dict[str, list[str]] = {name: [] for name in config.speech.voices}
    for said in script.sentences.values():
        for name, numbers in shares.deal(len(said), config.speech.voices).items():
            spoken[name] += [said[i] for i in numbers]
    for name, said in spoken.items():
        yield _line(name, said, "")
    for name, said in script.unseen.items():
        yield _line(name, said, ", a test by a voice that training does not hear")
    if script.rules is not None:
        setting = catalogue.setting(config.speech, script.lexicon)
        try:
            yield from advice(script.rules, Espeak(setting).phonemes)
        except (CorpusError, MissingExtra):  # without espeak-ng nothing says how a phrase sounds
            return


def _line(name: str, said: Sequence[str], purpose: str) -> str:
    engine, licences = catalogue.CLASSES[name], catalogue.CLASSES[name].licences
    seconds = sum(map(estimate_seconds, said)) * (_NATURAL_PACE if engine.natural else 1)
    cost = seconds / engine.speed
    took = f"{cost / 60:.0f} CPU minutes" if cost >= 90 else f"{max(cost, 1):.0f} CPU seconds"
    kept = ", less what the cache holds" if engine.natural else ""
    known = f"engine {licences.engine}; voices {licences.voices}; phonemes {licences.phonemiser}"
    return (
        f"voices: {name} speaks {len(said)} utterances{purpose}: about {seconds / 3600:.2f} h, in"
        f" {took}{kept}; licences: {known}"
    )

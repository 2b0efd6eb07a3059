"""All engines by name."""

import functools
import os
from pathlib import Path

from todm.asr.corpora.config import ENGINES, SpeechConfig
from todm.asr.corpora.voices.engine import Engine, Lexicon, Setting
from todm.asr.corpora.voices.espeak import Espeak
from todm.asr.corpora.voices.flite import Flite
from todm.asr.corpora.voices.hibari_tts import Hibari
from todm.asr.corpora.voices.kokoro import Kokoro
from todm.asr.corpora.voices.piper_tts import Piper
from todm.errors import CorpusError, MissingExtra

CLASSES: dict[str, type[Engine]] = {e.name: e for e in (Espeak, Kokoro, Hibari, Piper, Flite)}
assert set(CLASSES) == set(ENGINES)
FAST = 5.0
"""Seconds of audio a CPU second, from which on an engine speaks a test without being asked to."""


def setting(speech: SpeechConfig, lexicon: Lexicon | None = None) -> Setting:
    """What the engines of a corpus are made with."""
    known = tuple(sorted((lexicon or {}).items()))
    return Setting(weights_folder(speech), speech.language, known)


def weights_folder(speech: SpeechConfig) -> Path:
    """The folder of voices that no package brings: the setting, TODM_VOICES, or ~/.cache/todm/voices."""
    place = speech.weights or os.environ.get("TODM_VOICES")
    if place:
        return Path(place).expanduser().absolute()
    home = os.environ.get("TODM_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "todm") / "voices"


@functools.cache
def engine(name: str, made_with: Setting) -> Engine:
    """An engine, one for each process; nothing is loaded before it speaks."""
    return CLASSES[name](made_with)


def unseen(speech: SpeechConfig) -> tuple[str, ...]:
    """The engines that speak a test of their own.

    As set, or else all that are fast, installed and of no family that training hears.

    Raises:
        CorpusError: one that is set is of a trained family.
        TodmError: one that is set cannot speak here.
    """
    trained = {CLASSES[name].family for name in speech.voices}
    if speech.unseen is not None:
        for name in speech.unseen:
            if CLASSES[name].family in trained:
                raise CorpusError(
                    f"{name} is of the family {CLASSES[name].family!r}, which training hears too:"
                    " its test would not be of a voice never heard"
                )
            engine(name, setting(speech)).check()
        return speech.unseen
    fast = [n for n, e in CLASSES.items() if e.speed >= FAST and e.family not in trained]
    return tuple(name for name in fast if _speaks(engine(name, setting(speech))))


def _speaks(one: Engine) -> bool:
    try:
        one.check()
    except (CorpusError, MissingExtra):
        return False
    return True

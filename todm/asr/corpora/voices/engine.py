"""What a speech synthesiser has to offer: `Engine`, and what goes in and out of it."""

import abc
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from todm.asr.corpora.config import Split
from todm.errors import CorpusError

_OWN_PACE = 175
"""Words a minute at which a natural voice speaks when nothing else is asked of it."""
_SPEEDS = (0.5, 2.0)


class Voice(NamedTuple):
    """A speaker.

    `speaker` is the id in LibriSpeech's layout, `engine` and `name` say who speaks, and `shift` is the
    factor by which pitch and formants are raised, by resampling: another speaker out of the same voice.
    """

    speaker: int
    engine: str
    name: str
    shift: float = 1.0

    def __str__(self) -> str:
        shifted = f" x{self.shift:g}" if self.shift != 1 else ""
        return f"{self.engine} {self.name}{shifted}"


class Manner(NamedTuple):
    """How an utterance is spoken: words a minute, pitch and pitch range (0 to 100).

    Natural voices take the rate alone.
    """

    rate: int
    pitch: int
    pitch_range: int

    def speed(self, shift: float = 1.0) -> float:
        """The rate as a factor of a natural voice's own pace, in hundredths.

        Args:
            shift: of the voice; resampling makes its speech shorter by that factor.
        """
        low, high = _SPEEDS
        return round(min(max(self.rate / _OWN_PACE / shift, low), high), 2)


class Spoken(NamedTuple):
    """Float32 samples in [-1, 1] at `rate`, and the (letter, sample) where each word begins.

    `begins` is empty where the engine does not say.
    """

    samples_S: np.ndarray
    rate: int
    begins: tuple[tuple[int, int], ...] = ()

    def word_times(self, text: str) -> tuple[float, ...]:
        """The second at which the first word of `text` begins, and those at which its words end.

        A word ends where the next one begins. Empty if the engine spoke other words than the text has
        (espeak-ng speaks "of the" as one word, and some numbers as several), or does not say.
        """
        letters = [match.start() for match in re.finditer(r"\S+", text.lower())]
        samples = [*(sample for _, sample in self.begins), len(self.samples_S)]
        one_by_one = all(a < b for a, b in itertools.pairwise(samples))
        if not one_by_one or [letter for letter, _ in self.begins] != letters:
            return ()
        return tuple(sample / self.rate for sample in samples)


class Pronunciation(NamedTuple):
    """How a word is said: spelt as it sounds, and in IPA for engines that take phonemes (or empty)."""

    respelling: str
    ipa: str = ""


Lexicon = dict[str, Pronunciation]
"""Pronunciations by word, in lower case."""


class Licences(NamedTuple):
    """The licences of an engine's program, of its voices, and of what turns text into phonemes."""

    engine: str
    voices: str
    phonemiser: str


class Setting(NamedTuple):
    """What engines are made with: a folder of weights, the language, pronunciations."""

    weights: Path
    language: str
    lexicon: tuple[tuple[str, Pronunciation], ...] = ()
    """As a tuple, so that a process keeps one engine for each setting."""


class Engine(abc.ABC):
    """Speaks text in some voices. Making one loads nothing; `speak` loads what it needs once.

    The sound depends on the arguments of `speak`, on `version` and on the setting alone.

    Attributes:
        name: on the command line.
        family: engines of one family learnt from each other, and are no independent test.
        natural: whether it is made of recordings; its speech is then cached.
        licences: see there.
        speed: seconds of audio a CPU second, on a busy core (docs/log.md).
        setting: what it was made with.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    natural: ClassVar[bool] = True
    licences: ClassVar[Licences]
    speed: ClassVar[float]

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._lexicon = dict(setting.lexicon)

    @abc.abstractmethod
    def check(self) -> None:
        """Raise MissingExtra or CorpusError if it cannot speak here: what is missing, and what to do."""

    @abc.abstractmethod
    def version(self) -> str:
        """Of the program and its weights; another version may sound different."""

    @abc.abstractmethod
    def speakers(self, split: Split, num: int) -> tuple[str, ...]:
        """Names of at most `num` speakers of a split; none of them is in another split."""

    @abc.abstractmethod
    def speak(self, text: str, voice: Voice, manner: Manner) -> Spoken:
        """Speak a text.

        Raises:
            CorpusError: the engine has no such voice.
        """


def needs_english(engine: str, language: str) -> None:
    """Raise CorpusError for another language: most engines here have English voices only."""
    if language != "en":
        raise CorpusError(
            f"{engine} speaks English here, not {language!r}: take  --voices espeak  for it"
        )


def needs_files(engine: str, folder: Path, files: Sequence[Sequence[str]]) -> None:
    """Raise CorpusError if weights are missing.

    Args:
        engine: for the message.
        folder: where they are looked for.
        files: for each what it may be called; one of the names is enough.
    """
    missing = [names[0] for names in files if not any((folder / n).is_file() for n in names)]
    if missing:
        raise CorpusError(
            f"{engine} needs {' and '.join(missing)} of its release, and {folder} does not have"
            f" {'it' if len(missing) == 1 else 'them'}: put the files there, or name their folder by"
            " TODM_VOICES or  --set asr.data.speech.weights=DIR"
        )

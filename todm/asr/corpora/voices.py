"""espeak-ng through its wheel `espeakng-loader`: voices by split, and the synthesizer.

A voice is an accent and a variant (the timbre). Of espeak-ng's 104 variants, robots, whispers, echoes and
near copies of others are left out (mean log-mel spectra within 0.3 nepers of each other); variants that
sound alike (within 0.5) stay in one split. No variant is in two splits.
"""

import contextlib
import ctypes
import itertools
import os
import re
import tempfile
import zlib
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from todm.asr.corpora.config import Split
from todm.errors import CorpusError, MissingExtra

ACCENTS = (
    "en-us",
    "en",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-029",
    "en-us-nyc",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
)
VARIANTS: dict[Split, tuple[str, ...]] = {
    "train": (
        "m1", "f2", "klatt", "Andy", "f4", "Denis", "Alex", "linda", "Jacky", "iven",
        "anika", "m3", "adam", "Lee", "f5", "Gene", "victor", "boris", "Andrea", "Mario",
        "david", "max", "klatt3", "ian", "john", "iven4", "travis", "Diogo", "m6",
        "antonio", "norbert", "Marco", "sandro", "Nguyen", "shelby", "grandpa", "benjamin",
        "pedro", "iven2", "Hugo", "m2", "klatt4", "m7", "mike2", "michel", "iven3",
    ),
    "dev": (
        "f1", "m8", "Annie", "ed", "rob",
    ),
    "test": (
        "f3", "paul", "belinda", "quincy", "grandma", "m4", "steph", "Michael", "edward",
        "pablo", "marcelo", "gustave",
    ),
}  # fmt: skip
SAMPLE_RATE = 22_050
_LONGEST_DATA_PATH = 140
"""espeak-ng keeps the path of its data in a buffer of 160 bytes."""

_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_NO_MORE, _WORD = 0, 1
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class _Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h: at `sample` the speech reaches letter `text_position` (from 1)."""

    _fields_: ClassVar = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


class Voice(NamedTuple):
    """A speaker: accent and timbre. `speaker` is the id in LibriSpeech's layout."""

    speaker: int
    accent: str
    variant: str

    @property
    def name(self) -> str:
        """Its name in espeak-ng."""
        return f"{self.accent}+{self.variant}"


class Manner(NamedTuple):
    """How an utterance is spoken: words a minute, pitch and pitch range (0 to 100)."""

    rate: int
    pitch: int
    pitch_range: int


class Spoken(NamedTuple):
    """Float32 samples in [-1, 1] at `SAMPLE_RATE`, and the (letter, sample) where each word begins."""

    samples_S: np.ndarray
    begins: tuple[tuple[int, int], ...]

    def word_times(self, text: str) -> tuple[float, ...]:
        """The second at which the first word of `text` begins, and those at which its words end.

        A word ends where the next one begins. Empty if espeak-ng spoke other words than the text
        has: it speaks "of the" as one word, and some numbers as several.
        """
        letters = [match.start() for match in re.finditer(r"\S+", text.lower())]
        samples = [*(sample for _, sample in self.begins), len(self.samples_S)]
        one_by_one = all(a < b for a, b in itertools.pairwise(samples))
        if not one_by_one or [letter for letter, _ in self.begins] != letters:
            return ()
        return tuple(sample / SAMPLE_RATE for sample in samples)


def voices(split: Split, num: int) -> list[Voice]:
    """The first `num` voices of a split: every variant once, then each in another accent, and so on.

    Raises:
        CorpusError: there are fewer voices.
    """
    variants = VARIANTS[split]
    most = len(variants) * len(ACCENTS)
    if num > most:
        raise CorpusError(
            f"{num} voices are requested in {split}, and there are {most}: take fewer"
        )
    base = {"train": 1000, "dev": 2000, "test": 3000}[split]
    turns = (divmod(index, len(variants)) for index in range(num))
    return [
        Voice(base + index, ACCENTS[(which + turn) % len(ACCENTS)], variants[which])
        for index, (turn, which) in enumerate(turns)
    ]


class Synthesizer:
    """Speaks text, and loads the library anew for every utterance.

    espeak-ng carries flutter, noise and echo over from one utterance to the next and cannot reset
    them; loading takes 0.4 ms, and makes each utterance depend on its arguments alone.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise MissingExtra("espeakng-loader", "train", "speaking a corpus") from None
        self._library = espeakng_loader.get_library_path()
        self._data = _short_path(espeakng_loader.get_data_path())
        self._parts: list[np.ndarray] = []
        self._begins: list[tuple[int, int]] = []
        self._callback = _CALLBACK(self._receive)

    def __call__(self, text: str, voice: Voice, manner: Manner) -> Spoken:
        """Speak a text.

        Raises:
            CorpusError: the library does not start, or does not know the voice.
        """
        self._parts.clear()
        self._begins.clear()
        with self._loaded() as library:
            if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
                raise CorpusError(
                    f"espeak-ng has no voice {voice.name!r}: reinstall espeakng-loader"
                )
            for key, value in (
                (_RATE, manner.rate),
                (_PITCH, manner.pitch),
                (_RANGE, manner.pitch_range),
            ):
                library.espeak_SetParameter(key, value, 0)
            data = text.lower().encode()
            library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
            library.espeak_Synchronize()
        joined = np.concatenate(self._parts) if self._parts else np.zeros(0, np.int16)
        return Spoken(joined.astype(np.float32) / 32768, tuple(self._begins))

    @contextlib.contextmanager
    def _loaded(self) -> Any:  # noqa: ANN401 - a ctypes library has no type
        library = ctypes.CDLL(self._library)
        try:
            if library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(self._data), _DONT_EXIT) <= 0:
                raise CorpusError(f"espeak-ng does not start with its data in {self._data}")
            # Breath and friction are noise from two generators, of which one is seeded by the clock.
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))
            ctypes.CDLL(None).srand(1)
            library.espeak_SetSynthCallback(self._callback)
            yield library
            library.espeak_Terminate()
        finally:
            _unload(library)

    def _receive(self, samples: Any, num: int, events: Any) -> int:  # noqa: ANN401 - C types
        if samples and num > 0:
            self._parts.append(np.ctypeslib.as_array(samples, (num,)).copy())
        listed = ctypes.cast(events, ctypes.POINTER(_Event))
        number = 0
        while (event := listed[number]).type != _NO_MORE:
            if event.type == _WORD:
                self._begins.append((event.text_position - 1, event.sample))
            number += 1
        return 0


def _unload(library: ctypes.CDLL) -> None:
    """Unmap a library, so that loading it again starts from its initial state."""
    import _ctypes

    close = getattr(_ctypes, "dlclose", None)
    if close is not None:
        close(library._handle)


def _short_path(path: str) -> str:
    """`path`, or a link to it if it is too long for espeak-ng's buffer."""
    if len(os.fsencode(path)) <= _LONGEST_DATA_PATH:
        return path
    link = (
        Path(tempfile.gettempdir())
        / f"todm-espeak-{os.getuid()}-{zlib.crc32(os.fsencode(path)):08x}"
    )
    temporary = link.with_name(f"{link.name}.{os.getpid()}")
    temporary.symlink_to(path)
    temporary.replace(link)
    return str(link)

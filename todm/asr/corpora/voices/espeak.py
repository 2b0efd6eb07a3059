"""espeak-ng through its wheel `espeakng-loader`: formant synthesis, small, fast and in many languages.

A voice is an accent and a variant (the timbre). Of espeak-ng's 104 variants, robots, whispers, echoes and
near copies of others are left out (mean log-mel spectra within 0.3 nepers of each other); variants that
sound alike (within 0.5) stay in one split. No variant is in two splits.
"""

import contextlib
import ctypes
import functools
import os
import re
import tempfile
import zlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np

from todm.asr.corpora.config import Split
from todm.asr.corpora.voices import lexicon
from todm.asr.corpora.voices.engine import Engine, Licences, Manner, Setting, Spoken, Voice
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

_OTHER_LANGUAGE = re.compile(r"\([\w-]+\)")
"""What espeak-ng writes around a word that it says in another language."""
_SYNCHRONOUS, _DONT_EXIT, _UTF8, _IPA = 2, 0x8000, 1, 2
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


class _VoiceEntry(ctypes.Structure):
    """The head of `espeak_VOICE` of speak_lib.h; `languages` is a priority byte and a name, repeated."""

    _fields_: ClassVar = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.POINTER(ctypes.c_char)),
        ("identifier", ctypes.c_char_p),
    ]


@final
class Espeak(Engine):
    """Speaks text, and loads the library anew for every utterance.

    espeak-ng carries flutter, noise and echo over from one utterance to the next and cannot reset
    them; loading takes 0.4 ms, and makes each utterance depend on its arguments alone.
    """

    name, family, natural = "espeak", "espeak", False
    licences = Licences("GPL-3.0-or-later", "GPL-3.0-or-later", "GPL-3.0-or-later (its own)")
    speed = 200.0

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._parts: list[np.ndarray] = []
        self._begins: list[tuple[int, int]] = []
        self._callback = _CALLBACK(self._receive)

    def check(self) -> None:
        """Raise MissingExtra or CorpusError if it cannot speak the language here."""
        _ = self._paths, self._accents  # both raise

    def version(self) -> str:
        """Of its wheel."""
        return metadata.version("espeakng-loader")

    def speakers(self, split: Split, num: int) -> tuple[str, ...]:
        """Every variant once, then each in another accent, and so on."""
        variants, accents = VARIANTS[split], self._accents
        turns = (divmod(i, len(variants)) for i in range(min(num, len(variants) * len(accents))))
        return tuple(
            f"{accents[(which + turn) % len(accents)]}+{variants[which]}" for turn, which in turns
        )

    def speak(self, text: str, voice: Voice, manner: Manner) -> Spoken:
        """Speak a text.

        Raises:
            CorpusError: the library does not start, or does not know the voice.
        """
        self._parts.clear()
        self._begins.clear()
        said = lexicon.respell(text.lower(), self._lexicon)
        with self._loaded() as library:
            _set_voice(library, voice.name)
            for key, value in (
                (_RATE, manner.rate),
                (_PITCH, manner.pitch),
                (_RANGE, manner.pitch_range),
            ):
                library.espeak_SetParameter(key, value, 0)
            data = said.encode()
            library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
            library.espeak_Synchronize()
        joined = np.concatenate(self._parts) if self._parts else np.zeros(0, np.int16)
        begins = lexicon.begins_of(text.lower(), said, self._begins)
        return Spoken(joined.astype(np.float32) / 32768, SAMPLE_RATE, begins)

    def phonemes(self, texts: Sequence[str]) -> list[str]:
        """Texts in IPA, as the first accent of the language says them; empty for one that says nothing.

        Raises:
            CorpusError: the library does not start.
        """
        accent = self._accents[0]
        with self._loaded() as library:
            _set_voice(library, accent)
            library.espeak_TextToPhonemes.restype = ctypes.c_char_p
            return [_phonemes(library, lexicon.respell(t.lower(), self._lexicon)) for t in texts]

    @functools.cached_property
    def _paths(self) -> tuple[str, str]:
        """The library, and its data under a name short enough."""
        try:
            import espeakng_loader
        except ImportError:
            raise MissingExtra("espeakng-loader", "train", "speaking with espeak-ng") from None
        return espeakng_loader.get_library_path(), _short_path(espeakng_loader.get_data_path())

    @functools.cached_property
    def _accents(self) -> tuple[str, ...]:
        """The accents of the language, its own name first.

        Raises:
            CorpusError: espeak-ng does not speak it.
        """
        language = self.setting.language
        if language == "en":
            return ACCENTS
        with self._loaded() as library:
            known = _languages(library)
        fitting = [code for code in known if code == language or code.startswith(f"{language}-")]
        if not fitting:
            raise CorpusError(
                f"espeak-ng does not speak the language {language!r}: choose one of {', '.join(known)}"
            )
        return tuple(sorted(fitting, key=lambda code: (code != language, code)))

    @contextlib.contextmanager
    def _loaded(self) -> Any:  # noqa: ANN401 - a ctypes library has no type
        path, data = self._paths
        library = ctypes.CDLL(path)
        try:
            if library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _DONT_EXIT) <= 0:
                raise CorpusError(f"espeak-ng does not start with its data in {data}")
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


def _set_voice(library: ctypes.CDLL, name: str) -> None:
    if library.espeak_SetVoiceByName(name.encode()) != 0:
        raise CorpusError(f"espeak-ng has no voice {name!r}: reinstall espeakng-loader")


def _phonemes(library: ctypes.CDLL, text: str) -> str:
    """The phonemes of all clauses of a text."""
    left, parts = ctypes.c_char_p(text.encode()), list[str]()
    while left.value:  # the library moves it to the next clause, and to null at the end
        found = library.espeak_TextToPhonemes(ctypes.byref(left), _UTF8, _IPA)
        parts.append((found or b"").decode())
    return " ".join(_OTHER_LANGUAGE.sub("", " ".join(parts)).split())


def _languages(library: ctypes.CDLL) -> list[str]:
    """The codes of all languages and accents, sorted."""
    library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_VoiceEntry))
    listed = library.espeak_ListVoices(None)
    codes: set[str] = set()
    number = 0
    while listed[number]:
        entry = listed[number].contents
        if not (entry.identifier or b"").startswith(b"mb/"):  # MBROLA's voices are not in the wheel
            codes.add(ctypes.string_at(ctypes.addressof(entry.languages.contents) + 1).decode())
        number += 1
    return sorted(codes)


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

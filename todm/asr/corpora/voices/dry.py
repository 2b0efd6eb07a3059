"""Speech without silence, room and noise, at 16 kHz; what natural voices say is kept in a cache.

CACHE/ENGINE/AB/KEY.flac, by engine, its version, text, voice and manner: several corpora may share a
cache. Files appear whole; a damaged one is spoken again.
"""

import functools
import hashlib
import io
import json
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from todm.asr.corpora.voices.engine import Engine, Manner, Spoken, Voice
from todm.device.audio import SAMPLE_RATE
from todm.errors import CorpusError
from todm.files import write_bytes

FOLDER = "dry-speech"
_ABANDONED = 3600.0
"""Seconds after which a file that is being written belongs to a process that was killed."""


def speech(
    engine: Engine, text: str, voice: Voice, *, manner: Manner, cache: Path
) -> tuple[np.ndarray, tuple[float, ...]]:
    """The words alone, float32 (S,) at 16 kHz, and their times where the engine says them.

    Raises:
        CorpusError: the engine says nothing.
    """
    spoken = (
        _cached(engine, text, voice, manner=manner, cache=cache)
        if engine.natural
        else engine.speak(text, voice, manner)
    )
    if not spoken.samples_S.size:
        name = "espeak-ng" if engine.name == "espeak" else engine.name
        raise CorpusError(f"{name} says nothing for {text!r}: leave the sentence out")
    return resampled(spoken, voice), spoken.word_times(text)


def resampled(spoken: Spoken, voice: Voice) -> np.ndarray:
    """The samples at 16 kHz, with pitch and formants raised by the shift of the voice."""
    from scipy.signal import resample_poly

    samples_S = spoken.samples_S
    ratio = Fraction(SAMPLE_RATE, spoken.rate) / Fraction(voice.shift).limit_denominator(100)
    ratio = ratio.limit_denominator(1000)
    if ratio == 1:
        return samples_S.astype(np.float32)
    window = _low_pass(max(ratio.numerator, ratio.denominator))
    return resample_poly(samples_S, ratio.numerator, ratio.denominator, window=window).astype(
        np.float32
    )


@functools.cache
def _low_pass(most: int) -> np.ndarray:
    """The filter that `resample_poly` would otherwise design for every utterance."""
    from scipy.signal import firwin

    taps = firwin(2 * 10 * most + 1, 1 / most, window=("kaiser", 5.0))  # pyright: ignore[reportArgumentType]
    return np.asarray(taps)


def tidy(cache: Path) -> None:
    """Remove what killed processes left; what is being written stays."""
    for left in cache.glob("*/*/.*.tmp"):
        if time.time() - left.stat().st_mtime > _ABANDONED:
            left.unlink(missing_ok=True)


def _cached(engine: Engine, text: str, voice: Voice, *, manner: Manner, cache: Path) -> Spoken:
    import soundfile

    path = place(engine, text, voice, manner=manner, cache=cache)
    found = _read(path)
    if found is not None:
        return found
    spoken = engine.speak(text, voice, manner)
    if not spoken.samples_S.size:
        return spoken
    packed = io.BytesIO()
    soundfile.write(packed, spoken.samples_S, spoken.rate, format="FLAC")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, packed.getvalue())
    # What is read back, so that the first corpus and those from the cache are the same.
    found = _read(path)
    assert found is not None
    return found


def place(engine: Engine, text: str, voice: Voice, *, manner: Manner, cache: Path) -> Path:
    """Where the cache keeps an utterance."""
    words = text.lower().split()
    said = [entry for entry in engine.setting.lexicon if entry[0] in words]
    key = [engine.version(), text.lower(), voice.name, manner.speed(voice.shift), said]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return cache / engine.name / digest[:2] / f"{digest}.flac"


def _read(path: Path) -> Spoken | None:
    import soundfile

    try:
        samples_S, rate = soundfile.read(path, dtype="float32")
    except (OSError, soundfile.SoundFileError):
        return None
    return Spoken(samples_S, rate) if samples_S.size else None

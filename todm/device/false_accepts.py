"""False accepts per hour: what a bundle recognises when nobody spoke to it.

Silence, noises and speech outside its grammar run through the streaming recogniser, each as one long
recording, as from a microphone that is always open. A false accept is a segment with any word whose
confidence is not below the threshold: a bundle of commands acts on whatever it gives out.

Letters: S samples.
"""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from todm.device.audio import SAMPLE_RATE, Samples, read_audio
from todm.device.recognizer import StreamingRecognizer
from todm.device.segments import Segment, transcribe_blocks
from todm.device.sounds import rms
from todm.errors import CorpusError

LEVELS = (-55.0, -40.0, -25.0)  # dB of the root mean square against full scale, in turn
SURE = 0.9  # confidence of a segment's weakest word
SHARED = "TODM_SHARED_DATA"
_CLIP_SECONDS = 10
_PAUSE_SECONDS = 1.0  # between utterances; longer than the silence that ends a segment
_AUDIO = (".flac", ".wav", ".opus", ".ogg")
_SENTENCES = (
    "the weather was better than anyone had expected", "she sold her old bicycle to a friend",
    "most of the bread was gone before breakfast", "he could not remember where they had met",
    "a river runs through the middle of the town", "my sister has been learning the violin",
    "nobody knew why the train had stopped", "we should probably ask for another table",
    "the book is about a doctor in the mountains", "they painted the fence last summer",
    "it takes about two hours to walk there", "the museum is closed because of the holiday",
)  # fmt: skip

Progress = Callable[[int, int], None]
Noise = Callable[[np.random.Generator, int], Samples]
Speaker = Callable[[str, np.random.Generator], Samples]
"""Speaks a sentence in a voice drawn from the generator: float32 [S] at 16 kHz."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FalseAccepts:
    """False accepts in one kind of sound.

    Attributes:
        minutes: duration of the sound.
        accepts: segments with any word that are not below the bundle's threshold.
        words: words in all of them.
        sure: segments of which every word has a confidence of `SURE` or more.
        per_hour: accepts per hour; `low` and `high` are its 95 % interval (Poisson, exact).
        levels: accepts by the level of the noise, if it has levels.
        common: the most frequent texts, and their counts.
        curve: at each of some thresholds, ascending, the accepts per hour: `threshold`, `per_hour`.
    """

    minutes: float
    accepts: int
    words: int
    sure: int
    per_hour: float
    low: float
    high: float
    levels: dict[str, int]
    common: list[tuple[str, int]]
    curve: list[dict[str, float]] = dataclasses.field(default_factory=list)


def noises() -> dict[str, Noise]:
    """The kinds of noise; each makes a clip of a given number of samples, at no particular level."""
    return {
        "white noise": lambda rng, num: _coloured(rng, num, 0.0),
        "pink noise": lambda rng, num: _coloured(rng, num, 0.5),
        "brown noise": lambda rng, num: _coloured(rng, num, 1.0),
        "mains hum": _hum,
        "clicks": _clicks,
        "taps and doors": _taps_and_doors,
        "tones": _tones,
    }


def score_noise(
    recognizer: StreamingRecognizer,
    kind: str,
    *,
    minutes: float,
    thresholds: Sequence[float] = (),
    progress: Progress | None = None,
) -> FalseAccepts:
    """False accepts in silence or a kind of noise, at the levels of `LEVELS` in turn.

    Args:
        recognizer: the bundle's.
        kind: `silence`, or one of `noises()`.
        minutes: duration of the sound.
        thresholds: of the curve, ascending.
        progress: called with clips done and clips in all.
    """
    num = math.ceil(60 * minutes / _CLIP_SECONDS)
    make = noises().get(kind)

    def clips() -> Iterator[Samples]:
        for number in range(num):
            rng = np.random.default_rng([len(kind), *kind.encode(), number])
            clip = np.zeros(_CLIP_SECONDS * SAMPLE_RATE, np.float32)
            yield clip if make is None else _at_level(make(rng, len(clip)), _level(number))
            if progress:
                progress(number + 1, num)

    segments = list(transcribe_blocks(recognizer, clips(), threshold=0.0))
    found = count(
        segments, num * _CLIP_SECONDS / 60, threshold=recognizer.threshold, thresholds=thresholds
    )
    if make is None:
        return found
    accepted = [s for s in segments if s.confidence >= recognizer.threshold]
    levels = Counter(f"{_level(int(s.start) // _CLIP_SECONDS):.0f}" for s in accepted)
    by_level = {f"{x:.0f}": levels[f"{x:.0f}"] for x in LEVELS}
    return dataclasses.replace(found, levels=by_level)


def score_speech(
    recognizer: StreamingRecognizer,
    utterances: Iterable[Samples],
    *,
    minutes: float,
    thresholds: Sequence[float] = (),
    progress: Progress | None = None,
) -> FalseAccepts:
    """False accepts in speech, one utterance after another until the minutes are full.

    Args:
        recognizer: the bundle's.
        utterances: recordings, each float32 [S] at 16 kHz.
        minutes: of speech.
        thresholds: of the curve, ascending.
        progress: called with seconds done and in all.

    Raises:
        CorpusError: an utterance cannot be read, or there is no utterance.
    """
    pause = np.zeros(round(_PAUSE_SECONDS * SAMPLE_RATE), np.float32)
    num_samples, most = 0, round(60 * minutes)

    def blocks() -> Iterator[Samples]:
        nonlocal num_samples
        for samples in utterances:
            yield np.concatenate([samples, pause])
            num_samples += len(samples) + len(pause)
            if progress:
                progress(min(num_samples // SAMPLE_RATE, most), most)
            if num_samples >= most * SAMPLE_RATE:
                return

    segments = list(transcribe_blocks(recognizer, blocks(), threshold=0.0))
    if not num_samples:
        raise CorpusError("there is no speech to score with: name a folder of recordings")
    minutes = num_samples / SAMPLE_RATE / 60
    return count(segments, minutes, threshold=recognizer.threshold, thresholds=thresholds)


def count(
    everything: Sequence[Segment],
    minutes: float,
    *,
    threshold: float = 0.0,
    thresholds: Sequence[float] = (),
) -> FalseAccepts:
    """The figures of the segments recognised in a number of minutes, whatever their confidence."""
    segments = [s for s in everything if s.confidence >= threshold]
    hours, accepts = minutes / 60, len(segments)
    curve = [(t, sum(s.confidence >= t for s in everything) / hours) for t in thresholds]
    low, high = poisson_interval(accepts)
    return FalseAccepts(
        minutes=round(minutes, 2),
        accepts=accepts,
        words=sum(len(s.words) for s in segments),
        sure=sum(min(w.confidence for w in s.words) >= SURE for s in segments),
        per_hour=accepts / hours,
        low=low / hours,
        high=high / hours,
        levels={},
        common=Counter(s.text for s in segments).most_common(3),
        curve=[{"threshold": t, "per_hour": rate} for t, rate in curve],
    )


def poisson_interval(count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a Poisson rate, given the number of events seen.

    Source: Garwood, "Fiducial limits for the Poisson distribution", Biometrika 28 (1936).
    """
    tail = (1 - confidence) / 2
    most = 2 * count + 20.0
    low = _bisect(lambda rate: _below(count - 1, rate) > 1 - tail, most) if count else 0.0
    return low, _bisect(lambda rate: _below(count, rate) > tail, most)


def folder_of_speech(folder: Path) -> Iterator[Samples]:
    """Every recording below a folder, in a fixed random order: float32 [S] at 16 kHz.

    Raises:
        CorpusError: no recordings, or one that cannot be read.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _AUDIO)
    if not files:
        raise CorpusError(
            f"{folder} holds no recordings ({', '.join(_AUDIO)}): name a folder of recordings"
        )
    np.random.default_rng(0).shuffle(files)  # pyright: ignore[reportArgumentType] - a list, in place
    return (read_audio(file) for file in files)


def shared_speech() -> Path | None:
    """The speech of LibriSpeech-mini, if the environment variable says where it is."""
    root = Path(os.environ[SHARED]) / "librispeech-mini" if SHARED in os.environ else None
    return root if root is not None and root.is_dir() else None


def spoken_sentences(speak: Speaker) -> Iterator[Samples]:
    """Sentences that are not commands, spoken again and again without end."""
    rng = np.random.default_rng(0)
    while True:
        for sentence in _SENTENCES:
            yield _at_level(speak(sentence, rng), -25.0)


def _bisect(above: Callable[[float], bool], most: float) -> float:
    """The point in [0, most] where `above` turns from true to false."""
    low, high = 0.0, most
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) else (low, middle)
    return low


def _below(count: int, rate: float) -> float:
    """The probability of at most `count` events."""
    if rate == 0:
        return 1.0
    logs = [i * math.log(rate) - rate - math.lgamma(i + 1) for i in range(count + 1)]
    return math.fsum(math.exp(x) for x in logs)


def _level(number: int) -> float:
    return LEVELS[number % len(LEVELS)]


def _at_level(samples_S: Samples, decibels: float) -> Samples:
    """The samples scaled to a root mean square in dB, clipped as by a microphone."""
    scale = 10 ** (decibels / 20) / rms(samples_S)
    return np.clip(samples_S * scale, -1, 1).astype(np.float32)


def _coloured(rng: np.random.Generator, num: int, power: float) -> Samples:
    """Noise whose amplitude falls with frequency to a power: 0 white, 0.5 pink, 1 brown."""
    spectrum = rng.normal(size=num // 2 + 1) + 1j * rng.normal(size=num // 2 + 1)
    ranks = np.maximum(np.arange(num // 2 + 1), num * 20 / SAMPLE_RATE)  # flat below 20 Hz
    return np.fft.irfft(spectrum / ranks**power, num).astype(np.float32)


def _hum(rng: np.random.Generator, num: int) -> Samples:
    """50 or 60 Hz and its harmonics."""
    base, time = float(rng.choice([50.0, 60.0])), np.arange(num) / SAMPLE_RATE
    waves = [
        rng.uniform(0.1, 1) / k * np.sin(2 * np.pi * (base * k * time + rng.uniform()))
        for k in range(1, 16)
    ]
    return np.sum(waves, axis=0).astype(np.float32)


def _clicks(rng: np.random.Generator, num: int) -> Samples:
    """Keys, knocks and drops: bursts of a few milliseconds that ring."""
    out = np.zeros(num, np.float32)
    for _ in range(int(rng.integers(10, 60))):
        length = int(rng.integers(80, 2400))
        at, pitch = int(rng.integers(num - length)), rng.uniform(100, 6000)
        time = np.arange(length)
        ring = np.sin(2 * np.pi * pitch * time / SAMPLE_RATE) + rng.normal(size=length)
        out[at : at + length] += rng.uniform(0.2, 1) * ring * np.exp(-5 * time / length)
    return out


def _taps_and_doors(rng: np.random.Generator, num: int) -> Samples:
    """Fingers on a table, knocks and doors that shut: thuds, alone or a few in a row."""
    out, at = np.zeros(num, np.float32), 0
    while True:
        at += int(rng.uniform(0.1, 1.5) * SAMPLE_RATE)
        length = int(rng.uniform(0.05, 0.5) * SAMPLE_RATE)
        every = int(rng.uniform(0.08, 0.3) * SAMPLE_RATE)
        times = int(rng.integers(1, 6))
        if at + times * every + length >= num:
            return out
        thud = _coloured(rng, length, rng.uniform(0.3, 1.2)) * np.exp(
            -8 * np.arange(length) / length
        )
        thud /= np.abs(thud).max()
        for _ in range(times):
            out[at : at + length] += rng.uniform(0.3, 1) * thud
            at += every


def _tones(rng: np.random.Generator, num: int) -> Samples:
    """Notes with overtones, two voices, as from a toy piano."""
    out = np.zeros(num, np.float32)
    for _ in range(40):
        length = int(rng.integers(2000, 12000))
        at, pitch = int(rng.integers(num - length)), 110 * 2 ** (rng.integers(48) / 12)
        time = np.arange(length) / SAMPLE_RATE
        note = sum(np.sin(2 * np.pi * pitch * k * time) / k**1.5 for k in range(1, 6))
        out[at : at + length] += note * np.exp(-3 * time)
    return out

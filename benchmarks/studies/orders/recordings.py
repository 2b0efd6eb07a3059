"""The benchmark's recordings, their labels, and noise mixed with them as the benchmark mixes it.

Letters: S samples.
"""

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from todm.device.audio import Samples, read_audio
from todm.device.false_accepts import SHARED
from todm.errors import CorpusError

LABELS = "labels.jsonl"
NOISES = ("doing_the_dishes", "running_tap", "babble")
"""Noise of the figure; nothing is ever trained on it."""
SNRS = (6, 9, 12, 15, 18, 21, 24)
_FRAME = 2048  # samples
_BABBLERS = 6
_SEED = 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """An order: the name of its file, float32 [S] at 16 kHz, and its label."""

    name: str
    samples_S: Samples
    intent: str
    slots: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """Noise at a ratio in dB, or neither."""

    noise: str | None = None
    snr_db: int | None = None

    def __str__(self) -> str:
        return "clean" if self.noise is None else f"{self.noise} {self.snr_db} dB"


def conditions(noises: Sequence[str] = NOISES, snrs: Sequence[int] = SNRS) -> list[Condition]:
    """Clean, and each noise at each ratio."""
    noisy = [Condition(noise=noise, snr_db=snr) for noise in noises for snr in snrs]
    return [Condition(), *noisy]


def shared(*parts: str) -> Path:
    """A folder of the shared data, or all of it.

    Raises:
        CorpusError: the environment variable is not set, or there is no such folder.
    """
    root = os.environ.get(SHARED)
    if not root:
        raise CorpusError(
            f"{SHARED} is not set: set it to the folder that holds {'/'.join(parts) or 'the speech'}"
        )
    place = Path(root, *parts)
    if not place.exists():
        raise CorpusError(f"{place} does not exist: {SHARED} is {root!r}, and it must hold it")
    return place


def read(folder: Path) -> list[Recording]:
    """All recordings of a folder, in the order of their names.

    Raises:
        CorpusError: there are no labels, or a line or a recording cannot be read.
    """
    file = folder / LABELS
    if not file.is_file():
        raise CorpusError(f"{folder} has no {LABELS}: give a folder with audio, intent and slots")
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            name, intent, slots = str(row["audio"]), str(row["intent"]), dict(row["slots"])
        except (ValueError, KeyError, TypeError):
            raise CorpusError(
                f"{file}:{number} is not a JSON table of audio, intent and slots: correct the line"
            ) from None
        samples_S = read_audio(folder / name)
        found.append(Recording(name=name, samples_S=samples_S, intent=intent, slots=slots))
    if not found:
        raise CorpusError(f"{file} has no lines: give a folder with at least one recording")
    return sorted(found, key=lambda recording: recording.name)


def fingerprint(folder: Path) -> str:
    """A hash of the labels, which name every recording."""
    return hashlib.sha256((folder / LABELS).read_bytes()).hexdigest()[:16]


def noise_of(name: str) -> Samples:
    """The noise of the figure: float32 [S].

    Raises:
        CorpusError: it is not at hand.
    """
    if name == "babble":
        return babble(shared("librispeech-mini", "test"))
    return read_audio(shared("noise", "background", f"{name}.opus"))


def babble(folder: Path, num: int = _BABBLERS) -> Samples:
    """The speakers of a folder of whom there is most, all at once and equally loud: float32 [S].

    Raises:
        CorpusError: there are fewer speakers.
    """
    voices = [
        np.concatenate([read_audio(file) for file in sorted(speaker.rglob("*.opus"))])
        for speaker in sorted(folder.iterdir())
        if any(speaker.rglob("*.opus"))
    ]
    if len(voices) < num:
        raise CorpusError(f"{folder} has {len(voices)} speakers: babble needs {num}")
    voices = sorted(voices, key=len)[-num:]
    total = np.sum([v[: len(voices[0])] / np.sqrt(np.mean(v**2)) for v in voices], axis=0)
    return (total / np.abs(total).max()).astype(np.float32)


def disturbed(recording: Recording, noise_S: Samples, condition: Condition) -> Samples:
    """A recording in a condition: the same piece of noise in every run, another for each recording."""
    if condition.snr_db is None:
        return recording.samples_S
    text = f"{recording.name} {condition}".encode()
    rng = np.random.default_rng([_SEED, zlib.crc32(text)])
    return mix(recording.samples_S, noise_S, condition.snr_db, rng)


def mix(speech_S: Samples, noise_S: Samples, snr_db: float, rng: np.random.Generator) -> Samples:
    """Speech with a random piece of noise, peak 0.5.

    The ratio is that of the loudest 2,048 samples of either; noise that is too short goes round.
    """
    start = int(rng.integers(max(1, len(noise_S) - len(speech_S))))
    piece_S = np.take(noise_S, np.arange(start, start + len(speech_S)), mode="wrap")
    scale = np.sqrt(_loudest(speech_S) / max(_loudest(piece_S), 1e-12) / 10 ** (snr_db / 10))
    total_S = speech_S + scale * piece_S
    return (total_S / (2 * max(np.abs(total_S).max(), 1e-9))).astype(np.float32)


def _loudest(samples_S: Samples) -> float:
    """Energy of the loudest whole frame, or of all if they are fewer."""
    num = len(samples_S) // _FRAME * _FRAME
    frames = samples_S[:num].reshape(-1, _FRAME) if num else samples_S[None]
    return float((frames.astype(np.float64) ** 2).sum(1).max())

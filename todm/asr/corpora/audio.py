"""Checks the audio of candidates and decides which of them can be used."""

import dataclasses
import functools
import os.path
from collections.abc import Iterable
from typing import NamedTuple

from todm.asr.corpora.config import DataConfig
from todm.asr.corpora.utterances import Candidate, Rejected, Utterance
from todm.asr.data.workers import ALL_CPUS, Workers

_DECODE_BELOW_HOURS = 40.0
_PER_JOB, _MOST_JOBS_ALONE = 64, 200
_TOLERANCE = 0.1  # seconds: a manifest may round, and so may a decoder
_SHORTEST = 0.03


class Limits(NamedTuple):
    """Accepted seconds of training utterances and of others, and the channel to use."""

    train: tuple[float, float]
    others: tuple[float, float]
    channel: int | None

    @classmethod
    def of(cls, config: DataConfig) -> "Limits":
        """The limits of a configuration."""
        others = (_SHORTEST, max(config.max_seconds, config.max_eval_seconds))
        return cls((config.min_seconds, config.max_seconds), others, config.channel)


def look(
    candidates: list[Candidate], config: DataConfig, workers: Workers = ALL_CPUS
) -> tuple[list[Utterance], list[Rejected]]:
    """Usable utterances, and the rest; checks headers first, then samples if the config says so."""
    usable, rejected = _look(candidates, config, workers, decode=False)
    hours = sum(u.seconds for u in usable) / 3600
    if config.verify_audio == "decode" or (
        config.verify_audio == "auto" and hours < _DECODE_BELOW_HOURS
    ):
        fine = {u.id for u in usable}
        again = [c for c in candidates if c.id in fine]
        usable, corrupt = _look(again, config, workers, decode=True)
        rejected += corrupt
    return usable, rejected


def _look(
    candidates: list[Candidate], config: DataConfig, workers: Workers, *, decode: bool
) -> tuple[list[Utterance], list[Rejected]]:
    """Check the audio of every candidate, some utterances per job."""
    jobs = [candidates[i : i + _PER_JOB] for i in range(0, len(candidates), _PER_JOB)]
    work = functools.partial(_look_at, limits=Limits.of(config), decode=decode)
    # Headers are quick to read: starting processes takes longer, except for the largest corpora.
    if not decode and len(jobs) <= _MOST_JOBS_ALONE:
        workers = dataclasses.replace(workers, processes=1)
    results = workers.spread(work, jobs, "checking audio" if decode else "reading headers")
    checked = [item for part in results for item in part]
    usable = [u for u in checked if isinstance(u, Utterance)]
    return usable, [r for r in checked if isinstance(r, Rejected)]


def _look_at(
    candidates: Iterable[Candidate], *, limits: Limits, decode: bool
) -> list[Utterance | Rejected]:
    return [examine(c, limits=limits, decode=decode) for c in candidates]


def examine(candidate: Candidate, *, limits: Limits, decode: bool) -> Utterance | Rejected:
    """Check the audio of one utterance.

    Args:
        candidate: the utterance.
        limits: what is accepted.
        decode: read every sample, which finds damage behind an intact header.
    """
    import soundfile

    if not os.path.isfile(candidate.path):  # `Path` raises for a name that no file can have
        return candidate.reject("audio missing")
    try:
        if candidate.path.stat().st_size == 0:
            return candidate.reject("audio file empty")
        info = soundfile.info(str(candidate.path))
    except (OSError, ValueError, soundfile.SoundFileError) as error:
        return candidate.reject("audio unreadable", str(error))
    if info.frames <= 0 or info.samplerate <= 0:
        return candidate.reject("audio file empty")
    span = _span(candidate, info.frames, info.samplerate)
    if span is None:
        detail = f"{candidate.start} s + {candidate.seconds} s of {info.frames / info.samplerate} s"
        return candidate.reject("segment outside the recording", detail)
    channels = _channels(candidate, info.channels, limits.channel)
    if channels is None:
        return candidate.reject("channel missing", f"of {info.channels} channels")
    utterance = Utterance(
        id=candidate.id,
        split=candidate.split,
        speaker=candidate.speaker,
        path=candidate.path,
        text=candidate.text,
        num_samples=span[1],
        rate=info.samplerate,
        start=span[0],
        file_samples=info.frames,
        channels=channels,
    )
    problem = length_problem(utterance, limits) or (_decode(utterance) if decode else None)
    return utterance if problem is None else candidate.reject(*problem)


def _span(candidate: Candidate, frames: int, rate: int) -> tuple[int, int] | None:
    """First sample and number of samples in the file; None if it is not inside the file."""
    start = round(candidate.start * rate)
    num = frames - start if candidate.seconds is None else round(candidate.seconds * rate)
    beyond = start + num - frames
    if start < 0 or start >= frames or num <= 0 or beyond > _TOLERANCE * rate:
        return None
    return start, num - max(beyond, 0)


def _channels(candidate: Candidate, num: int, default: int | None) -> tuple[int, ...] | None:
    """The channels to use: those of the manifest, else the default, else all; None if missing."""
    wanted = candidate.channels
    if wanted is None:
        wanted = tuple(range(num)) if default is None else (default,)
    return wanted if wanted and max(wanted) < num else None


def length_problem(utterance: Utterance, limits: Limits) -> tuple[str, str] | None:
    """Reason and detail if an utterance is too short or too long for its split."""
    low, high = limits.train if utterance.split == "train" else limits.others
    seconds = utterance.seconds
    if low <= seconds <= high:
        return None
    return f"audio too {'short' if seconds < low else 'long'}", f"{seconds:.2f} s"


def _decode(utterance: Utterance) -> tuple[str, str] | None:
    """Reason and detail if samples cannot be read, are fewer than in the header, or are bad."""
    import numpy as np
    import soundfile

    try:
        wave_SC, _ = soundfile.read(
            str(utterance.path),
            frames=utterance.num_samples,
            start=utterance.start,
            dtype="float32",
            always_2d=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        return "audio corrupt", str(error)
    if len(wave_SC) != utterance.num_samples:
        return "audio truncated", f"{len(wave_SC)} of {utterance.num_samples} samples"
    samples = wave_SC[:, list(utterance.channels)].mean(1)
    if not np.isfinite(samples).all():
        return "audio corrupt", "samples are not finite"
    if not samples.any():
        return "audio silent", ""
    return None

"""Looks at the audio of candidates, and says of each whether it can be used."""

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
# A manifest may round, and so may a decoder.
_TOLERANCE_SECONDS = 0.1
_SHORTEST = 0.03


class Limits(NamedTuple):
    """What is accepted: seconds of training utterances, seconds of others, and the channel."""

    train: tuple[float, float]
    others: tuple[float, float]
    channel: int | None

    @classmethod
    def of(cls, config: DataConfig) -> "Limits":
        """Those of a configuration."""
        others = (_SHORTEST, max(config.max_seconds, config.max_eval_seconds))
        return cls((config.min_seconds, config.max_seconds), others, config.channel)


def look(
    candidates: list[Candidate], config: DataConfig, workers: Workers = ALL_CPUS
) -> tuple[list[Utterance], list[Rejected]]:
    """What can be used of all candidates, and the rest; headers first, then samples if asked for."""
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
    """Look at the audio of every candidate, in jobs of some utterances."""
    jobs = [candidates[i : i + _PER_JOB] for i in range(0, len(candidates), _PER_JOB)]
    work = functools.partial(_look_at, limits=Limits.of(config), decode=decode)
    # Headers are quick to read: starting processes takes longer, except for the largest corpora.
    if not decode and len(jobs) <= _MOST_JOBS_ALONE:
        workers = dataclasses.replace(workers, processes=1)
    results = workers.spread(work, jobs, "checking audio" if decode else "reading headers")
    found = [item for part in results for item in part]
    usable = [u for u in found if isinstance(u, Utterance)]
    return usable, [r for r in found if isinstance(r, Rejected)]


def _look_at(
    candidates: Iterable[Candidate], *, limits: Limits, decode: bool
) -> list[Utterance | Rejected]:
    return [examine(c, limits=limits, decode=decode) for c in candidates]


def examine(candidate: Candidate, *, limits: Limits, decode: bool) -> Utterance | Rejected:
    """Whether one utterance's audio can be used; `decode` reads all of its samples.

    Args:
        candidate: the utterance.
        limits: what is accepted.
        decode: read every sample, which finds what a whole header hides.
    """
    import soundfile

    if not os.path.isfile(candidate.path):  # of a name that no file can have, `Path` raises
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
    found = Utterance(
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
    problem = length_problem(found, limits) or (_decode(found) if decode else None)
    return found if problem is None else candidate.reject(*problem)


def _span(candidate: Candidate, frames: int, rate: int) -> tuple[int, int] | None:
    """First sample and number of samples in the file; None if they are not all there."""
    start = round(candidate.start * rate)
    num = frames - start if candidate.seconds is None else round(candidate.seconds * rate)
    beyond = start + num - frames
    if start < 0 or start >= frames or num <= 0 or beyond > _TOLERANCE_SECONDS * rate:
        return None
    return start, num - max(beyond, 0)


def _channels(candidate: Candidate, num: int, asked: int | None) -> tuple[int, ...] | None:
    """The channels to hear: what the manifest says, else what is asked for, else all."""
    wanted = candidate.channels
    if wanted is None:
        wanted = tuple(range(num)) if asked is None else (asked,)
    return wanted if wanted and max(wanted) < num else None


def length_problem(utterance: Utterance, limits: Limits) -> tuple[str, str] | None:
    """Reason and detail if an utterance is too short or too long for its split."""
    low, high = limits.train if utterance.split == "train" else limits.others
    seconds = utterance.seconds
    if low <= seconds <= high:
        return None
    return f"audio too {'short' if seconds < low else 'long'}", f"{seconds:.2f} s"


def _decode(utterance: Utterance) -> tuple[str, str] | None:
    """Reason and detail if the samples cannot be read, are fewer than the header says, or are bad."""
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

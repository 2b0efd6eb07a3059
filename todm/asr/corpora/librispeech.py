"""Reads a directory in LibriSpeech's layout, and says of every utterance whether it can be used.

ROOT/SPLIT/SPEAKER/CHAPTER/ID.{flac,wav,opus,ogg} with SPEAKER-CHAPTER.trans.txt (`ID TEXT` a line). What
cannot be used is listed with a reason, never fatal and never dropped in silence.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from todm.asr.corpora.config import SPLITS, DataConfig, Split
from todm.asr.corpora.workers import Progress, num_processes, spread
from todm.asr.tokens import Rule, normalise
from todm.errors import CorpusError

SUFFIXES = (".flac", ".wav", ".opus", ".ogg")
_DECODE_BELOW_HOURS = 40.0
_PER_JOB = 64
_SPLIT_NAME = re.compile(r"(train|dev|test)(?![a-z])")


@dataclasses.dataclass(frozen=True)
class Rejected:
    """An utterance left out, and why. `reason` is one of a few; `detail` says more."""

    id: str
    path: str
    reason: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Utterance:
    """An utterance that can be used. `rate` is the file's, in samples a second."""

    id: str
    split: Split
    speaker: str
    path: Path
    text: str
    num_samples: int
    rate: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.num_samples / self.rate


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An utterance before its audio has been looked at."""

    id: str
    split: Split
    path: Path
    text: str


def split_folders(root: Path, splits: Mapping[str, str]) -> list[tuple[Split, Path]]:
    """The top-level folders that belong to a split, by name or by the mapping `splits`.

    Raises:
        CorpusError: no such directory, a mapped folder is not there, or no folder fits.
    """
    if not root.is_dir():
        raise CorpusError(f"{root} is not a directory: give one in LibriSpeech's layout")
    for name in splits:
        if not (root / name).is_dir():
            raise CorpusError(f"splits names the folder {name!r}, and {root} has none of that name")
    found: list[tuple[Split, Path]] = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        match = _SPLIT_NAME.match(folder.name.lower())
        name = splits.get(folder.name, match[1] if match and not splits else None)
        found.extend((split, folder) for split in SPLITS if split == name)
    missing = [s for s in SPLITS if s not in {split for split, _ in found}]
    if missing:
        raise CorpusError(
            f"{root} has no folder for {', '.join(missing)}: folders are named train*, dev* and test*, "
            "or named by  --split FOLDER=train"
        )
    return found


def fingerprint(root: Path, splits: Mapping[str, str]) -> str:
    """A hash of names, sizes and times of all files: changes when the corpus does."""
    digest = hashlib.sha256()
    for _, folder in split_folders(root, splits):
        for path in _files(folder):
            stat = path.stat()
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _files(folder: Path) -> list[Path]:
    """All files below `folder`, in order, without hidden ones and those in hidden folders."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return sorted(
        p for p in found if not any(n.startswith(".") for n in p.relative_to(folder).parts)
    )


def read(
    config: DataConfig,
    root: Path,
    *,
    processes: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[Utterance], list[Rejected]]:
    """All usable utterances under `root`, in the order of their ids, and the rest.

    Raises:
        CorpusError: as `split_folders`.
    """
    candidates, rejected = scan(config, root.resolve())
    headers = _look(candidates, config, "header", processes=processes, progress=progress)
    usable = [u for u in headers if isinstance(u, Utterance)]
    rejected += [r for r in headers if isinstance(r, Rejected)]
    hours = sum(u.seconds for u in usable) / 3600
    if config.verify_audio == "decode" or (
        config.verify_audio == "auto" and hours < _DECODE_BELOW_HOURS
    ):
        fine = {u.id for u in usable}
        again = [c for c in candidates if c.id in fine]
        decoded = _look(again, config, "decode", processes=processes, progress=progress)
        usable = [u for u in decoded if isinstance(u, Utterance)]
        rejected += [r for r in decoded if isinstance(r, Rejected)]
    order = {split: i for i, split in enumerate(SPLITS)}
    return sorted(usable, key=lambda u: (order[u.split], u.id)), sorted(
        rejected, key=lambda r: r.id
    )


def scan(config: DataConfig, root: Path) -> tuple[list[Candidate], list[Rejected]]:
    """Pair transcripts with audio files; no audio is opened."""
    candidates: dict[str, Candidate] = {}
    rejected: list[Rejected] = []
    for split, folder in split_folders(root, config.splits):
        audio: dict[str, Path] = {}
        for path in (p for p in _files(folder) if p.suffix.lower() in SUFFIXES):
            if path.stem in audio:
                rejected.append(Rejected(path.stem, str(path), "id occurs twice"))
            audio.setdefault(path.stem, path)
        told: set[str] = set()
        for found in _transcripts(folder, audio, split, config.tokens.normalise):
            told.add(found.id)
            if isinstance(found, Rejected):
                rejected.append(found)
            elif found.id in candidates:
                rejected.append(Rejected(found.id, str(found.path), "id occurs twice"))
            else:
                candidates[found.id] = found
        rejected += [
            Rejected(i, str(p), "no transcript") for i, p in audio.items() if i not in told
        ]
    return list(candidates.values()), rejected


def _transcripts(
    folder: Path, audio: Mapping[str, Path], split: Split, rule: Rule
) -> Iterator[Candidate | Rejected]:
    for path in (p for p in _files(folder) if p.name.endswith(".trans.txt")):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            yield Rejected(path.name, str(path), "transcript file cannot be read", str(error))
            continue
        for line in filter(str.strip, lines):
            name, _, text = line.strip().partition(" ")
            yield _transcript(name, text.strip(), audio.get(name, path), split, rule)


def _transcript(name: str, text: str, path: Path, split: Split, rule: Rule) -> Candidate | Rejected:
    if not text:
        return Rejected(name, str(path), "empty transcript")
    if path.suffix.lower() not in SUFFIXES:
        return Rejected(name, str(path), "audio missing")
    try:
        return Candidate(name, split, path, normalise(text, rule))
    except ValueError as error:
        return Rejected(name, str(path), "transcript outside the alphabet", str(error))


def _look(
    candidates: list[Candidate],
    config: DataConfig,
    how: Literal["header", "decode"],
    *,
    processes: int | None,
    progress: Progress | None,
) -> list[Utterance | Rejected]:
    """Look at the audio of every candidate, in jobs of some utterances."""
    jobs = [candidates[i : i + _PER_JOB] for i in range(0, len(candidates), _PER_JOB)]
    limits = (config.min_seconds, config.max_seconds)
    work = functools.partial(_look_at, limits=limits, decode=how == "decode")
    # Headers are quick to read: starting processes takes longer, except for the largest corpora.
    workers = num_processes(processes) if how == "decode" or len(jobs) > 200 else 1
    label = "reading headers" if how == "header" else "checking audio"
    results = spread(work, jobs, processes=workers, label=label, progress=progress)
    return [item for part in results for item in part]


def _look_at(
    candidates: Iterable[Candidate], *, limits: tuple[float, float], decode: bool
) -> list[Utterance | Rejected]:
    return [examine(c, limits=limits, decode=decode) for c in candidates]


def examine(
    candidate: Candidate, *, limits: tuple[float, float], decode: bool
) -> Utterance | Rejected:
    """Whether one utterance's audio can be used; `decode` reads all of its samples.

    Args:
        candidate: the utterance.
        limits: shortest and longest, in seconds.
        decode: read every sample, which finds what a whole header hides.
    """
    import soundfile

    def refuse(reason: str, detail: str = "") -> Rejected:
        return Rejected(candidate.id, str(candidate.path), reason, detail)

    try:
        if candidate.path.stat().st_size == 0:
            return refuse("audio file empty")
        info = soundfile.info(candidate.path)
    except (OSError, soundfile.SoundFileError) as error:
        return refuse("audio unreadable", str(error))
    if info.frames <= 0 or info.samplerate <= 0:
        return refuse("audio file empty")
    if info.channels != 1:
        return refuse("audio not mono", f"{info.channels} channels")
    seconds = info.frames / info.samplerate
    if not limits[0] <= seconds <= limits[1]:
        word = "short" if seconds < limits[0] else "long"
        return refuse(f"audio too {word}", f"{seconds:.2f} s")
    if decode and (problem := _decode(candidate.path, info.frames)):
        return refuse(*problem)
    speaker = candidate.path.parent.parent.name
    return Utterance(
        id=candidate.id,
        split=candidate.split,
        speaker=speaker,
        path=candidate.path,
        text=candidate.text,
        num_samples=info.frames,
        rate=info.samplerate,
    )


def _decode(path: Path, num_frames: int) -> tuple[str, str] | None:
    """Reason and detail if the samples cannot be read, are fewer than the header says, or are bad."""
    import numpy as np
    import soundfile

    try:
        samples, _ = soundfile.read(path, dtype="float32")
    except (OSError, soundfile.SoundFileError) as error:
        return "audio corrupt", str(error)
    if len(samples) != num_frames:
        return "audio truncated", f"{len(samples)} of {num_frames} samples"
    if not np.isfinite(samples).all():
        return "audio corrupt", "samples are not finite"
    if not samples.any():
        return "audio silent", ""
    return None

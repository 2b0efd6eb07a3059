"""Reads a directory in LibriSpeech's layout.

ROOT/SPLIT/SPEAKER/CHAPTER/ID.{flac,wav,opus,...} with SPEAKER-CHAPTER.trans.txt (`ID TEXT` lines).
Unusable utterances are listed with a reason; they are neither fatal nor dropped in silence.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from todm.asr.corpora.config import Split
from todm.asr.corpora.utterances import (
    Candidate,
    Rejected,
    assign_splits,
    not_utf8,
    text_lines,
)
from todm.asr.data.audio import SUFFIXES
from todm.errors import CorpusError

_TRANSCRIPTS = ".trans.txt"


def fits(folder: Path) -> bool:
    """Whether a folder holds transcripts in this layout, at any depth."""
    return next(folder.rglob(f"*{_TRANSCRIPTS}"), None) is not None


def split_folders(root: Path, splits: Mapping[str, str]) -> list[tuple[Split, Path]]:
    """The top-level folders that belong to a split, by name or by the mapping `splits`.

    Raises:
        CorpusError: there is no such directory, or it has no folder for a split or for a mapped name.
    """
    if not root.is_dir():
        raise CorpusError(f"{root} is not a directory: give one in LibriSpeech's layout")
    names = sorted(p.name for p in root.iterdir() if p.is_dir())
    return [(split, root / name) for split, name in assign_splits(root, names, splits)]


def files(folder: Path) -> list[Path]:
    """All files below `folder`, sorted, without hidden ones and those in hidden folders."""
    below = (p for p in folder.rglob("*") if p.is_file())
    return sorted(
        p for p in below if not any(n.startswith(".") for n in p.relative_to(folder).parts)
    )


def scan(root: Path, splits: Mapping[str, str]) -> Iterator[Candidate | Rejected]:
    """Pair transcripts with audio files; no audio is opened.

    Raises:
        CorpusError: as `split_folders`.
    """
    for split, folder in split_folders(root, splits):
        below = files(folder)
        audio: dict[str, Path] = {}
        for path in (p for p in below if p.suffix.lower() in SUFFIXES):
            if path.stem in audio:
                yield Rejected(path.stem, str(path), "id occurs twice")
            audio.setdefault(path.stem, path)
        listed: set[str] = set()
        for path in (p for p in below if p.name.endswith(_TRANSCRIPTS)):
            for entry in _transcripts(path, audio, split):
                listed.add(entry.id)
                yield entry
        for name, path in audio.items():
            if name not in listed:
                yield Rejected(name, str(path), "no transcript")


def _transcripts(
    path: Path, audio: Mapping[str, Path], split: Split
) -> Iterator[Candidate | Rejected]:
    try:
        lines = list(text_lines(path))
    except CorpusError as error:
        yield Rejected(path.name, str(path), "transcript file cannot be read", str(error))
        return
    for number, line in lines:
        if line is None:
            yield not_utf8(path, number)
            continue
        name, _, text = line.strip().partition(" ")
        file = audio.get(name)
        if file is None:
            yield Rejected(name, str(path), "audio missing")
        else:
            yield Candidate(name, split, file, text, speaker=file.parent.parent.name)

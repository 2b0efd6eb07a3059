"""The output of the readers of all layouts: candidates, then utterances, and rejections with reasons."""

import dataclasses
import gzip
import os.path
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from todm.asr.corpora.config import SPLITS, Split
from todm.errors import CorpusError

_SPLIT_NAME = re.compile(r"(?<![a-z])(train|dev|test|valid|validation|eval)(?![a-z])")
_SPLIT_OF: dict[str, Split] = {
    "train": "train",
    "dev": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
    "eval": "test",
}


@dataclasses.dataclass(frozen=True)
class Rejected:
    """An utterance that is left out. `reason` is one of a few; `detail` says more."""

    id: str
    path: str
    reason: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An utterance whose audio has not been checked yet.

    Attributes:
        id: its name.
        split: of the corpus.
        path: the audio file.
        text: the transcript as given.
        speaker: empty if unknown.
        start: where it begins in the file, in seconds.
        seconds: its length; None for the rest of the file.
        channels: indices of its channels in the file; None if the manifest names none.
    """

    id: str
    split: Split
    path: Path
    text: str
    speaker: str = ""
    start: float = 0.0
    seconds: float | None = None
    channels: tuple[int, ...] | None = None

    def reject(self, reason: str, detail: str = "") -> Rejected:
        """A rejection of this candidate."""
        return Rejected(self.id, str(self.path), reason, detail)


@dataclasses.dataclass(frozen=True)
class Utterance:
    """An utterance that can be used.

    Attributes:
        id: its name.
        split: of the corpus.
        speaker: empty if unknown.
        path: the audio file.
        text: the normalised transcript.
        num_samples: its length in samples of the file.
        rate: of the file, in samples per second.
        start: its first sample in the file.
        file_samples: the length of the file.
        channels: channels of the file that are averaged.
        place: its number among the utterances of a corpus in shards; -1 elsewhere.
        word_times: the second at which its first word begins, and those at which its words end;
            empty if unknown.
    """

    id: str
    split: Split
    speaker: str
    path: Path
    text: str
    num_samples: int
    rate: int
    start: int = 0
    file_samples: int = 0
    channels: tuple[int, ...] = (0,)
    place: int = -1
    word_times: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        """Its length in seconds."""
        return self.num_samples / self.rate


def split_of(name: str) -> Split | None:
    """The split that the name of a folder or file contains; None if it contains none."""
    match = _SPLIT_NAME.search(name.lower())
    return _SPLIT_OF[match[1]] if match else None


def assign_splits(
    root: Path, names: Sequence[str], splits: Mapping[str, str]
) -> list[tuple[Split, str]]:
    """The entries of a directory that belong to a split, by name or by the mapping `splits`.

    Args:
        root: the directory, for messages.
        names: its folders or files in this layout.
        splits: maps entries to splits; if empty, their names decide.

    Raises:
        CorpusError: a mapped entry does not exist, or a split has none.
    """
    for name in splits:
        if name not in names:
            raise CorpusError(f"splits names {name!r}, and {root} has nothing of that name")
    assigned: list[tuple[Split, str]] = []
    for name in names:
        wanted = splits.get(name) if splits else split_of(name)
        assigned.extend((split, name) for split in SPLITS if split == wanted)
    check_splits(root, {split for split, _ in assigned})
    return assigned


def check_splits(root: Path, present: set[Split]) -> None:
    """Raise CorpusError if a split is missing."""
    missing = [s for s in SPLITS if s not in present]
    if missing:
        raise CorpusError(
            f"{root} has nothing for {', '.join(missing)}: name folders or files train*, dev* and "
            "test*, or assign them with  --split NAME=train"
        )


def unique(
    listed: Sequence[Candidate | Rejected],
) -> tuple[list[Candidate], list[Rejected]]:
    """The first candidate of each id, and all rejections."""
    candidates: dict[str, Candidate] = {}
    rejected: list[Rejected] = []
    for one in listed:
        if isinstance(one, Rejected):
            rejected.append(one)
        elif not _is_text(f"{one.id}{one.path}{one.speaker}"):
            rejected.append(one.reject("name is not UTF-8"))
        elif one.id in candidates:
            rejected.append(one.reject("id occurs twice"))
        else:
            candidates[one.id] = one
    return list(candidates.values()), rejected


def _is_text(name: str) -> bool:
    """Whether a name can be written to a manifest; the name of a file may be any bytes."""
    return name == name.encode(errors="replace").decode()


def text_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """The lines of a text file, plain or gzipped, with their numbers; None for one that is not UTF-8.

    Only a line feed ends a line: a transcript may contain other signs that Python takes for line
    ends. Empty lines are left out.

    Raises:
        CorpusError: the file cannot be read.
    """
    try:
        with path.open("rb") as head:
            packed = head.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                text = _decoded(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
                if text is None or text.strip():
                    yield number, text
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{path} cannot be read: {error}") from None


def _decoded(line: bytes) -> str | None:
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        return None


def not_utf8(path: Path, number: int) -> Rejected:
    """A rejection of a line."""
    return Rejected(f"{path.name}:{number}", str(path), "line is not UTF-8")


def find_audio(name: str, places: Sequence[Path]) -> Path:
    """The path of an audio file: an absolute name itself, else in the first place that has it."""
    # os.path: for an impossible name (too long, with a zero) it returns False, and `Path` raises.
    existing = (place / name for place in places if name and os.path.isfile(place / name))
    return next(existing, places[0] / name)

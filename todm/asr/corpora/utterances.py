"""What the readers of all layouts make: candidates, then utterances, and what was left out and why."""

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
    """An utterance left out, and why. `reason` is one of a few; `detail` says more."""

    id: str
    path: str
    reason: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An utterance before its audio has been looked at.

    Attributes:
        id: its name.
        split: where it belongs.
        path: the audio file.
        text: the transcript as it was found.
        speaker: may be unknown.
        start: where it begins in the file, in seconds.
        seconds: its length; None for the rest of the file.
        channels: indices of the file's channels that it is heard on; None if nothing says so.
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
        """The record that it is left out."""
        return Rejected(self.id, str(self.path), reason, detail)


@dataclasses.dataclass(frozen=True)
class Utterance:
    """An utterance that can be used.

    Attributes:
        id: its name.
        split: where it belongs.
        speaker: may be unknown.
        path: the audio file.
        text: the normalised transcript.
        num_samples: its length in samples of the file.
        rate: the file's, in samples a second.
        start: its first sample in the file.
        file_samples: the length of the file.
        channels: those of the file to be averaged.
        place: its number among the utterances of a corpus in shards; -1 elsewhere.
        word_times: the second at which its first word begins, and those at which its words end;
            empty if they are not known.
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
        """Its length."""
        return self.num_samples / self.rate


def split_of(name: str) -> Split | None:
    """The split that the name of a folder or file speaks of; None if it speaks of none."""
    match = _SPLIT_NAME.search(name.lower())
    return _SPLIT_OF[match[1]] if match else None


def assign_splits(
    root: Path, names: Sequence[str], splits: Mapping[str, str]
) -> list[tuple[Split, str]]:
    """The entries of a directory that belong to a split, by name or by the mapping `splits`.

    Args:
        root: the directory, for messages.
        names: its folders or files that could be meant.
        splits: entry to split; where it is empty, names speak for themselves.

    Raises:
        CorpusError: a mapped entry is not there, or a split has none.
    """
    for name in splits:
        if name not in names:
            raise CorpusError(f"splits names {name!r}, and {root} has nothing of that name")
    found: list[tuple[Split, str]] = []
    for name in names:
        wanted = splits.get(name) if splits else split_of(name)
        found.extend((split, name) for split in SPLITS if split == wanted)
    check_splits(root, {split for split, _ in found})
    return found


def check_splits(root: Path, found: set[Split]) -> None:
    """Raise CorpusError if a split is missing."""
    missing = [s for s in SPLITS if s not in found]
    if missing:
        raise CorpusError(
            f"{root} has nothing for {', '.join(missing)}: folders or files are named train*, dev* and "
            "test*, or named by  --split NAME=train"
        )


def unique(
    found: Sequence[Candidate | Rejected],
) -> tuple[list[Candidate], list[Rejected]]:
    """Candidates of which each id is the first of its kind, and all that is rejected."""
    candidates: dict[str, Candidate] = {}
    rejected: list[Rejected] = []
    for one in found:
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
    """Whether a name can be written to a manifest: that of a file may be any bytes."""
    return name == name.encode(errors="replace").decode()


def text_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """The lines of a text file, plain or gzipped, with their numbers; None for one that is not UTF-8.

    Lines end where the file's writer ended them: a transcript may hold other signs that Python takes
    for line ends. Empty lines are left out.

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
    """A line that cannot be read."""
    return Rejected(f"{path.name}:{number}", str(path), "line is not UTF-8")


def find_audio(name: str, places: Sequence[Path]) -> Path:
    """The audio file of that name: as it is if absolute, else in the first place that has it."""
    # os.path: of a name that cannot be one (too long, with a zero) it says no, and `Path` raises.
    found = (place / name for place in places if name and os.path.isfile(place / name))
    return next(found, places[0] / name)

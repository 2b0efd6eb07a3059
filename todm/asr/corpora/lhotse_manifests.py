"""Reads lhotse manifests: cuts, or recordings and supervisions, as jsonl or jsonl.gz.

The first line of a file shows its kind. Files lie in ROOT, with the split in their names, or in a
folder for each split. Manifests are read as plain JSON: nothing in them is executed.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from todm.asr.corpora import jsonl
from todm.asr.corpora.config import Split
from todm.asr.corpora.utterances import Candidate, Rejected, assign_splits, find_audio
from todm.errors import CorpusError

Kind = Literal["cuts", "recordings", "supervisions"]
Row = dict[str, Any]


def kind_of(path: Path) -> Kind | None:
    """The kind of a manifest; None for any other file."""
    row = jsonl.first_row(path)
    if row is None:
        return None
    if "supervisions" in row and "start" in row:
        return "cuts"
    if "sources" in row and "sampling_rate" in row:
        return "recordings"
    return "supervisions" if "recording_id" in row else None


def fits(folder: Path) -> bool:
    """Whether a directory holds manifests, or folders of them."""
    places = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]
    return any(kind_of(file) for place in places for file in jsonl.files(place))


def scan(root: Path, splits: Mapping[str, str]) -> Iterator[Candidate | Rejected]:
    """The utterances of all splits; no audio is opened.

    Raises:
        CorpusError: a split is missing, supervisions have no recordings, or audio is a command.
    """
    entries = [p for p in sorted(root.iterdir()) if p.is_dir() or p in jsonl.files(root)]
    holding = {p.name: p for p in entries if any(map(kind_of, jsonl.files(p)))}
    by_split: dict[Split, list[Path]] = {}
    for split, name in assign_splits(root, list(holding), splits):
        by_split.setdefault(split, []).extend(jsonl.files(holding[name]))
    for split, files in by_split.items():
        yield from _scan(files, split, root)


def _scan(files: list[Path], split: Split, root: Path) -> Iterator[Candidate | Rejected]:
    kinds: dict[Kind | None, list[Path]] = {}
    for path in files:
        kinds.setdefault(kind_of(path), []).append(path)
    recordings: dict[str, tuple[Row, Path]] = {}
    for path, _, row in _tables(kinds.get("recordings", ())):
        if isinstance(row, Rejected):
            yield row
        else:
            recordings[str(row.get("id"))] = row, path
    supervisions = kinds.get("supervisions", [])
    if supervisions and not recordings:
        raise CorpusError(f"{supervisions[0]} has no recordings beside it: put both in one place")
    for path, name, row in _tables(supervisions):
        if isinstance(row, Rejected):
            yield row
            continue
        recording, file = recordings.get(str(row.get("recording_id")), (None, path))
        yield _candidate(name, row, [row], recording, (file.parent, root), split)
    for path, name, row in _tables(kinds.get("cuts", ())):
        if isinstance(row, Rejected):
            yield row
            continue
        parts = row.get("supervisions")
        tables = [p for p in parts if isinstance(p, dict)] if isinstance(parts, list) else []
        yield _candidate(name, row, tables, row.get("recording"), (path.parent, root), split)


def _tables(paths: Iterable[Path]) -> Iterator[tuple[Path, str, Row | Rejected]]:
    """The lines of some files, with the file and the id of each."""
    for path in paths:
        for number, row in jsonl.rows(path):
            known = None if isinstance(row, Rejected) else row.get("id")
            yield path, str(known or f"{path.name}:{number}"), row


def _candidate(
    name: str,
    part: Row,
    supervisions: list[Row],
    recording: Row | None,
    places: tuple[Path, Path],
    split: Split,
) -> Candidate | Rejected:
    """A candidate from a part of a recording and its supervisions."""
    if not isinstance(recording, dict) or not isinstance(recording.get("sources"), list):
        return Rejected(name, str(places[0]), "no recording")
    changes = recording.get("transforms") or []
    listed = changes if isinstance(changes, list) else [changes]
    transforms = {_name(t) for t in listed} - {"Resample"}
    if transforms:
        return Rejected(name, str(places[0]), "audio to be changed", ", ".join(sorted(transforms)))
    try:
        start, seconds = float(part["start"]), float(part["duration"])
        source, channels = _source(name, recording, part.get("channel", 0))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        return Rejected(name, str(places[0]), "manifest unreadable", str(error))
    if not (math.isfinite(start) and math.isfinite(seconds)):
        return Rejected(name, str(places[0]), "segment unreadable", f"{start} {seconds}")
    if source.get("type") != "file":
        return Rejected(name, str(places[0]), "audio is not a file", str(source.get("type")))
    given = [s.get("text") for s in supervisions]
    texts = [text for text in given if isinstance(text, str) and text.strip()]
    path = find_audio(str(source.get("source")), (*places, places[1].parent, Path.cwd()))
    if not any(isinstance(text, str) for text in given):  # nobody says that it is no command
        return Rejected(name, str(path), "empty transcript")
    speaker = next((str(s["speaker"]) for s in supervisions if s.get("speaker")), "")
    return Candidate(name, split, path, " ".join(texts), speaker, start, seconds, channels)


def _name(transform: object) -> str:
    return str(transform.get("name")) if isinstance(transform, dict) else str(transform)


def _source(name: str, recording: Row, channel: object) -> tuple[Row, tuple[int, ...]]:
    """The source that holds the channels, and their places in its file.

    Raises:
        CorpusError: the audio is a command.
        ValueError: no single file holds the channels.
    """
    wanted = [int(c) for c in channel] if isinstance(channel, list) else [int(channel)]  # type: ignore[call-overload]
    for source in recording["sources"]:
        if source.get("type") == "command":
            raise CorpusError(
                f"the audio of {name} is the command {str(source.get('source'))[:60]!r}, and commands in "
                "data are never run: write the audio to files, and name those"
            )
        if all(c in source["channels"] for c in wanted):
            return source, tuple(source["channels"].index(c) for c in wanted)
    raise ValueError(f"no file holds the channels {wanted}")

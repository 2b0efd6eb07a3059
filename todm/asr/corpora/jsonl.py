"""Reads JSON lines: a table with "audio" and "text" for each utterance.

Optional keys are "start", "duration", "speaker", "channel", "split" and "id"; NeMo's "audio_filepath"
and "offset" are understood too. ROOT is one file whose lines name their split, or a directory with at
least one file for each split.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from todm.asr.corpora.config import Split
from todm.asr.corpora.utterances import (
    Candidate,
    Rejected,
    assign_splits,
    check_splits,
    find_audio,
    not_utf8,
    split_of,
    text_lines,
)

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
Row = dict[str, Any]


def files(root: Path) -> list[Path]:
    """The files of JSON lines at `root`, or `root` itself if it is one."""
    if root.is_file():
        return [root]
    return sorted(p for p in root.iterdir() if p.is_file() and p.name.endswith(SUFFIXES))


def fits(path: Path) -> bool:
    """Whether the first line of a file is an utterance."""
    row = first_row(path)
    return row is not None and "text" in row and ("audio" in row or "audio_filepath" in row)


def first_row(path: Path) -> Row | None:
    """The first line of a file, if it is a JSON table."""
    _, row = next(rows(path), (0, None))
    return row if isinstance(row, dict) else None


def rows(path: Path) -> Iterator[tuple[int, Row | Rejected]]:
    """The lines of a file as tables, with their numbers.

    Raises:
        CorpusError: the file cannot be read.
    """
    for number, line in text_lines(path):
        if line is None:
            yield number, not_utf8(path, number)
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield number, row
        else:
            yield number, Rejected(f"{path.name}:{number}", str(path), "line is not a JSON table")


def scan(root: Path, splits: Mapping[str, str]) -> Iterator[Candidate | Rejected]:
    """The utterances of all splits; no audio is opened.

    Raises:
        CorpusError: a file cannot be read, or a split is missing.
    """
    if root.is_file():
        listed = [_candidate(root, number, row, None) for number, row in rows(root)]
        check_splits(root, {c.split for c in listed if isinstance(c, Candidate)})
        yield from listed
        return
    named = {p.name: p for p in files(root)}
    for split, name in assign_splits(root, list(named), splits):
        for number, row in rows(named[name]):
            yield _candidate(named[name], number, row, split)


def _candidate(
    file: Path, number: int, row: Row | Rejected, split: Split | None
) -> Candidate | Rejected:
    if isinstance(row, Rejected):
        return row
    name = str(row.get("id") or f"{file.name.partition('.')[0]}-{number}")
    audio, text = row.get("audio", row.get("audio_filepath")), row.get("text")
    if not isinstance(audio, str) or not isinstance(text, str):
        return Rejected(name, str(file), "audio or text is not given", f"line {number}")
    if split is None and isinstance(row.get("split"), str):
        split = split_of(row["split"])
    if split is None:
        return Rejected(name, audio, "split is not train, dev or test", str(row.get("split")))
    start, seconds = row.get("start", row.get("offset")) or 0.0, row.get("duration")
    if not (_is_time(start) and (seconds is None or _is_time(seconds))):
        return Rejected(name, audio, "segment unreadable", f"{start} {seconds}")
    channel = row.get("channel")
    if not (channel is None or (type(channel) is int and channel >= 0)):
        return Rejected(name, audio, "channel missing", str(channel))
    return Candidate(
        name,
        split,
        find_audio(audio, (file.parent, Path.cwd())),
        text,
        speaker=str(row.get("speaker") or ""),
        start=float(start),
        seconds=None if seconds is None else float(seconds),
        channels=None if channel is None else (channel,),
    )


def _is_time(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 <= value < float("inf")

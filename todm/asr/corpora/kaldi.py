"""Reads Kaldi data directories: ROOT/SPLIT/{wav.scp, text, utt2spk, segments}, the last two optional.

`wav.scp` may hold commands, which Kaldi runs; here they are refused, because data may come from
strangers.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from todm.asr.corpora.config import Split
from todm.asr.corpora.utterances import (
    Candidate,
    Rejected,
    assign_splits,
    find_audio,
    not_utf8,
    text_lines,
)
from todm.errors import CorpusError


def fits(folder: Path) -> bool:
    """Whether a folder is a Kaldi data directory."""
    return (folder / "wav.scp").is_file()


def scan(root: Path, splits: Mapping[str, str]) -> Iterator[Candidate | Rejected]:
    """The utterances of all splits; no audio is opened.

    Raises:
        CorpusError: a split has no folder, a file is missing, or `wav.scp` holds a command.
    """
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and fits(p))
    for split, name in assign_splits(root, names, splits):
        yield from _scan(root / name, split, root)


def _scan(folder: Path, split: Split, root: Path) -> Iterator[Candidate | Rejected]:
    if not (folder / "text").is_file():
        raise CorpusError(f"{folder} has a wav.scp and no text: transcripts are needed")
    problems: list[Rejected] = []
    audio = _table(folder / "wav.scp", problems)
    for name, value in audio.items():
        if value.startswith("|") or value.endswith("|"):
            raise CorpusError(
                f"{folder / 'wav.scp'} gives a command for {name} ({value[:60]!r}), and commands in data "
                "are never run: write the audio to files, and name those"
            )
    texts = _table(folder / "text", problems)
    speakers = _table(folder / "utt2spk", problems)
    segments = _table(folder / "segments", problems)
    places = (folder, root, root.parent, Path.cwd())
    for name, text in texts.items():
        row = segments.get(name) if segments else name
        if row is None:
            yield Rejected(name, str(folder / "segments"), "no segment")
            continue
        recording, *times = row.split()
        if recording not in audio:
            yield Rejected(name, str(folder / "wav.scp"), "audio missing", recording)
        elif (span := _span(times)) is None:
            yield Rejected(name, str(folder / "segments"), "segment unreadable", row)
        else:
            path = find_audio(audio[recording], places)
            speaker = speakers.get(name, "")
            yield Candidate(name, split, path, text, speaker, *span)
    for name in (segments or audio).keys() - texts.keys():
        yield Rejected(name, str(folder / "text"), "no transcript")
    yield from problems


def _span(times: list[str]) -> tuple[float, float | None, tuple[int, ...] | None] | None:
    """Start, length and channels from the rest of a line of `segments`; None if unreadable."""
    try:
        start, end = (float(times[0]), float(times[1])) if times else (0.0, -1.0)
        channels = (int(times[2]),) if len(times) > 2 else None
    except (ValueError, IndexError):
        return None
    if not 0 <= start < float("inf") or (end != -1 and not start < end < float("inf")):
        return None
    return start, None if end == -1 else end - start, channels


def _table(path: Path, problems: list[Rejected]) -> dict[str, str]:
    """Maps the first word of every line to the rest; a second line of the same key is a problem.

    Empty if there is no such file.
    """
    if not path.is_file():
        return {}
    table: dict[str, str] = {}
    for number, line in text_lines(path):
        if line is None:
            problems.append(not_utf8(path, number))
            continue
        name, *rest = line.split(maxsplit=1)
        if name in table:
            problems.append(Rejected(name, str(path), "id occurs twice", f"line {number}"))
        else:
            table[name] = rest[0].strip() if rest else ""
    return table

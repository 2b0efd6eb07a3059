"""Transcripts as txt, srt or json, written segment by segment, so that text appears at once."""

import dataclasses
import json
from typing import Literal, Protocol, TextIO

from todm.device.segments import Segment

Format = Literal["txt", "srt", "json"]
_SHORTEST_CUE = 0.5  # shorter than a pause, so that cues do not overlap


class Writer(Protocol):
    """Writes the segments of one recording to a text stream."""

    def add(self, segment: Segment) -> None:
        """Write a segment."""
        ...

    def close(self, seconds: float, *, error: str | None = None) -> None:
        """Write the end, after the last segment.

        Args:
            seconds: the transcribed length of the recording.
            error: why the rest was not transcribed.
        """
        ...


def open_writer(form: Format, stream: TextIO, audio: str, *, lines: bool) -> Writer:
    """A writer for one recording.

    Args:
        form: the format.
        stream: where to write.
        audio: the recording's name.
        lines: txt only: one segment per line; otherwise the name, a tab, and all segments on one line.
    """
    if form == "json":
        return JsonWriter(stream, audio)
    if form == "srt":
        return SrtWriter(stream)
    return TextWriter(stream, None if lines else audio)


class TextWriter:
    """The text alone: one segment per line, or all on one line after a name and a tab."""

    def __init__(self, stream: TextIO, name: str | None) -> None:
        self._stream = stream
        self._before = "" if name is None else f"{name}\t"
        self._between = "\n" if name is None else " "

    def add(self, segment: Segment) -> None:
        """Write a segment."""
        _write(self._stream, self._before + segment.text)
        self._before = self._between

    def close(self, seconds: float, *, error: str | None = None) -> None:
        """End the line; a recording that could not be read at all gets no line."""
        if error is None or self._before == self._between:
            _write(self._stream, "\n" if self._before == self._between else f"{self._before}\n")


class SrtWriter:
    """SubRip subtitles: one cue per segment."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._count = stream, 0

    def add(self, segment: Segment) -> None:
        """Write a cue."""
        self._count += 1
        end = max(segment.end, segment.start + _SHORTEST_CUE)
        times = f"{_clock(segment.start)} --> {_clock(end)}"
        _write(self._stream, f"{self._count}\n{times}\n{segment.text}\n\n")

    def close(self, seconds: float, *, error: str | None = None) -> None:
        """Nothing follows the last cue."""


class JsonWriter:
    """One JSON object on one line: audio, segments with their words, text, seconds, error or null."""

    def __init__(self, stream: TextIO, audio: str) -> None:
        self._stream, self._texts = stream, list[str]()
        _write(stream, f'{{"audio": {_json(audio)}, "segments": [')

    def add(self, segment: Segment) -> None:
        """Write a segment."""
        comma = ", " if self._texts else ""
        _write(self._stream, comma + _json(dataclasses.asdict(segment)))
        self._texts.append(segment.text)

    def close(self, seconds: float, *, error: str | None = None) -> None:
        """Close the list and write the remaining fields."""
        rest = {"text": " ".join(self._texts), "seconds": round(seconds, 3), "error": error}
        _write(self._stream, f"], {_json(rest)[1:]}\n")


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _clock(seconds: float) -> str:
    """hh:mm:ss,mmm."""
    rest, thousandths = divmod(round(1000 * seconds), 1000)
    minutes, rest = divmod(rest, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d},{thousandths:03d}"

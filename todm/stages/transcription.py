"""Bundle + audio -> text. Imports no torch: this is what runs on a device."""

import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from todm.device.audio import AudioReader, Samples
from todm.device.bundle import open_bundle
from todm.device.capture import Capture, Pipe, open_microphone
from todm.device.formats import Format, Writer, open_writer
from todm.device.load import check_threshold, form_of
from todm.device.recognizer import OfflineRecognizer, StreamingRecognizer
from todm.device.segments import Pauses, Segment, split, transcribe_blocks
from todm.errors import BundleError, ConfigError, CorpusError
from todm.files import Progress, no_progress, path_or_none

Precision = Literal["fp32", "int8", "int8.block", "int4"]
Decode = Callable[[Iterable[Samples]], Iterator[Segment]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcribed:
    """A recording.

    Attributes:
        audio: its path as given.
        segments: what was said.
        file: what was written; None if it went to a stream.
        error: why it could not be read to its end; None if it could.
    """

    audio: str
    segments: tuple[Segment, ...]
    file: Path | None
    error: str | None


def transcribe(
    bundle: str | Path,
    audio: Sequence[str | Path],
    *,
    form: Format = "txt",
    out: str | Path | None = None,
    offline: bool = False,
    precision: Precision = "fp32",
    beam: int = 1,
    threads: int = 1,
    threshold: float | None = None,
    stream: TextIO | None = None,
    progress: Progress = no_progress,
) -> Iterator[Transcribed]:
    """Transcribe recordings, one after the other; of a damaged one what is good.

    Segments are written as they come, so that an interrupt loses none that was complete.

        >>> for found in stages.transcribe(run / "bundle", [wav], form="json", out=run / "text"):
        ...     print(found.file.name)
        0.json

    Args:
        bundle: what  todm export  wrote.
        audio: wav, flac, ogg or opus, of any sample rate and length.
        form: text, subtitles, or all there is: times and confidence of every word.
        out: directory for a file a recording.
        offline: the whole recording in one call, instead of chunk by chunk.
        precision: which graphs; int8 is the one of its two forms that is for this processor.
        beam: hypotheses kept; 1 is greedy.
        threads: of onnxruntime.
        threshold: confidence from 0 to 1 below which a segment gives no text; the bundle's by default.
        stream: where text goes if there is no `out`; nowhere by default.
        progress: called with (recording, seconds done, seconds in all).

    Yields:
        Every recording when it is done.

    Raises:
        BundleError: the bundle cannot be used.
        ConfigError: a number below 1, a threshold that is none, or outputs that would overwrite each
            other.
    """
    place = path_or_none(out)
    paths = [str(path) for path in audio]
    _check_numbers(beam=beam, threads=threads)
    check_threshold(threshold)
    _check_outputs(paths, form, place)
    opened = open_bundle(bundle)
    kind = OfflineRecognizer if offline else StreamingRecognizer
    if offline and not opened.has_offline():
        raise BundleError(
            f"{opened.path} has no offline encoder: leave out --offline, or export it with "
            "--target sherpa-onnx"
        )
    decode = _decoder(
        kind(opened, precision=form_of(opened, precision), num_threads=threads, beam=beam),
        opened.threshold if threshold is None else threshold,
    )
    if place:
        place.mkdir(parents=True, exist_ok=True)
    return (_recording(path, decode, form, place, stream, progress) for path in paths)


def listen(
    bundle: str | Path,
    *,
    mic: bool = False,
    device: str | None = None,
    precision: Precision = "fp32",
    beam: int = 1,
    threads: int = 1,
    threshold: float | None = None,
    partial: Callable[[str], None] | None = None,
) -> tuple[Capture, Iterator[Segment]]:
    """Transcribe a microphone, or 16-bit 16 kHz PCM from standard input, as it is said.

    Args:
        bundle: what  todm export  wrote.
        mic: listen to a microphone, instead of standard input.
        device: which microphone; the system's by default.
        precision: see `transcribe`.
        beam: see `transcribe`.
        threads: see `transcribe`.
        threshold: see `transcribe`.
        partial: called with the text of the segment that is not complete, when it may have changed.

    Returns:
        The sound, of which `stop()` ends it; and the segments as they are complete.

    Raises:
        BundleError: the bundle cannot be used.
        ConfigError: a number below 1, or a threshold that is none.
    """
    _check_numbers(beam=beam, threads=threads)
    check_threshold(threshold)
    opened = open_bundle(bundle)
    recognizer = StreamingRecognizer(
        opened, precision=form_of(opened, precision), num_threads=threads, beam=beam
    )
    source = open_microphone(device) if mic else Pipe(sys.stdin.buffer, "standard input")
    capture = Capture(source)
    segments = transcribe_blocks(recognizer, capture, threshold=threshold, partial=partial)
    return capture, segments


def _check_numbers(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"--{name} is {value}: it must be at least 1")


def _check_outputs(paths: list[str], form: Format, out: Path | None) -> None:
    if form == "srt" and not out and len(paths) > 1:
        raise ConfigError("subtitles of several recordings need a file each: give --out DIR")
    names = [Path(path).stem for path in paths]
    if out and (twice := [n for n in dict.fromkeys(names) if names.count(n) > 1]):
        raise ConfigError(
            f"two recordings are called {twice[0]!r}, and both would be written to "
            f"{out / twice[0]}.{form}: transcribe them into different --out directories"
        )


def _decoder(recognizer: OfflineRecognizer | StreamingRecognizer, threshold: float) -> Decode:
    if isinstance(recognizer, StreamingRecognizer):
        return lambda blocks: transcribe_blocks(recognizer, blocks, threshold=threshold)
    return lambda blocks: _whole(recognizer, blocks, threshold)


def _whole(
    recognizer: OfflineRecognizer, blocks: Iterable[Samples], threshold: float
) -> Iterator[Segment]:
    """All blocks in one call; of damaged audio those before the damage."""
    read, damage = [np.empty(0, np.float32)], None
    try:
        read.extend(blocks)
    except CorpusError as error:
        damage = error
    transcript, pauses = recognizer.transcribe(np.concatenate(read)), Pauses.of(recognizer)
    yield from split(transcript, pauses=pauses, threshold=threshold)
    if damage is not None:
        raise damage


def _recording(
    path: str,
    decode: Decode,
    form: Format,
    out: Path | None,
    stream: TextIO | None,
    progress: Progress,
) -> Transcribed:
    """Transcribe one recording and write it."""
    file = out / f"{Path(path).stem}.{form}" if out else None
    segments, why = list[Segment](), None
    try:
        with AudioReader(path) as reader, _output(file, stream) as output:
            writer = open_writer(form, output, path, lines=file is not None)
            _write(reader, decode, writer, segments, progress)
    except CorpusError as error:
        why = str(error)
    return Transcribed(audio=path, segments=tuple(segments), file=file, error=why)


def _output(file: Path | None, stream: TextIO | None) -> contextlib.AbstractContextManager[TextIO]:
    """The recording's own file, or the stream, or nowhere."""
    return (
        file.open("w", encoding="utf-8")
        if file
        else contextlib.nullcontext(stream or io.StringIO())
    )


def _write(
    reader: AudioReader,
    decode: Decode,
    writer: Writer,
    segments: list[Segment],
    progress: Progress,
) -> None:
    """Every segment of a recording; the output is closed in order if reading fails in the middle."""

    def blocks() -> Iterator[Samples]:
        for block in reader:
            progress(f"{reader.path.name} (s)", round(reader.seconds), round(reader.total_seconds))
            yield block

    why = None
    try:
        for segment in decode(blocks()):
            writer.add(segment)
            segments.append(segment)
    except CorpusError as error:
        why = str(error)
        raise
    except KeyboardInterrupt:
        why = "interrupted"
        raise
    finally:
        writer.close(reader.seconds, error=why)

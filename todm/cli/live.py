"""`todm transcribe BUNDLE --mic` and `todm transcribe BUNDLE -`: text while it is being said."""

import argparse
import contextlib
import shutil
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TextIO

from todm import stages
from todm.cli.arguments import given
from todm.device.capture import Capture
from todm.device.formats import Writer, open_writer
from todm.device.segments import Segment
from todm.errors import CorpusError

_CLEAR = "\r\x1b[K"


class _Screen:
    """Partial text on the last line of a terminal; nothing where there is none."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._shown = stream, False

    def show(self, text: str) -> None:
        """Put the end of a text, as much as fits a line, in the place of the last one."""
        if not self._stream.isatty() or not (text or self._shown):
            return
        room = max(10, shutil.get_terminal_size().columns - 1)
        self._stream.write(_CLEAR + text[-room:])
        self._stream.flush()
        self._shown = bool(text)


class _Lines:
    """A line a segment, whole as soon as it is said."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def add(self, segment: Segment) -> None:
        """Write a segment."""
        self._stream.write(f"{segment.text}\n")
        self._stream.flush()

    def close(self, seconds: float, *, error: str | None = None) -> None:
        """Nothing follows the last line."""


def show(args: argparse.Namespace) -> int:
    """Write segments to standard output until the sound ends or Ctrl-C; a second Ctrl-C ends at once.

    Returns:
        0; 2, with a message, if the source failed.
    """
    screen, why = _Screen(sys.stderr), None
    capture, segments = stages.listen(**given(args, stages.listen), partial=screen.show)
    out: Writer = _Lines(sys.stdout)
    if args.form != "txt":
        out = open_writer(args.form, sys.stdout, capture.name, lines=True)
    if sys.stderr.isatty():
        print(f"listening to {capture.name}; Ctrl-C ends", file=sys.stderr)
    try:
        with _until_interrupted(capture):
            for segment in segments:
                screen.show("")
                out.add(segment)
    except CorpusError as error:
        why = str(error)
    screen.show("")
    out.close(capture.seconds, error=why)
    if capture.lost:
        print(
            f"todm: {capture.lost} blocks of sound were lost: decoding was too slow",
            file=sys.stderr,
        )
    if why:
        print(f"todm: {why}", file=sys.stderr)
    return 2 if why else 0


@contextlib.contextmanager
def _until_interrupted(capture: Capture) -> Iterator[None]:
    """The first Ctrl-C ends the sound, so that what was said is still decoded."""

    def stop(number: int, frame: FrameType | None) -> None:
        capture.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

"""`todm transcribe BUNDLE AUDIO...`, or `-`, or `--mic`: speech to text with a bundle. Imports no torch."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from todm.device.audio import AudioReader, Samples
from todm.device.bundle import Bundle, Precision, best_int8, open_bundle
from todm.device.formats import Writer, open_writer
from todm.device.recognizer import OfflineRecognizer, StreamingRecognizer
from todm.device.segments import Segment, split, transcribe_blocks
from todm.errors import BundleError, ConfigError, CorpusError

Transcribe = Callable[[Iterable[Samples]], Iterator[Segment]]
Report = Callable[[AudioReader], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("bundle", help="directory that `todm export` wrote")
    audio = parser.add_argument(
        "audio",
        nargs="+",
        default=[],
        help="wav, flac, ogg or opus, any sample rate and length; - for 16-bit 16 kHz PCM from a pipe",
    )

    class Microphone(argparse.Action):
        """Makes recordings optional; `nargs="*"` would take none where flags stand before them."""

        def __call__(
            self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object
        ) -> None:
            audio.required, namespace.mic = False, True

    parser.add_argument(
        "--mic",
        action=Microphone,
        nargs=0,
        default=False,
        help="listen to a microphone: text as it is said, Ctrl-C ends",
    )
    parser.add_argument("--device", metavar="NAME", help="which microphone (default: the system's)")
    parser.add_argument(
        "--format",
        choices=("txt", "srt", "json"),
        default="txt",
        help="text (default), subtitles, or all there is: times and confidence of every word",
    )
    parser.add_argument(
        "--out", type=Path, help="directory for a file per recording (default: standard output)"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--streaming",
        action="store_true",
        help="chunk by chunk, in memory that does not grow (default)",
    )
    mode.add_argument("--offline", action="store_true", help="the whole recording in one call")
    parser.add_argument(
        "--precision",
        choices=("fp32", "int8", "int8.block", "int4"),
        default="fp32",
        help="which graphs; int8 is the one of its two forms that is for this processor",
    )
    parser.add_argument(
        "--int8",
        action="store_const",
        const="int8",
        dest="precision",
        help="as --precision int8",
    )
    parser.add_argument(
        "--beam", type=int, default=1, help="hypotheses kept; 1 (default) is greedy"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of onnxruntime, default 1")


def run(args: argparse.Namespace) -> int:
    """Write each recording's segments as they come; of a damaged one what was good.

    A recording that cannot be read is reported and the rest go on.

    Returns:
        0, 2 if a recording could not be read to its end, 130 if interrupted; listening ends so, with 0.

    Raises:
        BundleError: the bundle cannot be used.
        ConfigError: a number below 1, or outputs that would overwrite each other.
    """
    _check(args)
    bundle = open_bundle(args.bundle)
    if args.mic or "-" in args.audio:
        return _listen(bundle, args)
    transcribe = _recognizer(bundle, args)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    failures = 0
    try:
        with _progress(args) as report:
            for path in args.audio:
                failures += not _transcribe(path, args, transcribe, report)
    except KeyboardInterrupt:
        where = args.out or "standard output"
        print(f"\ninterrupted; the segments that were complete are in {where}", file=sys.stderr)
        return 130
    return 2 if failures else 0


def _listen(bundle: Bundle, args: argparse.Namespace) -> int:
    """Transcribe the microphone or standard input as it comes."""
    from todm.cli.live import listen
    from todm.device.capture import Capture, Pipe, open_microphone

    recognizer = StreamingRecognizer(bundle, **_options(bundle, args))
    source = open_microphone(args.device) if args.mic else Pipe(sys.stdin.buffer, "standard input")
    return listen(recognizer, Capture(source), args.format)


def _transcribe(
    path: str, args: argparse.Namespace, transcribe: Transcribe, report: Report
) -> bool:
    """One recording; False, with a message, if it could not be read to its end."""
    try:
        with AudioReader(path) as reader, _output(path, args) as stream:
            writer = open_writer(args.format, stream, path, lines=args.out is not None)
            _write(reader, transcribe, writer, report)
    except CorpusError as error:
        print(f"todm: {error}", file=sys.stderr)
        return False
    return True


def _check(args: argparse.Namespace) -> None:
    for name in ("beam", "threads"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} is {getattr(args, name)}: it must be at least 1")
    _check_live(args)
    if args.format == "srt" and not args.out and len(args.audio) > 1:
        raise ConfigError("subtitles of several recordings need a file each: give --out DIR")
    names = [Path(path).stem for path in args.audio]
    if args.out and (twice := [n for n in dict.fromkeys(names) if names.count(n) > 1]):
        raise ConfigError(
            f"two recordings are called {twice[0]!r}, and both would be written to "
            f"{args.out / twice[0]}.{args.format}: transcribe them into different --out directories"
        )


def _check_live(args: argparse.Namespace) -> None:
    """One source of sound, and nothing that needs a file."""
    live = args.mic or "-" in args.audio
    if (args.mic and args.audio) or (live and len(args.audio) > 1) or not (live or args.audio):
        raise ConfigError("name recordings, or - alone for a pipe, or --mic alone")
    if args.device and not args.mic:
        raise ConfigError("--device names a microphone: give --mic too")
    if live and (args.out or args.offline):
        raise ConfigError(
            "what is heard is decoded as it comes and goes to standard output: "
            "leave out --out and --offline"
        )


def _options(bundle: Bundle, args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that both recognisers take."""
    precision: Precision = best_int8(bundle) if args.precision == "int8" else args.precision
    if precision not in bundle.precisions():
        raise BundleError(
            f"{bundle.path} holds no {precision} graphs, only {', '.join(bundle.precisions())}"
        )
    return {"precision": precision, "num_threads": args.threads, "beam": args.beam}


def _recognizer(bundle: Bundle, args: argparse.Namespace) -> Transcribe:
    options = _options(bundle, args)
    if not args.offline:
        streaming = StreamingRecognizer(bundle, **options)
        return lambda blocks: transcribe_blocks(streaming, blocks)
    if not bundle.has_offline():
        raise BundleError(
            f"{bundle.path} has no offline encoder: leave out --offline, or export it with "
            "--target sherpa-onnx"
        )
    offline = OfflineRecognizer(bundle, **options)
    return lambda blocks: _whole(offline, blocks)


def _whole(recognizer: OfflineRecognizer, blocks: Iterable[Samples]) -> Iterator[Segment]:
    """All blocks in one call; of damaged audio those before the damage."""
    read, damage = [np.empty(0, np.float32)], None
    try:
        read.extend(blocks)
    except CorpusError as error:
        damage = error
    yield from split(recognizer.transcribe(np.concatenate(read)))
    if damage is not None:
        raise damage


def _write(reader: AudioReader, transcribe: Transcribe, writer: Writer, report: Report) -> None:
    """Every segment of a recording; the output is closed in order if reading fails in the middle."""
    why = None
    try:
        for segment in transcribe(_watched(reader, report)):
            writer.add(segment)
    except CorpusError as error:
        why = str(error)
        raise
    except KeyboardInterrupt:
        why = "interrupted"
        raise
    finally:
        writer.close(reader.seconds, error=why)


def _watched(reader: AudioReader, report: Report) -> Iterator[Samples]:
    for block in reader:
        report(reader)
        yield block


@contextlib.contextmanager
def _output(path: str, args: argparse.Namespace) -> Iterator[TextIO]:
    """Standard output, or the recording's own file."""
    if not args.out:
        yield sys.stdout
        return
    file = args.out / f"{Path(path).stem}.{args.format}"
    with file.open("w", encoding="utf-8") as stream:
        yield stream


@contextlib.contextmanager
def _progress(args: argparse.Namespace) -> Iterator[Report]:
    """A bar per recording with the time left, if it does not run into the transcript on a terminal."""
    if not sys.stderr.isatty() or (not args.out and sys.stdout.isatty()):
        yield lambda reader: None
        return
    from todm.cli.progress import progress_report

    with progress_report() as report:
        yield lambda reader: report(
            f"{reader.path.name} (s)", round(reader.seconds), round(reader.total_seconds)
        )

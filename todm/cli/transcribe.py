"""`todm transcribe BUNDLE AUDIO...`, or `-`, or `--mic`: speech to text with a bundle. Imports no torch."""

import argparse
import contextlib
import sys
from collections.abc import Iterator

from todm import stages
from todm.cli.arguments import Flags, given
from todm.errors import ConfigError
from todm.files import Progress, no_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    flag = Flags(parser, stages.transcribe)
    flag("bundle", "directory that  todm export  wrote")
    audio = flag(
        "audio",
        "wav, flac, ogg or opus, any sample rate and length; - for 16-bit 16 kHz PCM from a pipe",
        action="store",
        nargs="+",
        default=[],
    )

    class Microphone(argparse.Action):
        """Makes recordings optional; `nargs="*"` would take none where flags stand before them."""

        def __call__(
            self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object
        ) -> None:
            audio.required, namespace.mic = False, True

    live = Flags(parser, stages.listen)
    live(
        "--mic",
        "listen to a microphone: text as it is said, Ctrl-C ends",
        action=Microphone,
        nargs=0,
    )
    live("--device", "which microphone (default: the system's)", metavar="NAME")
    flag(
        "--format",
        "text (default), subtitles, or all there is: times and confidence of every word",
        dest="form",
    )
    flag("--out", "directory for a file per recording (default: standard output)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--streaming",
        action="store_true",
        help="chunk by chunk, in memory that does not grow (default)",
    )
    Flags(mode, stages.transcribe)("--offline", "the whole recording in one call")
    flag(
        "--precision",
        "which graphs (default %(default)s); int8 is the one of its two forms that is for this "
        "processor",
    )
    parser.add_argument(
        "--int8", action="store_const", const="int8", dest="precision", help="as --precision int8"
    )
    flag("--beam", "hypotheses kept; 1 (default) is greedy")
    flag(
        "--threshold",
        "confidence below which a segment gives no text, 0 to 1; 0 keeps all (default: the bundle's)",
    )
    flag("--threads", "threads of onnxruntime (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write each recording's segments as they come; of a damaged one what was good.

    A recording that cannot be read is reported and the rest go on.

    Returns:
        0, 2 if a recording could not be read to its end, 130 if interrupted; listening ends so, with 0.
    """
    if _is_live(args):
        from todm.cli.live import show

        return show(args)
    failures = 0
    try:
        with _progress(args) as progress:
            options = given(args, stages.transcribe)
            for found in stages.transcribe(**options, stream=sys.stdout, progress=progress):
                if found.error:
                    print(f"todm: {found.error}", file=sys.stderr)
                    failures += 1
    except KeyboardInterrupt:
        where = args.out or "standard output"
        print(f"\ninterrupted; the segments that were complete are in {where}", file=sys.stderr)
        return 130
    return 2 if failures else 0


def _is_live(args: argparse.Namespace) -> bool:
    """Whether sound is heard as it comes: one source of it, and nothing that needs a file.

    Raises:
        ConfigError: flags that exclude each other.
    """
    live = args.mic or "-" in args.audio
    if (args.mic and args.audio) or (live and len(args.audio) > 1) or not (live or args.audio):
        raise ConfigError("name recordings, or - alone for a pipe, or --mic alone")
    if args.device and not args.mic:
        raise ConfigError("--device names a microphone: give --mic too")
    if live and (args.out or args.offline):
        raise ConfigError(
            "live sound is decoded as it comes, and the text goes to standard output: "
            "leave out --out and --offline"
        )
    return live


@contextlib.contextmanager
def _progress(args: argparse.Namespace) -> Iterator[Progress]:
    """A bar per recording with the time left, if it does not run into the transcript on a terminal."""
    if not sys.stderr.isatty() or (not args.out and sys.stdout.isatty()):
        yield no_progress
        return
    from todm.cli.progress import progress_report

    with progress_report() as report:
        yield report

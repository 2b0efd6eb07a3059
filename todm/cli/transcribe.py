"""`todm transcribe BUNDLE AUDIO...`: speech to text with a bundle. Imports no torch."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable

from todm.device.audio import SAMPLE_RATE, Samples, read_audio
from todm.device.bundle import Bundle, Precision, best_int8, open_bundle
from todm.device.recognizer import OfflineRecognizer, StreamingRecognizer, Transcript
from todm.errors import BundleError, ConfigError, CorpusError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("bundle", help="directory that `todm export` wrote")
    parser.add_argument("audio", nargs="+", help="wav, flac, ogg or opus, any sample rate")
    parser.add_argument("--format", choices=("txt", "json"), default="txt", help="default: txt")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--streaming", action="store_true", help="chunk by chunk (default)")
    mode.add_argument("--offline", action="store_true", help="the whole recording in one call")
    parser.add_argument("--int8", action="store_true", help="use the int8 graphs")
    parser.add_argument(
        "--beam", type=int, default=1, help="hypotheses kept; 1 (default) is greedy"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of onnxruntime, default 1")


def run(args: argparse.Namespace) -> int:
    """Print one line per recording; one that cannot be read is reported and the rest go on.

    Returns:
        0, or 2 if a recording could not be read.

    Raises:
        BundleError: the bundle cannot be used.
        ConfigError: a number below 1.
    """
    for name in ("beam", "threads"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} is {getattr(args, name)}: it must be at least 1")
    transcribe = _recognizer(open_bundle(args.bundle), args)
    failures = 0
    for path in args.audio:
        try:
            samples = read_audio(path)
        except CorpusError as error:
            print(f"todm: {error}", file=sys.stderr)
            failures += 1
            continue
        print(_line(path, samples, transcribe(samples), args.format), flush=True)
    return 2 if failures else 0


def _recognizer(bundle: Bundle, args: argparse.Namespace) -> Callable[[Samples], Transcript]:
    precision: Precision = best_int8(bundle) if args.int8 else "fp32"
    if precision not in bundle.precisions():
        raise BundleError(
            f"{bundle.path} holds no {precision} graphs, only {', '.join(bundle.precisions())}"
        )
    if args.offline and not bundle.has_offline():
        raise BundleError(
            f"{bundle.path} has no offline encoder: leave out --offline, or export it with "
            "--target sherpa-onnx"
        )
    kind = OfflineRecognizer if args.offline else StreamingRecognizer
    recognizer = kind(bundle, precision=precision, num_threads=args.threads, beam=args.beam)
    return recognizer.transcribe


def _line(path: str, samples: Samples, transcript: Transcript, form: str) -> str:
    if form == "txt":
        return f"{path}\t{transcript.text}"
    seconds = round(len(samples) / SAMPLE_RATE, 3)
    fields = dataclasses.asdict(transcript)
    return json.dumps({"audio": path, "seconds": seconds, **fields}, ensure_ascii=False)

"""`todm evaluate MODEL [CORPUS]`: word error rate and latency of a supernet, a subnet or a bundle.

`todm evaluate A --compare B` compares two evaluations (their `--out`), and `todm evaluate BUNDLE --reject`
counts false accepts; `--after-silence` measures what a bundle hears after minutes of quiet.
"""

import argparse
import inspect
from pathlib import Path

from todm import stages
from todm.cli.arguments import Flags, given, numbers
from todm.cli.progress import progress_report
from todm.cli.tables import show
from todm.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    flag = Flags(parser, stages.evaluate)
    flag(
        "model",
        "a supernet, a subnet (compressed or not) or a bundle; with --compare the directory of an "
        "evaluation",
    )
    flag(
        "corpus",
        "directory that  todm prepare  wrote (default: the one trained on); with --reject a folder of "
        "recordings",
    )
    flag("--split", "default: %(default)s")
    flag("--search", "beam keeps 4 hypotheses; fast_beam is k2's, and not for bundles")
    flag("--phrases", "phrases that fast_beam favours, one a line", metavar="FILE")
    flag("--limit", "at most this many utterances (default %(default)s: all)")
    flag(
        "--chunks",
        "chunk sizes in frames of 40 ms, 0 for whole utterances: 8,16,32,0 (default: the one it is "
        "exported at, or 0 if trained on whole utterances only); the others are compared with the "
        "first",
        action="store",
        type=numbers("--chunks"),
    )
    flag("--subnet", "of a supernet: largest (default), smallest, or JSON, or a file with it")
    flag(
        "--latency",
        "seconds from the end of a word to its text, and of the last word to the endpoint, at which the "
        "text is final",
    )
    flag(
        "--aligner",
        "supernet or subnet that says where words end, if the corpus does not (default: the evaluated "
        "one; name one for all whose latency you compare); the synthesised corpus does",
    )
    flag("--out", "directory for figures, alignments and utterances")
    parser.add_argument(
        "--compare", type=Path, metavar="B", help="an earlier evaluation to compare MODEL's with"
    )
    parser.add_argument(
        "--reject",
        action="store_true",
        help="false accepts an hour of a bundle, in silence, noises and speech outside its grammar "
        "(default of CORPUS: LibriSpeech-mini of TODM_SHARED_DATA, or sentences spoken by espeak-ng)",
    )
    parser.add_argument(
        "--after-silence",
        action="store_true",
        help="test commands that a bundle gets right after waits in silence and noise, against no wait",
    )
    after = Flags(parser, stages.measure_after_silence)
    after("--full", "--after-silence: all forms and sounds, other speech, waits up to an hour")
    after(
        "--other-speech",
        "--after-silence --full: recordings of it (default: LibriSpeech-mini of TODM_SHARED_DATA)",
        metavar="FOLDER",
    )
    reject = Flags(parser, stages.count_false_accepts)
    reject("--minutes", "--reject: of each kind (default %(default)s)")
    reject(
        "--card",
        "--reject, --after-silence: put the figures into the bundle's card and manifest too",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate and print a line, or a row of a table, for each precision or chunk size."""
    if args.card and not (args.reject or args.after_silence):
        raise ConfigError("--card is for --reject and --after-silence: give one of them as well")
    if args.full and not args.after_silence:
        raise ConfigError("--full is for --after-silence: give both or neither")
    if args.other_speech and not args.full:
        raise ConfigError("--other-speech is for --after-silence --full: give all three or none")
    if args.reject and args.after_silence:
        raise ConfigError("--reject and --after-silence are two measurements: give one at a time")
    if args.reject or args.after_silence:
        _refuse_others(args)
    if args.compare:
        return _compare(args)
    if args.reject:
        return _count_false_accepts(args)
    if args.after_silence:
        return _measure_after_silence(args)
    with progress_report() as progress:
        found = stages.evaluate(**given(args, stages.evaluate), progress=progress)
    if found.existed:
        print(f"done already: {args.out}")
    show(found.results, table=bool(args.chunks or args.latency))
    return 0


def _refuse_others(args: argparse.Namespace) -> None:
    """Raise ConfigError for a flag that belongs to recognition, beside a measurement of another kind."""
    kind = "--reject" if args.reject else "--after-silence"
    defaults = inspect.signature(stages.evaluate).parameters
    names = ("split", "search", "phrases", "limit", "chunks", "subnet", "latency", "aligner")
    other = [name for name in names if getattr(args, name) != defaults[name].default]
    if other := other + ["compare"] * bool(args.compare):
        raise ConfigError(f"--{other[0]} is not for {kind}: leave out one of the two")


def _compare(args: argparse.Namespace) -> int:
    for found in stages.compare(args.model, args.compare):
        change, ours, theirs = found.comparison, found.ours, found.theirs
        print(
            f"{found.name}: {change.relative:+.1%} relative [{change.low:+.1%}, {change.high:+.1%}], "
            f"p {change.p:.3f} ({ours.rate:.2%} against {theirs.rate:.2%}, {ours.words} words)"
        )
    return 0


def _count_false_accepts(args: argparse.Namespace) -> int:
    from todm.export.false_accepts import table

    options = given(args, stages.count_false_accepts)
    with progress_report() as progress:
        found = stages.count_false_accepts(
            args.model, speech=args.corpus, **options, progress=progress
        )
    print(table(found))
    return 0


def _measure_after_silence(args: argparse.Namespace) -> int:
    from todm.export.after_silence import hour_lines, repeats_table, waits_table

    options = given(args, stages.measure_after_silence)
    with progress_report() as progress:
        found = stages.measure_after_silence(args.model, **options, progress=progress)
    print(waits_table(found), repeats_table(found), *hour_lines(found), sep="\n\n")
    return 0

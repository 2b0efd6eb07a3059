"""`todm compress MODEL --passes prune,int8 --out DIR`: a smaller model, and a report on every layer.

With `--analyse` nothing is compressed: each layer is tried alone, and its cost is printed.
"""

import argparse
from typing import TYPE_CHECKING

from todm import stages
from todm.cli.arguments import Flags, given
from todm.cli.progress import progress_report

if TYPE_CHECKING:
    from todm.stages.compression import Analysed, Compressed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    flag = Flags(parser, stages.compress)
    flag("model", "directory that  todm extract-subnet  or  todm import  wrote")
    flag(
        "--passes",
        "of prune (alias sparse24), int8, int4 and awq, in order, joined by commas; at most one "
        "quantises, last",
        action="store",
        type=lambda text: [name.strip() for name in text.split(",")],
    )
    flag("--out", "directory of the result")
    flag(
        "--set",
        "a setting, such as prune.method=wanda or awq.group=64",
        dest="settings",
        metavar="KEY=VALUE",
    )
    several = {"nargs": "+"}
    flag(
        "--include", "layers to compress although they would stay dense", metavar="NAME", **several
    )
    flag("--exclude", "layers to leave as they are, such as '*.down'", metavar="PATTERN", **several)
    flag(
        "--calibration",
        "your own text, images or audio (default: the training data)",
        metavar="FILE",
    )
    flag("--corpus", "data of speech (default: the corpus it was trained on)")
    flag(
        "--evaluate",
        "measure the error before and after; with --analyse, of every layer alone",
    )
    flag("--split", "what --evaluate is on (default: %(default)s)")
    flag("--limit", "of --evaluate: at most so many examples (default %(default)s: all)")
    parser.add_argument(
        "--analyse", action="store_true", help="try every layer alone and compress nothing"
    )
    flag = Flags(parser, stages.analyse)
    flag(
        "--tolerance",
        "of --analyse: relative increase that is allowed in all (default %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Compress or analyse, or say that it is done."""
    with progress_report() as progress:
        if args.analyse:
            _show_sensitivity(stages.analyse(**given(args, stages.analyse), progress=progress))
        else:
            _show(stages.compress(**given(args, stages.compress), progress=progress))
    return 0


def _show(made: "Compressed") -> None:
    """Print what was done to every layer, and the error."""
    from todm.compress.report import table

    path, metrics = made.model.path, made.model.metrics
    if made.existed:
        print(f"done already: {path}")
    print("\n\n".join(table(report) for report in made.reports))
    if metrics.get("before"):
        before, after = metrics["before"], metrics["after"]
        name = before.get("metric", "error")
        print(f"{name} {before['error']:.4g} before, {after['error']:.4g} after")
    if not made.existed:
        print(f"plot: {path / 'report.png'}\ncompressed: {path}")


def _show_sensitivity(made: "Analysed") -> None:
    """Print a row for each layer and kind, and the flags to give."""
    found = made.sensitivity
    print("| layer or kind alone | layers | increase |\n| --- | --- | --- |")
    for name, increase in found.increases.items():
        print(f"| {name} | {len(found.layers[name])} | {increase:+.3%} |")
    if found.exclude:
        names = " ".join(found.exclude)
        print(f"for an increase of {found.tolerance:.2%} in all:  --exclude {names}")
    else:
        print(f"all layers together stay below {found.tolerance:.2%} if their increases add up")
    print(f"figures: {made.figures}\nplot: {made.plot}")

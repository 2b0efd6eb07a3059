"""`todm train CORPUS --config NAME --out RUN`: train a supernet, or continue training it."""

import argparse
from typing import TYPE_CHECKING

from todm import stages
from todm.cli.arguments import Flags, given
from todm.cli.progress import progress_report
from todm.cli.tables import other_speech

if TYPE_CHECKING:
    from todm.stages.training import Trained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    flag = Flags(parser, stages.train)
    flag("corpus", "directory that  todm prepare  wrote")
    flag("--config", "debug, commands, clean100 or full960 (default %(default)s)")
    flag("--out", "directory of the run")
    flag(
        "--init",
        "begin with the weights of an earlier supernet or subnet, perhaps of another vocabulary",
        metavar="ARTIFACT",
    )
    flag(
        "--set",
        "change a setting, such as train.num_updates=500",
        dest="settings",
        metavar="A.B=C",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, try the worst batch, say time, memory and disk; write nothing to --out",
    )


def run(args: argparse.Namespace) -> int:
    """Train, or say that it is done; a process that does not report prints nothing."""
    from todm.stages.training import ProcessFailed

    try:
        with progress_report() as progress:
            if args.dry_run:
                needs = stages.dry_run(**given(args, stages.dry_run), progress=progress)
                if needs:
                    print("\n".join(needs.lines()))
                return 0
            made = stages.train(**given(args, stages.train), progress=progress)
    except ProcessFailed as error:
        return error.status  # it has printed the reason
    if not made.reported:
        _show(made)
    return 0


def _show(made: "Trained") -> None:
    if made.existed:
        print(f"done already: {made.supernet.path}")
        return
    metrics = made.supernet.metrics
    for name, row in metrics["dev"].items():
        print(
            f"{name}: dev WER {row['error']:.2%} [{row['low']:.2%}, {row['high']:.2%}]{other_speech(row)}"
        )
    if (rate := metrics.get("audio_hours_per_hour")) is not None:
        each = metrics["audio_hours_per_hour_per_process"]
        print(f"throughput: {rate:.4g} h of audio an hour, {each:.4g} a process")
    print(
        f"supernet: {made.supernet.path}\ncurves: {made.run / 'curves.png'}\n"
        f"summary: {made.run / 'summary.md'}"
    )

"""`todm search SUPERNET --budget A [--budget B ...]`: the best subnets for budgets, and the front."""

import argparse

from todm import stages
from todm.cli.arguments import Flags, given
from todm.cli.progress import progress_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    flag = Flags(parser, stages.search)
    flag("supernet", "directory that  todm train  wrote")
    flag(
        "--budget",
        "2M, size=3MiB, macs=400M, memory=40MiB, latency=20ms@pi5, rtf=0.1@local, or several joined "
        "by commas; once for each subnet that is wanted",
    )
    flag("--out", "directory of the front (default: beside SUPERNET)")
    flag("--corpus", "corpus whose dev split decides (default: the one trained on)")
    flag("--compression", "what may be chosen (default %(default)s)")
    flag("--evaluations", "subnets to evaluate for each budget (default %(default)s)")
    flag("--limit", "dev utterances to score on (default %(default)s: all)")
    flag("--seed", "of the search (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Search, and print the table."""
    from todm.search.front import TABLE

    with progress_report() as progress:
        made = stages.search(**given(args, stages.search), progress=progress)
    print(made.front.file(TABLE).read_text())
    print(
        f"{made.found.seconds:.0f} s, {made.found.cpu_seconds:.0f} s of CPU\n"
        f"front: {made.front.path}"
    )
    return 0

"""`todm report RUN`: one page, the table and the plot of all bundles of a run, and where they are."""

import argparse

from todm import stages
from todm.cli.arguments import Flags, given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    Flags(parser, stages.report)("directory", "directory of a run", metavar="RUN")


def run(args: argparse.Namespace) -> int:
    """Write report.html, report.md and report.png, and print the table."""
    from rich.console import Console
    from rich.table import Table

    from todm.report.tables import HEADS, beside

    made = stages.report(**given(args, stages.report))
    shown = Table(*HEADS)
    for row in made.rows:
        shown.add_row(*row.cells())
    Console().print(shown)
    print(f"WER on the {made.rows[0].words} words of the test split")
    for line in beside(made.rows):
        print(line)
    print(f"table: {made.table}\nplot: {made.plot}\npage: {made.page}")
    for path in dict.fromkeys(r.path for r in made.rows):
        print(f"bundle: {path}")
    return 0

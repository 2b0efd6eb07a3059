"""`todm report RUN`: one page, the table and the plot of all bundles of a run, and where they are."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("directory", metavar="RUN", type=Path, help="directory of a run")


def run(args: argparse.Namespace) -> int:
    """Write report.html, report.md and report.png, and print the table."""
    from rich.console import Console
    from rich.table import Table

    from todm.files import write_text
    from todm.report.page import PAGE, page
    from todm.report.tables import HEADS, PLOT, TABLE, collect, plot, table

    rows = collect(args.directory)
    write_text(args.directory / TABLE, table(rows))
    plot(rows, args.directory / PLOT)
    write_text(args.directory / PAGE, page(args.directory, rows))
    shown = Table(*HEADS)
    for row in rows:
        shown.add_row(*row.cells())
    Console().print(shown)
    print(f"WER on the {rows[0].words} words of the test split")
    print(f"table: {args.directory / TABLE}")
    print(f"plot: {args.directory / PLOT}")
    print(f"page: {args.directory / PAGE}")
    for path in dict.fromkeys(r.path for r in rows):
        print(f"bundle: {path}")
    return 0

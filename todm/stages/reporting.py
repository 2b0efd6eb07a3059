"""All bundles of a run -> a page, a table and a plot of them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from todm.report.tables import Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The files of a report, and its rows: one for each bundle and precision."""

    page: Path
    table: Path
    plot: Path
    rows: "Sequence[Row]"


def report(directory: str | Path) -> Report:
    """Compare all evaluated bundles of a run, on one page and in a table and a plot.

        >>> stages.report(run).page.name
        'report.html'

    Args:
        directory: of the run.

    Raises:
        TodmError: the run has no bundle that was evaluated.
    """
    from todm.files import write_text
    from todm.report.page import PAGE, page
    from todm.report.tables import PLOT, TABLE, collect, plot, table

    run = Path(directory)
    rows = collect(run)
    write_text(run / TABLE, table(rows))
    plot(rows, run / PLOT)
    write_text(run / PAGE, page(run, rows))
    return Report(page=run / PAGE, table=run / TABLE, plot=run / PLOT, rows=rows)

"""Progress of a stage on the terminal: one bar per thing that is worked on."""

import contextlib
from collections.abc import Iterator

from todm.files import Progress


@contextlib.contextmanager
def progress_report() -> Iterator[Progress]:
    """Yields report(what, done, total): bars on a terminal, elsewhere a line when one is full."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)
            if done == total and not console.is_terminal:
                console.print(f"{what}: {done} done", highlight=False)

        yield report

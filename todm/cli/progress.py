"""Progress of a stage on the terminal: one bar per thing that is worked on."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from todm.files import Progress

if TYPE_CHECKING:
    from rich.progress import TaskID


@contextlib.contextmanager
def progress_report() -> Iterator[Progress]:
    """Yields report(what, done, total): bars on a terminal, elsewhere a line when one is full.

    Bars leave the terminal to others once all are full: a training prints lines of its own.
    """
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
    bars = Progress(*columns, console=console, disable=not console.is_terminal)
    tasks: dict[str, TaskID] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.start()
        bars.update(tasks[what], completed=done, total=total)
        if done == total and not console.is_terminal:
            console.print(f"{what}: {done} done", highlight=False)
        if bars.finished:
            bars.stop()
            for task in tasks.values():
                bars.remove_task(task)
            tasks.clear()

    try:
        yield report
    finally:
        bars.stop()

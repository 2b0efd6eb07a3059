"""Spreads work over processes, with a progress callback and a clean stop."""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TypeVar

from todm.files import Progress, no_progress

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Workers:
    """Spreads work over processes and reports its progress.

    Attributes:
        processes: how many; the CPUs this process may use if None.
        progress: called after every job.
    """

    processes: int | None = None
    progress: Progress = no_progress

    @property
    def num_processes(self) -> int:
        """The number of processes, at least 1."""
        if self.processes is not None:
            return max(1, self.processes)
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    def spread(
        self, function: Callable[[Job], Result], jobs: Iterable[Job], label: str = ""
    ) -> Iterator[Result]:
        """Results of `function` for every job, in the order in which they are ready.

        With one process, or one job, nothing is started. Workers are spawned, not forked: the parent
        may have threads. An interrupt stops the workers after their present job.

        Args:
            function: what to do; it and the jobs are pickled.
            jobs: its arguments.
            label: what `progress` calls the work.
        """
        jobs = list(jobs)
        processes = min(self.num_processes, len(jobs))
        results = map(function, jobs) if processes <= 1 else _spawned(function, jobs, processes)
        for done, result in enumerate(results, 1):
            self.progress(label, done, len(jobs))
            yield result


ALL_CPUS = Workers()


def _spawned(
    function: Callable[[Job], Result], jobs: list[Job], processes: int
) -> Iterator[Result]:
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    waiting: set[Future[Result]] = set()
    try:
        for job in jobs:
            # Few jobs in flight, so that an interrupt is quick and memory stays bounded.
            if len(waiting) >= 4 * processes:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
            waiting.add(pool.submit(function, job))
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Ctrl-C reaches the whole process group, and only the parent acts on it; a killed parent ends us."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    # A worker waits for jobs on a pipe of which it holds both ends, so it would wait for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""Several data-parallel processes on a CPU, watched, and restarted when one is lost.

Does for `train.num_processes` on one machine what `torchrun --max-restarts` does for GPUs and clusters,
but does not restart after a user's error and keeps its exit status. Two processes of one thread are
faster than one of two threads: they synchronise once a step instead of at every operation, and lose
little when another program takes a core.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from todm.errors import TrainingError
from todm.train.parallel import PARENT, LostProcess

LOST = LostProcess.status
"""Exit status of a process that ends because another one is gone."""
_CRASHED = 1
_INTERRUPTED = 130
_GRACE = 10.0  # seconds in which the others notice by themselves that one is gone
_POLL = 0.05


def launch(
    command: Sequence[str], num_processes: int, *, log_dir: Path, max_restarts: int = 0
) -> int:
    """Run a training in several processes to its end.

    A process that is killed or crashes takes the others with it, and all restart from the last
    checkpoint. After an error that the user can correct, or Ctrl-C, nothing restarts.

    Args:
        command: what every process runs, with its own RANK and WORLD_SIZE in the environment.
        num_processes: number of processes; rank 0 writes to the terminal.
        log_dir: the others write to `process-N.log` there.
        max_restarts: how often to restart.

    Returns:
        The exit status of rank 0.

    Raises:
        TrainingError: a process stopped once too often, or with an error that rank 0 has not shown.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    for attempt in range(max_restarts + 1):
        with (
            _started(command, num_processes, log_dir) as processes,
            _forwarded(processes[0]) as pressed,
        ):
            statuses = _watch(processes)
        if pressed and any(statuses.values()):  # Python dies of SIGINT while it starts
            return statuses[0] if statuses[0] > 0 else _INTERRUPTED
        causes = {rank: status for rank, status in statuses.items() if status not in (0, LOST)}
        lost = [rank for rank, status in causes.items() if status < 0 or status == _CRASHED]
        if not causes and not any(statuses.values()):
            return 0
        if causes and not lost:  # the process has printed an error that a restart would repeat
            return _own_error(causes, log_dir)
        rank = lost[0] if lost else 0
        if attempt == max_restarts:
            raise TrainingError(
                f"training process {rank} {_end(statuses[rank])}{_where(rank, log_dir)}; run the same "
                "command again to go on from the last checkpoint"
            )
        sys.stderr.write(
            f"training process {rank} {_end(statuses[rank])}{_where(rank, log_dir)}: all start again "
            f"from the last checkpoint ({attempt + 1} of {max_restarts} times)\n"
        )
    raise AssertionError("the last attempt returns or raises")


def _own_error(causes: Mapping[int, int], log_dir: Path) -> int:
    """The status of rank 0 if it has shown its error; else an error that names the log with it."""
    if 0 in causes:
        return causes[0]
    rank, status = next(iter(causes.items()))
    raise TrainingError(f"training process {rank} {_end(status)}{_where(rank, log_dir)}")


def _end(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"stopped with status {status}"


def _where(rank: int, log_dir: Path) -> str:
    return f" (see {log_dir / f'process-{rank}.log'})" if rank else ""


@contextlib.contextmanager
def _started(
    command: Sequence[str], num_processes: int, log_dir: Path
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """The processes; none is left running afterwards."""
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(num_processes),
        PARENT: str(os.getpid()),
    }
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(num_processes):
            with contextlib.ExitStack() as files:
                path = log_dir / f"process-{rank}.log"
                log = files.enter_context(path.open("ab")) if rank else None
                processes.append(
                    subprocess.Popen(
                        command,
                        env={**os.environ, **environment, "RANK": str(rank)},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,  # this process forwards the terminal's Ctrl-C
                    )
                )
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _forwarded(lead: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """SIGINT goes to rank 0, which writes a checkpoint and stops the others; SIGTERM ends all at once.

    Yields a list to which each SIGINT is added.
    """
    pressed: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        pressed.append(number)
        lead.send_signal(signal.SIGINT)

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, interrupt),
        signal.SIGTERM: signal.signal(signal.SIGTERM, end),
    }
    try:
        yield pressed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(processes: Sequence["subprocess.Popen[bytes]"]) -> dict[int, int]:
    """Wait for the end of all; once one has failed, the others get `_GRACE`. Returns status by rank.

    A process that does not end by then has the status LOST.
    """
    deadline = float("inf")
    while True:
        statuses = {rank: process.poll() for rank, process in enumerate(processes)}
        ended = {rank: status for rank, status in statuses.items() if status is not None}
        if any(ended.values()):
            deadline = min(deadline, time.monotonic() + _GRACE)
        if len(ended) == len(processes) or time.monotonic() > deadline:
            return {rank: ended.get(rank, LOST) for rank in statuses}
        time.sleep(_POLL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

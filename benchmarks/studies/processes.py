"""What the studies that train share: verbs of todm in processes of their own, whose time is noted.

The CPU seconds of a process are noted while it runs, so that a study that is killed loses few of them; an
interrupt reaches the processes, which keep a checkpoint.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from todm.errors import ConfigError

_NOTE_EVERY = 10.0  # seconds
_RUNNING: "set[subprocess.Popen[bytes]]" = set()
Note = Callable[[float, int | None], None]
"""Called with CPU seconds and the exit status, which is None while the process runs."""


@contextmanager
def locked(place: Path) -> Iterator[int]:
    """Hold a folder; a process that inherits the lock keeps it even if this one is killed.

    Raises:
        ConfigError: another process holds it.
    """
    with (place / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process is training {place}: wait until it ends, then run this command again"
            ) from None
        yield file.fileno()


def run_verb(words: Sequence[str], log: Path, *, note: Note, lock: int) -> int:
    """Run a verb of todm to its end; its exit status.

    Args:
        words: the verb and its arguments.
        log: what it prints is added here.
        note: told its CPU seconds every ten seconds, and when it has ended.
        lock: inherited; see `locked`.
    """
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "todm.cli.main", *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
        )
        _RUNNING.add(process)
        try:
            for seconds in _cpu_seconds(process):
                note(seconds, process.returncode)
        finally:
            _RUNNING.discard(process)
    return process.returncode


@contextmanager
def ended_gently() -> Iterator[None]:
    """Inside, SIGTERM ends the processes too, which would go on alone otherwise, and keeps their time."""

    def end(number: int, frame: FrameType | None) -> None:
        for process in list(_RUNNING):
            process.send_signal(signal.SIGINT)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _cpu_seconds(process: "subprocess.Popen[bytes]") -> Iterator[float]:
    """CPU seconds of a process and its children, now and then until it has ended."""
    noted = time.monotonic()
    while True:
        pid, ended, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(ended)  # Popen did not see it end
            yield usage.ru_utime + usage.ru_stime
            return
        if time.monotonic() - noted > _NOTE_EVERY:
            noted = time.monotonic()
            yield _seconds_so_far(process.pid)
        time.sleep(0.1)


def _seconds_so_far(pid: int) -> float:
    """From Linux's /proc; 0 where there is none."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.is_file():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()  # from the third on: proc(5)
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")

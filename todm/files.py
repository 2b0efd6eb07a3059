"""Files and the small things every stage shares: whole writes, appended records, tables, locks, progress.

Imports no torch and no package at module level: it is part of what a device runs.
"""

import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from todm.errors import CorpusError

_log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Progress = Callable[[str, int, int], None]
"""Called with (what is being worked on, how many are done, how many there are)."""


def no_progress(what: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


Announce = Callable[[str], None]
"""Called before the work with a line that the user should read."""


def no_announcement(line: str) -> None:
    """An `Announce` that shows nothing."""


def path_or_none(place: str | Path | None) -> Path | None:
    """A place as a path; None if there is none."""
    return Path(place) if place else None


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a single file atomically: on a full disk the old one stays, and nothing is left behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        sync_file(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text, in UTF-8."""
    write_bytes(path, text.encode())


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing, damaged or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def append(path: Path, data: bytes) -> None:
    """Add a record to a file, all or nothing: half a record would spoil those that follow.

    Raises:
        OSError: the record cannot be written; the file is as it was.
    """
    with path.open("ab", buffering=0) as handle:
        size = handle.tell()
        try:
            while data:  # a full disk takes a part first, then raises
                data = data[handle.write(data) :]
        except OSError:
            os.truncate(path, size)
            raise


def is_full(error: OSError) -> bool:
    """Whether a write failed because the disk, a quota or the limit of file sizes is exhausted."""
    return error.errno in _FULL


def sync_file(path: Path) -> None:
    """Return once the content of a file is on the disk."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def sync_directory(path: Path) -> None:
    """Return once the names in a directory are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of a path; waits while another process has it.

    It is a kernel lock on a hidden file beside `path`, so it is released however its owner dies. A second
    hidden file names the owner, for the message to processes that wait.

    Args:
        path: the file or directory; its parent is created.
        what: the work, for the message to processes that wait.

    Raises:
        CorpusError: the file system does not support locks.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    owner = path.with_name(f".{path.name}.owner")
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        name = ""
        with contextlib.suppress(OSError):  # it may have just released the lock
            name = owner.read_text().strip()
        _log.warning("%s is being done by %s: waiting", what, name or "another process")
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise
        raise CorpusError(
            f"{path.parent} is on a file system without locks ({error}): "
            "choose another disk, or mount it with them"
        ) from None
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        lock.release()

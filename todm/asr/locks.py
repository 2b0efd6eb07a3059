"""One process at a time, on one machine or several that share a disk."""

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from todm.errors import CorpusError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of a place; waits while another process has it.

    The lock is the kernel's (`flock` on the hidden file beside `path`), so it ends with its owner,
    however that dies; the file stays, and holds the owner's name for those who wait.

    Args:
        path: the place; its parent is made if need be.
        what: what is done there, for the message to those who wait.

    Raises:
        CorpusError: the file system knows no locks.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                raise CorpusError(
                    f"{path.parent} is on a file system without locks ({error.strerror}): "
                    "choose another disk, or mount it with them"
                ) from None
            file.seek(0)
            _log.warning("%s is being done by %s: waiting", what, file.read().strip() or "another")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield

"""Files of a run on a disk that may fill up."""

import errno
import os
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(error: OSError) -> bool:
    """Whether a write failed because the disk, the quota or the largest size of a file is used up."""
    return error.errno in _FULL


def append(path: Path, data: bytes) -> None:
    """Add a record to a file, or nothing: half a record would spoil those that come after it.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    with path.open("ab", buffering=0) as handle:
        size = handle.tell()
        try:
            while data:  # a full disk takes a part first, and then says so
                data = data[handle.write(data) :]
        except OSError:
            os.truncate(path, size)
            raise

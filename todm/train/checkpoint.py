"""Checkpoints of a running training: everything it needs to go on exactly where it was.

A checkpoint is one file, written atomically; the last two are kept, so a crash or a full disk never
destroys the last good one. Read with `weights_only`, never unpickled.
"""

import io
import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from todm.errors import TrainingError
from todm.files import sync_directory, write_bytes

FORMAT = 2
KEEP = 2
_log = logging.getLogger(__name__)


def write(directory: Path, update: int, state: dict[str, Any]) -> Path:
    """Write the checkpoint taken after `update` updates, then drop all but the newest two.

    Raises:
        OSError: it cannot be written; earlier checkpoints are untouched, and no part of it is left.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"update-{update:08d}.pt"
    for left in directory.glob(".update-*.tmp"):  # by a process that was killed while it wrote
        left.unlink()
    buffer = io.BytesIO()  # torch.save into a file raises RuntimeError when the disk is full
    torch.save({"format": FORMAT, **state}, buffer)
    write_bytes(path, buffer.getbuffer())
    sync_directory(directory)  # an older one goes only once this one survives a crash
    for old in _all(directory)[:-KEEP]:
        old.unlink()
    return path


def num_bytes(state: object) -> int:
    """Bytes of all tensors of a state, which is nearly the size of its checkpoint."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(num_bytes(value) for value in state.values())
    return sum(num_bytes(value) for value in state) if isinstance(state, (list, tuple)) else 0


def read_latest(directory: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint, None if there is none; warns of those it passes over.

    Raises:
        TrainingError: checkpoints exist and none of them can be read, or another version wrote them.
    """
    damaged: list[str] = []
    for path in reversed(_all(directory)):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError):
            damaged.append(str(path))
            continue
        if damaged:
            names = ", ".join(damaged)
            _log.warning("%s cannot be read: training goes on from %s", names, path.name)
        if state.get("format") != FORMAT:
            raise TrainingError(
                f"{path} was written by another version of todm: finish that training with it, or "
                f"remove {directory} to start again"
            )
        return state
    if damaged:
        raise TrainingError(f"no checkpoint in {directory} can be read: remove it to start again")
    return None


def _all(directory: Path) -> list[Path]:
    return sorted(directory.glob("update-*.pt"))

"""The checkpoint of a training that compression does: one file, read with `weights_only`, never unpickled."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from todm.errors import TrainingError
from todm.files import write_bytes


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state: tables, lists, tuples, numbers, texts, None and tensors, in any depth.

    Raises:
        OSError: it cannot be written; the file that was there is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()  # torch.save into a file says RuntimeError when the disk is full
    torch.save(dict(state), buffer)
    write_bytes(path, buffer.getbuffer())


def read(path: Path) -> dict[str, Any] | None:
    """The state that was written, on the CPU; None if there is no file.

    Raises:
        TrainingError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        first = str(error).partition("\n")[0]
        raise TrainingError(f"{path} cannot be read ({first}): remove it to start again") from None

"""What the studies share: results kept on disk, so that a study resumes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from todm.files import write_text


def read(path: Path) -> Any:  # noqa: ANN401 - JSON
    """The JSON in a file; None if there is no file."""
    return json.loads(path.read_text()) if path.is_file() else None


def write(path: Path, found: object, *, indent: int | None = None) -> None:
    """Write JSON, whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=indent) + "\n")


def keep(path: Path, measure: Callable[[], Any]) -> Any:  # noqa: ANN401 - JSON
    """The JSON in a file, which is measured and written first if there is no file."""
    found = read(path)
    if found is None:
        found = measure()
        write(path, found)
    return found

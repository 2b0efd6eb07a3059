"""Evaluated choices, kept in a file line by line, so that a search killed at any time goes on."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from todm.files import write_text
from todm.search.choice import Choice

Figures = Mapping[str, Any]
Evaluate = Callable[[Choice], Figures]
"""`score`, which a search minimises, and whatever else is to be kept of a choice, as JSON types."""


class Evaluations:
    """A function from choices to figures that works out each of them once."""

    def __init__(self, evaluate: Evaluate, path: Path | None = None, *, key: str = "") -> None:
        """Read what an earlier search left.

        Args:
            evaluate: works out the figures of a choice.
            path: the file; None keeps them in memory only.
            key: what figures depend on beside the choice; a file of another key is begun anew.
        """
        self._evaluate, self._path = evaluate, path
        self._known: dict[Choice, Figures] = {}
        if path is not None:
            self._open(path, key)

    def __call__(self, choice: Choice) -> Figures:
        """The figures of a choice."""
        if choice not in self._known:
            found = self._evaluate(choice)
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**choice.to_json(), "figures": found}) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            self._known[choice] = found
        return self._known[choice]

    def __contains__(self, choice: Choice) -> bool:
        return choice in self._known

    def __iter__(self) -> Iterator[Choice]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def _open(self, path: Path, key: str) -> None:
        """Take every whole line; what a kill left of the last one is dropped from the file."""
        head, kept = json.dumps({"key": key}), list[str]()
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if lines and lines[0] == head:
            for line in lines[1:]:
                try:
                    row = json.loads(line)
                    self._known[Choice.from_json(row)] = row["figures"]
                except (ValueError, KeyError, TypeError, AttributeError):
                    break
                kept.append(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(f"{line}\n" for line in [head, *kept]))

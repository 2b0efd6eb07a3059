"""Evaluated choices, kept in a file line by line, so that a search killed at any time goes on."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from todm.backend import Backend
from todm.compress.int8_emulation import int8_copy
from todm.files import append, write_text
from todm.search.choice import Choice

Figures = Mapping[str, Any]
Evaluate = Callable[[Choice], Figures]
"""Gives `score`, less is better, `parts`, the same on equal parts of the data, and other figures, as JSON."""
_VERSION = 3  # of the figures


class Evaluations:
    """A function from choices to figures that works out each of them once."""

    def __init__(self, evaluate: Evaluate, path: Path | None = None, *, key: str = "") -> None:
        """Read what an earlier search left.

        Args:
            evaluate: works out the figures of a choice.
            path: the file; None keeps them in memory only.
            key: what the figures depend on besides the choice; a file with another key is overwritten.
        """
        self._evaluate, self._path = evaluate, path
        self._known: dict[Choice, Figures] = {}
        if path is not None:
            self._open(path, key)

    def __call__(self, choice: Choice) -> Figures:
        """The figures of a choice."""
        if choice not in self._known:
            figures = self._evaluate(choice)
            if self._path is not None:
                line = json.dumps({**choice.to_json(), "figures": figures})
                append(self._path, f"{line}\n".encode())
            self._known[choice] = figures
        return self._known[choice]

    def __contains__(self, choice: Choice) -> bool:
        return choice in self._known

    def __iter__(self) -> Iterator[Choice]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def _open(self, path: Path, key: str) -> None:
        """Read every whole line; the torn rest of an interrupted write is dropped from the file."""
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


def in_supernet(
    backend: Backend,
    supernet: nn.Module,
    *,
    limit: int,
    key: str = "",
    path: Path | None = None,
) -> Evaluations:
    """Scores of choices on the dev split, inside the supernet and in the arithmetic of a compression.

    Args:
        backend: with a corpus.
        supernet: with its weights, in evaluation mode.
        limit: dev utterances; 0 for all.
        key: names the supernet and the corpus, see `Evaluations`.
        path: of the file; None for no file.
    """

    @functools.cache
    def scorer() -> Callable[..., dict[str, Any]]:
        return backend.scorer(supernet, limit=limit)  # computes features if they are not there yet

    def evaluate(choice: Choice) -> dict[str, Any]:
        in_int8 = choice.compression == "int8"
        chunk = backend.chunk_frames
        with int8_copy(supernet, chunk=chunk) if in_int8 else contextlib.nullcontext():
            return scorer()(choice.subnet)

    return Evaluations(evaluate, path, key=f"{_VERSION} {key} {limit}")

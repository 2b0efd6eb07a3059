"""How choices of the speech backend are scored: inside the supernet, in the arithmetic of a compression."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm.errors import ConfigError

if TYPE_CHECKING:
    from todm.artifact import Artifact
    from todm.asr.backend import AsrBackend
    from todm.search.choice import Choice, Compression
    from todm.search.evaluations import Evaluations
    from todm.supernet.space import Subnet

SEARCHED = ("none", "int8")
_VERSION = 1  # of the figures


def evaluations_of(
    found: "Artifact", backend: "AsrBackend", *, limit: int, path: Path | None
) -> "Evaluations":
    """Scores of choices on the dev split, kept in a file.

    Args:
        found: the supernet.
        backend: made of it, with a corpus.
        limit: dev utterances; 0 for all.
        path: of the file; None for no file.
    """
    from todm.asr.loading import load_model
    from todm.compress.int8_emulation import int8_copy
    from todm.search.evaluations import Evaluations

    model = load_model(found, backend)
    scorers: list[Callable[[Subnet | None], dict[str, Any]]] = []

    def evaluate(choice: "Choice") -> dict[str, Any]:
        if not scorers:
            scorers.append(backend.scorer(model, limit=limit))
        arithmetic = (
            int8_copy(model, chunk=backend.config.chunk)
            if choice.compression == "int8"
            else contextlib.nullcontext()
        )
        with arithmetic:
            return scorers[0](choice.subnet)

    corpus = str(backend.corpus.resolve()) if backend.corpus else ""
    key = f"{_VERSION} {found.hash} {corpus} {limit} {backend.config.eval_chunk}"
    return Evaluations(evaluate, path, key=key)


def searched(asked: str) -> "tuple[Compression, ...]":
    """Compressions that can be scored.

    Raises:
        ConfigError: unknown, or one whose errors nothing here can foretell.
    """
    from todm.search.choice import compressions_of

    found = compressions_of(asked)
    if wrong := [name for name in found if name not in SEARCHED]:
        raise ConfigError(
            f"--compression is {asked!r}: errors in {wrong[0]} are not known before  todm compress ; "
            f"search {' or '.join(SEARCHED)}, and compress what was cut"
        )
    return found


def problems_of(
    budgets: Sequence[str],
    backend: "AsrBackend",
    compressions: "tuple[Compression, ...]",
    devices: Any,  # noqa: ANN401
) -> list[Any]:
    """A search problem for every budget, with the costs of all devices they name."""
    from todm.search.budget import parse
    from todm.search.evolve import Problem

    parsed = [parse(text) for text in budgets]
    prices = devices.prices(dict.fromkeys(name for b in parsed for name in b.devices))
    return [Problem(backend.space, budget, compressions, prices) for budget in parsed]

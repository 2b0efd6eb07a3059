"""A net at each chunk size of its training: what a longer wait is worth, for the card of a bundle."""

import dataclasses
from typing import Any

from torch import nn

from todm.asr.backend import AsrBackend
from todm.asr.decode.latency import Clock, measure
from todm.asr.decode.utterances import figures_of
from todm.files import Progress, no_progress

_SPLIT, _MOST = "dev", 200


def by_chunk(
    backend: AsrBackend, model: nn.Module, *, progress: Progress = no_progress
) -> list[dict[str, Any]]:
    """Errors and delays of a plain model on at most 200 dev utterances, with greedy search in torch.

    Args:
        backend: with a corpus.
        model: of the backend.
        progress: called with (what, done, all).

    Returns:
        For each chunk size, ascending: `chunk` in frames of 40 ms, `split`, the figures of
        `todm.asr.decode.utterances.figures_of`, and `latency` (`todm.asr.decode.latency.Latency`), None where
        the corpus does not say when words end.
    """
    config, ends, rows = backend.config, backend.known_ends(_SPLIT), list[dict[str, Any]]()
    sizes = config.chunk_sizes or (config.chunk,)
    for chunk in sizes:
        progress("chunk sizes", len(rows), len(sizes))
        found = backend.recognise(model, subnet=None, split=_SPLIT, limit=_MOST, chunk=chunk)
        delays = measure(found, ends, clock=Clock.of(config, chunk))
        rows.append(
            {
                "chunk": chunk,
                "split": _SPLIT,
                **figures_of(found),
                "latency": delays and dataclasses.asdict(delays),
            }
        )
    progress("chunk sizes", len(rows), len(sizes))
    return rows

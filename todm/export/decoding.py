"""What an export says of decoding besides its graphs: the endpoint, and what each chunk size would cost."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from todm.device.decode import FRAME_SECONDS
from todm.files import markdown_table

_SECTION = """\
## Chunk sizes
The net on {utterances} {split} utterances ({words} words), with greedy search in torch, at each chunk size
of its training. This export decodes at the one in bold; `todm export --chunk` chooses another.{delays}

{table}

"""

_DELAYS = """
Delays are from the end of the last word to its text, and to the endpoint, at which the text is final,
without the time of computing."""

_HEADS = ("chunk", "WER", "95 % interval")
_DELAY_HEADS = ("text, s, p50", "p90", "final, s, p50", "p90")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """What goes into the manifest and the card.

    Attributes:
        endpoint_seconds: see `todm.device.bundle.Bundle.endpoint_seconds`.
        chunk_sizes: errors and delays by chunk size, see `todm.asr.chunk_sizes.by_chunk`; may be empty.
    """

    endpoint_seconds: float | None = None
    chunk_sizes: Sequence[Mapping[str, Any]] = ()


def chunk_table(rows: Sequence[Mapping[str, Any]], chunk: int) -> str:
    """The section of a card; empty without figures.

    Args:
        rows: `Decoding.chunk_sizes`.
        chunk: of the export, in frames of 40 ms.
    """
    if not rows:
        return ""
    delayed = any(row["latency"] and row["latency"]["last"] for row in rows)
    heads = [*_HEADS, *(_DELAY_HEADS if delayed else ())]
    lines = [_line(row, marked=row["chunk"] == chunk)[: len(heads)] for row in rows]
    return _SECTION.format(
        **{key: rows[0][key] for key in ("utterances", "split", "words")},
        delays=_DELAYS if delayed else "",
        table=markdown_table(heads, lines),
    )


def _line(row: Mapping[str, Any], *, marked: bool) -> list[str]:
    cells = [f"{round(1000 * FRAME_SECONDS * row['chunk'])} ms", f"{row['error']:.2%}"]
    cells.append(f"{row['low']:.2%} to {row['high']:.2%}")
    for name in ("last", "final"):
        delay = (row["latency"] or {}).get(name)
        cells += [f"{delay[key]:.2f}" if delay else "" for key in ("p50", "p90")]
    return [f"**{cell}**" if marked and cell else cell for cell in cells]

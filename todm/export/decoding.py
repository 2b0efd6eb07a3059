"""What an export says of decoding besides its graphs: the endpoint, and what each chunk size would cost."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from todm.device.decode import FRAME_SECONDS
from todm.export.calibration import Calibration, Spoken
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
        calibrate_on: commands of the dev split and other speech; none for a bundle without a threshold.
        max_lost: the share of the commands that the threshold may cost.
    """

    endpoint_seconds: float | None = None
    chunk_sizes: Sequence[Mapping[str, Any]] = ()
    calibrate_on: Sequence[Spoken] = ()
    max_lost: float = 0.0


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


def threshold_line(found: Calibration | None) -> str:
    """The line of a card on the threshold; nothing for a bundle without one."""
    if found is None:
        return ""
    forms = ";\n  ".join(_of_form(form, row) for form, row in found.forms.items())
    return (
        f"- **Threshold**: a segment of a confidence below {found.threshold:g} gives no text, in todm, in\n"
        "  the page and in the runners of export/onnx and export/sherpa_onnx (sherpa-onnx itself has no\n"
        f"  such thing). {forms};\n"
        f"  {found.max_lost:.1%} were allowed. `todm evaluate BUNDLE --reject --card` adds what it holds\n"
        "  back.\n"
    )


def _of_form(form: str, row: Mapping[str, Any]) -> str:
    lost = f"{form} loses {row['lost']:.1%} of {row['exact']} commands of the dev split"
    if not row["other_hours"]:
        return lost
    minutes = 60 * row["other_hours"]
    return f"{lost}, and accepts {row['accepts']} segments in {minutes:.1f} minutes of other speech"

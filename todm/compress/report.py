"""The account of every layer, and the savings in bytes and operations.

Size and operations are counted as GPUSQ-ViT does (arXiv 2305.10727): of every m weights n are kept,
each with its bits and two bits (log2 m in general) for its position.

    size ratio = 32 numel / (density (bits + index bits) numel)      summed over all parameters
    ops ratio  = 32 * 32 MACs / (density weight_bits activation_bits MACs)     over linear and conv layers
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from todm.files import markdown_table

SIZE_FORMULA = "size ratio = sum 32 n / sum (density (bits + index bits) n), n parameters"
OPS_FORMULA = (
    "ops ratio = sum 32 * 32 MACs / sum density weight_bits activation_bits MACs, float32 at first"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One layer in one pass, or in all.

    Attributes:
        name: full name.
        kind: such as `linear 384x96`.
        done: what was done, empty if nothing.
        why_not: why the layer was left unchanged.
        before: squared error of its outputs, relative to their power, before the pass; None if unknown.
        after: the same after it.
        num_weights: weights in it.
        rows: inputs it saw in calibration: MACs are rows times weights.
        weight_bits: of a kept weight.
        activation_bits: of its inputs.
        density: share of weights kept.
        index_bits: of a kept weight, for its position.
        bytes_before: of the weight in float32.
        bytes_after: as stored now, scales and codes included.
        figures: of the pass.
    """

    name: str
    kind: str
    done: str = ""
    why_not: str = ""
    before: float | None = None
    after: float | None = None
    num_weights: int = 0
    rows: int = 0
    weight_bits: float = 32
    activation_bits: float = 32
    density: float = 1.0
    index_bits: float = 0.0
    bytes_before: int = 0
    bytes_after: int = 0
    figures: dict[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over a model."""

    bytes_before: int
    bytes_after: int
    size_ratio: float
    ops_ratio: float
    layers_done: int
    layers_left: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassReport:
    """All layers in one pass."""

    name: str
    settings: dict[str, Any]
    rows: list[Row]
    curves: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """Of a pass that trains: a line of figures every few updates."""

    @property
    def totals(self) -> Totals:
        """Sums, counted as the head of this file says."""
        return totals(self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "name": self.name,
            "settings": self.settings,
            "totals": dataclasses.asdict(self.totals),
            "rows": [row.to_json() for row in self.rows],
            "curves": self.curves,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "PassReport":
        """The inverse of `to_json`."""
        return cls(
            name=data["name"],
            settings=data["settings"],
            rows=[Row(**row) for row in data["rows"]],
            curves=data["curves"],
        )


def totals(rows: Sequence[Row]) -> Totals:
    """Sums over the layers of a model."""
    layers = [row for row in rows if row.rows]
    size = sum(row.density * (row.weight_bits + row.index_bits) * row.num_weights for row in rows)
    macs = [row.rows * row.num_weights for row in layers]
    ops = sum(
        m * row.density * row.weight_bits * row.activation_bits
        for m, row in zip(macs, layers, strict=True)
    )
    return Totals(
        bytes_before=sum(row.bytes_before for row in rows),
        bytes_after=sum(row.bytes_after for row in rows),
        size_ratio=32 * sum(row.num_weights for row in rows) / max(size, 1),
        ops_ratio=32 * 32 * sum(macs) / ops if ops else 1.0,
        layers_done=sum(bool(row.done) for row in rows),
        layers_left=sum(not row.done for row in rows),
    )


def table(report: PassReport) -> str:
    """The report in Markdown: a line a layer, totals and their formulas."""
    heads = ("layer", "kind", "done, or why not", "error before", "error after")
    rows = [
        (
            row.name,
            row.kind,
            row.done or f"not done: {row.why_not}",
            _percent(row.before),
            _percent(row.after),
            str(row.bytes_before),
            str(row.bytes_after),
        )
        for row in report.rows
    ]
    sums = report.totals
    lines = [
        f"pass {report.name}",
        "",
        markdown_table((*heads, "bytes before", "bytes after"), rows),
        "",
        f"{sums.layers_done} layers done, {sums.layers_left} left; bytes {sums.bytes_before} -> "
        f"{sums.bytes_after} ({sums.bytes_before / max(sums.bytes_after, 1):.2f} times smaller)",
        f"size ratio {sums.size_ratio:.2f}   ({SIZE_FORMULA})",
        f"ops ratio {sums.ops_ratio:.1f}   ({OPS_FORMULA})",
    ]
    return "\n".join(lines)


def index_bits(m: int) -> float:
    """Bits for the position of a kept weight among m."""
    return math.log2(m)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.3%}"

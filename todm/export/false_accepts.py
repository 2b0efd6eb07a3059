"""False accepts in the card and the manifest of a bundle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from todm.export.measured import add_section
from todm.files import markdown_table

_HEAD = "## False accepts"
_SECTION = """\
{head}
How often per hour it outputs a word although nobody spoke to it: each kind of sound without a pause,
decoded greedily, with the 95 % interval. {sure}.

{table}

"""


def write_false_accepts(
    path: Path, results: Mapping[str, Mapping[str, Any]], *, sure: float
) -> None:
    """Put false accepts into the card and the manifest of a bundle, replacing earlier ones.

    Args:
        path: the bundle.
        results: by form, by kind of sound, the figures of `todm.device.false_accepts.FalseAccepts` as a dict.
        sure: the confidence from which a segment counts as sure.

    Raises:
        BundleError: the bundle is damaged.
    """
    figures = {form: dict(kinds) for form, kinds in results.items()}
    add_section(path, _HEAD, section(results, sure=sure), {"false_accepts": figures})


def section(results: Mapping[str, Mapping[str, Any]], *, sure: float) -> str:
    """The section of the card."""
    words = f"A segment is sure if every word in it has a confidence of at least {sure:g}"
    return _SECTION.format(head=_HEAD, sure=words, table=table(results))


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures in Markdown, one row for each form and kind of sound."""
    heads = ("", "kind", "minutes", "per hour", "95 % interval", "sure, per hour", "most frequent")
    rows = []
    for form, kinds in results.items():
        for kind, row in kinds.items():
            common = ", ".join(f"{text} ({count})" for text, count in row["common"])
            interval = f"{row['low']:.1f} to {row['high']:.1f}"
            sure = f"{60 * row['sure'] / row['minutes']:.1f}"
            rate = f"{row['per_hour']:.1f}"
            rows.append([form, kind, f"{row['minutes']:.1f}", rate, interval, sure, common])
    return markdown_table(heads, rows)

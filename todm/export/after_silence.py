"""What a bundle hears after a wait, in its card and manifest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from todm.export.measured import add_section
from todm.files import markdown_table

_HEAD = "## After silence"
_SECTION = """\
{head}
Test commands recognised exactly, after listening to a sound that goes on under the words (other speech
stops before them); the change is against the same with no wait, in points, with its 95 % interval.

{waits}

A command said again after a pause, against the first time:

{repeats}
{hour}
"""


def write_after_silence(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the figures of `todm.stages.measure_after_silence` into a bundle, replacing earlier ones.

    Raises:
        BundleError: the bundle is damaged.
    """
    hour = "".join(f"\n{line}" for line in hour_lines(results))
    text = _SECTION.format(
        head=_HEAD, waits=waits_table(results), repeats=repeats_table(results), hour=hour
    )
    figures = {form: dict(found) for form, found in results.items()}
    add_section(path, _HEAD, text, {"after_silence": figures})


def waits_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row for each form, sound and wait, in Markdown."""
    heads = (
        "",
        "sound",
        "wait",
        "commands",
        "right",
        "change",
        "95 % interval",
        "words in the wait",
    )
    rows = [
        [
            form,
            row["sound"],
            duration(row["seconds"]),
            str(found["commands"]),
            f"{row['right']:.1f} %",
            f"{row['points']:+.1f}",
            f"{row['low']:+.1f} to {row['high']:+.1f}",
            str(row["words"]),
        ]
        for form, found in results.items()
        for row in found["waits"]
    ]
    return markdown_table(heads, rows)


def repeats_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row for each form and pause, in Markdown."""
    heads = ("", "pause", "first", "again", "change", "95 % interval")
    rows = [
        [
            form,
            f"{row['pause']:g} s",
            f"{row['right'] - row['points']:.1f} %",
            f"{row['right']:.1f} %",
            f"{row['points']:+.1f}",
            f"{row['low']:+.1f} to {row['high']:+.1f}",
        ]
        for form, found in results.items()
        for row in found["repeats"]
    ]
    return markdown_table(heads, rows)


def hour_lines(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each form whose commands were measured in one long recording."""
    return [
        f"{form}: {row['right']:.1f} % right in one recording with pauses of 0.3 to 5 s, noise"
        f"{' and other speech' if row['other_speech'] else ''}, "
        f"{row['points']:+.1f} points [{row['low']:+.1f}, {row['high']:+.1f}] against one by one.\n"
        for form, found in results.items()
        if (row := found.get("hour"))
    ]


def duration(seconds: float) -> str:
    """Seconds, or minutes from one on: 10 s, 1 min, 60 min."""
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"

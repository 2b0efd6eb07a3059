"""Add false accepts to the card and the manifest of an existing bundle, all or nothing."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from todm import artifact
from todm.device.bundle import KIND, open_bundle
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
    open_bundle(path)
    old_bundle = artifact.load(path, kind=KIND)

    def write(folder: Path) -> None:
        for name in old_bundle.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / name, folder / name)
        readme = folder / "README.md"
        old = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        readme.write_text(with_section(old, section(results, sure=sure)), encoding="utf-8")

    artifact.save(
        path,
        kind=KIND,
        config=old_bundle.config,
        parent=old_bundle.parent,
        metrics={
            **old_bundle.metrics,
            "false_accepts": {form: dict(kinds) for form, kinds in results.items()},
        },
        info=old_bundle.info,
        write=write,
    )


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


def with_section(card: str, text: str) -> str:
    """A card with the section put before `Run it`, replacing an older one."""
    card = re.sub(rf"^{_HEAD}\n.*?(?=^## |\Z)", "", card, flags=re.MULTILINE | re.DOTALL)
    place = re.search(r"^## ", card, re.MULTILINE)
    at = place.start() if place else len(card)
    return card[:at] + text + card[at:]

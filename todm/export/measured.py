"""Add what was measured later to the card and the manifest of an existing bundle, all or nothing."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from todm import artifact
from todm.device.bundle import KIND, open_bundle


def add_section(
    path: Path,
    head: str,
    text: str,
    metrics: Mapping[str, Any],
    *,
    files: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Put a section into a bundle's card and figures into its manifest, replacing earlier ones.

    Args:
        path: the bundle.
        head: the section's heading, as in the card.
        text: the section, which begins with its heading.
        metrics: figures by name.
        files: what else belongs to the section: a name in the bundle, and what writes the file.

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
        readme.write_text(with_section(old, head, text), encoding="utf-8")
        for name, draw in (files or {}).items():
            draw(folder / name)

    artifact.save(
        path,
        kind=KIND,
        config=old_bundle.config,
        parent=old_bundle.parent,
        metrics={**old_bundle.metrics, **metrics},
        info=old_bundle.info,
        write=write,
    )


def with_section(card: str, head: str, text: str) -> str:
    """A card with the section put first, in place of an older one."""
    card = re.sub(rf"^{re.escape(head)}\n.*?(?=^## |\Z)", "", card, flags=re.MULTILINE | re.DOTALL)
    place = re.search(r"^## ", card, re.MULTILINE)
    at = place.start() if place else len(card)
    return card[:at] + text + card[at:]

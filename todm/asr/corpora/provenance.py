"""What went into a corpus or a training, with licences: engines, voices, noise, rooms, speech."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from todm.config import Config

NOT_STATED = "not stated"
_MOST = 5
"""Licences of folders within a folder that are listed."""
_PAGES = ("licence", "license", "copying", "notice", "readme")
_LICENCES = (
    (
        "CC BY-NC",
        ("cc by-nc", "cc-by-nc", "attribution-noncommercial", "attribution-non-commercial"),
    ),
    ("CC BY-SA", ("cc by-sa", "cc-by-sa", "attribution-sharealike")),
    ("GPL", ("gnu general public license",)),
    ("CC BY", ("cc by", "cc-by", "creative commons attribution")),
    ("Apache-2.0", ("apache license", "apache-2.0")),
    ("MIT", ("mit license", "permission is hereby granted, free of charge, to any person")),
    ("CC0", ("cc0",)),
    ("public domain", ("public domain",)),
)
"""Names by phrases of the text; the first that occurs wins, so the stricter stand before the freer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Config):
    """Something that went into a corpus or a training.

    Attributes:
        kind: what it is.
        name: of the engine, the voices, or the folder.
        licence: as found, or "not stated".
        detail: how much of it, or what for.
    """

    kind: Literal["engine", "voices", "noise", "room", "speech", "model"]
    name: str
    licence: str = NOT_STATED
    detail: str = ""


def of_folder(
    kind: Literal["noise", "room", "speech"], path: str | Path, detail: str = ""
) -> Source:
    """Recordings in a folder, or beside a file: the licence is what its licence page or README names."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    return Source(kind=kind, name=path.name, licence=licence_in(folder), detail=detail)


def licence_in(folder: Path) -> str:
    """The licence that a page in the folder names, by file; else those of the folders in it.

    A licence page that names none of the licences known here is quoted by its name.
    """
    own = _licence_here(folder)
    if own is not None:
        return own
    below = (_licence_here(inner) for inner in sorted(folder.iterdir()) if inner.is_dir())
    found = dict.fromkeys(licence for licence in below if licence is not None)
    return "; ".join(list(found)[:_MOST]) or NOT_STATED


def _licence_here(folder: Path) -> str | None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    pages = [page for start in _PAGES for page in files if page.name.lower().startswith(start)]
    for page in pages:
        text = page.read_text(encoding="utf-8", errors="replace").lower()
        named = next((n for n, phrases in _LICENCES if any(p in text for p in phrases)), None)
        if named:
            return f"{named} (by its {page.name})"
    own = [page for page in pages if not page.name.lower().startswith("readme")]
    return f"see its {own[0].name}" if own else None


def to_json(sources: Iterable[Source]) -> list[dict[str, Any]]:
    """As they stand in the `info` of an artifact, under `provenance`; each once."""
    return [source.to_json() for source in dict.fromkeys(sources)]


def from_info(info: dict[str, Any]) -> list[Source]:
    """Those that an artifact lists; none for artifacts of earlier versions."""
    return [Source.from_json(entry) for entry in info.get("provenance", [])]

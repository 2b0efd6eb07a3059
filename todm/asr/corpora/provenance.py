"""What went into a corpus or a training, with licences: engines, voices, noise, rooms, speech."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from todm.config import Config

NOT_STATED = "not stated"
_PAGES = ("licence", "license", "copying", "notice", "readme")
_LICENCES = (
    ("CC0", "cc0"),
    ("CC BY-SA", "cc by-sa"), ("CC BY-SA", "cc-by-sa"), ("CC BY-SA", "attribution-sharealike"),
    ("CC BY-NC", "cc by-nc"), ("CC BY-NC", "cc-by-nc"), ("CC BY-NC", "attribution-noncommercial"),
    ("CC BY", "cc by"), ("CC BY", "cc-by"), ("CC BY", "creative commons attribution"),
    ("Apache-2.0", "apache license"), ("Apache-2.0", "apache-2.0"),
    ("MIT", "mit license"), ("MIT", "permission is hereby granted, free of charge, to any person"),
    ("GPL", "gnu general public license"), ("public domain", "public domain"),
)  # fmt: skip
"""Names by a phrase of the text; the first that occurs wins, so the stricter stand before the freer."""


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
    """The licence that a page in the folder names, by file; "not stated" where none does.

    A page that names none of the licences known here is quoted by its name.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    pages = [page for start in _PAGES for page in files if page.name.lower().startswith(start)]
    for page in pages:
        text = page.read_text(encoding="utf-8", errors="replace").lower()
        named = next((name for name, phrase in _LICENCES if phrase in text), None)
        if named:
            return f"{named} (by its {page.name})"
    own = [page for page in pages if not page.name.lower().startswith("readme")]
    return f"see its {own[0].name}" if own else NOT_STATED


def to_json(sources: Iterable[Source]) -> list[dict[str, Any]]:
    """As they stand in the `info` of an artifact, under `provenance`; each once."""
    return [source.to_json() for source in dict.fromkeys(sources)]


def from_info(info: dict[str, Any]) -> list[Source]:
    """Those that an artifact lists; none for artifacts of earlier versions."""
    return [Source.from_json(entry) for entry in info.get("provenance", [])]

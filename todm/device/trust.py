"""Checks of a bundle's folder and manifest: a bundle comes from a stranger.

A folder holds regular files with plain names, all listed in the manifest, no links and no deep nesting.
Of the manifest, the values that this package relies on are checked. Hidden files (.DS_Store, .git) are
skipped: nothing reads them. `todm.artifact` compares sizes and hashes with the manifest.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from todm import artifact
from todm.errors import BundleError

_NAME = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}"
)  # no character with a meaning for a terminal or a page
_MOST_FILES, _DEPTH = 1000, 4
_MOST_SECONDS = 100.0  # a chunk is a minute at most
_TABLES = ("subnet", "compressed")
_SECONDS = ("tail_seconds", "chunk_seconds", "endpoint_seconds")


def check_folder(path: Path) -> frozenset[str]:
    """Check all entries of a bundle's folder before any file is read.

    Returns:
        The visible files, relative to the folder and with slashes.

    Raises:
        BundleError: a link, a special file, a strange name, or too many entries.
    """
    files, folders = set[str](), [(path, "", 0)]
    while folders:
        folder, prefix, depth = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = prefix + entry.name
                if _is_folder(entry, name, path):
                    folders.append((folder / entry.name, f"{name}/", depth + 1))
                else:
                    files.add(name)
                if depth == _DEPTH or len(files) + len(folders) > _MOST_FILES:
                    raise BundleError(
                        f"{path} holds more files or folders than any bundle: not read"
                    )
    return frozenset(files)


def _is_folder(entry: "os.DirEntry[str]", name: str, path: Path) -> bool:
    """Whether this is a folder; anything other than a folder or a regular file is refused."""
    if not _NAME.fullmatch(entry.name):
        raise BundleError(f"{path} holds a file with a strange name ({name!r}): not read")
    if entry.is_symlink():
        raise BundleError(
            f"{path} holds a link ({name}), which can lead to a file outside itself: "
            "replace the link by the file"
        )
    if entry.is_dir(follow_symlinks=False):
        return True
    if not entry.is_file(follow_symlinks=False):
        raise BundleError(f"{path} holds {name}, which is neither a file nor a folder: not read")
    return False


def check_listed(path: Path, present: frozenset[str], listed: frozenset[str]) -> None:
    """Refuse files that the manifest does not list, and listed names that are not in the folder.

    Raises:
        BundleError: a file is not in the manifest, or only under another spelling.
    """
    if strange := sorted(listed - present):
        raise BundleError(f"{path} lists a file with a strange name ({strange[0]!r}): not read")
    if extra := sorted(present - listed - {artifact.MANIFEST}):
        raise BundleError(
            f"{path} holds {extra[0]}, which its manifest does not list: remove it, or get the bundle again"
        )


def check_info(path: Path, info: Mapping[str, Any]) -> None:
    """Check the values of the manifest that are relied on.

    Raises:
        BundleError: a value of the wrong type or size.
    """
    for name in _SECONDS:
        seconds = info.get(name, 1.0)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise _damaged(path, name)
        if not 0 <= seconds <= _MOST_SECONDS:  # false for NaN too
            raise _damaged(path, name)
    threshold = info.get("decision_threshold", 0.0)
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not is_number or not 0 <= threshold <= 1:
        raise _damaged(path, "decision_threshold")
    if not all(isinstance(info.get(name, {}), dict) for name in _TABLES):
        raise _damaged(path, " or ".join(_TABLES))
    if not isinstance(info.get("target", ""), str):
        raise _damaged(path, "target")


def _damaged(path: Path, name: str) -> BundleError:
    return BundleError(
        f"{path}/{artifact.MANIFEST} is damaged (its {name} is not what a bundle has): "
        "export the bundle again"
    )

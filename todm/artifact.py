"""Artifacts: the directories that stages read and write. No other module writes weights.

`manifest.json` holds the kind, format version, full config, parent's hash, metrics, versions and
seed, and the size and SHA-256 of every other file. Weights are safetensors; no pickle is ever read.
A directory is written beside its final place, synced and renamed, so an incomplete one is never taken
for an artifact. Imports no torch at module level.
"""

import dataclasses
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from todm.errors import ArtifactError
from todm.files import sync_directory, sync_file

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
_FIELDS = {
    "kind": str,
    "format_version": int,
    "config": dict,
    "parent": str | None,
    "metrics": dict,
    "info": dict,
    "versions": dict,
    "files": dict,
}
_LONGEST_MANIFEST = 1 << 24
_KIND = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TRACKED = ("todm", "torch", "numpy", "onnxruntime", "sherpa-onnx", "lhotse")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    """A verified artifact on disk; `files` are the names in its manifest."""

    path: Path
    kind: str
    config: dict[str, Any]
    metrics: dict[str, Any]
    parent: str | None
    info: dict[str, Any]
    hash: str
    files: frozenset[str] = frozenset()

    def file(self, name: str) -> Path:
        """The path of one of its files.

        Raises:
            ArtifactError: no such file.
        """
        path = self.path / name
        if not path.is_file():
            raise ArtifactError(
                f"{self.path} has no file {name!r}: remove it and run the command that makes it again"
            )
        return path

    def tensors(self) -> "dict[str, torch.Tensor]":
        """The weights, on the CPU.

        Raises:
            ArtifactError: the weights cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

        try:
            return load_file(self.file(WEIGHTS))
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtifactError(f"{self.path}/{WEIGHTS} cannot be read: {error}") from None


def save(
    path: str | Path,
    *,
    kind: str,
    config: Mapping[str, Any],
    parent: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    tensors: "Mapping[str, torch.Tensor] | None" = None,
    write: Callable[[Path], None] | None = None,
) -> Artifact:
    """Write an artifact atomically; an artifact already at `path` is replaced.

    Args:
        path: the directory to make.
        kind: corpus, supernet, subnet, bundle ...
        config: the full configuration, as JSON types.
        parent: `Artifact.hash` of the artifact this was made from.
        metrics: measured figures.
        info: anything else a later stage needs (a subnet's choice, a seed).
        tensors: weights, written as safetensors.
        write: called with the temporary directory, to add further files.

    Raises:
        ArtifactError: `path` exists and is not an artifact.
    """
    path = Path(path)
    _refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _tidy(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        if tensors is not None:
            # Not its save_file, which raises no OSError on a full disk.
            from safetensors.torch import save as serialise

            weights = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            (temporary / WEIGHTS).write_bytes(serialise(weights))
        if write is not None:
            write(temporary)
        manifest = {
            "kind": kind,
            "format_version": FORMAT_VERSION,
            "config": config,
            "parent": parent,
            "metrics": metrics or {},
            "info": info or {},
            "versions": _versions(),
            "files": {p.relative_to(temporary).as_posix(): _entry(p) for p in _files(temporary)},
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for file in _files(temporary):
            sync_file(file)
        _swap(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load(path, kind=kind)


def load(path: str | Path, *, kind: str | tuple[str, ...] | None = None) -> Artifact:
    """Read and verify an artifact.

    Raises:
        ArtifactError: not an artifact, of another kind or version, or a file is missing or changed.
    """
    path = Path(path)
    _tidy(path)
    text, manifest = _read_manifest(path)
    kinds = (kind,) if isinstance(kind, str) else kind
    if kinds is not None and manifest["kind"] not in kinds:
        raise ArtifactError(
            f"{path} is a {manifest['kind']}, and a {' or '.join(kinds)} is needed here"
        )
    for name, entry in manifest["files"].items():
        _check(path, name, entry)
    return Artifact(
        path=path,
        kind=manifest["kind"],
        config=manifest["config"],
        metrics=manifest["metrics"],
        parent=manifest["parent"],
        info=manifest["info"],
        hash=hashlib.sha256(text.encode()).hexdigest(),
        files=frozenset(manifest["files"]),
    )


def existing(path: str | Path, *, kind: str | tuple[str, ...]) -> Artifact | None:
    """What `load` gives, or None where there is no artifact and `save` may make one.

    Raises:
        ArtifactError: as by `load`, or there is something that `save` would refuse to replace.
    """
    _refuse_foreign(Path(path))
    return load(path, kind=kind) if (Path(path) / MANIFEST).is_file() else None


def _refuse_foreign(path: Path) -> None:
    """Raise ArtifactError for a place that holds something, but no artifact."""
    if (
        path.exists()
        and not (path / MANIFEST).is_file()
        and (path.is_file() or any(path.iterdir()))
    ):
        raise ArtifactError(
            f"{path} exists and is not an artifact: choose another place or remove it"
        )


def _read_manifest(path: Path) -> tuple[str, dict[str, Any]]:
    """The manifest as text and as a table with all its fields."""
    damaged = ArtifactError(
        f"{path}/{MANIFEST} is damaged: remove it and run the command that makes it again"
    )
    try:
        if (path / MANIFEST).stat().st_size > _LONGEST_MANIFEST:
            raise damaged
        text = (path / MANIFEST).read_text(encoding="utf-8")
        manifest: Any = json.loads(text)
    except OSError:
        raise ArtifactError(f"{path} is not an artifact: it has no {MANIFEST}") from None
    except (RecursionError, ValueError):  # brackets in brackets in brackets ...
        raise damaged from None
    if not isinstance(manifest, dict):
        raise damaged
    fields = cast("dict[str, Any]", manifest)
    if not all(isinstance(fields.get(name), kind) for name, kind in _FIELDS.items()):
        raise damaged
    if isinstance(fields["format_version"], bool) or not _KIND.fullmatch(fields["kind"]):
        raise damaged
    if fields["format_version"] != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format {fields['format_version']}, this version of todm reads {FORMAT_VERSION}"
        )
    if not all(_is_entry(entry) for entry in fields["files"].values()):
        raise damaged
    return text, fields


def _is_entry(entry: object) -> bool:
    """Whether this is the size and the SHA-256 of a file."""
    if not isinstance(entry, dict):
        return False
    found = cast("dict[str, Any]", entry)
    size, digest = found.get("bytes"), found.get("sha256")
    if not isinstance(size, int) or isinstance(size, bool) or not isinstance(digest, str):
        return False
    return size >= 0 and _SHA256.fullmatch(digest) is not None


def _check(root: Path, name: str, entry: Mapping[str, Any]) -> None:
    file = root / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not name.isprintable():
        raise ArtifactError(f"{root} names a file outside itself ({name!r}): do not trust it")
    if not file.is_file():
        raise ArtifactError(
            f"{root} is incomplete: {name} is missing; remove it and run the command that makes it again"
        )
    if file.stat().st_size != entry["bytes"] or _hash(file) != entry["sha256"]:
        raise ArtifactError(
            f"{root} is damaged: {name} does not match its manifest; remove it and run the command "
            "that makes it again"
        )


def _files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


def _entry(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": _hash(file)}


def _hash(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _swap(temporary: Path, path: Path) -> None:
    """Replace `path` by `temporary`; `_tidy` repairs a crash in between.

    If the disk has no room for the new name, the old artifact is put back.
    """
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    sync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _tidy(path: Path) -> None:
    """Repair what a killed writer left: an incomplete copy, or the old artifact under another name."""
    for left in path.parent.glob(f".{path.name}.*"):
        pid, _, suffix = left.name.removeprefix(f".{path.name}.").partition(".")
        if not pid.isdigit() or suffix not in ("tmp", "old") or _alive(int(pid)):
            continue
        if suffix == "old" and not path.exists():
            left.rename(path)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _TRACKED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

"""Supernet -> the table of a device: how fast its subnets are, here or anywhere."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm.files import Progress, no_progress

if TYPE_CHECKING:
    from todm.search.devices import Devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profiled:
    """A device's table: where it lies, and what it holds."""

    path: Path
    table: dict[str, Any]


def profile(
    supernet: str | Path, *, rounds: int = 20, progress: Progress = no_progress
) -> Profiled:
    """Measure the subnets of a supernet on this machine, for budgets `@local`.

    Args:
        supernet: what  todm train  wrote.
        rounds: turns of every graph.
        progress: called with (what, done, all).

    Raises:
        TodmError: something given cannot be used; the message says what to do.
    """
    from todm.asr.loading import check_numbers

    check_numbers(rounds=rounds)
    path, table = _devices(supernet, progress).profile(rounds=rounds)
    return Profiled(path=path, table=table)


def write_pack(supernet: str | Path, *, pack: str | Path, progress: Progress = no_progress) -> Path:
    """Write a folder that measures any device: graphs without weights, and one program.

        >>> folder = stages.write_pack(run / "supernet", pack=run / "pack")
        >>> (folder / "measure.py").is_file()
        True

    Args:
        supernet: what  todm train  wrote.
        pack: the folder.
        progress: called with (what, done, all).
    """
    from todm.export.profile_pack import design

    devices = _devices(supernet, progress)
    devices.profile_builder().write_pack(
        Path(pack),
        design(devices.space),
        progress=lambda done, total: progress("graphs of the pack", done, total),
    )
    return Path(pack)


def keep_table(supernet: str | Path, *, table: str | Path, name: str | None = None) -> Path:
    """Keep the table that a pack measured on a device, for budgets `@NAME`; returns where it lies.

    Args:
        supernet: what the pack was written for.
        table: the file.
        name: of the device in budgets; the table's own by default.

    Raises:
        TodmError: the table cannot be used; the message says what to do.
    """
    return _devices(supernet, no_progress).keep(Path(table), name)


def _devices(supernet: str | Path, progress: Progress) -> "Devices":
    from todm import artifact
    from todm.asr.loading import backend_of
    from todm.search.devices import Devices

    found = artifact.load(supernet, kind="supernet")
    return Devices(backend_of(found, with_data=False), progress)

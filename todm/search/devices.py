"""Devices of budgets: where their tables lie, this machine's own, and what a choice costs on them.

Tables are kept in `TODM_HOME` (by default ~/.cache/todm), under devices/KEY/NAME.json, with KEY naming
the search space; the pieces that graphs are put together of lie beside them.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm.errors import ConfigError, TodmError
from todm.files import Progress

if TYPE_CHECKING:
    from todm.backend import Backend
    from todm.export.profile_pack import ProfileBuilder
    from todm.search.cost import Prices
    from todm.search.latency import LatencyModel
    from todm.supernet.space import SearchSpace

LOCAL = "local"


def home() -> Path:
    """The folder of everything that is kept between commands."""
    given = os.environ.get("TODM_HOME")
    return Path(given) if given else Path.home() / ".cache" / "todm"


class Devices:
    """The tables of one supernet's search space."""

    def __init__(self, backend: "Backend", report: Progress) -> None:
        """Name the search space; nothing is measured yet."""
        from todm.search.latency import space_key

        self._backend, self._report = backend, report
        self.key = space_key(backend.space_key())
        self._tables: dict[str, dict[str, Any]] = {}
        self._workshop: ProfileBuilder | None = None

    @property
    def space(self) -> "SearchSpace":
        """The subnets."""
        return self._backend.space

    @property
    def folder(self) -> Path:
        """Where the tables of this space lie."""
        return home() / "devices" / self.key

    @property
    def _pieces(self) -> Path:
        return self.folder / "pieces"

    @property
    def tables(self) -> Mapping[str, dict[str, Any]]:
        """Those that were asked for so far, by the name in the budget."""
        return self._tables

    def table(self, name: str) -> dict[str, Any]:
        """The table of a device; `local` is measured if it was not, or on another machine.

        Raises:
            ConfigError: no such table, or it cannot be used.
        """
        if name not in self._tables:
            self._tables[name] = self._local() if name == LOCAL else self._named(name)
        return self._tables[name]

    def models(self, names: Iterable[str]) -> "dict[str, LatencyModel]":
        """Latency models by the names in budgets."""
        from todm.search.latency import LatencyModel

        return {name: LatencyModel(self.table(name), self._backend.space) for name in names}

    def prices(self, names: Iterable[str]) -> "Prices":
        """All costs of a choice, on these devices."""
        from todm.search.cost import Prices, StackCosts, sizes

        backend = self._backend
        stack = StackCosts(
            lambda subnet: {
                **sizes(lambda: backend.deployed(subnet)),
                **backend.work_and_state(subnet),
            }
        )
        return Prices(stack, self.models(names))

    def profile_builder(self) -> "ProfileBuilder":
        """Makes graphs of any subnet; its pieces are exported once."""
        from todm.export.profile_pack import ProfileBuilder

        if self._workshop is None:
            self._report("exporting the pieces of the search space", 0, 1)
            self._workshop = ProfileBuilder(
                self._backend.graph_parts(),
                self.key,
                chunk_seconds=self._backend.chunk_seconds,
                frames=self._backend.chunk_frames,
                cache=self._pieces,
            )
            self._report("exporting the pieces of the search space", 1, 1)
        return self._workshop

    def measure(self, subnets: "list[Any]", *, rounds: int, name: str = LOCAL) -> dict[str, Any]:
        """The table of these subnets on this machine."""
        from todm.device.profiler import ProfileError, measure

        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "pack"
            self.profile_builder().write_pack(folder, subnets)
            try:
                return measure(
                    folder,
                    name,
                    rounds=rounds,
                    progress=lambda done, total: self._report(
                        "measuring this machine", done, total
                    ),
                )
            except ProfileError as error:
                raise TodmError(str(error)) from None

    def profile(self, *, rounds: int = 20) -> tuple[Path, dict[str, Any]]:
        """Measure this machine and keep the table; returns where, and the table."""
        from todm.device.profiler import write_table
        from todm.export.profile_pack import design

        table = self.measure(design(self._backend.space), rounds=rounds)
        path = self.folder / f"{LOCAL}.json"
        write_table(path, table)
        self._tables[LOCAL] = table
        return path, table

    def bring(self, path: Path, name: str | None) -> Path:
        """Keep a table that was measured elsewhere; returns where.

        Raises:
            ConfigError: it cannot be used, or its name is not one.
        """
        from todm.device.profiler import write_table
        from todm.search.latency import read_table

        table = read_table(path, self.key)
        name = str(name or table["name"])
        if name == LOCAL or not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(
                f"a device cannot be called {name!r}: give  --name  with letters, digits, - and _"
            )
        kept = self.folder / f"{name}.json"
        write_table(kept, table)
        return kept

    def _named(self, name: str) -> dict[str, Any]:
        from todm.search.latency import read_table

        path = Path(name)
        if not ("/" in name or path.suffix == ".json"):
            path = self.folder / f"{name}.json"
            if not path.is_file():
                known = sorted(p.stem for p in self.folder.glob("*.json"))
                raise ConfigError(
                    f"no device {name!r} is known for this search space (known: "
                    f"{', '.join(dict.fromkeys([LOCAL, *known]))}): measure it with  todm profile "
                    "SUPERNET --pack DIR , then  todm profile SUPERNET --import TABLE"
                )
        return read_table(path, self.key)

    def _local(self) -> dict[str, Any]:
        """This machine's table: kept, unless it is damaged, another machine's or of older graphs."""
        from todm.device.profiler import machine
        from todm.export.profile_pack import is_fresh, stamp_of
        from todm.search.latency import read_table

        try:
            table = read_table(self.folder / f"{LOCAL}.json", self.key)
            fresh = is_fresh(self._pieces, stamp_of(self._backend.graph_parts()))
            if fresh and table["machine"] == machine():
                return table
        except ConfigError:
            pass  # measured anew
        return self.profile()[1]

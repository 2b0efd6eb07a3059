"""Devices of budgets: where their tables lie, this machine's own, and what a choice costs on them.

Tables are kept in `TODM_HOME` (by default ~/.cache/todm), under devices/KEY/NAME.json, with KEY naming
the search space; the exported pieces of its graphs lie beside them.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from todm.backend import Backend
from todm.device import profiler
from todm.errors import ConfigError, TodmError
from todm.export.profile_pack import ProfileBuilder, design, is_fresh, stamp_of
from todm.files import Progress
from todm.search.budget import Budget
from todm.search.choice import Choice, Compression
from todm.search.cost import Prices, StackCosts, sizes
from todm.search.latency import LatencyModel, read_table
from todm.search.problem import Problem
from todm.supernet.space import SearchSpace, Subnet

LOCAL = "local"


def home() -> Path:
    """The folder of everything that is kept between commands."""
    given = os.environ.get("TODM_HOME")
    return Path(given) if given else Path.home() / ".cache" / "todm"


class Devices:
    """The tables of one supernet's search space."""

    def __init__(self, backend: Backend, progress: Progress) -> None:
        """Name the search space; nothing is measured yet."""
        self._backend, self._progress = backend, progress
        space = json.dumps(backend.space_key(), sort_keys=True)
        self.key = hashlib.sha256(space.encode()).hexdigest()[:16]
        self._tables: dict[str, dict[str, Any]] = {}
        self._builder: ProfileBuilder | None = None

    @property
    def space(self) -> SearchSpace:
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
        """Those that were needed so far, by the name in the budget."""
        return self._tables

    def table(self, name: str) -> dict[str, Any]:
        """The table of a device; `local` is measured unless this machine's table is kept.

        Raises:
            ConfigError: no such table, or it cannot be used.
        """
        if name not in self._tables:
            self._tables[name] = self._local() if name == LOCAL else self._named(name)
        return self._tables[name]

    def prices(self, names: Iterable[str]) -> Prices:
        """All costs of a choice, on these devices."""
        backend = self._backend
        stack = StackCosts(
            lambda subnet: {
                **sizes(lambda: backend.deployed(subnet)),
                **backend.work_and_state(subnet),
            }
        )
        models = {name: LatencyModel(self.table(name), self.space) for name in names}
        return Prices(stack, models)

    def problems(
        self, budgets: Sequence[Budget], compressions: Sequence[Compression]
    ) -> list[Problem]:
        """A search problem for every budget, with the costs of all devices they name."""
        prices = self.prices(dict.fromkeys(name for b in budgets for name in b.devices))
        return [Problem(self.space, budget, compressions, prices) for budget in budgets]

    def profile_builder(self) -> ProfileBuilder:
        """Makes graphs of any subnet; their pieces are exported once."""
        if self._builder is None:
            what = "exporting the pieces of the search space"
            self._progress(what, 0, 1)
            self._builder = ProfileBuilder(
                self._backend.graph_parts(),
                self.key,
                chunk_seconds=self._backend.chunk_seconds,
                frames=self._backend.chunk_frames,
                cache=self._pieces,
            )
            self._progress(what, 1, 1)
        return self._builder

    def measure(
        self, subnets: Sequence[Subnet], *, rounds: int, name: str = LOCAL
    ) -> dict[str, Any]:
        """The table of these subnets on this machine."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "pack"
            self.profile_builder().write_pack(folder, subnets)
            try:
                return profiler.measure(
                    folder,
                    name,
                    rounds=rounds,
                    progress=lambda done, total: self._progress(
                        "measuring this machine", done, total
                    ),
                )
            except profiler.ProfileError as error:
                raise TodmError(str(error)) from None

    def measured(self, choice: Choice, budget: Budget) -> dict[str, float]:
        """The costs in a budget that can be measured here: bytes of the graphs, and time on this machine."""
        found: dict[str, float] = {}
        precision = "fp32" if choice.compression == "none" else choice.compression
        if "size" in budget.limits:
            found["size"] = float(self.profile_builder().num_bytes(choice.subnet, precision))
        if LOCAL in budget.devices:
            table = self.measure([choice.subnet], rounds=20)
            (entry,) = (e for e in table["entries"] if e["precision"] == precision)
            seconds = (entry["ms"] + table["search_ms"][precision]) / 1e3
            features = (table["features_ms"] or 0.0) / 1e3
            found[f"latency@{LOCAL}"] = seconds
            found[f"rtf@{LOCAL}"] = (seconds + features) / table["chunk_seconds"]
        return found

    def profile(self, *, rounds: int = 20) -> tuple[Path, dict[str, Any]]:
        """Measure this machine and keep the table; returns where, and the table."""
        table = self.measure(design(self.space), rounds=rounds)
        path = self.folder / f"{LOCAL}.json"
        profiler.write_table(path, table)
        self._tables[LOCAL] = table
        return path, table

    def keep(self, path: Path, name: str | None) -> Path:
        """Keep a table that was measured elsewhere; returns where.

        Raises:
            ConfigError: it cannot be used, or its name is not one.
        """
        table = read_table(path, self.key)
        name = str(name or table["name"])
        if name == LOCAL or not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(
                f"a device cannot be called {name!r}: give  --name  with letters, digits, - and _"
            )
        kept = self.folder / f"{name}.json"
        profiler.write_table(kept, table)
        return kept

    def _named(self, name: str) -> dict[str, Any]:
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
        """This machine's kept table; measured if missing, damaged, another machine's or of older graphs."""
        try:
            table = read_table(self.folder / f"{LOCAL}.json", self.key)
            fresh = is_fresh(self._pieces, stamp_of(self._backend.graph_parts()))
            if fresh and table["machine"] == profiler.machine():
                return table
        except ConfigError:
            pass  # measured anew
        return self.profile()[1]

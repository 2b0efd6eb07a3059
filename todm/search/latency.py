"""Latency of any subnet on a device, from the table that was measured there.

A chunk costs the encoder, a constant plus a share for each width of each block,
    seconds = r + sum over blocks b, widths w:  c[w, width of w in b]
and the decoding of its frames, which is the same for all subnets. The shares are fitted to the whole
encoders of the table, so a block costs what it costs inside a net.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from todm.device import profiler
from todm.errors import ConfigError
from todm.search.choice import Choice, Compression
from todm.supernet.space import SearchSpace, Subnet

_RIDGE = 1e-6
_REFITS = 5
_NEGLIGIBLE = 0.005  # relative error
_FIELDS = {
    "name": str,
    "space": str,
    "chunk_seconds": float,
    "machine": dict,
    "entries": list,
    "search_ms": dict,
    "operators_ms": dict,
}
# A table has the times of onnxruntime's own int8 kernels, and none of 4 bits.
_PRECISION: Mapping[Compression, str] = {"none": "fp32", "int8": "int8"}


class BlockModel:
    """The fitted sum at the head of this file, for one precision."""

    def __init__(
        self, space: SearchSpace, subnets: Sequence[Subnet], seconds: Sequence[float]
    ) -> None:
        """Fit by least squares of relative errors, with less weight on disturbed measurements.

        Args:
            space: has the widths.
            subnets: the measured ones.
            seconds: their times.
        """
        widths = [(name, w) for name, values in space.config.widths.items() for w in values]
        self._column = {pair: i + 1 for i, pair in enumerate(widths)}
        rows = np.array([self._row(subnet) for subnet in subnets])
        scaled = rows / np.array(seconds)[:, None]
        self._shares = _solve(scaled, np.ones(len(rows)))
        for _ in range(_REFITS):
            self._shares = _solve(scaled, _weights(scaled @ self._shares - 1))

    def __call__(self, subnet: Subnet) -> float:
        """Seconds of the encoder for a chunk."""
        return float(self._row(subnet) @ self._shares)

    def _row(self, subnet: Subnet) -> np.ndarray:
        row = np.zeros(len(self._column) + 1)
        row[0] = 1.0
        for name, values in subnet.widths:
            for width in values:
                row[self._column[name, width]] += 1.0
        return row


def _solve(scaled: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Shares with which the scaled rows give ones.

    A constant can move between the shares of two widths of a block without any change: hence the ridge.
    """
    weighted = scaled * weights[:, None]
    gram = scaled.T @ weighted
    gram += _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    return np.linalg.solve(gram, weighted.sum(0))


def _weights(errors: np.ndarray) -> np.ndarray:
    """Huber's: one up to twice the median error, then falling as its inverse."""
    size = np.abs(errors)
    limit = max(2 * float(np.median(size)), _NEGLIGIBLE)
    return np.minimum(1.0, limit / np.maximum(size, limit))


class LatencyModel:
    """A device: seconds of a chunk and real-time factor of any choice."""

    def __init__(self, table: Mapping[str, Any], space: SearchSpace) -> None:
        """Fit a verified table, see `read_table`."""
        self.table = table
        self._search = {k: v / 1e3 for k, v in table["search_ms"].items()}
        self._features = (table.get("features_ms") or 0.0) / 1e3
        self._encoder: dict[str, BlockModel] = {}
        for precision in self._search:
            entries = [e for e in table["entries"] if e["precision"] == precision]
            subnets = [Subnet.from_json(e["subnet"]) for e in entries]
            times = [e["ms"] / 1e3 for e in entries]
            self._encoder[precision] = BlockModel(space, subnets, times)

    def encoder(self, choice: Choice) -> float:
        """Seconds of the encoder for a chunk.

        Raises:
            ConfigError: nothing was measured in that compression.
        """
        precision = _PRECISION.get(choice.compression)
        if precision not in self._encoder:
            raise ConfigError(
                f"the table of {self.table['name']} has no times of {choice.compression}: it has "
                f"{', '.join(self._encoder)}; leave {choice.compression} out of --compression"
            )
        return self._encoder[precision](choice.subnet)

    def latency(self, choice: Choice) -> float:
        """Seconds from the last frame of a chunk to its symbols: encoder and greedy decoding."""
        return self.encoder(choice) + self._search[_PRECISION[choice.compression]]

    def rtf(self, choice: Choice) -> float:
        """Seconds of computing per second of audio, features included where they were measured."""
        return (self.latency(choice) + self._features) / self.table["chunk_seconds"]


def read_table(path: Path, key: str) -> dict[str, Any]:
    """A device's table, checked.

    Args:
        path: the JSON that the profiler wrote.
        key: of the search space, see `todm.search.devices.Devices`.

    Raises:
        ConfigError: it is missing, damaged, not a device's table, or of another search space.
    """
    try:
        table: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"{path} cannot be read: is this the table of a device?") from None
    except ValueError:
        raise ConfigError(f"{path} is damaged: measure the device again") from None
    if not isinstance(table, dict) or table.get("kind") != profiler.KIND:
        raise ConfigError(f"{path} is not the table of a device: give what measure.py wrote")
    if table.get("format_version") != profiler.FORMAT_VERSION:
        raise ConfigError(
            f"{path} has format {table.get('format_version')}, this todm reads {profiler.FORMAT_VERSION}: "
            "measure the device with a new pack"
        )
    whole = all(isinstance(table.get(name), kind) for name, kind in _FIELDS.items())
    if not whole or table.get("sha256") != profiler.checksum(table) or not _has_entries(table):
        raise ConfigError(f"{path} is damaged: measure the device again")
    if table["space"] != key:
        raise ConfigError(
            f"{path} was measured for another search space or chunk than this supernet's: make a pack "
            "with  todm profile SUPERNET --pack DIR  and measure the device again"
        )
    return table


def _has_entries(table: Mapping[str, Any]) -> bool:
    """Whether every precision has subnets with positive times."""
    try:
        for entry in table["entries"]:
            Subnet.from_json(entry["subnet"])
        times = [float(entry["ms"]) for entry in table["entries"]]
        times += [float(value) for value in table["search_ms"].values()]
        measured = {entry["precision"] for entry in table["entries"]}
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    return measured == set(table["search_ms"]) and bool(times) and min(times) > 0

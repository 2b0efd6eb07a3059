"""Budgets: `2M`, `size=3MiB`, `latency=20ms@pi5`, or several joined by commas, all of which must hold.

A cost goes by its name, and one that depends on the device by name and device: `latency@pi5`.
"""

import dataclasses
import re
from collections.abc import Mapping

from todm.errors import BudgetError

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_KINDS = {
    "params": _UNITS,
    "size": _BYTES,
    "macs": _UNITS,
    "memory": _BYTES,
    "latency": _SECONDS,
    "rtf": {"": 1.0},
}
ON_DEVICE = ("latency", "rtf")
_COMPRESSED = ("size", "memory", "latency", "rtf")
"""Costs that a compression changes: a budget that limits one of them may be met in int8."""
_HELP = (
    "write  2M  or  params=2M  (parameters),  size=3MiB  (weights on disk),  macs=400M  (per second of "
    "audio),  memory=40MiB  (peak while decoding),  latency=20ms@DEVICE  (a chunk, streaming),  "
    "rtf=0.1@DEVICE,  joined by commas"
)


@dataclasses.dataclass(frozen=True)
class Budget:
    """Upper limits by cost: parameters, bytes, multiplications a second, seconds, shares."""

    limits: Mapping[str, float]
    text: str

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that it names."""
        named = (name.partition("@")[2] for name in self.limits if "@" in name)
        return tuple(dict.fromkeys(named))

    @property
    def compressions(self) -> str:
        """Those worth trying for this budget, as `--compression` takes them."""
        kinds = {name.partition("@")[0] for name in self.limits}
        return "none,int8" if kinds.intersection(_COMPRESSED) else "none"

    def holds(self, costs: Mapping[str, float]) -> bool:
        """Whether every limit is kept."""
        return all(costs[name] <= limit for name, limit in self.limits.items())

    def use(self, costs: Mapping[str, float]) -> float:
        """The share of the tightest limit that is used; above 1 where one is broken."""
        return max(costs[name] / limit for name, limit in self.limits.items())


def parse(text: str) -> Budget:
    """Read a budget.

    Raises:
        BudgetError: an unknown constraint, unit or number, or a device that is missing.
    """
    limits: dict[str, float] = {}
    for item in text.split(","):
        name, sep, value = item.strip().rpartition("=")
        name = name.strip() if sep else "params"
        if name not in _KINDS:
            raise BudgetError(f"budget {text!r}: {name!r} is not a constraint; {_HELP}")
        value, at, device = (part.strip() for part in value.partition("@"))
        if (name in ON_DEVICE) != bool(at and device):
            need = (
                "needs a device after @, such as @local" if name in ON_DEVICE else "has no device"
            )
            raise BudgetError(f"budget {text!r}: {name} {need}; {_HELP}")
        full = f"{name}@{device}" if device else name
        if full in limits:
            raise BudgetError(f"budget {text!r} limits {full} twice; {_HELP}")
        limits[full] = _number(value, _KINDS[name], text)
    return Budget(limits=limits, text=text)


def describe(costs: Mapping[str, float]) -> str:
    """Costs in words."""
    return ", ".join(quantity(name, value) for name, value in costs.items())


def quantity(name: str, value: float) -> str:
    """One cost in words, with its unit."""
    kind, _, device = name.partition("@")
    if kind == "params":
        return f"{value / 1e6:.3f}M parameters"
    if kind == "macs":
        return f"{value / 1e6:.1f}M MACs a second"
    if kind == "latency":
        return f"{value * 1e3:.3g} ms a chunk on {device}"
    if kind == "rtf":
        return f"RTF {value:.3g} on {device}"
    what = {"size": "of weights", "memory": "of memory", "state": "of state"}[kind]
    return f"{value / 2**20:.2f} MiB {what}"


def _number(value: str, units: Mapping[str, float], text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", value.lower())
    if match is None or match[2] not in units or float(match[1]) == 0:
        names = ", ".join(filter(None, units)) or "none"
        raise BudgetError(f"budget {text!r}: {value!r} is not a size (units: {names}); {_HELP}")
    return float(match[1]) * units[match[2]]

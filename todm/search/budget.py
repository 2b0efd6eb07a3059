"""Budgets: `2M`, `params=2M`, `size=3MiB`, or several of them joined by commas, all of which must hold."""

import dataclasses
import re
from collections.abc import Mapping

from todm.errors import BudgetError

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_HELP = "write  2M  or  params=2M  (parameters),  size=3MiB  (weights on disk), joined by commas"


@dataclasses.dataclass(frozen=True)
class Budget:
    """Upper limits by cost name: `params` in parameters, `size` in bytes."""

    limits: Mapping[str, float]
    text: str

    def holds(self, costs: Mapping[str, float]) -> bool:
        """Whether every limit is kept."""
        return all(costs[name] <= limit for name, limit in self.limits.items())

    def use(self, costs: Mapping[str, float]) -> float:
        """The share of the tightest limit that is used; above 1 where one is broken."""
        return max(costs[name] / limit for name, limit in self.limits.items())


def parse(text: str) -> Budget:
    """Read a budget.

    Raises:
        BudgetError: an unknown constraint, unit or number.
    """
    limits: dict[str, float] = {}
    for item in text.split(","):
        name, sep, value = item.strip().rpartition("=")
        name = name.strip() if sep else "params"
        if name not in ("params", "size"):
            raise BudgetError(f"budget {text!r}: {name!r} is not a constraint known here; {_HELP}")
        if name in limits:
            raise BudgetError(f"budget {text!r} limits {name} twice; {_HELP}")
        limits[name] = _number(value.strip(), _UNITS if name == "params" else _BYTES, text)
    return Budget(limits=limits, text=text)


def _number(value: str, units: Mapping[str, float], text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", value.lower())
    if match is None or match[2] not in units or float(match[1]) == 0:
        raise BudgetError(
            f"budget {text!r}: {value!r} is not a size (units: {', '.join(filter(None, units))}); {_HELP}"
        )
    return float(match[1]) * units[match[2]]

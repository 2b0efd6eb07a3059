"""A point of the search: a subnet and the compression it is deployed in."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from todm.errors import ConfigError
from todm.supernet.space import Subnet

Compression = Literal["none", "int8", "int4"]
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
SCORED: tuple[Compression, ...] = ("none", "int8")
"""Compressions whose errors can be measured before  todm compress  has run."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A subnet and how its weights are stored and computed with."""

    subnet: Subnet
    compression: Compression = "none"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"subnet": self.subnet.to_json(), "compression": self.compression}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Choice":
        """The inverse of `to_json`."""
        if data["compression"] not in COMPRESSIONS:
            raise ValueError(f"no compression {data['compression']!r}")
        return Choice(Subnet.from_json(data["subnet"]), data["compression"])

    @property
    def key(self) -> str:
        """The same for equal choices, on every machine."""
        return json.dumps(self.to_json(), separators=(",", ":"))

    def __str__(self) -> str:
        return f"{self.subnet}, {'fp32' if self.compression == 'none' else self.compression}"


def compressions_of(text: str) -> tuple[Compression, ...]:
    """The compressions that a user lets a search choose: `none`, `int8`, or both joined by a comma.

    Raises:
        ConfigError: one of them is unknown, or its errors are not known before it is applied.
    """
    requested = dict.fromkeys(name.strip() for name in text.split(","))
    if unknown := [name for name in requested if name not in COMPRESSIONS]:
        raise ConfigError(
            f"--compression is {text!r}: {unknown[0]!r} is not one of {', '.join(COMPRESSIONS)}"
        )
    if unscored := [name for name in requested if name not in SCORED]:
        raise ConfigError(
            f"--compression is {text!r}: errors in {unscored[0]} are not known before  todm compress ; "
            f"search {' or '.join(SCORED)}, and compress the subnet afterwards"
        )
    return tuple(name for name in SCORED if name in requested)

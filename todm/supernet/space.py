"""The search space of an elastic stack of blocks, and one point of it.

A stack has `num_blocks` blocks. A subnet keeps some of them (depth) and a prefix of each elastic
width inside every kept block (widths by name: "ffn", "pairs", ...). Nothing here knows a modality.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from todm.config import Config
from todm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subnet:
    """One point of a search space: the blocks that are kept, and their widths.

    `widths[name][i]` belongs to the block `blocks[i]` of the supernet. Hashable; to and from JSON.
    """

    blocks: tuple[int, ...]
    widths: tuple[tuple[str, tuple[int, ...]], ...]

    def width(self, name: str, position: int) -> int:
        """The width called `name` of the kept block at `position` (0 .. depth-1)."""
        return dict(self.widths)[name][position]

    @property
    def depth(self) -> int:
        """The number of kept blocks."""
        return len(self.blocks)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"blocks": list(self.blocks), "widths": {k: list(v) for k, v in self.widths}}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Subnet":
        """The inverse of `to_json`."""
        widths = tuple((k, tuple(int(w) for w in v)) for k, v in data["widths"].items())
        return Subnet(blocks=tuple(int(b) for b in data["blocks"]), widths=widths)

    def __str__(self) -> str:
        parts = [f"blocks {len(self.blocks)}"]
        for name, values in self.widths:
            same = len(set(values)) == 1
            parts.append(f"{name} {values[0] if same else '/'.join(map(str, values))}")
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpaceConfig(Config):
    """Allowed depths and widths, ascending; the last of each is the supernet's own size.

    Attributes:
        depths: numbers of blocks.
        widths: by name; each block of a subnet has any of these.
        drop_order: which blocks a shallower subnet drops: evenly spaced inner ones, or the last ones, so
            that it keeps the `first` k (OFA, AttentiveNAS).
        shared_ratio: share of the random draws whose blocks all have the same ratio of widths.
    """

    depths: tuple[int, ...]
    widths: dict[str, tuple[int, ...]]
    drop_order: Literal["even", "first"] = "even"
    shared_ratio: float = 0.5

    def __post_init__(self) -> None:
        for name, values in {"depths": self.depths, **self.widths}.items():
            if not values or list(values) != sorted(set(values)) or values[0] < 1:
                raise ConfigError(
                    f"space.{name} is {values!r}: ascending positive numbers are needed"
                )
        if self.drop_order == "even" and self.depths[0] < 2 <= self.depths[-1]:
            raise ConfigError(
                "space.depths starts below 2: the first and last block are always kept"
            )
        if not 0 <= self.shared_ratio <= 1:
            raise ConfigError(f"space.shared_ratio is {self.shared_ratio}: a share from 0 to 1")


class SearchSpace:
    """All subnets of a `SpaceConfig`."""

    def __init__(self, config: SpaceConfig) -> None:
        self.config = config
        self.num_blocks = config.depths[-1]
        self._order = _removal_order(self.num_blocks, config.drop_order)

    def kept_blocks(self, depth: int) -> tuple[int, ...]:
        """The blocks of a subnet of this depth. Nested: a deeper subnet keeps these and more."""
        return tuple(
            sorted(set(range(self.num_blocks)) - set(self._order[: self.num_blocks - depth]))
        )

    def uniform(self, depth: int, widths: Mapping[str, int]) -> Subnet:
        """The subnet with the same widths in every block."""
        return self.subnet(depth, {k: (v,) * depth for k, v in widths.items()})

    def subnet(self, depth: int, widths: Mapping[str, tuple[int, ...]]) -> Subnet:
        """A subnet of this space.

        Raises:
            ConfigError: a depth or width that the space does not have.
        """
        if depth not in self.config.depths:
            raise ConfigError(f"depth {depth} is not in the space: {self.config.depths}")
        for name, allowed in self.config.widths.items():
            if name not in widths:
                needed = ", ".join(self.config.widths)
                raise ConfigError(f"widths of {name!r} are missing: {needed} are needed")
            if len(widths[name]) != depth or not set(widths[name]) <= set(allowed):
                raise ConfigError(f"widths {name}={widths[name]} are not in the space: {allowed}")
        names = self.config.widths
        return Subnet(
            blocks=self.kept_blocks(depth), widths=tuple((n, tuple(widths[n])) for n in names)
        )

    @property
    def largest(self) -> Subnet:
        """The supernet itself."""
        return self.uniform(self.num_blocks, {k: v[-1] for k, v in self.config.widths.items()})

    @property
    def smallest(self) -> Subnet:
        """Fewest blocks, least width."""
        return self.uniform(self.config.depths[0], {k: v[0] for k, v in self.config.widths.items()})

    def sample(self, rng: random.Random) -> Subnet:
        """A random subnet: depths are equally likely; widths per block, or with one ratio (`shared_ratio`).

        Widths drawn per block cluster at mid size: their mean over 12 blocks has a third of the deviation
        of one draw, so the extremes would hardly be trained.
        """
        depth = rng.choice(self.config.depths)
        if rng.random() < self.config.shared_ratio:
            at = rng.random()
            return self.uniform(
                depth, {k: v[int(at * len(v))] for k, v in self.config.widths.items()}
            )
        return self.subnet(
            depth,
            {k: tuple(rng.choice(v) for _ in range(depth)) for k, v in self.config.widths.items()},
        )

    def uniforms(self) -> Iterator[Subnet]:
        """Every subnet with the same widths in all blocks (for checks, baselines and plots)."""
        names = list(reversed(self.config.widths))  # the first varies fastest
        for depth in self.config.depths:
            for widths in itertools.product(*(self.config.widths[n] for n in names)):
                yield self.uniform(depth, dict(zip(names, widths, strict=True)))


def _removal_order(num_blocks: int, order: str) -> list[int]:
    """Blocks in the order in which they are dropped, so that kept sets are nested.

    `even`, read backwards: first and last block, then repeatedly the middle of the widest gap, of equal
    gaps the one nearest to the middle of the stack. So a shallow net is spread out; dropping from the full
    stack instead would leave (0, 3, 4) of five. `first`: the last blocks go first (keep the first k).
    """
    if order == "first":
        return list(range(num_blocks - 1, 0, -1))
    kept = list(dict.fromkeys((0, num_blocks - 1)))
    while len(kept) < num_blocks:
        gaps = itertools.pairwise(sorted(kept))
        widest = min(gaps, key=lambda g: (g[0] - g[1], abs(g[0] + g[1] - num_blocks + 1)))
        kept.append(sum(widest) // 2)
    return kept[:1:-1]

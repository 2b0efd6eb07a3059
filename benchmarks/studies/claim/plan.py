"""What the study trains: its parts, their runs, and the settings of each run."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from todm.errors import ConfigError
from todm.recipe import Recipe, named
from todm.supernet.space import SearchSpace, Subnet

RECIPE = "commands"
SIZES = {
    "xs": {"depth": 3, "ffn": 64, "pairs": 2},
    "s": {"depth": 3, "ffn": 128, "pairs": 3},
    "m": {"depth": 4, "ffn": 256, "pairs": 3},
    "l": {"depth": 5, "ffn": 384, "pairs": 4},
}
"""Depth and widths, ascending; the space of the recipe has all of them."""
ALONE = "alone-"

# Not tried yet: how noisy the second corpus is, and the updates that it takes.
NOISY_ROOM = (
    "asr.data.room.clean=0.1",
    "asr.data.room.noise=0.9",
    "asr.data.room.snr_db=[0,20]",
)
NOISY_UPDATES = 8000
ABLATIONS = {
    "constant-dropout": ("asr.model.encoder.dropout_rule=constant",),
    "no-dropout": ("asr.model.encoder.dropout=0",),
    "kl": ("asr.objective.distill=kl",),
    "collapsed": ("asr.objective.distill=collapsed",),
    "encoder": ("asr.objective.distill=encoder",),
    "no-distillation": ("asr.objective.distill=none",),
    "adamw": ("train.optim.name=adamw",),
    "one-random-net": ("train.random_net=true",),
    "students-from-0.4": (
        "train.sandwich_from=0.4",
        "asr.objective.distill_from=0.4",
        "asr.objective.distill_full=0.5",
    ),
}
"""One ingredient changed; one that the recipe has already is not trained."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A corpus and a length of training.

    Attributes:
        prepare: commands that make the corpus.
        settings: of all its runs, beside the recipe's.
        seeds: of the planned runs.
        sizes: compared; names in `SIZES`, ascending.
        ablations: settings by name; not empty for a part of supernets without models trained alone.
        base: the part whose supernets the ablations are compared with.
    """

    prepare: str
    settings: tuple[str, ...]
    seeds: tuple[int, ...] = (1,)
    sizes: tuple[str, ...] = tuple(SIZES)
    ablations: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    base: str = ""


def _length(updates: int, align_until: float) -> tuple[str, ...]:
    """The recipe with a flat start of so many updates, after which distillation begins."""
    return (
        f"train.num_updates={updates}",
        "train.num_processes=1",
        "train.eval_every=0.2",
        f"asr.objective.align_until={align_until:g}",
        f"asr.objective.distill_from={align_until:g}",
        f"asr.objective.distill_full={align_until + 0.1:g}",
    )


_COMMANDS = "todm prepare --config commands --set asr.data.num_test=2000"
_SHORT = Part(
    prepare=f"{_COMMANDS} --out corpus", settings=_length(4000, align_until=0.25), seeds=(1, 2, 3)
)
PARTS = {
    "short": _SHORT,
    # The flat start has as many updates as in `short`.
    "long": Part(prepare=_SHORT.prepare, settings=_length(16_000, align_until=0.0625)),
    "noisy": Part(
        prepare=f"{_COMMANDS} {' '.join(f'--set {s}' for s in NOISY_ROOM)} --out noisy",
        settings=_length(NOISY_UPDATES, align_until=1000 / NOISY_UPDATES),
    ),
    # README.md says how orders/ is made. Nets alone learnt it with this range of levels.
    "orders": Part(
        prepare="todm prepare --config commands --data orders --out orders-corpus",
        settings=(*_length(4000, align_until=0.25), "asr.augment.gain_db=[-20,4]"),
    ),
    # The settings with which a net learns these few quiet voices at all (docs/results.md).
    "digits": Part(
        prepare="todm prepare --config commands --data fsdd-connected --out digits",
        settings=(
            *_length(2000, align_until=0.2),
            "asr.augment.gain_db=[-20,8]",
            "asr.augment.no_speech_prob=0.02",
        ),
        seeds=(1, 2, 3),
        sizes=("s", "l"),
    ),
    "ablations": Part(
        prepare=_SHORT.prepare,
        settings=_SHORT.settings,
        seeds=(1, 2),
        ablations=ABLATIONS,
        base="short",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training of a part.

    Attributes:
        part: its name.
        name: `supernet`, `alone-SIZE`, or that of an ablation.
        seed: of the training.
        settings: beside the recipe's, all of them.
        changes: those of them that make it differ from the part's supernet.
    """

    part: str
    name: str
    seed: int
    settings: tuple[str, ...]
    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} seed {self.seed}"

    @property
    def stem(self) -> str:
        """Its folder and the name of its row."""
        return f"{self.part}/{self.name}-{self.seed}"

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The recipe with all settings."""
        return named(RECIPE).override(self.settings)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The recipe as it stands in a trained net: JSON types only, lists for tuples."""
        return json.loads(json.dumps(self.recipe.to_json()))

    def subnets(self) -> dict[str, Subnet]:
        """The sizes in it: those of the part in a supernet, one in a model trained alone.

        Raises:
            ConfigError: the space lacks one of them.
        """
        space = SearchSpace(self.recipe.asr.space)
        if self.name.startswith(ALONE):
            return {self.name.removeprefix(ALONE): space.largest}
        shapes = {size: dict(SIZES[size]) for size in part_named(self.part).sizes}
        return {size: space.uniform(shape.pop("depth"), shape) for size, shape in shapes.items()}


def part_named(name: str) -> Part:
    """A part by name.

    Raises:
        ConfigError: no such part.
    """
    if name not in PARTS:
        raise ConfigError(f"unknown part {name!r}: choose one of {', '.join(PARTS)}")
    return PARTS[name]


def plan(
    name: str,
    *,
    seeds: Sequence[int] = (),
    names: Sequence[str] = (),
    extra: Sequence[str] = (),
) -> list[Run]:
    """The trainings of a part, seed by seed.

    Args:
        name: of the part.
        seeds: other than the part's own.
        names: of the runs; all of the part if none are given.
        extra: further settings, of every run.

    Raises:
        ConfigError: an unknown part, run or setting, or something given twice.
    """
    part, known = part_named(name), _changes(name)
    for what, given in (("seed", seeds), ("run", names)):
        if len(set(given)) < len(given):
            raise ConfigError(f"a {what} is given twice ({_words(given)}): give each of them once")
    for run in names:
        if run in part.ablations and run not in known:
            raise ConfigError(f"{run!r} is what the recipe does already: choose another run")
        if run not in known:
            raise ConfigError(f"part {name!r} has no run {run!r}: choose from {', '.join(known)}")
    shared = (*part.settings, *extra)
    return [
        Run(
            part=name,
            name=run,
            seed=seed,
            settings=(*shared, f"train.seed={seed}", *known[run]),
            changes=known[run],
        )
        for seed in seeds or part.seeds
        for run in names or known
    ]


def _words(items: Sequence[object]) -> str:
    return " ".join(map(str, items))


def _changes(name: str) -> dict[str, tuple[str, ...]]:
    """The runs of a part, each with its own settings."""
    part = PARTS[name]
    if part.ablations:
        recipe = named(RECIPE).override(part.settings)
        return {k: v for k, v in part.ablations.items() if recipe.override(v) != recipe}
    return {"supernet": (), **{ALONE + size: _alone(size) for size in part.sizes}}


def _alone(size: str) -> tuple[str, ...]:
    shape = SIZES[size]
    return (
        "train.sandwich=false",
        f"asr.space.depths=[{shape['depth']}]",
        f"asr.space.widths.ffn=[{shape['ffn']}]",
        f"asr.space.widths.pairs=[{shape['pairs']}]",
    )

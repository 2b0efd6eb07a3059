"""What the study trains: ingredients, each beside those before it, then all of them at full length."""

import dataclasses
from collections.abc import Iterable, Iterator

from todm.errors import ConfigError

SHORT, FULL_LENGTH = 2400, 7000
FULL = "full"
SHARED = "SHARED"
"""In settings: the folder of the shared data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ingredient:
    """One addition to the recipe `commands`.

    Attributes:
        adds: what it is.
        natural: whether natural voices are in the material from here on.
        renderings: of each natural recording in the material from here on; as before if None.
        material: settings of the corpus that is spoken of the grammar.
        prepare: settings of the corpus made of the material.
        train: settings of `todm train`.
        init: whether the training starts from a pretrained net, which `--init` names.
    """

    adds: str
    natural: bool = False
    renderings: int | None = None
    material: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    init: bool = False


INGREDIENTS = {
    "espeak": Ingredient(
        adds="espeak-ng's voices in the recipe's rooms and noise",
        train=(
            "train.sandwich=false",
            "asr.space.depths=[5]",
            "asr.space.widths.ffn=[384]",
            "asr.space.widths.pairs=[4]",
            "train.num_processes=1",
        ),
    ),
    "natural": Ingredient(
        adds="orders of natural voices, each in three renderings of rooms and noise",
        natural=True,
        renderings=3,
    ),
    "level": Ingredient(
        adds="levels, places in time and time steps of a wider range",
        train=(
            "asr.augment.gain_db=[-20,4]",
            "asr.augment.max_offset=60",
            "asr.model.encoder.step_range=[0.02,0.3]",
        ),
    ),
    "rooms": Ingredient(
        adds="four renderings of every utterance in real and simulated rooms, at levels and through lines, "
        "instead of the recipe's rooms",
        renderings=0,
        material=("asr.data.room.clean=1",),
        train=(
            f"asr.acoustics.rirs={SHARED}/rirs",
            "asr.acoustics.renderings=4",
            "asr.acoustics.rendered_from=0.1",
            "asr.augment.gain_db=[-10,4]",
        ),
    ),
    "noise": Ingredient(
        adds="recorded noise, babble of the batch, microphones",
        train=(
            f"asr.noise={SHARED}/noise/esc10",
            "asr.augment.noise_prob=0.6",
            "asr.augment.snr_db=[2,28]",
            "asr.augment.noises.synthetic=0.2",
            "asr.augment.noises.babble=0.25",
            "asr.augment.noises.second=0.25",
            "asr.augment.noises.burst=0.25",
            "asr.augment.colour_prob=0.5",
        ),
    ),
    "supernet": Ingredient(
        adds="students of all sizes in the same training",
        train=(
            "train.sandwich=true",
            "asr.space.depths=[3,4,5]",
            "asr.space.widths.ffn=[64,128,256,384]",
            "asr.space.widths.pairs=[2,3,4]",
        ),
    ),
}
"""In the order in which they are added. The last row, `full`, is all of them with all updates.

Other speech and pretraining are rows to be entered here as todm gets them.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training: the name of its row, and the settings of all its ingredients."""

    name: str
    adds: str
    natural: bool
    renderings: int
    init: bool
    material: tuple[str, ...]
    prepare: tuple[str, ...]
    train: tuple[str, ...]


def runs(*, short: int = SHORT, full: int = FULL_LENGTH) -> Iterator[Run]:
    """All trainings, in the order of their rows.

    Args:
        short: updates of every row but the last.
        full: updates of the last.
    """
    so_far: list[Ingredient] = []
    for name, ingredient in INGREDIENTS.items():
        so_far.append(ingredient)
        yield _run(name, ingredient.adds, so_far, short)
    yield _run(FULL, f"all of it, {full:,} updates instead of {short:,}", so_far, full)


def run_named(name: str, *, short: int = SHORT, full: int = FULL_LENGTH) -> Run:
    """A training by its name.

    Raises:
        ConfigError: no such training.
    """
    found = {run.name: run for run in runs(short=short, full=full)}
    if name not in found:
        raise ConfigError(f"unknown row {name!r}: choose one of {', '.join(found)}")
    return found[name]


def _run(name: str, adds: str, parts: list[Ingredient], updates: int) -> Run:
    train = [setting for part in parts for setting in part.train]
    renderings = [part.renderings for part in parts if part.renderings is not None]
    return Run(
        name=name,
        adds=adds,
        natural=any(part.natural for part in parts),
        renderings=renderings[-1] if renderings else 0,
        init=any(part.init for part in parts),
        material=_last(setting for part in parts for setting in part.material),
        prepare=_last(setting for part in parts for setting in part.prepare),
        train=_last([*train, f"train.num_updates={updates}"]),
    )


def _last(settings: Iterable[str]) -> tuple[str, ...]:
    """Settings of which a later one replaces an earlier one of the same name."""
    by_name = {setting.partition("=")[0]: setting for setting in settings}
    return tuple(by_name.values())

"""Renderings: the same utterance in other rooms, at other levels and through other lines.

What needs samples is done here, before the features; noise, a microphone's colour and gain are as good in
the features and cost a tenth (`todm.asr.data.augment`, docs/log.md). A rendering is as long as the utterance,
so that lengths, batches and times of words hold for all, and it is a function of (config, name, number).
Rendering 0 is the utterance as it is.

A feature store holds all renderings, and `on_the_fly` makes the one that is drawn; both give the same.
"""

import dataclasses
import functools
import hashlib
import json
import random
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from todm.asr.data.audio import cut_waves, speed_id
from todm.asr.data.features import fbank
from todm.asr.data.impulse_responses import read_responses
from todm.asr.data.rooms import impulse_response, reverberate
from todm.asr.data.transmission import CODECS, at_level, overload
from todm.config import Config
from todm.errors import ConfigError

_VERSION = 1
"""Changes whenever the same configuration would give other renderings than before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcousticsConfig(Config):
    """Renderings of the training utterances. Ranges are drawn from uniformly.

    Attributes:
        renderings: how many of each utterance at each speed beside itself; 0 for none.
        rendered: share of draws that take one of them; each epoch takes the next.
        rendered_from: share of the planned updates before which none is taken.
        rirs: folder of impulse responses of real rooms.
        room: share of renderings in a room.
        simulated: share of the rooms that are simulated although there are `rirs`.
        rt60: seconds until a simulated room is silent (-60 dB).
        direct_db: direct sound against reverberation in a simulated room.
        level_db: peak level relative to full scale.
        clip: share of renderings that are overloaded.
        clip_db: by how much.
        codec: share of renderings that go through one of `codecs`.
        codecs: narrow (8 kHz), mu-law, gsm or opus, each as often as the others. Opus is no default:
            it costs more than all other steps of a rendering together (docs/log.md).
        seed: of all draws.
    """

    renderings: int = 0
    rendered: float = 0.7
    rendered_from: float = 0.0
    rirs: str | None = None
    room: float = 0.7
    simulated: float = 0.5
    rt60: tuple[float, float] = (0.12, 0.5)
    direct_db: tuple[float, float] = (-6.0, 15.0)
    level_db: tuple[float, float] = (-55.0, -3.0)
    clip: float = 0.05
    clip_db: tuple[float, float] = (3.0, 12.0)
    codec: float = 0.1
    codecs: tuple[str, ...] = ("narrow", "mu-law", "gsm")
    seed: int = 0

    def __post_init__(self) -> None:
        zeros, allowed = ("renderings", "seed"), "it must not be negative"
        self.check("acoustics", zeros, holds=lambda v: v >= 0, allowed=allowed)
        shares = ("rendered", "rendered_from", "room", "simulated", "clip", "codec")
        allowed = "a share from 0 to 1 is needed"
        self.check("acoustics", shares, holds=lambda v: 0 <= v <= 1, allowed=allowed)
        ranges = ("rt60", "direct_db", "level_db", "clip_db")
        allowed = "the lower value comes first"
        self.check("acoustics", ranges, holds=lambda v: v[0] <= v[1], allowed=allowed)
        allowed = "from 0.05 to 5 s"
        self.check(
            "acoustics", ("rt60",), holds=lambda v: 0.05 <= v[0] <= v[1] <= 5, allowed=allowed
        )
        allowed = "0 dB is full scale, and no more is possible"
        self.check("acoustics", ("level_db",), holds=lambda v: v[1] <= 0, allowed=allowed)
        unknown = [name for name in self.codecs if name not in CODECS]
        if unknown or not self.codecs:
            given = unknown[0] if unknown else "empty"
            raise ConfigError(f"acoustics.codecs: {given}; choose from {', '.join(CODECS)}")
        if self.rirs is not None and not self.renderings:
            raise ConfigError(
                "acoustics.rirs is set and acoustics.renderings is 0: set it to 1 or more, such as 4"
            )


def draw_rendering(
    config: AcousticsConfig, name: str, *, seed: int, epoch: int, progress: float
) -> int:
    """The rendering of an utterance that an epoch takes: all in turn, from another one for each name.

    Args:
        config: how many there are, and how often one is taken.
        name: of the utterance at its speed.
        seed: of the order of training.
        epoch: counted from 0.
        progress: share of the planned updates done.
    """
    if not config.renderings or progress < config.rendered_from:
        return 0
    if random.Random(f"{seed}/{epoch}/{name}").random() >= config.rendered:
        return 0
    return 1 + (zlib.crc32(name.encode()) + epoch) % config.renderings


@dataclasses.dataclass(frozen=True)
class Acoustics:
    """Makes renderings. Small, for processes to share: the rooms are read once in each."""

    config: AcousticsConfig

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What the renderings depend on, as JSON; the responses by their content.

        Raises:
            CorpusError: the folder of impulse responses cannot be used.
        """
        table = self.config.to_json() | {"version": _VERSION}
        for name in ("rendered", "rendered_from", "rirs"):
            del table[name]
        if self.config.rirs is not None:
            digest = hashlib.sha256()
            for response in read_responses(self.config.rirs):
                digest.update(response.tobytes())
            table["rirs"] = digest.hexdigest()
        return table

    @property
    def mark(self) -> str:
        """A name for a place with these renderings."""
        text = json.dumps(self.settings, sort_keys=True)
        return f"r{self.config.renderings}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def render(self, samples: np.ndarray, name: str, number: int) -> np.ndarray:
        """Rendering `number` of an utterance, float32 (S,) as `samples`; number 0 is `samples` itself."""
        if number == 0 or not samples.any():
            return samples
        config = self.config
        rng = np.random.default_rng([config.seed, number, *name.encode()])
        if rng.random() < config.room:
            samples = reverberate(samples, self._room(rng))
        if rng.random() < config.clip:
            samples = overload(samples, rng.uniform(*config.clip_db))
        samples = at_level(samples, rng.uniform(*config.level_db))
        if rng.random() < config.codec:
            samples = CODECS[str(rng.choice(config.codecs))](samples, rng)
        return samples

    def features(
        self,
        cut: Any,  # noqa: ANN401 - a lhotse Cut
        speeds: Sequence[float],
        numbers: Sequence[int],
    ) -> list[list[Tensor]]:
        """[T, 80] features of a lhotse cut: for each speed, those of the renderings with these numbers.

        Raises:
            CorpusError: the audio cannot be read, is damaged or too short.
        """
        waves = zip(cut_waves(cut, speeds), (speed_id(cut.id, s) for s in speeds), strict=True)
        return [
            [fbank(torch.from_numpy(self.render(wave, name, number))) for number in numbers]
            for wave, name in waves
        ]

    def _room(self, rng: np.random.Generator) -> np.ndarray:
        config = self.config
        if config.rirs is None or rng.random() < config.simulated:
            return impulse_response(rng, rng.uniform(*config.rt60), rng.uniform(*config.direct_db))
        responses = read_responses(config.rirs)
        return responses[rng.integers(len(responses))]


AS_IT_IS = Acoustics(AcousticsConfig())
"""No renderings."""

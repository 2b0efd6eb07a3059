"""What a corpus is made of: source, voices, rooms, noise, limits and tokens."""

import dataclasses
from typing import Literal

from todm.asr.tokens import TokensConfig
from todm.config import Config
from todm.errors import ConfigError

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def _check_ranges(config: Config, *names: str) -> None:
    for name in names:
        low, high = getattr(config, name)
        if low > high:
            raise ConfigError(f"{name} is [{low}, {high}]: the lower value comes first")


def _check_at_least(config: Config, low: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < low:
            raise ConfigError(f"{name} is {getattr(config, name)}: at least {low} is needed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechConfig(Config):
    """How sentences are spoken: voices per split, and ranges drawn anew for every utterance.

    Rate is in words a minute; pitch and pitch range are espeak-ng's 0 to 100; silence before and
    after the words, in seconds; peak level in dB below full scale.
    """

    train_voices: int = 90
    dev_voices: int = 12
    test_voices: int = 24
    rate: tuple[int, int] = (140, 215)
    pitch: tuple[int, int] = (25, 75)
    pitch_range: tuple[int, int] = (25, 80)
    silence: tuple[float, float] = (0.08, 0.35)
    level_db: tuple[float, float] = (-18.0, -1.0)

    def __post_init__(self) -> None:
        _check_ranges(self, "rate", "pitch", "pitch_range", "silence", "level_db")
        _check_at_least(self, 1, "train_voices", "dev_voices", "test_voices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoomConfig(Config):
    """What is done to the spoken audio: shares of utterances, and ranges drawn for each.

    `clean` is the share left as it is; of the others a share `room` is reverberated and a share
    `noise` gets noise. `rt60` is in seconds, `direct_db` is direct sound against reverberation.
    """

    clean: float = 0.3
    room: float = 0.6
    noise: float = 0.75
    snr_db: tuple[float, float] = (8.0, 30.0)
    rt60: tuple[float, float] = (0.12, 0.5)
    direct_db: tuple[float, float] = (0.0, 15.0)

    def __post_init__(self) -> None:
        _check_ranges(self, "snr_db", "rt60", "direct_db")
        for name in ("clean", "room", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: a share from 0 to 1 is needed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """A corpus.

    `commands` speaks a grammar (the built-in one, or the file `grammar`), `sentences` speaks the
    lines of `text` until `hours` of training speech are reached, `librispeech` reads `data`, a
    directory in LibriSpeech's layout. `splits` maps top-level folders of `data` to splits where
    their names do not begin with train, dev or test. `verify_audio` says how audio is checked:
    `decode` reads every sample, `header` trusts the header, `auto` decodes below 40 hours.
    """

    source: Literal["commands", "sentences", "librispeech"] = "commands"
    grammar: str | None = None
    text: str | None = None
    data: str | None = None
    splits: dict[str, str] = dataclasses.field(default_factory=dict)
    num_train: int = 3500
    num_dev: int = 300
    num_test: int = 700
    hours: float | None = None
    seed: int = 0
    min_seconds: float = 0.3
    max_seconds: float = 20.0
    verify_audio: Literal["auto", "decode", "header"] = "auto"
    speech: SpeechConfig = SpeechConfig()
    room: RoomConfig = RoomConfig()
    tokens: TokensConfig = dataclasses.field(default_factory=TokensConfig)

    def __post_init__(self) -> None:
        _check_at_least(self, 1, "num_train", "num_dev", "num_test")
        _check_at_least(self, 0, "seed")
        if not 0 <= self.min_seconds < self.max_seconds:
            raise ConfigError(
                f"min_seconds {self.min_seconds} must be below max_seconds {self.max_seconds}"
            )
        if self.hours is not None and not 0 < self.hours <= 10_000:
            raise ConfigError(f"hours is {self.hours}: a positive number up to 10000 is needed")
        for folder, split in self.splits.items():
            if split not in SPLITS:
                raise ConfigError(f"splits.{folder} is {split!r}: allowed are train, dev, test")
        self._check_source()

    def _check_source(self) -> None:
        need = {"commands": None, "sentences": "text", "librispeech": "data"}[self.source]
        if need is not None and getattr(self, need) is None:
            raise ConfigError(f"source {self.source!r} needs {need!r}: give a path, --{need} PATH")
        allowed = {"commands": "grammar", "sentences": "text", "librispeech": "data"}[self.source]
        for name in ("grammar", "text", "data"):
            if name != allowed and getattr(self, name) is not None:
                raise ConfigError(f"{name!r} is not used by source {self.source!r}: leave it out")
        if self.hours is not None and self.source != "sentences":
            raise ConfigError(f"'hours' is not used by source {self.source!r}: set num_train")

    def num(self, split: Split) -> int:
        """Utterances asked for in a split of a spoken corpus."""
        return int(getattr(self, f"num_{split}"))

    def num_voices(self, split: Split) -> int:
        """Voices asked for in a split of a spoken corpus."""
        return int(getattr(self.speech, f"{split}_voices"))

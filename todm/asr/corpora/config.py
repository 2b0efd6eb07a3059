"""The configuration of a corpus: source, voices, rooms, noise, limits and tokens."""

import dataclasses
from typing import Any, Literal

from todm.asr.data.rooms import RoomConfig
from todm.asr.tokens import TokensConfig
from todm.config import Config
from todm.errors import ConfigError

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
ENGINES = ("espeak", "kokoro", "hibari", "piper", "flite")
"""What can speak a corpus; see `voices/`. Ids of speakers depend on the order: new ones come last."""
_NEWER = ("voices", "unseen", "num_unseen", "language", "pronunciations")
_PLACES = ("weights", "cache")
_NEGATIVES = ("negatives", "negative_text", "keep_empty")
_MOST_NEGATIVES = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechConfig(Config):
    """How sentences are spoken: by whom, and ranges that every utterance draws from.

    Attributes:
        train_voices: at most so many of each engine; likewise the next two.
        dev_voices: of dev.
        test_voices: of test.
        rate: words a minute.
        pitch: espeak-ng's, 0 to 100.
        pitch_range: espeak-ng's, 0 to 100.
        silence: before and after the words, in seconds.
        level_db: peak level in dB relative to full scale.
        voices: engines, and the shares of utterances that they speak.
        unseen: engines that speak a test of their own; None for every fast one that is installed and of
            no family in `voices`.
        num_unseen: sentences of that test.
        language: a code of espeak-ng's, such as de or pt-br.
        pronunciations: file of words and how they are said, besides those in a grammar.
        weights: folder of voices that no package brings; None for `TODM_VOICES`, or its default.
        cache: folder of natural speech without room and noise; None for `dry-speech` beside the corpus.
    """

    train_voices: int = 90
    dev_voices: int = 12
    test_voices: int = 24
    rate: tuple[int, int] = (140, 215)
    pitch: tuple[int, int] = (25, 75)
    pitch_range: tuple[int, int] = (25, 80)
    silence: tuple[float, float] = (0.08, 0.35)
    level_db: tuple[float, float] = (-18.0, -1.0)
    voices: dict[str, int] = dataclasses.field(default_factory=lambda: {"espeak": 100})
    unseen: tuple[str, ...] | None = None
    num_unseen: int = 100
    language: str = "en"
    pronunciations: str | None = None
    weights: str | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        ranges = ("rate", "pitch", "pitch_range", "silence", "level_db")
        allowed = "the lower value comes first"
        self.check("speech", ranges, holds=lambda v: v[0] <= v[1], allowed=allowed)
        ones = ("train_voices", "dev_voices", "test_voices", "num_unseen")
        self.check("speech", ones, holds=lambda v: v >= 1, allowed="at least 1 is needed")
        for name in [*self.voices, *(self.unseen or ())]:
            if name not in ENGINES:
                raise ConfigError(f"there are no voices {name!r}: choose from {', '.join(ENGINES)}")
        allowed = "shares above 0 are needed, such as espeak=60,kokoro=40"
        self.check(
            "speech", ("voices",), holds=lambda v: v and min(v.values()) > 0, allowed=allowed
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """A corpus.

    `commands` speaks a grammar (the built-in one, or the file `grammar`), `sentences` speaks the
    lines of `text` until `hours` of training speech are reached; the other sources read speech from
    `data`, in the layout that they name; `auto` detects the layout.

    Attributes:
        source: what is spoken, or the layout of `data`.
        grammar: file of commands.
        text: file of sentences.
        data: speech on disk.
        splits: maps folders or files of `data` to splits if their names do not say train, dev or test.
        num_train: spoken sentences of this split.
        num_dev: spoken sentences of this split.
        num_test: spoken sentences of this split.
        hours: training speech from `text`, instead of `num_train`.
        negatives: share of the utterances of every split that are no commands: other sentences and near
            misses, spoken by the same voices, with an empty transcript. They come on top of `num_train`.
        negative_text: file of such sentences, one a line; built-in English ones without it.
        keep_empty: an utterance of `data` with an empty transcript is speech that is no command, instead
            of being left out.
        seed: of speech, and of the order in shards.
        min_seconds: shortest utterance to train on.
        max_seconds: longest utterance to train on.
        max_eval_seconds: longest utterance of dev and test; these have no lower limit.
        channel: the channel to use of a recording whose manifest names none, counted from 0; None
            averages all.
        verify_audio: `decode` reads every sample, `header` trusts the header, `auto` decodes below
            40 hours.
        shar: a directory for the training split in lhotse Shar, for corpora too large for a manifest
            in memory; None leaves the audio in place.
        shard_size: utterances a shard.
        speech: how sentences are spoken.
        room: how the spoken audio is changed.
        tokens: vocabulary and text rule.
    """

    source: Literal[
        "commands", "sentences", "auto", "librispeech", "kaldi", "jsonl", "lhotse", "shar"
    ] = "commands"
    grammar: str | None = None
    text: str | None = None
    data: str | None = None
    splits: dict[str, str] = dataclasses.field(default_factory=dict)
    num_train: int = 3500
    num_dev: int = 300
    num_test: int = 700
    hours: float | None = None
    negatives: float = 0.0
    negative_text: str | None = None
    keep_empty: bool = False
    seed: int = 0
    min_seconds: float = 0.3
    max_seconds: float = 20.0
    max_eval_seconds: float = 60.0
    channel: int | None = None
    verify_audio: Literal["auto", "decode", "header"] = "auto"
    shar: str | None = None
    shard_size: int = 500
    speech: SpeechConfig = SpeechConfig()
    room: RoomConfig = dataclasses.field(default_factory=RoomConfig)
    tokens: TokensConfig = dataclasses.field(default_factory=TokensConfig)

    def __post_init__(self) -> None:
        ones, allowed = ("num_train", "num_dev", "num_test", "shard_size"), "at least 1 is needed"
        self.check("data", ones, holds=lambda v: v >= 1, allowed=allowed)
        zeros, allowed = ("seed", "max_eval_seconds", "channel"), "it must not be negative"
        self.check("data", zeros, holds=lambda v: v is None or v >= 0, allowed=allowed)
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

    def identity(self) -> dict[str, Any]:
        """All settings that decide what the corpus is, as JSON.

        Without places, and without those newer than the first corpora where they say what was so before:
        a corpus of an earlier version stays valid.
        """
        known = self.to_json()
        for name in _NEGATIVES:
            if not known[name]:
                del known[name]
        plain = SpeechConfig().to_json()
        known["speech"] = {
            name: value
            for name, value in known["speech"].items()
            if name not in _PLACES and not (name in _NEWER and value == plain[name])
        }
        return known

    @property
    def is_spoken(self) -> bool:
        """Whether the audio is synthesised."""
        return self.source in ("commands", "sentences")

    def _check_source(self) -> None:
        used = {"commands": "grammar", "sentences": "text"}.get(self.source, "data")
        if used != "grammar" and getattr(self, used) is None:
            raise ConfigError(f"source {self.source!r} needs {used!r}: give a path, --{used} PATH")
        for name in ("grammar", "text", "data"):
            if name != used and getattr(self, name) is not None:
                raise ConfigError(f"{name!r} is not used by source {self.source!r}: leave it out")
        self._check_negatives()
        if self.hours is not None and self.source != "sentences":
            raise ConfigError(f"'hours' is not used by source {self.source!r}: set num_train")
        if self.shar is not None and self.source == "shar":
            raise ConfigError("the data are in Shar already: leave --shar out")

    def _check_negatives(self) -> None:
        if not 0 <= self.negatives <= _MOST_NEGATIVES:
            raise ConfigError(
                f"negatives is {self.negatives}: a share of the utterances from 0 to {_MOST_NEGATIVES}"
            )
        if self.negatives and self.source != "commands":
            raise ConfigError(
                f"'negatives' is not used by source {self.source!r}: it speaks sentences beside the commands "
                "of a grammar; speech on disk that is no command has an empty text and needs keep_empty=true"
            )
        if self.negative_text is not None and not self.negatives:
            raise ConfigError(
                "'negative_text' needs a share: set negatives, such as negatives=0.15"
            )
        if self.keep_empty and self.is_spoken:
            raise ConfigError(
                f"'keep_empty' is not used by source {self.source!r}: it is for speech on disk; set negatives"
            )

    def num(self, split: Split) -> int:
        """Requested utterances in a split of a spoken corpus."""
        return int(getattr(self, f"num_{split}"))

    def num_voices(self, split: Split) -> int:
        """Requested voices in a split of a spoken corpus."""
        return int(getattr(self.speech, f"{split}_voices"))

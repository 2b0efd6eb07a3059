"""Everything about the speech side of a recipe, in one configuration."""

import dataclasses
from typing import Self

from todm.artifact import Artifact
from todm.asr.corpora.config import DataConfig
from todm.asr.data.acoustics import AcousticsConfig
from todm.asr.data.augment import AugmentConfig
from todm.asr.data.batch import LoaderConfig
from todm.asr.model.transducer import RnntConfig
from todm.asr.objective import ObjectiveConfig
from todm.config import Config
from todm.device.decode import FRAME_SECONDS, endpoint_frames
from todm.errors import ConfigError
from todm.supernet.space import SearchSpace, SpaceConfig

_LONGEST = 1500  # frames of 40 ms: a minute


@dataclasses.dataclass(frozen=True, kw_only=True)
class AsrConfig(Config):
    """Everything about the speech side of a recipe.

    Attributes:
        data: the corpus.
        loader: batches.
        acoustics: renderings of the training utterances in rooms, at levels and through lines.
        augment: augmentation of features.
        model: sizes that are not elastic; vocabulary and blocks are filled in.
        space: elastic sizes; the largest is the supernet.
        objective: loss terms.
        noise: a folder of noise recordings to mix in; shaped Gaussian noise without one.
        chunks: chunk sizes C drawn in training, one a step; 0 is the whole utterance. No weight
            belongs to one of them, so that one supernet serves them all.
        chunk: C that subnets are extracted and, if not told otherwise, exported at; one of `chunks`,
            unless these are whole utterances only.
        endpoint_seconds: a pause of so long without a label ends a segment, and the predictor's
            context starts again. Training prepares for it with `augment.context_reset`.
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loader: LoaderConfig = dataclasses.field(default_factory=LoaderConfig)
    acoustics: AcousticsConfig = dataclasses.field(default_factory=AcousticsConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    model: RnntConfig = dataclasses.field(default_factory=RnntConfig)
    space: SpaceConfig = dataclasses.field(
        default_factory=lambda: SpaceConfig(
            depths=(3, 4, 5, 6), widths={"ffn": (128, 256, 384, 512), "pairs": (2, 4, 6, 8)}
        )
    )
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    noise: str | None = None
    chunks: tuple[int, ...] = (8, 16, 32, 0)
    chunk: int = 8
    endpoint_seconds: float = 0.6

    def __post_init__(self) -> None:
        if set(self.space.widths) != {"ffn", "pairs"}:
            raise ConfigError(
                f"asr.space.widths has {sorted(self.space.widths)}: ffn and pairs are needed"
            )
        wrong = [w for w in self.space.widths["ffn"] if w % 16]
        if wrong:
            raise ConfigError(f"asr.space.widths.ffn has {wrong[0]}: multiples of 16 are needed")
        self._check_chunks()
        holds, allowed = (lambda v: 0.2 <= v <= 10), "from 0.2 to 10 s"
        self.check("asr", ("endpoint_seconds",), holds=holds, allowed=allowed)
        own = RnntConfig()
        if (self.model.encoder.ffn, self.model.encoder.pairs) != (
            own.encoder.ffn,
            own.encoder.pairs,
        ):
            raise ConfigError("asr.model.encoder.ffn and pairs come from asr.space: set its widths")
        if self.model.vocab_size != own.vocab_size:
            raise ConfigError("asr.model.vocab_size comes from the tokenizer: set asr.data.tokens")
        if self.objective.align_until and not self.model.ctc:
            raise ConfigError("asr.objective.align_until needs asr.model.ctc")

    def _check_chunks(self) -> None:
        if not self.chunks or min(self.chunks) < 0 or self.chunk < 1:
            raise ConfigError(
                f"asr.chunks is {self.chunks} and asr.chunk {self.chunk}: frames of 40 ms, 0 only in chunks"
            )
        if self.chunk_sizes and self.chunk not in self.chunk_sizes:
            raise ConfigError(
                f"asr.chunk is {self.chunk} and asr.chunks {self.chunks}: an export decodes at a chunk size "
                "that was trained: set asr.chunk to one of them"
            )

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        """The chunk sizes of training, ascending; none if it knew whole utterances only."""
        return tuple(sorted({chunk for chunk in self.chunks if chunk}))

    def at_chunk(self, chunk: int) -> Self:
        """The configuration for an export at another chunk size.

        Raises:
            ConfigError: it was not trained, or is too long.
        """
        sizes = self.chunk_sizes
        if sizes and chunk not in sizes:
            first = f"{', '.join(map(str, sizes[:-1]))} and " if sizes[1:] else ""
            raise ConfigError(
                f"--chunk is {chunk}: the net was trained with chunks of {first}{sizes[-1]} frames of 40 ms: "
                f"choose {'one of these' if sizes[1:] else 'this'}"
            )
        if not 1 <= chunk <= _LONGEST:
            raise ConfigError(f"--chunk is {chunk}: 1 to {_LONGEST} frames of 40 ms")
        return self.replace(chunk=chunk)

    @property
    def eval_chunk(self) -> int:
        """C of evaluation: that of the export, or whole utterances if training knew nothing else."""
        return self.chunk if any(self.chunks) else 0

    @property
    def endpoint_frames(self) -> int:
        """Frames of the encoder without a label after which the predictor's context starts again."""
        return endpoint_frames(self.endpoint_seconds)

    def tail_seconds(self, chunk: int) -> float:
        """Silence behind every utterance that is recognised: at least a chunk, as a device needs it."""
        return max(self.loader.tail_seconds, (chunk + 1) * FRAME_SECONDS)

    def supernet(self, vocab_size: int) -> RnntConfig:
        """The largest net as a model configuration."""
        space = SearchSpace(self.space)
        encoder = self.model.encoder.narrow(space.largest)
        return self.model.replace(vocab_size=vocab_size, encoder=encoder)


def config_of(source: Artifact) -> AsrConfig:
    """The configuration in an artifact.

    Nets of earlier versions, which know no `memory_seconds`, were trained without a bound and keep their
    decays; one whose `chunk` was not among its `chunks` gets the longest of these that is no longer. All
    get the endpoint, which they were not trained with.

    Raises:
        ConfigError: it is one of another todm.
    """
    table = source.config.get("asr", {})
    trained, chunk = [c for c in table.get("chunks", ()) if c], table.get("chunk")
    if trained and chunk is not None and chunk not in trained:
        shorter = [c for c in trained if c < chunk]
        table = {**table, "chunk": max(shorter, default=min(trained))}
    config = AsrConfig.from_json(table, where=f"{source.path}: asr.")
    if "memory_seconds" in table.get("model", {}).get("encoder", {}):
        return config
    encoder = config.model.encoder.replace(memory_seconds=None)
    return config.replace(model=config.model.replace(encoder=encoder))

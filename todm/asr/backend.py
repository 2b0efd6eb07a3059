"""The speech backend: what the stages need of RNN-T supernets, behind `todm.backend.Backend`."""

import functools
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from todm.artifact import Artifact
from todm.asr import tokens
from todm.asr.config import AsrConfig
from todm.asr.data.acoustics import Acoustics
from todm.asr.data.audio import cut_samples, cut_text
from todm.asr.data.augment import Augmenter
from todm.asr.data.batch import Batch, LoaderConfig, eval_batches
from todm.asr.data.features import FRAME_SHIFT, NUM_BINS
from todm.asr.data.loader import Loader, open_source
from todm.asr.data.noise import noise_of_store, noise_store
from todm.asr.data.order import Schedule
from todm.asr.data.statistics import Statistics, compute_features
from todm.asr.data.store import FeatureStore
from todm.asr.decode.dev_scorer import ALTERED_SPEEDS, dev_score
from todm.asr.decode.evaluate import decode_model
from todm.asr.decode.search import Search, greedy_search
from todm.asr.decode.utterances import Decoded, figures_of
from todm.asr.model import graph_parts, init_from
from todm.asr.model.costs import work_and_state
from todm.asr.model.streaming import StreamingEncoder
from todm.asr.model.transducer import Rnnt, extract
from todm.asr.objective import RnntObjective
from todm.backend import Graph, GraphParts
from todm.device.audio import Samples
from todm.device.decode import FRAME_SECONDS
from todm.errors import ConfigError
from todm.files import Progress, no_progress
from todm.supernet.space import SearchSpace, Subnet

if TYPE_CHECKING:
    from todm.asr.decode.word_ends import Timed

_log = logging.getLogger(__name__)

ASSETS = (tokens.MODEL, tokens.VOCAB, tokens.TOKENS)


class AsrBackend:
    """`todm.backend.Backend` for speech, from a recipe, and from a corpus where data are needed."""

    def __init__(
        self,
        config: AsrConfig,
        assets: Path,
        *,
        corpus: Path | None = None,
        report: Progress = no_progress,
    ) -> None:
        """Read the tokenizer; features are opened (or computed) when first needed.

        Args:
            config: the speech side of the recipe.
            assets: a directory with the tokenizer: a corpus or any artifact made from one.
            corpus: a corpus artifact's directory, for training and evaluation.
            report: called with (what, done, total) while features are computed.
        """
        self.config, self.assets, self.corpus, self._report = config, assets, corpus, report
        self.tokenizer = tokens.load(assets, rule=config.data.tokens.normalise)
        self.supernet = config.supernet(self.tokenizer.vocab_size)
        self._stores: dict[str, FeatureStore] = {}
        self._statistics: Statistics | None = None

    @property
    def space(self) -> SearchSpace:
        """The subnets of the supernet."""
        return SearchSpace(self.config.space)

    def build(self, subnet: Subnet | None) -> Rnnt:
        """A new plain model of a subnet (without CTC head), or the supernet."""
        if subnet is not None:
            return Rnnt(self.supernet.narrow(subnet))
        model = Rnnt(self.supernet)
        if self._statistics is not None:
            model.encoder.subsampling.mean.copy_(self._statistics.mean_F)
            model.encoder.subsampling.scale.copy_(1 / self._statistics.std_F.clamp(min=0.1))
        return model

    def init_from(self, model: nn.Module, earlier: Artifact) -> list[str]:
        """Start from an earlier supernet or subnet, see `todm.asr.model.init_from`."""
        assert isinstance(model, Rnnt)
        return init_from.init_from(model, earlier, self.tokenizer.symbols)

    def deployed(self, subnet: Subnet) -> StreamingEncoder:
        """The plain model with the operators of a chunk."""
        return StreamingEncoder(self.build(subnet), self.config.chunk)

    def prepare(self) -> None:
        """Features of the training data, or their statistics, before the first `build` of a training."""
        if self.config.noise:  # first, so that a folder of no use is known before hours of features
            noise_store(Path(self.config.noise), self._features("noise"))
        self._statistics = compute_features(
            self._cuts("train"),
            self._training_features,
            config=self.config.loader,
            acoustics=self._acoustics,
            progress=self._report,
        )
        if self.config.loader.feature_mode == "map":
            _warn_rejected("train", FeatureStore.open(self._training_features).rejected)
        self.store("dev")

    def preparation(self) -> tuple[int, Path]:
        """About how many bytes of mapped training features are still missing, and where they go."""
        from lhotse import CutSet

        loader, place = self.config.loader, self._training_features
        if loader.feature_mode != "map" or place.is_dir():
            return 0, place
        seconds = sum(cut.duration for cut in CutSet.from_jsonl_lazy(self._cuts("train")))
        per_second = NUM_BINS * 2 / FRAME_SHIFT
        copies = (self.config.acoustics.renderings + 1) * sum(1 / speed for speed in loader.speeds)
        return round(seconds * per_second * copies), place

    def extract(self, model: nn.Module, subnet: Subnet) -> Rnnt:
        """A plain dense module whose outputs equal the supernet's with that subnet."""
        assert isinstance(model, Rnnt)
        return extract(model, subnet)

    def objective(self, model: nn.Module) -> RnntObjective:
        """The training loss around a model."""
        assert isinstance(model, Rnnt)
        sizes = [max(1, len(symbol.removeprefix("\u2581"))) for symbol in self.tokenizer.symbols]
        return RnntObjective(model, self.config.objective, label_sizes=sizes)

    def batches(self, *, rank: int, world_size: int, num_updates: int) -> Loader:
        """Augmented training batches of one process."""
        if self._statistics is None:
            raise ConfigError("training batches need prepare() first")
        noise_NF = None
        if self.config.noise:
            noise = noise_store(Path(self.config.noise), self._features("noise"))
            noise_NF = noise_of_store(noise)
        mean_F = self._statistics.mean_F
        loader = Loader(
            open_source(
                self._cuts("train"), self._training_features, self._loader, self._acoustics
            ),
            self._encode,
            config=self._loader,
            acoustics=self.config.acoustics,
            augment=Augmenter(
                self.config.augment,
                mean_F=mean_F,
                noise_NF=noise_NF,
                chunks=self.config.chunks,
            ),
            chunks=self.config.chunks,
            schedule=Schedule(num_updates, rank, world_size),
        )
        if rank == 0 and loader.dropped:
            left_out = ", ".join(f"{num} ({why})" for why, num in loader.dropped.items())
            _log.warning("train: left out %s", left_out)
        return loader

    def evaluate(
        self, model: nn.Module, *, subnet: Subnet | None, split: str, limit: int = 0
    ) -> dict[str, Any]:
        """WER of greedy search as `error`, its interval, counts, and false accepts; see `figures_of`."""
        return figures_of(self.recognise(model, subnet=subnet, split=split, limit=limit))

    def recognise(
        self,
        model: nn.Module,
        *,
        subnet: Subnet | None,
        split: str,
        limit: int = 0,
        chunk: int | None = None,
        search: Search | None = None,
    ) -> list[Decoded]:
        """Decode a split with torch.

        Args:
            model: a supernet, or a plain model.
            subnet: active subnet; None uses everything.
            split: train, dev or test.
            limit: at most this many utterances, evenly spread over the lengths; 0 for all.
            chunk: C in frames of 40 ms, 0 for whole utterances; `eval_chunk` if None.
            search: from encoder outputs to labels; greedy, with the recipe's endpoint, if None.
        """
        assert isinstance(model, Rnnt)
        chunk = self.config.eval_chunk if chunk is None else chunk
        batches = self._eval_batches(split, chunk=chunk, limit=limit)
        if search is None:
            search = functools.partial(greedy_search, endpoint=self.config.endpoint_frames)
        training = model.training
        try:
            return decode_model(
                model.eval(), batches, self.tokenizer, chunk=chunk, subnet=subnet, search=search
            )
        finally:
            model.train(training)

    def scorer(
        self, model: nn.Module, *, limit: int = 0
    ) -> Callable[[Subnet | None], dict[str, Any]]:
        """Scores subnets on the dev split, which stays in memory; see `todm.asr.decode.dev_scorer`."""
        assert isinstance(model, Rnnt)
        chunk = self.config.eval_chunk
        batches = list(self._eval_batches("dev", chunk=chunk, limit=limit))
        altered = [
            batch
            for speed in ALTERED_SPEEDS
            for batch in self._eval_batches("dev", chunk=chunk, limit=limit, speed=speed)
        ]
        return lambda subnet: dev_score(
            model,
            batches,
            self.tokenizer,
            altered=altered,
            subnet=subnet,
            chunk=chunk,
            topology=self.config.objective.topology,
            endpoint=self.config.endpoint_frames,
        )

    def word_ends(
        self,
        model: nn.Module,
        *,
        split: str,
        limit: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> "dict[str, Timed]":
        """Where the words of a split end, with `model` as aligner; see `todm.asr.decode.word_ends`."""
        from lhotse import CutSet

        from todm.asr.decode.word_ends import manifest_ends, reference_ends

        assert isinstance(model, Rnnt)
        known = {cut.id: manifest_ends(cut) for cut in CutSet.from_file(self._cuts(split))}
        total = min(limit or len(known), len(known))
        return reference_ends(
            model,
            self._eval_batches(split, chunk=0, limit=limit),
            self.tokenizer,
            known=known,
            tail_seconds=self.config.tail_seconds(0),
            progress=None if progress is None else lambda done: progress(done, total),
        )

    def known_ends(self, split: str) -> "dict[str, Timed]":
        """Where the words of a split end as far as the corpus says; see `todm.asr.decode.word_ends`."""
        from lhotse import CutSet

        from todm.asr.decode.word_ends import known_ends

        return known_ends(CutSet.from_file(self._cuts(split)), self.tokenizer.normalise)

    def _eval_batches(
        self, split: str, *, chunk: int, limit: int, speed: float = 1.0
    ) -> Iterator[Batch]:
        return eval_batches(
            self.store(split, speed),
            self._encode,
            tail_seconds=self.config.tail_seconds(chunk),
            limit=limit or None,
        )

    def graphs(self, model: nn.Module) -> list[Graph]:
        """Streaming encoder, decoder and joiner of a plain model, as sherpa-onnx's `lstm` host takes them."""
        assert isinstance(model, Rnnt)
        if not self.config.eval_chunk:
            _log.warning(
                "this net was trained on whole utterances only (asr.chunks=[0]) and not for the chunks "
                "of %g s that a bundle decodes: expect more errors, or train with asr.chunks=[0,%d]",
                self.chunk_seconds,
                self.config.chunk,
            )
        return graph_parts.graphs(model, self.config.chunk)

    def graph_parts(self) -> GraphParts:
        """Graphs with random weights that compose to the graph of any subnet."""
        return graph_parts.graph_parts(self.supernet, self.space, self.config.chunk)

    def work_and_state(self, subnet: Subnet) -> dict[str, float]:
        """`macs` per second of audio and `state` in bytes, see `todm.asr.model.costs`."""
        return work_and_state(self.supernet.narrow(subnet), self.config.chunk)

    @property
    def chunk_frames(self) -> int:
        """C of exported graphs."""
        return self.config.chunk

    @property
    def chunk_seconds(self) -> float:
        """Audio that one call of an exported encoder takes."""
        return self.config.chunk * FRAME_SECONDS

    def space_key(self) -> dict[str, Any]:
        """Everything that decides the graphs of the space's subnets, as JSON types."""
        return {
            "space": self.config.space.to_json(),
            "model": self.supernet.replace(ctc=False).to_json(),
            "chunk": self.config.chunk,
        }

    def write_assets(self, directory: Path) -> None:
        """The tokenizer's files."""
        for name in ASSETS:
            shutil.copy(self.assets / name, directory / name)

    def store(self, split: str, speed: float = 1.0) -> FeatureStore:
        """Features of a split at one speed, kept beside the corpus; computed at the first call."""
        name = split if speed == 1.0 else f"{split}-{speed}"
        if name not in self._stores:
            self._stores[name] = FeatureStore.build(
                self._cuts(split),
                self._features(name),
                speeds=(speed,),
                label=f"features of {name}",
                progress=self._report,
            )
            _warn_rejected(name, self._stores[name].rejected)
        return self._stores[name]

    def example(self, split: str, *, seconds: float) -> tuple[Samples, str]:
        """Audio at 16 kHz and transcript of the first utterance of at least `seconds`, else of the last one.

        Speech without a transcript is no example.

        Raises:
            CorpusError: the audio cannot be read.
            ConfigError: the corpus has no such split.
        """
        from lhotse import CutSet

        cut = None
        for cut in (c for c in CutSet.from_file(self._cuts(split)) if cut_text(c)[0]):
            if cut.duration >= seconds:
                break
        if cut is None:
            raise ConfigError(f"{self.corpus} has no {split} utterances")
        return cut_samples(cut), self.tokenizer.normalise(cut_text(cut)[0])

    def recordings(self, split: str, most: int) -> "list[tuple[str, Callable[[], Samples]]]":
        """Transcript and audio (float32 [S] at 16 kHz, read when called) of utterances all over a split."""
        from lhotse import CutSet

        cuts, spell = list(CutSet.from_file(self._cuts(split))), self.tokenizer.normalise
        some = cuts[:: max(1, math.ceil(len(cuts) / most))]
        return [(spell(cut_text(c)[0]), functools.partial(cut_samples, c)) for c in some]

    def _cuts(self, split: str) -> Path:
        if self.corpus is None:
            raise ConfigError("this needs a corpus: give the directory that  todm prepare  wrote")
        return self.corpus / f"cuts_{split}.jsonl.gz"

    def _features(self, name: str) -> Path:
        corpus = self._cuts("train").parent
        return corpus.with_name(f"{corpus.name}-features") / name

    @functools.cached_property
    def _acoustics(self) -> Acoustics:
        return Acoustics(self.config.acoustics)

    @property
    def _training_features(self) -> Path:
        """Named after speeds and renderings, so that runs with others on the same corpus keep theirs."""
        names = ["train", *map(str, self.config.loader.speeds)]
        renderings = [self._acoustics.mark] if self.config.acoustics.renderings else []
        return self._features("-".join(names + renderings))

    @property
    def _loader(self) -> LoaderConfig:
        """Leaves out what the loss cannot use: only the standard lattice takes any number of labels."""
        objective = self.config.objective
        if objective.topology == "standard" and not self.config.model.ctc:
            return self.config.loader.replace(one_symbol=False)
        return self.config.loader

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(self.tokenizer.normalise(text))


def _warn_rejected(split: str, rejected: list[dict[str, str]]) -> None:
    """Warn of audio that proved unusable when its features were computed."""
    if rejected:
        first = rejected[0]
        _log.warning(
            "%s: %d utterances left out, the first %s: %s",
            split,
            len(rejected),
            first["id"],
            first["reason"],
        )

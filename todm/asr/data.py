"""Batches: what training and evaluation consume, and the order they come in.

The order is a function of (seed, epoch), the random draws of augmentation of (seed, epoch, index,
rank). So the whole state of a stream is two numbers, the epoch and the index of the next batch,
and a resumed training sees exactly what an uninterrupted one would have seen.

Letters: B batch, T frames (100 a second, before subsampling), F bins, U labels.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from todm.asr.features import FRAME_SHIFT, PADDING, SILENCE_FLOOR
from todm.asr.store import FeatureStore
from todm.config import Config
from todm.errors import ConfigError, CorpusError

SUBSAMPLING = 4
UNKNOWN = 2
"""The tokenizer's id for what it cannot spell."""

Encode = Callable[[str], list[int]]
State = dict[str, int]


@dataclasses.dataclass
class Batch:
    """Some utterances, padded.

    Attributes:
        features_BTF: float32 log-mel features, padded with `PADDING`.
        feature_lens_B: int64 lengths in frames, silence in front and at the end included.
        targets_BU: int64 token ids, padded with 0.
        target_lens_B: int64 lengths in tokens.
        ids: names of the utterances; joined ones by a "+".
        texts: transcripts.
    """

    features_BTF: Tensor
    feature_lens_B: Tensor
    targets_BU: Tensor
    target_lens_B: Tensor
    ids: list[str]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> list[list[int]]:
        """The token ids of every utterance, without padding."""
        lens = self.target_lens_B.tolist()
        return [row[:n] for row, n in zip(self.targets_BU.tolist(), lens, strict=True)]

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        tensors = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)


class Augment(Protocol):
    """Changes a batch by random draws from a generator: `todm.asr.augment.Augmenter`."""

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """A changed copy; may have fewer, longer utterances."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderConfig(Config):
    """How utterances become batches.

    Attributes:
        feature_mode: `map` computes all features once to a memory map (160 bytes a frame: 58 MB an
            hour of audio and speed); `on_the_fly` computes them in loader processes each time.
        speeds: speed perturbation, each a copy of the corpus.
        batch_size: utterances a batch; None leaves it to `max_frames`.
        max_frames: padded frames a batch (B x T), before augmentation adds silence; None: any.
        num_buckets: groups of like length that batches are drawn from.
        short_first: fraction of the planned updates in which the longest utterances are held back.
        num_workers: loader processes of `on_the_fly`.
        tail_seconds: silence after every utterance in evaluation; a streaming recogniser decodes
            no residue shorter than its chunk, so at least the chunk.
        seed: of order and augmentation.
    """

    feature_mode: Literal["map", "on_the_fly"] = "map"
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    batch_size: int | None = 32
    max_frames: int | None = None
    num_buckets: int = 30
    short_first: float = 0.0
    num_workers: int = 4
    tail_seconds: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size is None and self.max_frames is None:
            raise ConfigError("set batch_size or max_frames: without either a batch has no end")
        for name in ("batch_size", "max_frames", "num_buckets"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}: it must be at least 1")
        for name in ("num_workers", "tail_seconds", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        if not self.speeds or min(self.speeds) <= 0.5 or max(self.speeds) >= 2:
            raise ConfigError(f"speeds are {list(self.speeds)}: each must be between 0.5 and 2")
        if not 0 <= self.short_first <= 1:
            raise ConfigError(f"short_first is {self.short_first}: it must be from 0 to 1")


class MapBatches:
    """Endless batches of a feature store for training, shuffled anew in every epoch.

    Attributes:
        dropped: reasons for utterances left out, with counts.
        num_utterances: what is left.
    """

    def __init__(
        self,
        store: FeatureStore,
        encode: Encode,
        *,
        config: LoaderConfig,
        augment: Augment | None = None,
        num_updates: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """A stream at the start of epoch 0.

        Args:
            store: the features.
            encode: transcript to token ids.
            config: batch size, order, seed.
            augment: applied to every batch.
            num_updates: batches the training is planned to take; `short_first` needs it.
            rank: this process, of `world_size`; each takes other batches, all equally many.
            world_size: number of processes.

        Raises:
            CorpusError: no utterance is usable, or too few for the processes.
        """
        self._store, self._config, self._augment = store, config, augment
        self._rank, self._world_size = rank, world_size
        self._epoch = self._index = 0
        tokens = {text: encode(text) for text in {u.text for u in store.utterances}}
        self._targets = [tokens[u.text] for u in store.utterances]
        faults = [
            fault(u.num_frames, t) for u, t in zip(store.utterances, self._targets, strict=True)
        ]
        self.dropped = Counter(f for f in faults if f)
        usable = np.array([i for i, f in enumerate(faults) if not f], dtype=np.int64)
        self.num_utterances = len(usable)
        lens = store.lens_N.numpy()
        self._usable = usable[np.argsort(lens[usable], kind="stable")]
        self._lens = lens
        self._short_epochs = 0
        if not self.num_batches(0):
            raise CorpusError(
                f"{store.path} has {self.num_utterances} usable utterances (left out: "
                f"{dict(self.dropped) or 'none'}), too few for batches on {world_size} processes"
            )
        if config.short_first and num_updates:
            per_epoch = self.num_batches(0)
            self._short_epochs = round(2 * config.short_first * num_updates / per_epoch)

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch for this process; the same for every process."""
        return len(self._order(epoch))

    def state(self) -> State:
        """Where the stream is: the epoch, and the index of the next batch in it."""
        return {"epoch": self._epoch, "index": self._index}

    def load_state(self, state: State) -> None:
        """Go to where `state` was taken; the same store, config and world size are needed."""
        self._epoch, self._index = state["epoch"], state["index"]

    def __iter__(self) -> Iterator[Batch]:
        while True:
            order = self._order(self._epoch)
            while self._index < len(order):
                batch = self._make(order[self._index])
                # Before the batch is handed out, so that a state taken then is the next one's.
                self._index += 1
                yield batch
            self._epoch, self._index = self._epoch + 1, 0

    def _make(self, indices: np.ndarray) -> Batch:
        batch = from_store(self._store, indices.tolist(), [self._targets[i] for i in indices])
        if self._augment is None:
            return batch
        draws = generator(self._config.seed, self._epoch, self._index, self._rank)
        return self._augment(batch, draws)

    def _order(self, epoch: int) -> list[np.ndarray]:
        """This process's batches of an epoch, as indices into the store."""
        config = self._config
        rng = np.random.default_rng([config.seed, epoch])
        pool = self._pool(epoch)
        buckets = np.arange(len(pool)) * config.num_buckets // max(len(pool), 1)
        mixed = pool[np.lexsort((rng.random(len(pool)), buckets))]
        limits = {"batch_size": config.batch_size, "max_frames": config.max_frames}
        batches, world = chop(mixed, self._lens[mixed], **limits), self._world_size
        # Processes step together: neighbours in length keep them from waiting for the longest.
        steps = [batches[i : i + world] for i in range(0, len(batches) - world + 1, world)]
        return [steps[i][self._rank] for i in rng.permutation(len(steps))]

    def _pool(self, epoch: int) -> np.ndarray:
        """The utterances of an epoch, by length: at first only the shortest, more in each epoch."""
        if epoch >= self._short_epochs:
            return self._usable
        share = (epoch + 1) / (self._short_epochs + 1)
        least = (self._config.batch_size or 1) * self._world_size
        return self._usable[: max(math.ceil(share * len(self._usable)), least)]


def fault(num_frames: int, targets: list[int]) -> str | None:
    """Why an utterance cannot be trained on; None if it can."""
    if not targets:
        return "empty transcript"
    if UNKNOWN in targets:
        return "characters that the tokenizer cannot spell"
    if num_frames // SUBSAMPLING < len(targets):
        return "fewer frames than labels"
    return None


def chop(
    order: np.ndarray, lens: np.ndarray, *, batch_size: int | None, max_frames: int | None
) -> list[np.ndarray]:
    """Cut a sequence of utterances into batches, each as large as both limits allow.

    Args:
        order: what to cut.
        lens: the length of each in frames.
        batch_size: most utterances a batch.
        max_frames: most padded frames a batch; a longer utterance is a batch of its own.
    """
    batches, start, longest = [], 0, 0
    for i, length in enumerate(lens.tolist()):
        longest = max(longest, length)
        count = i - start + 1
        full = batch_size is not None and count > batch_size
        if i > start and (full or (max_frames is not None and count * longest > max_frames)):
            batches.append(order[start:i])
            start, longest = i, length
    if len(order):
        batches.append(order[start:])
    return batches


def from_store(store: FeatureStore, indices: Sequence[int], targets: Sequence[list[int]]) -> Batch:
    """A batch of utterances of a store, with the token ids of each."""
    chosen = [store.utterances[i] for i in indices]
    ids, texts = [u.id for u in chosen], [u.text for u in chosen]
    return Batch(*store.read(indices), *pad_targets(targets), ids, texts)


def pad_targets(targets: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids as [B, U] int64 padded with 0, and their lengths [B]."""
    lens = [len(t) for t in targets]
    padded_BU = torch.zeros(len(targets), max(lens, default=0), dtype=torch.int64)
    for row, ids in zip(padded_BU, targets, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return padded_BU, torch.tensor(lens)


def add_tail(batch: Batch, num_frames: int) -> Batch:
    """Put frames of digital silence after every utterance.

    The frame at the seam is not what features of the padded audio would be: there the window sees
    the speech's end and the silence together, here it saw the end mirrored.
    """
    B, T, F = batch.features_BTF.shape
    features_BTF = torch.full((B, T + num_frames, F), PADDING)
    features_BTF[:, :T] = batch.features_BTF
    for row_TF, end in zip(features_BTF, batch.feature_lens_B.tolist(), strict=True):
        row_TF[end : end + num_frames] = SILENCE_FLOOR
    lens_B = batch.feature_lens_B + num_frames
    return dataclasses.replace(batch, features_BTF=features_BTF, feature_lens_B=lens_B)


def eval_batches(
    store: FeatureStore,
    encode: Encode,
    *,
    batch_size: int = 32,
    tail_seconds: float = 0.8,
    limit: int | None = None,
) -> Iterator[Batch]:
    """Batches for evaluation: every utterance once, shortest first, with silence behind.

    Nothing is augmented, and nothing left out, whatever its transcript.

    Args:
        store: the features.
        encode: transcript to token ids.
        batch_size: utterances a batch.
        tail_seconds: digital silence after every utterance.
        limit: only that many utterances, evenly spread over the lengths; None for all.
    """
    order = np.argsort(store.lens_N.numpy(), kind="stable")
    if limit is not None and limit < len(order):
        order = order[np.linspace(0, len(order) - 1, limit).round().astype(np.int64)]
    tail = round(tail_seconds / FRAME_SHIFT)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size].tolist()
        targets = [encode(store.utterances[i].text) for i in indices]
        yield add_tail(from_store(store, indices, targets), tail)


def generator(*numbers: int) -> torch.Generator:
    """A generator whose draws depend on all the numbers, and on nothing else."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    # torch takes 64 bits as a signed number.
    return torch.Generator().manual_seed(seed >> 1)

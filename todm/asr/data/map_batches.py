"""Streams of training batches, and the one whose features lie in a store.

The order (`todm.asr.data.order`) is a function of (seed, epoch), the random draws of augmentation of (seed,
epoch, index, rank). So the whole state of a stream is two numbers, the epoch and the index of the
next batch, the same on every process, and a resumed training sees exactly what an uninterrupted one
would have seen.

Letters: N items (an utterance at one speed), B batch, T frames, U labels.
"""

import abc
import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import torch

from todm.asr.data.batch import (
    UNKNOWN,
    Augment,
    Batch,
    Encode,
    LoaderConfig,
    State,
    from_store,
    generator,
    pad_targets,
)
from todm.asr.data.features import FRAME_SHIFT, NUM_BINS
from todm.asr.data.order import UNSPELLABLE, MixedOrder, Order, largest, left_out
from todm.asr.data.store import FeatureStore
from todm.errors import CorpusError

_ALL_LENGTHS = 1 << 30
"""An epoch long after `short_first`."""


@dataclasses.dataclass(frozen=True)
class Lengths:
    """What an order needs to know of the items of a corpus.

    Attributes:
        frames_N: frames of every item.
        padded_N: the same with the silence that augmentation may add.
        labels_N: labels of every item.
        usable_N: whether it may be trained on.
        dropped: reasons for the others, with counts.
    """

    frames_N: np.ndarray
    padded_N: np.ndarray
    labels_N: np.ndarray
    usable_N: np.ndarray
    dropped: Counter[str]

    @classmethod
    def of(
        cls,
        frames_N: np.ndarray,
        labels_N: np.ndarray,
        *,
        config: LoaderConfig,
        augment: Augment | None,
    ) -> Self:
        """Lengths with what can be trained on found out; see `left_out`."""
        silence = 0 if augment is None else augment.silence
        room = None if config.max_frames is None else config.max_frames - silence
        limits = {"most_frames": room, "one_symbol": config.one_symbol}
        usable_N, dropped = left_out(frames_N, labels_N, **limits)
        return cls(frames_N, frames_N + silence, labels_N, usable_N, dropped)


class BatchStream(abc.ABC):
    """Endless batches for training, shuffled anew in every epoch, with an exact state.

    Attributes:
        dropped: reasons for utterances left out, with counts; every speed counts.
        num_utterances: what is left, every speed counted.
        hours: audio of one epoch in hours, all processes together, every speed counted.
    """

    def __init__(
        self,
        order: Order,
        lengths: Lengths,
        *,
        config: LoaderConfig,
        augment: Augment | None,
        rank: int,
        world_size: int,
    ) -> None:
        """A stream at the start of epoch 0.

        Raises:
            CorpusError: too few utterances are usable for a batch on every process.
        """
        self._order, self._lengths, self._config, self._augment = order, lengths, config, augment
        self._rank, self._world_size = rank, world_size
        self._epoch = self._index = 0
        self.dropped = lengths.dropped
        self.num_utterances = int(lengths.usable_N.sum())
        self.hours = float(lengths.frames_N[lengths.usable_N].sum()) * FRAME_SHIFT / 3600
        if not order.num_batches(0):
            raise CorpusError(
                f"{self.num_utterances} usable utterances (left out: {dict(self.dropped) or 'none'}) "
                f"are too few for batches on {world_size} processes"
            )

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """Batches from the present place on."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches that each process takes from an epoch with utterances of all lengths."""
        return self._order.num_batches(_ALL_LENGTHS)

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch for this process; the same for every process."""
        return self._order.num_batches(epoch)

    def state(self) -> State:
        """Where the stream is: the epoch, and the index of the next batch in it."""
        return {"epoch": self._epoch, "index": self._index, "world_size": self._world_size}

    def load_state(self, state: State) -> None:
        """Go to where `state` was taken, with the same corpus and config.

        That is exact with as many processes as then; with another number it is as far into the epoch.
        """
        num_then = state.get("world_size", self._world_size)
        self._epoch = state["epoch"]
        self._index = state["index"] * num_then // self._world_size

    def worst_batch(self) -> Batch:
        """A batch as large as any that can come, for a look at the memory that it needs.

        As many utterances of the greatest length as there is room for, each with the most labels
        that come at such a length, and with all the silence and joining of augmentation. The
        features are random numbers, and the labels the first two of the vocabulary by turns.
        """
        lengths, config = self._lengths, self._config
        num, num_frames, item = largest(
            lengths.padded_N,
            lengths.labels_N,
            lengths.usable_N,
            config,
            in_pairs=self._augment is not None and self._augment.joins,
        )
        silence = int(lengths.padded_N[item] - lengths.frames_N[item])
        shape, draws = (num, num_frames - silence, NUM_BINS), generator(config.seed)
        targets = [UNKNOWN + 1 + i % 2 for i in range(lengths.labels_N[item])]
        batch = Batch(
            torch.randn(shape, generator=draws) * 3 - 8,
            torch.full((num,), shape[1]),
            *pad_targets([targets] * num),
            [f"worst-{i}" for i in range(num)],
            [""] * num,
        )
        return batch if self._augment is None else self._augment.worst(batch)


class MapBatches(BatchStream):
    """The batches of a feature store."""

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
            CorpusError: too few utterances are usable for a batch on every process.
        """
        self._store = store
        tokens = {text: encode(text) for text in {u.text for u in store.utterances}}
        self._targets = [tokens[u.text] for u in store.utterances]
        frames_N, labels_N = store.lens_N.numpy(), num_labels(self._targets)
        lengths = Lengths.of(frames_N, labels_N, config=config, augment=augment)
        order = MixedOrder(
            lengths.padded_N,
            lengths.usable_N,
            config=config,
            num_updates=num_updates,
            rank=rank,
            world_size=world_size,
        )
        super().__init__(
            order, lengths, config=config, augment=augment, rank=rank, world_size=world_size
        )

    def __iter__(self) -> Iterator[Batch]:
        while True:
            order = list(self._order.batches(self._epoch))
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


def num_labels(targets: Sequence[Sequence[int]]) -> np.ndarray:
    """The number of labels of every transcript, `UNSPELLABLE` where one holds `UNKNOWN`; [N] int64."""
    return np.array([UNSPELLABLE if UNKNOWN in t else len(t) for t in targets], np.int64)

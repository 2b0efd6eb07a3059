"""Batches whose features are computed while training, in loader processes, for large corpora.

The order is that of the feature store's batches, by the lengths in the manifest. A job, which
utterances make a batch, is sent to a loader process; it answers with the augmented batch. The state is
the epoch and the index of the next batch that training takes, however far the loaders are ahead.

Letters: N items (an utterance at one speed).
"""

import dataclasses
import gzip
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from todm.asr.data.audio import cut_features, frames_at, speed_id
from todm.asr.data.batch import Augment, Batch, Encode, LoaderConfig, generator, pad_targets
from todm.asr.data.features import pad
from todm.asr.data.map_batches import BatchStream, Lengths, num_labels
from todm.asr.data.order import MixedOrder, Order
from todm.errors import CorpusError

_log = logging.getLogger(__name__)
_MOST_TRIES = 10
"""Batches in a row without any readable audio, after which the disk is taken to be gone."""


@dataclasses.dataclass(frozen=True)
class Item:
    """An utterance at a speed: `cut` is a lhotse cut as JSON text, or with its audio in memory."""

    cut: Any
    speed: float
    text: str

    def load(self) -> Any:  # noqa: ANN401 - a lhotse Cut
        """The cut as an object."""
        from lhotse.serialization import deserialize_item

        return deserialize_item(json.loads(self.cut)) if isinstance(self.cut, bytes) else self.cut


class Source(Protocol):
    """Where the utterances of a corpus come from."""

    @property
    def frames_N(self) -> np.ndarray:
        """Frames of every item."""
        ...

    def labels_N(self, encode: Encode) -> np.ndarray:
        """Labels of every item, see `num_labels`."""
        ...

    def order(
        self,
        lengths: Lengths,
        config: LoaderConfig,
        *,
        num_updates: int | None,
        rank: int,
        world: int,
    ) -> Order:
        """The order of their batches."""
        ...

    def read(self, order: Order, epoch: int, start: int) -> Iterator[list[Item]]:
        """The batches of an epoch from number `start` on, in order."""
        ...


class Manifest:
    """The utterances of a lhotse manifest, whose lines are held in memory."""

    def __init__(self, path: Path, speeds: tuple[float, ...]) -> None:
        """Read the manifest.

        Raises:
            CorpusError: there is none, or it holds nothing.
        """
        if not path.is_file():
            raise CorpusError(f"{path} does not exist: run  todm prepare  first")
        data = path.read_bytes()
        text = gzip.decompress(data) if path.suffix == ".gz" else data
        self._lines = [line for line in text.split(b"\n") if line.strip()]
        if not self._lines:
            raise CorpusError(f"{path} holds no utterances: there is nothing to train on")
        self._speeds = speeds
        seconds = np.array([json.loads(line)["duration"] for line in self._lines])
        self.frames_N = np.stack([frames_at(seconds, s) for s in speeds], 1).reshape(-1)

    def labels_N(self, encode: Encode) -> np.ndarray:
        """Labels of every item; the speeds of an utterance follow each other."""
        texts = [_text(line) for line in self._lines]
        known = {text: encode(text) for text in set(texts)}
        return num_labels([known[text] for text in texts]).repeat(len(self._speeds))

    def order(
        self,
        lengths: Lengths,
        config: LoaderConfig,
        *,
        num_updates: int | None,
        rank: int,
        world: int,
    ) -> Order:
        """All utterances mixed."""
        settings = {"config": config, "num_updates": num_updates, "rank": rank, "world_size": world}
        return MixedOrder(lengths.padded_N, lengths.usable_N, **settings)

    def read(self, order: Order, epoch: int, start: int) -> Iterator[list[Item]]:
        """The batches of an epoch from number `start` on."""
        for number, items in enumerate(order.batches(epoch)):
            if number >= start:
                yield [self._item(i) for i in items.tolist()]

    def _item(self, item: int) -> Item:
        line, speed = divmod(item, len(self._speeds))
        return Item(self._lines[line], self._speeds[speed], _text(self._lines[line]))


class OnTheFlyBatches(BatchStream):
    """The batches of a source, read and computed in loader processes.

    Attributes:
        rejected: reason for every utterance whose audio could not be used, by id, as met so far.
    """

    def __init__(
        self,
        source: Source,
        encode: Encode,
        *,
        config: LoaderConfig,
        augment: Augment | None = None,
        num_updates: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """A stream at the start of epoch 0; arguments as of `MapBatches`.

        Raises:
            CorpusError: too few utterances are usable for a batch on every process.
        """
        self._source, self._encode = source, encode
        self.rejected: dict[str, str] = {}
        lengths = Lengths.of(
            source.frames_N,
            source.labels_N(encode),
            config=config,
            augment=augment,
        )
        place = {"num_updates": num_updates, "rank": rank, "world": world_size}
        order = source.order(lengths, config, **place)
        settings = {"config": config, "augment": augment, "rank": rank, "world_size": world_size}
        super().__init__(order, lengths, **settings)
        self._loader = _Loader(augment, config.seed, rank)

    def __iter__(self) -> Iterator[Batch]:
        num_workers = self._config.num_workers
        loaded = torch.utils.data.DataLoader(
            self._loader,
            sampler=_Jobs(self),
            batch_size=None,
            num_workers=num_workers,
            # Forked processes would inherit torch's threads, which do not survive a fork.
            multiprocessing_context="spawn" if num_workers else None,
            # A generator of its own: the global one belongs to the training.
            generator=torch.Generator(),
        )
        for epoch, index, batch, rejected in loaded:
            self._reject(rejected)
            if batch is None:
                batch = self._instead(epoch, index)
            # Before the batch is handed out, so that a state taken then is the next one's.
            self._epoch, self._index = epoch, index + 1
            yield batch

    def _reject(self, rejected: dict[str, str]) -> None:
        """Say once of every utterance that its audio cannot be used."""
        for name in rejected.keys() - self.rejected.keys():
            _log.warning("left out of training: %s: %s", name, rejected[name])
        self.rejected.update(rejected)

    def jobs(self) -> Iterator["_Job"]:
        """What the loaders are to make, from the present place on, for ever."""
        epoch, start = self._epoch, self._index
        while True:
            for index, items in enumerate(self._source.read(self._order, epoch, start), start):
                yield self._job(epoch, index, items)
            epoch, start = epoch + 1, 0

    def _job(self, epoch: int, index: int, items: list[Item]) -> "_Job":
        return _Job(epoch, index, items, [self._encode(item.text) for item in items])

    def _instead(self, epoch: int, index: int) -> Batch:
        """Another batch in the place of one without readable audio.

        Every process has to give as many batches as the others, so none can be left out.
        """
        num = self._order.num_batches(epoch)
        for later in range(index + 1, index + _MOST_TRIES):
            items = next(self._source.read(self._order, epoch, later % num))
            _, _, batch, rejected = self._loader[self._job(epoch, index, items)]
            self._reject(rejected)
            if batch is not None:
                return batch
        first = next(map(": ".join, self.rejected.items()), "shards that cannot be read")
        raise CorpusError(
            f"{_MOST_TRIES} batches in a row hold no readable audio (first {first}): "
            "look whether the disk with the audio is there"
        )


@dataclasses.dataclass(frozen=True)
class _Job:
    """A batch to be made."""

    epoch: int
    index: int
    items: list[Item]
    targets: list[list[int]]


class _Jobs:
    """The jobs of a stream as a sampler."""

    def __init__(self, stream: OnTheFlyBatches) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[_Job]:
        return self._stream.jobs()

    def __len__(self) -> int:
        """There is no end; the loader needs only that a sampler could say."""
        raise TypeError("training batches are endless")


class _Loader(torch.utils.data.Dataset):
    """Runs in the loader processes: a job to its batch (None: nothing readable) and rejections."""

    def __init__(self, augment: Augment | None, seed: int, rank: int) -> None:
        self._augment, self._seed, self._rank = augment, seed, rank

    def __getitem__(self, job: _Job) -> tuple[int, int, Batch | None, dict[str, str]]:
        features, kept, rejected = [], [], {}
        for item, targets in zip(job.items, job.targets, strict=True):
            cut = item.load()
            name = speed_id(cut.id, item.speed)
            try:
                features += cut_features(cut, (item.speed,))
                kept.append((name, item.text, targets))
            except CorpusError as error:
                rejected[name] = str(error)
        if not kept:
            return job.epoch, job.index, None, rejected
        ids, texts, targets = (list(column) for column in zip(*kept, strict=True))
        lens_B = torch.tensor([len(f) for f in features])
        batch = Batch(pad(features), lens_B, *pad_targets(targets), ids, texts)
        if self._augment is not None:
            draws = generator(self._seed, job.epoch, job.index, self._rank)
            batch = self._augment(batch, draws)
        return job.epoch, job.index, batch, rejected


def _text(line: bytes) -> str:
    """The transcript of a cut as JSON, as `cut_text` has it."""
    texts = [s.get("text") for s in json.loads(line).get("supervisions", ())]
    return " ".join(text for text in texts if text)

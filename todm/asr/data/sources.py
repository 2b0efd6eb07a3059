"""Where the utterances of training come from: a feature store or a lhotse manifest (shards: `shar`).

Letters: N items (an utterance at one speed), T frames, F bins.
"""

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from torch import Tensor

from todm.asr.data.audio import cut_features, frames_at, speed_id
from todm.asr.data.batch import UNKNOWN, Encode, LoaderConfig
from todm.asr.data.order import UNSPELLABLE, Lengths, MixedOrder, Order, Schedule
from todm.asr.data.store import FeatureStore
from todm.errors import CorpusError


class Item(Protocol):
    """An utterance at one speed."""

    @property
    def id(self) -> str:
        """Its name, the speed included."""
        ...

    @property
    def text(self) -> str:
        """Its transcript."""
        ...

    def features(self) -> Tensor:
        """[T, F] float32.

        Raises:
            CorpusError: the audio cannot be used.
        """
        ...


class Source(Protocol):
    """The utterances of a corpus."""

    @property
    def frames_N(self) -> np.ndarray:
        """Frames of every item."""
        ...

    def labels_N(self, encode: Encode) -> np.ndarray:
        """Labels of every item, see `num_labels`."""
        ...

    def order(self, lengths: Lengths, config: LoaderConfig, schedule: Schedule) -> Order:
        """The order of their batches."""
        ...

    def read(self, order: Order, epoch: int, start: int) -> Iterator[Sequence[Item]]:
        """The batches of an epoch from number `start` on, in order."""
        ...


class CutItem(NamedTuple):
    """A lhotse cut, or its JSON table, at a speed."""

    cut: Any
    speed: float
    text: str

    @property
    def id(self) -> str:
        """The cut's id, as lhotse changes it with the speed."""
        cut = self.cut
        return speed_id(cut["id"] if isinstance(cut, dict) else cut.id, self.speed)

    def features(self) -> Tensor:
        """Computed from the audio."""
        from lhotse.serialization import deserialize_item

        cut = deserialize_item(dict(self.cut)) if isinstance(self.cut, dict) else self.cut
        return cut_features(cut, (self.speed,))[0]


class StoreItem(NamedTuple):
    """An utterance of a feature store."""

    store: FeatureStore
    index: int

    @property
    def id(self) -> str:
        """Its name, the speed included."""
        return self.store.utterances[self.index].id

    @property
    def text(self) -> str:
        """Its transcript."""
        return self.store.utterances[self.index].text

    def features(self) -> Tensor:
        """Read from the memory map."""
        return self.store.features(self.index)


class Listed:
    """Utterances that can be read in any order."""

    def __init__(
        self, frames_N: np.ndarray, texts: Sequence[str], item: Callable[[int], Item]
    ) -> None:
        """Keep the frames and the transcript of every item, and how to get the item itself."""
        self.frames_N, self._texts, self._item = frames_N, texts, item

    @classmethod
    def of_store(cls, store: FeatureStore) -> Self:
        """The utterances of a feature store."""
        texts = [u.text for u in store.utterances]
        return cls(store.lens_N.numpy(), texts, lambda item: StoreItem(store, item))

    @classmethod
    def of_manifest(cls, path: Path, speeds: Sequence[float]) -> Self:
        """The utterances of a lhotse manifest, whose lines are held in memory.

        Raises:
            CorpusError: there is none, or it holds nothing.
        """
        if not path.is_file():
            raise CorpusError(f"{path} does not exist: run  todm prepare  first")
        data = path.read_bytes()
        plain = gzip.decompress(data) if path.suffix == ".gz" else data
        lines = [line for line in plain.split(b"\n") if line.strip()]
        if not lines:
            raise CorpusError(f"{path} holds no utterances: there is nothing to train on")
        cuts = map(json.loads, lines)
        rows = [(cut["duration"], _text(cut)) for cut in cuts]
        seconds = np.array([duration for duration, _ in rows])
        frames_N = np.stack([frames_at(seconds, s) for s in speeds], 1).reshape(-1)
        texts = [text for _, text in rows for _ in speeds]

        def item(number: int) -> CutItem:
            line, speed = divmod(number, len(speeds))
            return CutItem(json.loads(lines[line]), speeds[speed], texts[number])

        return cls(frames_N, texts, item)

    def labels_N(self, encode: Encode) -> np.ndarray:
        """Labels of every item."""
        known = {text: encode(text) for text in set(self._texts)}
        return num_labels([known[text] for text in self._texts])

    def order(self, lengths: Lengths, config: LoaderConfig, schedule: Schedule) -> MixedOrder:
        """All utterances mixed."""
        return MixedOrder(lengths, config, schedule)

    def read(self, order: Order, epoch: int, start: int) -> Iterator[Sequence[Item]]:
        """The batches of an epoch from number `start` on."""
        for items in islice(order.batches(epoch), start, None):
            yield [self._item(item) for item in items.tolist()]


def num_labels(targets: Sequence[Sequence[int]]) -> np.ndarray:
    """The number of labels of every transcript, `UNSPELLABLE` where one holds `UNKNOWN`; [N] int64."""
    return np.array([UNSPELLABLE if UNKNOWN in t else len(t) for t in targets], np.int64)


def _text(cut: dict[str, Any]) -> str:
    """The transcript of a cut as JSON, as `cut_text` gives that of an object."""
    texts = [s.get("text") for s in cut.get("supervisions", ())]
    return " ".join(text for text in texts if text)

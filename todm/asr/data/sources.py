"""Where training utterances come from: a feature store or a lhotse manifest; for shards see `shar`.

Letters: N items (an utterance at one speed), T frames, F bins.
"""

import functools
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from torch import Tensor

from todm.asr.data.acoustics import AS_IT_IS, Acoustics
from todm.asr.data.audio import frames_at, json_text, speed_id
from todm.asr.data.batch import UNKNOWN, Encode, LoaderConfig
from todm.asr.data.order import UNSPELLABLE, Lengths, MixedOrder, Order, Schedule
from todm.asr.data.store import FeatureStore
from todm.errors import CorpusError


class Item(NamedTuple):
    """An utterance at one speed.

    Attributes:
        id: its name, the speed included.
        text: its transcript.
        load: gives the features, [T, F] float32, of a rendering by its number; raises CorpusError if
            the audio cannot be used.
    """

    id: str
    text: str
    load: Callable[[int], Tensor]


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

    def read(self, order: Order, epoch: int, start: int) -> Iterator[list[Item]]:
        """The batches of an epoch from number `start` on, in order."""
        ...


def cut_item(
    cut: Any,  # noqa: ANN401 - a lhotse Cut or its JSON
    speed: float,
    text: str,
    *,
    acoustics: Acoustics,
) -> Item:
    """An item whose features are computed from the audio of a cut."""
    name = cut["id"] if isinstance(cut, dict) else cut.id
    return Item(speed_id(name, speed), text, functools.partial(_compute, cut, speed, acoustics))


def _compute(cut: Any, speed: float, acoustics: Acoustics, rendering: int) -> Tensor:  # noqa: ANN401
    from lhotse.serialization import deserialize_item

    cut = deserialize_item(dict(cut)) if isinstance(cut, dict) else cut
    return acoustics.features(cut, (speed,), [rendering])[0][0]


class Listed:
    """Utterances that can be read in any order."""

    def __init__(
        self, frames_N: np.ndarray, texts: Sequence[str], item: Callable[[int], Item]
    ) -> None:
        """Keep the frames and the transcript of every item, and how to make an item from its number."""
        self.frames_N, self._texts, self._item = frames_N, texts, item

    @classmethod
    def of_store(cls, store: FeatureStore) -> Self:
        """The utterances of a feature store."""
        rows = store.utterances

        def item(number: int) -> Item:
            load = functools.partial(store.features, number)
            return Item(rows[number].id, rows[number].text, load)

        return cls(store.lens_N.numpy(), [u.text for u in rows], item)

    @classmethod
    def of_manifest(
        cls, path: Path, speeds: Sequence[float], acoustics: Acoustics = AS_IT_IS
    ) -> Self:
        """The utterances of a lhotse manifest, whose lines are held in memory.

        Raises:
            CorpusError: the manifest does not exist or is empty.
        """
        if not path.is_file():
            raise CorpusError(f"{path} does not exist: run  todm prepare  first")
        data = path.read_bytes()
        plain = gzip.decompress(data) if path.suffix == ".gz" else data
        lines = [line for line in plain.split(b"\n") if line.strip()]
        if not lines:
            raise CorpusError(f"{path} holds no utterances: there is nothing to train on")
        cuts = map(json.loads, lines)
        rows = [(cut["duration"], json_text(cut)[0]) for cut in cuts]
        seconds = np.array([duration for duration, _ in rows])
        frames_N = np.stack([frames_at(seconds, s) for s in speeds], 1).reshape(-1)
        texts = [text for _, text in rows for _ in speeds]

        def item(number: int) -> Item:
            line, speed = divmod(number, len(speeds))
            cut = json.loads(lines[line])
            return cut_item(cut, speeds[speed], texts[number], acoustics=acoustics)

        return cls(frames_N, texts, item)

    def labels_N(self, encode: Encode) -> np.ndarray:
        """Labels of every item."""
        known = {text: encode(text) for text in set(self._texts)}
        return num_labels([known[text] for text in self._texts])

    def order(self, lengths: Lengths, config: LoaderConfig, schedule: Schedule) -> MixedOrder:
        """All utterances mixed."""
        return MixedOrder(lengths, config, schedule)

    def read(self, order: Order, epoch: int, start: int) -> Iterator[list[Item]]:
        """The batches of an epoch from number `start` on."""
        assert isinstance(order, MixedOrder)
        for items in islice(order.batches(epoch), start, None):
            yield [self._item(item) for item in items.tolist()]


def num_labels(targets: Sequence[Sequence[int]]) -> np.ndarray:
    """The number of labels of every transcript, `UNSPELLABLE` where one holds `UNKNOWN`; [N] int64."""
    return np.array([UNSPELLABLE if UNKNOWN in t else len(t) for t in targets], np.int64)

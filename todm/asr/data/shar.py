"""Training from lhotse Shar: audio in tar shards, read from their beginning to their end.

For corpora too large for a manifest in memory or for a shared disk. Shard s belongs to process s mod
`world_size` in every epoch, so a node needs only its own shards. A process mixes a few shards at a
time: it reads them one after the other, the next ones while it trains on the present ones, and cuts
them into batches of like length. With three speeds an epoch has three passes, and an utterance has
another speed in each pass.

`todm prepare` writes an index of 8 bytes an utterance, from which each process knows how many batches
each of the others has; all give as many as the one with the fewest.

Letters: N items: M utterances per pass, passes concatenated.
"""

import gzip
import json
import logging
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np

from todm.asr.data.acoustics import AS_IT_IS, Acoustics
from todm.asr.data.audio import cut_text, frames_at
from todm.asr.data.batch import Encode, LoaderConfig
from todm.asr.data.order import (
    Lengths,
    Order,
    Schedule,
    cut_pool,
    share_of_lengths,
    short_epochs,
)
from todm.asr.data.sources import Item, cut_item
from todm.errors import ConfigError, CorpusError

_log = logging.getLogger(__name__)
_DAMAGE = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,  # lhotse's, of an odd number of files
)


class Shard(NamedTuple):
    """Two files, `cuts.N.jsonl.gz` and `recording.N.tar`, and how many utterances they hold."""

    cuts: str
    recording: str
    num: int


class Block(NamedTuple):
    """Shards that are mixed, and their batches, as indices of items."""

    shards: list[int]
    batches: list[np.ndarray]


def index_of(cuts_path: str | Path) -> Path | None:
    """The index of a split in shards, which lies in place of its manifest; None if there is none."""
    path = Path(cuts_path)
    split = path.name.removeprefix("cuts_").partition(".")[0]
    index = path.with_name(f"shar_{split}.json")
    return index if index.is_file() else None


def write_index(
    shards: Sequence[Shard], seconds_M: np.ndarray, labels_M: np.ndarray, path: Path
) -> None:
    """Write `shar_SPLIT.json`, and the lengths beside it.

    Args:
        shards: in the order of the utterances.
        seconds_M: length of every utterance.
        labels_M: its number of labels; `LEFT_OUT` if it is not to be used.
        path: the file to write.
    """
    path.write_text(json.dumps({"shards": [list(s) for s in shards]}) + "\n", encoding="utf-8")
    arrays = {"seconds": seconds_M.astype(np.float32), "labels": labels_M.astype(np.int32)}
    np.savez(path.with_suffix(".npz"), **arrays)  # pyright: ignore[reportArgumentType]


def refuse_shards(cuts_path: Path) -> None:
    """Raise ConfigError if a split lies in shards, whose features cannot be mapped."""
    if index_of(cuts_path) is not None:
        raise ConfigError(
            "a corpus in Shar shards is read while training: "
            "set  asr.loader.feature_mode=on_the_fly"
        )


def read_shard(shard: Shard) -> Iterator[Any]:
    """The cuts of a shard in order, with their audio in memory; a cut may have none.

    Raises:
        CorpusError: a file is missing or damaged; the cuts before that are good.
    """
    from lhotse import Recording
    from lhotse.serialization import deserialize_item
    from lhotse.shar.readers.tar import iterate_tarfile_pairwise
    from lhotse.shar.utils import fill_shar_placeholder

    opener = gzip.open if shard.cuts.endswith(".gz") else open
    try:
        # lhotse's readers of whole shards also take URLs and commands, and leave files open.
        with opener(shard.cuts, "rb") as lines, tarfile.open(shard.recording, "r|*") as tar:
            pairs = cast("Any", iterate_tarfile_pairwise(tar))  # annotated wrongly there
            for line, ((data, path), (recording, _)) in zip(lines, pairs, strict=True):
                cut = deserialize_item(json.loads(line))
                if (name := str(path.with_suffix(""))) != cut.id:
                    raise CorpusError(f"{shard.recording} has {name} where {cut.id} is expected")
                cut.recording = None
                if data:
                    cut.recording = Recording.from_dict(json.loads(recording))
                    fill_shar_placeholder(cut.recording, data, path)
                yield cut
    except OSError as error:
        what = error.strerror or str(error)
        raise CorpusError(
            f"the shard {error.filename or shard.recording} cannot be read ({what}): bring it back, "
            "or prepare again"
        ) from None
    except _DAMAGE as error:
        raise CorpusError(f"the shard {shard.recording} is damaged: {error}") from None


class Shards:
    """The utterances of a corpus in shards, once for every speed: a `todm.asr.data.sources.Source`."""

    def __init__(
        self,
        shards: Sequence[Shard],
        seconds_M: np.ndarray,
        labels_M: np.ndarray,
        speeds: tuple[float, ...],
        acoustics: Acoustics = AS_IT_IS,
    ) -> None:
        """Arguments of `write_index`, the speeds, and the renderings."""
        self.shards, self.speeds, self._labels_M = list(shards), speeds, labels_M
        self._acoustics = acoustics
        self.starts = np.cumsum([0, *(shard.num for shard in shards)])
        utterances, num = np.arange(len(labels_M)), len(speeds)
        frames = np.stack([frames_at(seconds_M.astype(np.float64), s) for s in speeds])
        passes = [frames[(utterances + turn) % num, utterances] for turn in range(num)]
        self.frames_N = np.concatenate(passes)

    @classmethod
    def open(cls, index: Path, speeds: tuple[float, ...], acoustics: Acoustics = AS_IT_IS) -> Self:
        """The shards that an index names.

        Raises:
            CorpusError: the index is damaged.
        """
        try:
            rows = json.loads(index.read_text(encoding="utf-8"))["shards"]
            with np.load(index.with_suffix(".npz")) as arrays:
                seconds_M, labels_M = arrays["seconds"], arrays["labels"]
            shards = [Shard(*row) for row in rows]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{index} is damaged ({error}): run  todm prepare  again") from None
        return cls(shards, seconds_M, labels_M, speeds, acoustics)

    def labels_N(self, encode: Encode) -> np.ndarray:
        """Labels of every item, as counted when the corpus was prepared; `encode` is not used."""
        return np.tile(self._labels_M, len(self.speeds))

    def order(self, lengths: Lengths, config: LoaderConfig, schedule: Schedule) -> "ShardOrder":
        """Blocks of shards in random order.

        Raises:
            CorpusError: fewer shards than processes.
        """
        if len(self.shards) < schedule.world_size:
            raise CorpusError(
                f"{len(self.shards)} shards cannot be split over {schedule.world_size} processes: "
                "prepare with a smaller  asr.data.shard_size, or use fewer processes"
            )
        return ShardOrder(
            self.starts, len(self.speeds), lengths=lengths, config=config, schedule=schedule
        )

    def read(self, order: Order, epoch: int, start: int) -> Iterator[list[Item]]:
        """The batches of an epoch from number `start` on; the next block is read meanwhile."""
        assert isinstance(order, ShardOrder)
        waiting: deque[tuple[Block, Future[dict[int, Any]]]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for block in order.blocks_from(epoch, start):
                waiting.append((block, reader.submit(self._load, block.shards)))
                if len(waiting) > 1:
                    yield from self._items(*waiting.popleft())
            while waiting:
                yield from self._items(*waiting.popleft())

    def some_cuts(self, num: int) -> Iterator[Any]:
        """About that many cuts, with their audio, from the shards on this machine."""
        here = [s for s in self.shards if Path(s.recording).is_file()]
        chosen = here[:: -(-len(here) // 8) or 1]
        for shard in chosen:
            yield from islice(read_shard(shard), -(-num // len(chosen)))

    def _load(self, numbers: list[int]) -> dict[int, Any]:
        """The cuts of some shards by utterance, without those that are damaged."""
        cuts: dict[int, Any] = {}
        for number in numbers:
            place = int(self.starts[number])
            try:
                for cut in islice(read_shard(self.shards[number]), self.shards[number].num):
                    cuts[place] = cut
                    place += 1
            except CorpusError as error:
                lost = int(self.starts[number + 1]) - place
                _log.warning("left out %d utterances: %s", lost, error)
        return cuts

    def _items(self, block: Block, loaded: "Future[dict[int, Any]]") -> Iterator[list[Item]]:
        cuts, num, speeds = loaded.result(), len(self._labels_M), self.speeds
        for batch in block.batches:
            places = [divmod(item, num) for item in batch.tolist()]
            yield [
                cut_item(
                    cuts[i],
                    speeds[(i + turn) % len(speeds)],
                    cut_text(cuts[i])[0],
                    acoustics=self._acoustics,
                )
                for turn, i in places
                if i in cuts
            ]


class ShardOrder:
    """Blocks of shards in an order that is a function of (seed, epoch)."""

    def __init__(
        self,
        starts: np.ndarray,
        num_passes: int,
        *,
        lengths: Lengths,
        config: LoaderConfig,
        schedule: Schedule,
    ) -> None:
        """Count the batches of an epoch.

        Args:
            starts: the first utterance of every shard, and at the end the number of utterances.
            num_passes: passes over all shards in an epoch.
            lengths: of the items.
            config: limits, buckets, seed.
            schedule: which batches this process takes.
        """
        self._starts, self._num_passes, self._lengths = starts, num_passes, lengths
        self._config, self._schedule = config, schedule
        self._sorted = np.sort(lengths.padded_N[lengths.usable_N])
        self._counts: dict[int, int] = {}
        self._short_epochs = 0
        per_epoch = self.num_batches(0)
        self._short_epochs = short_epochs(config.short_first, schedule.num_updates, per_epoch)
        self._counts.clear()

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch for every process: as many as the one with the fewest has."""
        if epoch not in self._counts:
            ranks = [self._blocks(epoch, rank) for rank in range(self._schedule.world_size)]
            self._counts = {epoch: min(sum(len(b.batches) for b in blocks) for blocks in ranks)}
        return self._counts[epoch]

    def blocks_from(self, epoch: int, start: int) -> Iterator[Block]:
        """This process's blocks of an epoch, without the batches before number `start`."""
        end, at = self.num_batches(epoch), 0
        for block in self._blocks(epoch, self._schedule.rank):
            wanted = block.batches[max(start - at, 0) : max(end - at, 0)]
            at += len(block.batches)
            if wanted:
                yield Block(block.shards, wanted)

    def _blocks(self, epoch: int, rank: int) -> Iterator[Block]:
        config, per_pass = self._config, int(self._starts[-1])
        world = self._schedule.world_size
        for turn in range(self._num_passes):
            rng = np.random.default_rng([config.seed, epoch, rank, turn])
            mine = rng.permutation(np.arange(rank, len(self._starts) - 1, world))
            for first in range(0, len(mine), config.shards):
                shards = mine[first : first + config.shards].tolist()
                pool = self._pool(epoch, turn * per_pass, shards)
                batches = cut_pool(pool, self._lengths.padded_N, config, rng)
                yield Block(shards, [batches[i] for i in rng.permutation(len(batches))])

    def _pool(self, epoch: int, offset: int, shards: list[int]) -> np.ndarray:
        """The usable items of some shards by length; in the first epochs only short ones."""
        spans = [np.arange(self._starts[s], self._starts[s + 1]) for s in shards]
        items, lens_N = np.concatenate(spans) + offset, self._lengths.padded_N
        usable = items[self._lengths.usable_N[items]]
        if (share := share_of_lengths(epoch, self._short_epochs)) < 1 and len(self._sorted):
            usable = usable[lens_N[usable] <= self._sorted[int(share * (len(self._sorted) - 1))]]
        return usable[np.argsort(lens_N[usable], kind="stable")]

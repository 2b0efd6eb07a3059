"""Training batches: order, source, augmentation and chunk, with an exact state.

The order (`todm.asr.data.order`) is a function of (seed, epoch), the random draws of augmentation of
(seed, epoch, index, rank), the rendering of an utterance of (seed, epoch, its name), the chunk of (seed,
epoch, index). So the whole state is two numbers, the
epoch and the index of the next batch, the same on every process, and a resumed training sees
exactly what an uninterrupted one would have seen.

Features are read from a memory map, or computed while training, in loader processes: a job (the
utterances of a batch) goes to a process, and the augmented batch comes back. The state counts the
batches that training has taken, however far ahead the processes are.
"""

import dataclasses
import functools
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed

from todm.asr.data import shar
from todm.asr.data.acoustics import AS_IT_IS, Acoustics, AcousticsConfig, draw_rendering
from todm.asr.data.augment import Augmenter
from todm.asr.data.batch import (
    UNKNOWN,
    Batch,
    Encode,
    LoaderConfig,
    collate,
    generator,
)
from todm.asr.data.features import FRAME_SHIFT, NUM_BINS
from todm.asr.data.order import ALONE, Lengths, Schedule
from todm.asr.data.sources import Item, Listed, Source
from todm.asr.data.store import FeatureStore
from todm.errors import CorpusError

_log = logging.getLogger(__name__)
_ALL_LENGTHS = 1 << 30
"""An epoch long after `short_first`."""

_LABELS_PER_SECOND = 2.0
"""What speech without a transcript counts for in the unit of the loss: about as many words."""

_MOST_TRIES = 10
"""Batches in a row without any readable audio, after which the disk is assumed to be gone."""


def open_source(
    cuts_path: Path, store_dir: Path, config: LoaderConfig, acoustics: Acoustics = AS_IT_IS
) -> Source:
    """The utterances of the training split, after `compute_features`.

    Args:
        cuts_path: the manifest, or where it would lie if the split were not in shards.
        store_dir: the features, if they are mapped.
        config: how features are read, and at which speeds.
        acoustics: the renderings that features are computed of, if they are not mapped.

    Raises:
        ArtifactError: the features were not computed.
        CorpusError: there is no such corpus, or it is damaged.
        ConfigError: the corpus lies in shards, and the features are to be mapped.
    """
    if config.feature_mode == "map":
        shar.refuse_shards(cuts_path)
        return Listed.of_store(FeatureStore.open(store_dir))
    if (index := shar.index_of(cuts_path)) is not None:
        return shar.Shards.open(index, config.speeds, acoustics)
    return Listed.of_manifest(cuts_path, config.speeds, acoustics)


class Loader:
    """Endless batches for training, shuffled anew in every epoch: `todm.backend.Batches`.

    Attributes:
        dropped: reasons for utterances left out, with counts; every speed counts.
        rejected: reasons for utterances whose audio could not be used, by id, so far.
        num_utterances: usable utterances, every speed counted.
        hours: audio of one epoch in hours, all processes together, every speed counted.
    """

    def __init__(
        self,
        source: Source,
        encode: Encode,
        *,
        config: LoaderConfig,
        acoustics: AcousticsConfig = AS_IT_IS.config,
        augment: Augmenter | None = None,
        chunks: Sequence[int] = (0,),
        schedule: Schedule = ALONE,
    ) -> None:
        """Begin at epoch 0.

        Args:
            source: the utterances.
            encode: transcript to token ids.
            config: batch size, order, seed.
            acoustics: which renderings are taken.
            augment: applied to every batch.
            chunks: sizes that the chunk of a step is drawn from, the same on all processes.
            schedule: which batches this process takes.

        Raises:
            CorpusError: too few utterances are usable for a batch on every process.
        """
        self._source, self._encode, self._config = source, encode, config
        self._acoustics, self._augment = acoustics, augment
        self._chunks, self._schedule = chunks, schedule
        silence = 0 if augment is None else augment.silence
        lengths = Lengths.of(source.frames_N, source.labels_N(encode), config, silence=silence)
        self._lengths, self._order = lengths, source.order(lengths, config, schedule)
        self._make = _Maker(augment, config.seed, schedule.rank)
        self._epoch = self._index = 0
        self._starts = [0]  # batches before each epoch
        self.dropped = lengths.dropped
        self.rejected: dict[str, str] = {}
        self.num_utterances = int(lengths.usable_N.sum())
        self.hours = float(lengths.frames_N[lengths.usable_N].sum()) * FRAME_SHIFT / 3600
        if not self._order.num_batches(0):
            raise CorpusError(
                f"{self.num_utterances} usable utterances (left out: {dict(self.dropped) or 'none'}) "
                f"are too few for batches on {schedule.world_size} processes"
            )

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current position on."""
        for epoch, index, batch, rejected in self._made():
            self._reject(rejected)
            if batch is None:
                batch = self._replacement(epoch, index)
            # Before the batch is handed out, so that a state taken then is the next one's.
            self._epoch, self._index = epoch, index + 1
            yield dataclasses.replace(
                batch,
                num_labels=_mean_over_processes(batch.num_labels),
            )

    def _made(self) -> "Iterator[_Made]":
        """Batches made here or by loader processes."""
        mapped = self._config.feature_mode == "map"
        num_workers = 0 if mapped else self._config.num_workers
        if not num_workers:
            return map(self._make.__getitem__, self._jobs())
        return iter(
            torch.utils.data.DataLoader(
                self._make,
                sampler=self._jobs(),
                batch_size=None,
                num_workers=num_workers,
                # Forked processes would inherit torch's threads, which do not survive a fork.
                multiprocessing_context="spawn",
                # A generator of its own: the global one belongs to the training.
                generator=torch.Generator(),
            )
        )

    def _jobs(self) -> "Iterator[_Job]":
        """The batches to make, from the current position on, without end."""
        epoch, start = self._epoch, self._index
        while True:
            for index, items in enumerate(self._source.read(self._order, epoch, start), start):
                yield self._job(epoch, index, items)
            epoch, start = epoch + 1, 0

    def _job(self, epoch: int, index: int, items: list[Item]) -> "_Job":
        chunk = random.Random(f"{self._config.seed}/{epoch}/{index + 1}").choice(self._chunks)
        targets = [self._encode(item.text) for item in items]
        progress = self._progress(epoch, index)
        draw = functools.partial(draw_rendering, self._acoustics, seed=self._config.seed)
        renderings = [draw(item.id, epoch=epoch, progress=progress) for item in items]
        return _Job(epoch, index, items, targets, renderings, chunk, progress)

    def _progress(self, epoch: int, index: int) -> float:
        """The share of the planned updates before a batch; 1 if none are planned."""
        while len(self._starts) <= epoch:
            self._starts.append(self._starts[-1] + self._order.num_batches(len(self._starts) - 1))
        planned = self._schedule.num_updates
        return (self._starts[epoch] + index) / planned if planned else 1.0

    def _reject(self, rejected: dict[str, str]) -> None:
        """Warn once about every utterance whose audio cannot be used."""
        for name in rejected.keys() - self.rejected.keys():
            _log.warning("left out of training: %s: %s", name, rejected[name])
        self.rejected.update(rejected)

    def _replacement(self, epoch: int, index: int) -> Batch:
        """Another batch in place of one without readable audio.

        Every process has to give equally many batches, so none can be left out.
        """
        num = self._order.num_batches(epoch)
        for later in range(index + 1, index + _MOST_TRIES):
            items = next(self._source.read(self._order, epoch, later % num))
            made = self._make[self._job(epoch, index, items)]
            self._reject(made.rejected)
            if made.batch is not None:
                return made.batch
        first = next(map(": ".join, self.rejected.items()), "a shard that cannot be read")
        raise CorpusError(
            f"{_MOST_TRIES} batches in a row hold no readable audio (first {first}): "
            "check the disk with the audio"
        )

    def state_dict(self) -> dict[str, Any]:
        """The position: the epoch, and the index of its next batch."""
        world_size = self._schedule.world_size
        return {"epoch": self._epoch, "index": self._index, "world_size": world_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position of a state, with the same corpus and config.

        That is exact with the same number of processes, and otherwise the same share of the epoch.
        """
        now = self._schedule.world_size
        self._epoch = state["epoch"]
        self._index = state["index"] * state.get("world_size", now) // now

    @property
    def batches_per_epoch(self) -> int:
        """Batches that each process takes from an epoch with utterances of all lengths."""
        return self._order.num_batches(_ALL_LENGTHS)

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch for this process; the same for every process."""
        return self._order.num_batches(epoch)

    @property
    def limit(self) -> str:
        """The setting that bounds a batch."""
        name = "batch_size" if self._config.max_frames is None else "max_frames"
        return f"asr.loader.{name}={getattr(self._config, name)}"

    def seconds(self, batch: Batch) -> float:
        """Audio in a batch."""
        return batch.seconds

    def worst_batch(self) -> Batch:
        """A batch as large as any that can come, to measure the memory that it needs.

        As many utterances of the greatest length as there is room for, each with the most labels
        that occur at such a length, and with all the silence and joining of augmentation; the chunk
        is the one that needs most memory: the whole utterance if that is drawn. The features are
        random numbers, and the labels alternate between the first two of the vocabulary.
        """
        lengths, augment = self._lengths, self._augment
        in_pairs = augment is not None and augment.joins
        num, num_frames, item = lengths.largest(self._config, in_pairs=in_pairs)
        silence = int(lengths.padded_N[item] - lengths.frames_N[item])
        shape = (num, num_frames - silence, NUM_BINS)
        features_BTF = torch.randn(shape, generator=generator(self._config.seed)) * 3 - 8
        targets = [UNKNOWN + 1 + i % 2 for i in range(lengths.labels_N[item])]
        ids = [f"worst-{i}" for i in range(num)]
        batch = collate(list(features_BTF), [targets] * num, ids, [""] * num)
        chunk = 0 if 0 in self._chunks else max(self._chunks)
        batch = batch if augment is None else augment.worst(batch, chunk=chunk)
        return dataclasses.replace(batch, chunk=chunk)


class _Job(NamedTuple):
    """A batch to be made."""

    epoch: int
    number: int
    items: list[Item]
    targets: list[list[int]]
    renderings: list[int]
    chunk: int
    progress: float


class _Made(NamedTuple):
    """A job's batch (None if no audio is readable), and reasons for rejected utterances by id."""

    epoch: int
    number: int
    batch: Batch | None
    rejected: dict[str, str]


class _Maker(torch.utils.data.Dataset):
    """Makes a job's batch, in a loader process or here."""

    def __init__(self, augment: Augmenter | None, seed: int, rank: int) -> None:
        self._augment, self._seed, self._rank = augment, seed, rank

    def __getitem__(self, job: _Job) -> _Made:
        features, rows, rejected = [], [], {}
        rows_of_job = zip(job.items, job.targets, job.renderings, strict=True)
        for item, targets, rendering in rows_of_job:
            try:
                features.append(item.load(rendering))
                rows.append((targets, item.id, item.text))
            except CorpusError as error:
                rejected[item.id] = str(error)
        if not rows:
            return _Made(job.epoch, job.number, None, rejected)
        batch = collate(features, *(list(column) for column in zip(*rows, strict=True)))
        unlabelled = sum(
            len(f) for f, (targets, *_) in zip(features, rows, strict=True) if not targets
        )
        if self._augment is not None:
            draws = generator(self._seed, job.epoch, job.number, self._rank)
            batch = self._augment(batch, draws, chunk=job.chunk, progress=job.progress)
        batch.chunk = job.chunk
        # A batch of other speech alone would otherwise weigh as much as its few labels are fewer.
        labels = float(batch.target_lens_B.sum())
        batch.num_labels = labels + _LABELS_PER_SECOND * unlabelled * FRAME_SHIFT
        return _Made(job.epoch, job.number, batch, rejected)


def _mean_over_processes(value: float) -> float:
    if not distributed.is_available() or not distributed.is_initialized():
        return value
    total = torch.tensor(value, device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.all_reduce(total)
    return float(total) / distributed.get_world_size()

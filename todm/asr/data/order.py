"""The order of training: which items make which batch, a function of (seed, epoch) alone.

An item is an utterance at one speed. Every process computes the order of all processes, so that
all give the same number of batches without exchanging a message.

Letters: N items, B batch, T frames, U labels.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Protocol, Self

import numpy as np

from todm.asr.data.batch import LoaderConfig
from todm.asr.model.encoder_config import SUBSAMPLING

UNSPELLABLE = -1
"""Stands for the number of labels of a transcript that the tokenizer cannot spell."""

LEFT_OUT = -2
"""Stands for the number of labels of an utterance in a shard that `todm prepare` left out."""


class Schedule(NamedTuple):
    """Which part of a training's batches a process takes.

    Attributes:
        num_updates: batches the training is planned to take; `short_first` needs it.
        rank: this process, of `world_size`; each takes other batches, all equally many.
        world_size: number of processes.
    """

    num_updates: int | None = None
    rank: int = 0
    world_size: int = 1


ALONE = Schedule()


class Largest(NamedTuple):
    """The shape of the largest batch: B utterances of T frames, each with the labels of item `item`."""

    num: int
    num_frames: int
    item: int


@dataclasses.dataclass(frozen=True)
class Lengths:
    """What an order needs to know about the items of a corpus.

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
        cls, frames_N: np.ndarray, labels_N: np.ndarray, config: LoaderConfig, *, silence: int = 0
    ) -> Self:
        """Decide which items are usable, see `left_out`.

        Args:
            frames_N: frames of every item at its speed.
            labels_N: labels of every item.
            config: limits of a batch.
            silence: frames that augmentation may add.
        """
        room = None if config.max_frames is None else config.max_frames - silence
        limits = {"most_frames": room, "one_symbol": config.one_symbol}
        usable_N, dropped = left_out(frames_N, labels_N, **limits)
        return cls(frames_N, frames_N + silence, labels_N, usable_N, dropped)

    def largest(self, config: LoaderConfig, *, in_pairs: bool = False) -> Largest:
        """The shape of the largest batch.

        With `in_pairs` utterances may be joined in pairs, and an odd one is padded to the length of a
        pair.
        """
        items = np.flatnonzero(self.usable_N)
        lens = self.padded_N[items]
        num = np.full(len(items), min(config.batch_size or len(items), len(items)))
        if config.max_frames is not None:
            num = np.minimum(num, np.maximum(config.max_frames // lens, 1))
        rows = num + (num % 2) * (num > 1) if in_pairs else num
        longest = int(np.lexsort((lens, rows * lens))[-1])
        fitting = items[lens <= lens[longest]]
        most = int(fitting[np.argmax(self.labels_N[fitting])])
        return Largest(int(num[longest]), int(lens[longest]), most)


class Order(Protocol):
    """The order of the batches of a process."""

    def num_batches(self, epoch: int) -> int:
        """The number of batches in an epoch; the same for every process."""
        ...


class MixedOrder:
    """All items mixed, in buckets of like length."""

    def __init__(self, lengths: Lengths, config: LoaderConfig, schedule: Schedule) -> None:
        """Sort the usable items by length.

        Args:
            lengths: of the items.
            config: limits, buckets, seed.
            schedule: which batches this process takes.
        """
        self._lens, self._config, self._schedule = lengths.padded_N, config, schedule
        usable = np.flatnonzero(lengths.usable_N)
        self._sorted = usable[np.argsort(self._lens[usable], kind="stable")]
        self._short_epochs = 0
        per_epoch = self.num_batches(0)
        self._short_epochs = short_epochs(config.short_first, schedule.num_updates, per_epoch)

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch for this process; the same for every process."""
        return len(self._cut(epoch)[0]) // self._schedule.world_size

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        """This process's batches of an epoch."""
        (cut, rng), (_, rank, world) = self._cut(epoch), self._schedule
        # Processes step together: neighbours in length keep them from waiting for the longest.
        return (cut[step * world + rank] for step in rng.permutation(len(cut) // world))

    def _cut(self, epoch: int) -> tuple[list[np.ndarray], np.random.Generator]:
        """The batches of all processes, and the generator after their draws."""
        rng = np.random.default_rng([self._config.seed, epoch])
        return cut_pool(self._pool(epoch), self._lens, self._config, rng), rng

    def _pool(self, epoch: int) -> np.ndarray:
        """The items of an epoch, by length: at first only the shortest, more in each epoch."""
        least = (self._config.batch_size or 1) * self._schedule.world_size
        share = share_of_lengths(epoch, self._short_epochs)
        return self._sorted[: max(math.ceil(share * len(self._sorted)), least)]


def short_epochs(short_first: float, num_updates: int | None, per_epoch: int) -> int:
    """Epochs in which long utterances are held back: of half the usual length on average."""
    if not num_updates or not per_epoch:
        return 0
    return round(2 * short_first * num_updates / per_epoch)


def share_of_lengths(epoch: int, num_short: int) -> float:
    """The share of the utterances, from the shortest on, that an epoch takes."""
    return min((epoch + 1) / (num_short + 1), 1.0)


def cut_pool(
    pool: np.ndarray, lens_N: np.ndarray, config: LoaderConfig, rng: np.random.Generator
) -> list[np.ndarray]:
    """Cut items, which come sorted by length, into batches of like length, mixed in each bucket."""
    buckets = np.arange(len(pool)) * config.num_buckets // max(len(pool), 1)
    mixed = pool[np.lexsort((rng.random(len(pool)), buckets))]
    limits = {"batch_size": config.batch_size, "max_frames": config.max_frames}
    return chop(mixed, lens_N[mixed], **limits)


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


def left_out(
    lens_N: np.ndarray, labels_N: np.ndarray, *, most_frames: int | None, one_symbol: bool
) -> tuple[np.ndarray, Counter[str]]:
    """Which items can be trained on, and reasons for the others with counts.

    Args:
        lens_N: frames of every item at its speed, no silence added.
        labels_N: labels of every item, `UNSPELLABLE` if it has no spelling.
        most_frames: what a batch has room for; None for any.
        one_symbol: whether the loss puts no more than one label on a frame, as the lattice
            `one_symbol` and CTC do; otherwise a single frame is enough for any transcript.

    Returns:
        [N] bool, and the reasons.
    """
    steps_N = lens_N // SUBSAMPLING
    reasons = {
        "characters that the tokenizer cannot spell": labels_N == UNSPELLABLE,
        "too short for a frame of the encoder": steps_N < 1,
        "left out by  todm prepare": labels_N == LEFT_OUT,
        "fewer frames than labels": (steps_N < labels_N) & one_symbol,
        "longer than max_frames": lens_N > (np.inf if most_frames is None else most_frames),
    }
    usable_N, counts = np.ones(len(lens_N), bool), Counter[str]()
    for reason, is_so in reasons.items():
        if num := int((usable_N & is_so).sum()):
            counts[reason] = num
        usable_N &= ~is_so
    return usable_N, counts

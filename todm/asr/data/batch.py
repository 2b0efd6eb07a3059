"""Batches of training and evaluation, and their configuration.

Letters: B batch, T frames (100 a second, before subsampling), F bins, U labels.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from todm.asr.data.features import FRAME_SHIFT, PADDING, SILENCE_FLOOR, pad
from todm.asr.data.store import FeatureStore
from todm.asr.model.wait import Wait
from todm.config import Config
from todm.errors import ConfigError

UNKNOWN = 2
"""The tokenizer's id for signs that it cannot spell."""

Encode = Callable[[str], list[int]]


@dataclasses.dataclass
class Batch:
    """Padded utterances.

    Attributes:
        features_BTF: float32 log-mel features, padded with `PADDING`.
        feature_lens_B: int64 lengths in frames, with silence before and after the speech.
        targets_BU: int64 token ids, padded with 0.
        target_lens_B: int64 lengths in tokens.
        ids: names of the utterances; of joined ones with a "+" between them.
        texts: transcripts.
        seconds: audio, without the silence of augmentation; by default that of all frames.
        chunk: C of this step in training, 0 for whole utterances.
        num_labels: the unit of the loss: labels, and what speech without any counts for; in training
            their average over processes.
        wait: what a device heard before the first frame; None for new streams.
        reset_BU: bool [B, U + 1], where the predictor's context starts again; None for nowhere.
    """

    features_BTF: Tensor
    feature_lens_B: Tensor
    targets_BU: Tensor
    target_lens_B: Tensor
    ids: list[str]
    texts: list[str]
    seconds: float = math.nan
    chunk: int = 0
    num_labels: float = math.nan
    wait: Wait | None = None
    reset_BU: Tensor | None = None

    def __post_init__(self) -> None:
        if math.isnan(self.seconds):
            self.seconds = float(self.feature_lens_B.sum()) * FRAME_SHIFT
        if math.isnan(self.num_labels):
            self.num_labels = float(self.target_lens_B.sum())

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
        wait = self.wait and self.wait._replace(times_B=self.wait.times_B.to(device))
        return dataclasses.replace(self, **tensors, wait=wait)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderConfig(Config):
    """How utterances become batches.

    Attributes:
        feature_mode: `map` computes all features once to a memory map (160 bytes a frame: 58 MB an
            hour of audio and speed); `on_the_fly` computes them in loader processes each time.
        speeds: speed perturbation; each speed is a copy of the corpus.
        batch_size: utterances a batch; None if `max_frames` alone is the limit.
        max_frames: greatest number of padded frames a batch (B x T), with the silence that
            augmentation may add; None for no limit. An utterance that does not fit alone is left
            out; if utterances are joined in pairs, an odd last one takes the room of two.
        num_buckets: groups of like length that batches are drawn from.
        short_first: fraction of the planned updates in which the longest utterances are held back.
        one_symbol: leave out utterances with more labels than frames of the encoder, which the
            `one_symbol` lattice and CTC cannot align; the `standard` lattice by itself can.
        shards: Shar shards that each process mixes at a time; their audio is held in memory.
        num_workers: loader processes of `on_the_fly`.
        tail_seconds: silence after every utterance in evaluation, at least a chunk: a streaming
            recogniser does not decode a last part shorter than that.
        seed: of order and augmentation.
    """

    feature_mode: Literal["map", "on_the_fly"] = "map"
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    batch_size: int | None = 32
    max_frames: int | None = None
    num_buckets: int = 30
    short_first: float = 0.0
    one_symbol: bool = True
    shards: int = 8
    num_workers: int = 4
    tail_seconds: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size is None and self.max_frames is None:
            raise ConfigError("set batch_size or max_frames: without either a batch has no limit")
        ones, allowed = (
            ("batch_size", "max_frames", "num_buckets", "shards"),
            "at least 1 is needed",
        )
        self.check("loader", ones, holds=lambda v: v is None or v >= 1, allowed=allowed)
        zeros = ("num_workers", "tail_seconds", "seed")
        self.check("loader", zeros, holds=lambda v: v >= 0, allowed="it must not be negative")
        allowed = "a share from 0 to 1 is needed"
        self.check("loader", ("short_first",), holds=lambda v: 0 <= v <= 1, allowed=allowed)
        if not self.speeds or min(self.speeds) <= 0.5 or max(self.speeds) >= 2:
            raise ConfigError(f"speeds are {list(self.speeds)}: each must be between 0.5 and 2")


def collate(
    features: Sequence[Tensor], targets: Sequence[list[int]], ids: list[str], texts: list[str]
) -> Batch:
    """A batch of utterances: [T, F] features, token ids, name and transcript of each."""
    lens_B = torch.tensor([len(f) for f in features])
    return Batch(pad(features), lens_B, *pad_targets(targets), ids, texts)


def from_store(store: FeatureStore, indices: Sequence[int], encode: Encode) -> Batch:
    """A batch of utterances of a store."""
    chosen = [store.utterances[i] for i in indices]
    ids, texts = [u.id for u in chosen], [u.text for u in chosen]
    return collate([store.features(i) for i in indices], [encode(t) for t in texts], ids, texts)


def pad_targets(targets: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids as [B, U] int64 padded with 0, and their lengths [B]."""
    lens = [len(t) for t in targets]
    # The lattice and the predictor need a place for a label even where nobody has one.
    padded_BU = torch.zeros(len(targets), max(1, *lens) if lens else 0, dtype=torch.int64)
    for row, ids in zip(padded_BU, targets, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return padded_BU, torch.tensor(lens)


def add_tail(batch: Batch, num_frames: int) -> Batch:
    """Put frames of digital silence after every utterance.

    The frame at the seam differs from the features of padded audio: there the window covers the end
    of the speech and the silence, here it covered the end mirrored.
    """
    B, T, F = batch.features_BTF.shape
    features_BTF = torch.full((B, T + num_frames, F), PADDING)
    features_BTF[:, :T] = batch.features_BTF
    for row_TF, end in zip(features_BTF, batch.feature_lens_B.tolist(), strict=True):
        row_TF[end : end + num_frames] = SILENCE_FLOOR
    lens_B = batch.feature_lens_B + num_frames
    return dataclasses.replace(batch, features_BTF=features_BTF, feature_lens_B=lens_B)


def without_speech(batch: Batch, rows: list[int]) -> Batch:
    """The batch with empty transcripts in some rows."""
    targets = [[] if i in rows else t for i, t in enumerate(batch.targets)]
    targets_BU, target_lens_B = pad_targets(targets)
    texts = ["" if i in rows else text for i, text in enumerate(batch.texts)]
    return dataclasses.replace(
        batch,
        targets_BU=targets_BU,
        target_lens_B=target_lens_B,
        texts=texts,
        num_labels=math.nan,
    )


def join_pairs(batch: Batch) -> Batch:
    """Join utterances in pairs, in time and in targets; an odd last one stays alone.

    The device keeps its encoder's state over an endpoint, so that there too speech follows speech.
    """
    pairs = [tuple(range(i, min(i + 2, len(batch)))) for i in range(0, len(batch), 2)]
    lens, targets = batch.feature_lens_B.tolist(), batch.targets
    lens_B = torch.tensor([sum(lens[i] for i in p) for p in pairs])
    features_BTF = torch.full((len(pairs), int(lens_B.max()), batch.features_BTF.shape[2]), PADDING)
    for row_TF, pair in zip(features_BTF, pairs, strict=True):
        start = 0
        for i in pair:
            row_TF[start : start + lens[i]] = batch.features_BTF[i, : lens[i]]
            start += lens[i]
    return Batch(
        features_BTF,
        lens_B,
        *pad_targets([[t for i in p for t in targets[i]] for p in pairs]),
        ["+".join(batch.ids[i] for i in p) for p in pairs],
        [" ".join(batch.texts[i] for i in p) for p in pairs],
        batch.seconds,
        wait=batch.wait and batch.wait._replace(times_B=batch.wait.times_B[::2]),
    )


def eval_batches(
    store: FeatureStore,
    encode: Encode,
    *,
    batch_size: int = 32,
    tail_seconds: float = 0.8,
    limit: int | None = None,
) -> Iterator[Batch]:
    """Batches for evaluation: every utterance once, shortest first, with silence after it.

    Nothing is augmented, and nothing is left out because of its transcript.

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
        yield add_tail(from_store(store, indices, encode), tail)


def generator(*numbers: int) -> torch.Generator:
    """A generator whose draws depend on these numbers and on nothing else."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    # torch takes 64 bits as a signed number.
    return torch.Generator().manual_seed(seed >> 1)

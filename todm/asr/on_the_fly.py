"""Batches whose features are computed while training, in loader processes, for large corpora.

The order is lhotse's: `DynamicBucketingSampler`, shuffled by (seed, epoch). The state is the epoch
and the index of the next batch, as for `MapBatches`; going to it draws the batches before it again
without reading their audio. The sampler's own `state_dict` is not used: loader processes take
batches ahead of training, so it is ahead too.

Letters: B batch, T frames, F bins.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from todm.asr.cuts import cut_features, cut_frames, cut_text
from todm.asr.data import Augment, Batch, Encode, LoaderConfig, State, fault, generator, pad_targets
from todm.asr.features import FRAME_SHIFT, pad
from todm.errors import CorpusError


class OnTheFlyBatches:
    """Endless batches of a corpus for training, as `MapBatches` gives, with no memory map.

    Two things differ from the map: utterances are mixed through a buffer rather than all over, and
    `short_first` has no effect.

    Attributes:
        dropped: reasons for utterances left out, with counts.
        num_utterances: what is left, every speed counted.
        rejected: reason for every cut whose audio could not be used, by id, as met so far.
    """

    def __init__(
        self,
        cuts_path: str | Path,
        encode: Encode,
        *,
        config: LoaderConfig,
        augment: Augment | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """A stream at the start of epoch 0; arguments as of `MapBatches`.

        Raises:
            CorpusError: there is no such file, or no utterance in it is usable.
        """
        if not Path(cuts_path).is_file():
            raise CorpusError(f"{cuts_path} does not exist: run  todm prepare  first")
        self._path, self._encode, self._config, self._augment = cuts_path, encode, config, augment
        self._rank, self._world_size = rank, world_size
        self._epoch = self._index = 0
        self.rejected: dict[str, str] = {}
        self._read_lengths()

    def state(self) -> State:
        """Where the stream is: the epoch, and the index of the next batch in it."""
        return {"epoch": self._epoch, "index": self._index}

    def load_state(self, state: State) -> None:
        """Go to where `state` was taken; the same corpus, config and world size are needed."""
        self._epoch, self._index = state["epoch"], state["index"]

    def __iter__(self) -> Iterator[Batch]:
        while True:
            for features, cuts, rejected in self._load(self._index):
                self.rejected.update(rejected)
                index, self._index = self._index, self._index + 1
                if cuts:
                    yield self._make(features, cuts, index)
            self._epoch, self._index = self._epoch + 1, 0

    def _make(self, features: list[torch.Tensor], cuts: list[tuple[str, str]], index: int) -> Batch:
        ids, texts = [c[0] for c in cuts], [c[1] for c in cuts]
        targets = pad_targets([self._encode(text) for text in texts])
        lens_B = torch.tensor([len(f) for f in features])
        batch = Batch(pad(features), lens_B, *targets, ids, texts)
        if self._augment is None:
            return batch
        return self._augment(batch, generator(self._config.seed, self._epoch, index, self._rank))

    def _load(self, start: int) -> Any:  # noqa: ANN401 - torch's DataLoader
        """What the loader processes make of an epoch's batches, from number `start` on."""
        num_workers = self._config.num_workers
        return torch.utils.data.DataLoader(
            _Features(),
            sampler=_From(self._sampler(), start),
            batch_size=None,
            num_workers=num_workers,
            # Forked processes would inherit torch's threads, which do not survive a fork.
            multiprocessing_context="spawn" if num_workers else None,
        )

    def _sampler(self) -> Any:  # noqa: ANN401 - lhotse's sampler
        from lhotse import CutSet
        from lhotse.dataset import DynamicBucketingSampler

        config = self._config
        corpus = CutSet.from_jsonl_lazy(self._path).filter(self._is_usable)
        copies = [corpus if s == 1.0 else corpus.perturb_speed(s) for s in config.speeds]
        cuts = CutSet.mux(*copies, seed=config.seed) if len(copies) > 1 else copies[0]
        limit = config.max_frames
        sampler = DynamicBucketingSampler(
            cuts,
            max_cuts=config.batch_size,
            max_duration=None if limit is None else limit * FRAME_SHIFT,
            duration_bins=self._bins,
            shuffle=True,
            seed=config.seed,
            world_size=self._world_size,
            rank=self._rank,
        )
        sampler.set_epoch(self._epoch)
        return sampler

    def _is_usable(self, cut: Any) -> bool:  # noqa: ANN401 - a lhotse Cut
        return cut.id not in self._unusable

    def _read_lengths(self) -> None:
        """Read the manifest once: what is unusable, and the borders of the buckets."""
        from lhotse import CutSet

        speeds, seconds, faults = self._config.speeds, [], {}
        for cut in CutSet.from_jsonl_lazy(self._path):
            reason = fault(cut_frames(cut, max(speeds)), self._encode(cut_text(cut)[0]))
            if reason:
                faults[cut.id] = reason
            else:
                seconds += [cut.duration / s for s in speeds]
        self.dropped, self._unusable = Counter(faults.values()), set(faults)
        self.num_utterances = len(seconds)
        if not seconds:
            raise CorpusError(
                f"{self._path} has no usable utterance (left out: {dict(self.dropped)})"
            )
        borders = np.quantile(seconds, np.linspace(0, 1, self._config.num_buckets + 1)[1:-1])
        self._bins = sorted(set(borders.round(2).tolist()))


class _From:
    """A sampler's batches from one on."""

    def __init__(self, sampler: Any, start: int) -> None:  # noqa: ANN401 - lhotse's sampler
        self._sampler, self._start = sampler, start

    def __iter__(self) -> Iterator[Any]:
        for i, cuts in enumerate(self._sampler):
            if i >= self._start:
                yield cuts

    def __len__(self) -> int:
        """Not known; the loader needs only that a sampler could say."""
        raise TypeError("the number of batches is not known before an epoch ends")


class _Features(torch.utils.data.Dataset):
    """Runs in the loader processes: a batch of cuts to features, transcripts and rejections."""

    def __getitem__(
        self,
        cuts: Any,  # noqa: ANN401 - a lhotse CutSet
    ) -> tuple[list[torch.Tensor], list[tuple[str, str]], dict[str, str]]:
        features, kept, rejected = [], [], {}
        for cut in cuts:
            try:
                features += cut_features(cut, (1.0,))
                kept.append((cut.id, cut_text(cut)[0]))
            except CorpusError as error:
                rejected[cut.id] = str(error)
        return features, kept, rejected

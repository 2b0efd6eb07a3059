"""Training batches as the loop takes them: with the chunk of the step, and what they amount to."""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed

from todm.asr.data.batch import Batch, LoaderConfig
from todm.asr.data.map_batches import BatchStream


class TrainingBatches:
    """Batches with the chunk size of the step: the same on all ranks, exact on resume."""

    def __init__(self, stream: BatchStream, chunks: tuple[int, ...], loader: LoaderConfig) -> None:
        self._stream, self._chunks, self._loader = stream, chunks, loader

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._stream:
            state = self._stream.state()
            draw = random.Random(f"{self._loader.seed}/{state['epoch']}/{state['index']}")
            labels = float(batch.target_lens_B.sum())
            yield dataclasses.replace(
                batch,
                chunk=draw.choice(self._chunks),
                num_labels=_mean_over_processes(labels),
            )

    def state_dict(self) -> dict[str, Any]:
        """Epoch and index."""
        return dict(self._stream.state())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""
        self._stream.load_state(dict(state))

    @property
    def hours(self) -> float:
        """Hours of audio in an epoch, every speed counted, all processes together."""
        return self._stream.hours

    @property
    def batches_per_epoch(self) -> int:
        """Batches of this process in an epoch."""
        return self._stream.batches_per_epoch

    @property
    def limit(self) -> str:
        """The setting that bounds a batch."""
        loader = self._loader
        name = "batch_size" if loader.max_frames is None else "max_frames"
        return f"asr.loader.{name}={getattr(loader, name)}"

    def seconds(self, batch: Batch) -> float:
        """Audio in a batch."""
        return batch.seconds

    def worst_batch(self) -> Batch:
        """The largest padded batch, with the chunk that needs the most: the whole utterance if drawn."""
        batch = self._stream.worst_batch()
        chunk = 0 if 0 in self._chunks else max(self._chunks)
        return dataclasses.replace(batch, chunk=chunk)


def _mean_over_processes(value: float) -> float:
    if not distributed.is_available() or not distributed.is_initialized():
        return value
    total = torch.tensor(value, device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.all_reduce(total)
    return float(total) / distributed.get_world_size()

"""From a corpus to the batches of training, by one of two ways: a memory map, or on the fly."""

import dataclasses
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from todm.asr.data import shar
from todm.asr.data.audio import cut_features
from todm.asr.data.augment import AugmentConfig, Augmenter
from todm.asr.data.batch import Encode, LoaderConfig
from todm.asr.data.map_batches import BatchStream, MapBatches
from todm.asr.data.noise import noise_of_store, noise_store
from todm.asr.data.on_the_fly import Manifest, OnTheFlyBatches
from todm.asr.data.store import FeatureStore, Progress
from todm.errors import ConfigError, CorpusError

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and standard deviation of every bin, [80] float32: what the encoder normalises with."""

    mean_F: Tensor
    std_F: Tensor


def prepare_features(
    cuts_path: str | Path,
    out_dir: str | Path,
    *,
    config: LoaderConfig,
    progress: Progress | None = None,
) -> Statistics:
    """Do what has to be done once, by one process, before `open_stream`; quick if it was done.

    Raises:
        CorpusError: see `FeatureStore.build`; or no audio is usable.
        ConfigError: the corpus lies in shards, and the features are to be mapped.
    """
    if config.feature_mode == "on_the_fly":
        return sample_statistics(cuts_path)
    _check_not_sharded(cuts_path)
    store = FeatureStore.build(cuts_path, out_dir, speeds=config.speeds, progress=progress)
    return Statistics(mean_F=store.mean_F, std_F=store.std_F)


def open_stream(
    cuts_path: str | Path,
    store_dir: str | Path,
    *,
    encode: Encode,
    config: LoaderConfig,
    augment: Augmenter | None,
    num_updates: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> BatchStream:
    """The batches of training, after `prepare_features`; arguments as of `MapBatches`.

    Raises:
        ArtifactError: the features were not prepared.
        CorpusError: no utterance is usable, or too few.
        ConfigError: the corpus lies in shards, and the features are to be mapped.
    """
    settings: dict[str, Any] = {
        "config": config,
        "augment": augment,
        "num_updates": num_updates,
        "rank": rank,
        "world_size": world_size,
    }
    if config.feature_mode == "on_the_fly":
        index = shar.index_of(cuts_path)
        source = (
            Manifest(Path(cuts_path), config.speeds)
            if index is None
            else shar.Shards.open(index, config.speeds)
        )
        return OnTheFlyBatches(source, encode, **settings)
    _check_not_sharded(cuts_path)
    return MapBatches(FeatureStore.open(store_dir), encode, **settings)


def _check_not_sharded(cuts_path: str | Path) -> None:
    if shar.index_of(cuts_path) is not None:
        raise ConfigError(
            "a corpus in Shar shards is read while training: "
            "set  asr.loader.feature_mode=on_the_fly"
        )


def make_augmenter(
    config: AugmentConfig, statistics: Statistics, *, noise_dir: Path | None, cache_dir: Path
) -> Augmenter:
    """An augmenter, with the user's noise if there is a folder of it.

    Args:
        config: how much of what.
        statistics: of the training features.
        noise_dir: audio files of noise, in any folders; None for shaped Gaussian noise.
        cache_dir: where the features of the noise go.

    Raises:
        CorpusError: `noise_dir` holds no readable audio.
    """
    noise_NF = None if noise_dir is None else noise_of_store(noise_store(noise_dir, cache_dir))
    return Augmenter(config, mean_F=statistics.mean_F, noise_NF=noise_NF)


def sample_statistics(cuts_path: str | Path, *, num_cuts: int = 300) -> Statistics:
    """Mean and standard deviation of every bin over utterances spread over a corpus.

    Raises:
        CorpusError: there is no such file, or none of the audio tried is usable.
    """
    found = []
    for cut in spread_cuts(Path(cuts_path), num_cuts):
        try:
            found += cut_features(cut, (1.0,))
        except CorpusError as error:
            _log.warning("left out of the statistics: %s: %s", cut.id, error)
    if not found:
        raise CorpusError(f"{cuts_path}: none of the audio tried could be used")
    frames_NF = torch.cat(found)
    return Statistics(
        mean_F=frames_NF.mean(0), std_F=frames_NF.std(0, correction=0).clamp(min=1e-2)
    )


def spread_cuts(cuts_path: Path, num: int) -> Iterator[Any]:
    """About so many cuts from all over a corpus."""
    from lhotse import CutSet

    if (index := shar.index_of(cuts_path)) is not None:
        return islice(shar.Shards.open(index, (1.0,)).some_cuts(num), num)
    if not cuts_path.is_file():
        raise CorpusError(f"{cuts_path} does not exist: run  todm prepare  first")
    step = max(sum(1 for _ in CutSet.from_jsonl_lazy(cuts_path)) // num, 1)
    return islice(CutSet.from_jsonl_lazy(cuts_path), 0, None, step)

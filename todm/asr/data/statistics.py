"""What is computed once, before training: the features, or only their statistics."""

import dataclasses
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from todm.asr.data import shar
from todm.asr.data.acoustics import AS_IT_IS, Acoustics
from todm.asr.data.batch import LoaderConfig
from todm.asr.data.store import FeatureStore
from todm.errors import CorpusError
from todm.files import Progress, no_progress

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and standard deviation of every bin, [80] float32: what the encoder normalises with."""

    mean_F: Tensor
    std_F: Tensor


def compute_features(
    cuts_path: Path,
    out_dir: Path,
    *,
    config: LoaderConfig,
    acoustics: Acoustics = AS_IT_IS,
    progress: Progress = no_progress,
) -> Statistics:
    """Compute what a loader needs, by one process; quick if that was done before.

    Raises:
        CorpusError: as `FeatureStore.build`, or no audio is usable.
        ConfigError: the corpus lies in shards, and the features are to be mapped.
    """
    if config.feature_mode == "on_the_fly":
        return sample_statistics(cuts_path, acoustics=acoustics)
    shar.refuse_shards(cuts_path)
    store = FeatureStore.build(
        cuts_path,
        out_dir,
        speeds=config.speeds,
        acoustics=acoustics,
        label="features of train",
        progress=progress,
    )
    return Statistics(mean_F=store.mean_F, std_F=store.std_F)


def sample_statistics(
    cuts_path: Path, *, num_cuts: int = 300, acoustics: Acoustics = AS_IT_IS
) -> Statistics:
    """Mean and standard deviation of every bin over utterances from all over a corpus, renderings in turn.

    Raises:
        CorpusError: there is no such file, or none of the sampled audio is usable.
    """
    features, numbers = [], itertools.cycle(range(acoustics.config.renderings + 1))
    for cut in spread_cuts(cuts_path, num_cuts):
        try:
            features += acoustics.features(cut, (1.0,), [next(numbers)])[0]
        except CorpusError as error:
            _log.warning("left out of the statistics: %s: %s", cut.id, error)
    if not features:
        raise CorpusError(f"{cuts_path}: none of the sampled audio could be used")
    frames_NF = torch.cat(features)
    return Statistics(
        mean_F=frames_NF.mean(0), std_F=frames_NF.std(0, correction=0).clamp(min=1e-2)
    )


def spread_cuts(cuts_path: Path, num: int) -> Iterator[Any]:
    """About that many lhotse cuts from all over a corpus.

    Raises:
        CorpusError: there is no such file.
    """
    from lhotse import CutSet

    if (index := shar.index_of(cuts_path)) is not None:
        return itertools.islice(shar.Shards.open(index, (1.0,)).some_cuts(num), num)
    if not cuts_path.is_file():
        raise CorpusError(f"{cuts_path} does not exist: run  todm prepare  first")
    step = max(sum(1 for _ in CutSet.from_jsonl_lazy(cuts_path)) // num, 1)
    return itertools.islice(CutSet.from_jsonl_lazy(cuts_path), 0, None, step)

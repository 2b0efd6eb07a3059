"""From a corpus to the batches of training, by one of two ways: a memory map, or on the fly."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from todm.asr.augment import AugmentConfig, Augmenter, noise_of_store
from todm.asr.cuts import cut_features, decoding_errors
from todm.asr.data import Batch, Encode, LoaderConfig, MapBatches, State
from todm.asr.on_the_fly import OnTheFlyBatches
from todm.asr.store import FeatureStore, Progress
from todm.errors import CorpusError

_AUDIO = {".flac", ".wav", ".opus", ".ogg", ".mp3"}
_log = logging.getLogger(__name__)


class BatchStream(Protocol):
    """Endless batches with an exact state."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state(self) -> State:
        """Where the stream is: before the batch it gives next."""
        ...

    def load_state(self, state: State) -> None:
        """Go to where `state` was taken."""
        ...


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
    """
    if config.feature_mode == "on_the_fly":
        return sample_statistics(cuts_path)
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
) -> MapBatches | OnTheFlyBatches:
    """The batches of training, after `prepare_features`; arguments as of `MapBatches`.

    Raises:
        ArtifactError: the features were not prepared.
        CorpusError: no utterance is usable, or too few.
    """
    place = {"rank": rank, "world_size": world_size}
    if config.feature_mode == "on_the_fly":
        return OnTheFlyBatches(cuts_path, encode, config=config, augment=augment, **place)
    store = FeatureStore.open(store_dir)
    return MapBatches(
        store, encode, config=config, augment=augment, num_updates=num_updates, **place
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


def noise_store(folder: Path, out_dir: Path) -> FeatureStore:
    """The features of all audio below a folder; any rate and number of channels.

    Raises:
        CorpusError: no readable audio there.
    """
    from lhotse import CutSet, Recording

    cuts, unreadable = [], 0
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in _AUDIO):
        try:
            name = str(path.relative_to(folder))
            cuts.append(Recording.from_file(path.resolve(), recording_id=name).to_cut())
        except decoding_errors() as error:
            unreadable += 1
            _log.warning("noise left out: %s: %s", path, error)
    if not cuts:
        raise CorpusError(f"{folder} holds no readable audio ({unreadable} unreadable files)")
    manifest = out_dir.with_name(f"{out_dir.name}.cuts.jsonl.gz")
    manifest.parent.mkdir(parents=True, exist_ok=True)
    CutSet.from_cuts(cuts).to_file(manifest)
    return FeatureStore.build(manifest, out_dir, speeds=(1.0,))


def sample_statistics(cuts_path: str | Path, *, num_cuts: int = 300) -> Statistics:
    """Mean and standard deviation of every bin over utterances spread over a corpus.

    Raises:
        CorpusError: there is no such file, or none of the audio tried is usable.
    """
    from lhotse import CutSet

    if not Path(cuts_path).is_file():
        raise CorpusError(f"{cuts_path} does not exist: run  todm prepare  first")
    step = max(sum(1 for _ in CutSet.from_jsonl_lazy(cuts_path)) // num_cuts, 1)
    found = []
    for i, cut in enumerate(CutSet.from_jsonl_lazy(cuts_path)):
        if i % step:
            continue
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

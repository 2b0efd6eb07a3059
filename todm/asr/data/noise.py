"""Noise from any folder of recordings, such as MUSAN or a day in a factory.

Every process holds the noise in memory, so there is an hour of it at most: of many or long recordings
a random part of each is taken, always the same one.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from todm.asr.data.audio import SUFFIXES
from todm.asr.data.features import SILENCE_FLOOR
from todm.asr.data.store import FeatureStore
from todm.errors import CorpusError
from todm.files import only_one

_SECONDS = 3600.0
_PART = (5.0, 300.0)
"""Least and greatest part of a recording, in seconds."""

_log = logging.getLogger(__name__)


def noise_store(folder: Path, out_dir: Path, *, seconds: float = _SECONDS) -> FeatureStore:
    """The features of the noise in a folder; audio of any rate and number of channels.

    Args:
        folder: audio files, at any depth.
        out_dir: the store, made if need be; the manifest lies beside it.
        seconds: how much noise at most.

    Raises:
        CorpusError: no readable audio there.
    """
    from lhotse import CutSet

    if not folder.is_dir():
        raise CorpusError(f"{folder} is not a directory: give a folder with recordings of noise")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    unreadable: list[str] = []
    cuts = list(_parts(paths, folder, seconds, unreadable))
    if not cuts:
        raise CorpusError(f"{folder} holds no readable audio ({len(unreadable)} unreadable files)")
    manifest = out_dir.with_name(f"{out_dir.name}.cuts.jsonl.gz")
    with only_one(manifest, f"the list of noise {manifest}"):
        temporary = manifest.with_name(f".{os.getpid()}.{manifest.name}")
        CutSet.from_cuts(cuts).to_file(temporary)
        temporary.replace(manifest)
        store = FeatureStore.build(manifest, out_dir, speeds=(1.0,))
    damaged = unreadable + [row["id"] for row in store.rejected]
    if damaged:
        _log.warning(
            "noise: %d of %d files left out as damaged, the first %s",
            len(damaged),
            len(cuts) + len(unreadable),
            damaged[0],
        )
    return store


def noise_of_store(store: FeatureStore, *, max_frames: int = 360_000) -> Tensor:
    """Frames of noise recordings, [N, 80] float32, of at most an hour by default.

    Each recording gives as much as the others if it is long enough, and is normalised to the same
    mean power, so that a quiet one counts as much as a loud one. Digital silence, which short clips are
    often padded with, is left out.

    Raises:
        CorpusError: there is nothing else.
    """
    share = max_frames // max(len(store), 1) + 1
    parts = [_sounding(store.features(i))[:share] for i in range(len(store))]
    if not sum(map(len, parts)):
        raise CorpusError("the recordings of noise hold only digital silence: give others")
    return torch.cat([f - f.exp().sum(1).mean().log() for f in parts if len(f)])[:max_frames]


def _sounding(features_TF: Tensor) -> Tensor:
    return features_TF[(features_TF > SILENCE_FLOOR + 1e-3).any(1)]


def _parts(paths: list[Path], folder: Path, seconds: float, unreadable: list[str]) -> Iterator[Any]:
    """A part of each recording, in random order, until there is enough."""
    rng = np.random.default_rng(0)
    longest = float(np.clip(seconds / max(len(paths), 1), *_PART))
    for path in (paths[i] for i in rng.permutation(len(paths))):
        if seconds <= 0:
            return
        cut = _part(path, str(path.relative_to(folder)), longest, rng)
        if cut is None:
            unreadable.append(str(path.relative_to(folder)))
        else:
            seconds -= cut.duration
            yield cut


def _part(path: Path, name: str, longest: float, rng: np.random.Generator) -> Any:  # noqa: ANN401
    """A random part of a recording as a lhotse cut; None if it cannot be read."""
    import soundfile
    from lhotse import AudioSource, Recording

    try:
        info = soundfile.info(str(path))
    except (OSError, soundfile.SoundFileError):
        return None
    if info.frames <= 0 or info.samplerate <= 0:
        return None
    recording = Recording(
        id=name,
        sources=[AudioSource("file", list(range(info.channels)), str(path.resolve()))],
        sampling_rate=info.samplerate,
        num_samples=info.frames,
        duration=info.frames / info.samplerate,
    )
    start = rng.uniform(0, max(recording.duration - longest, 0))
    if start == 0:
        return recording.to_cut()
    return recording.to_cut().truncate(offset=start, duration=longest, preserve_id=True)

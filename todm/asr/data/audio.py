"""Samples, features at several speeds, transcript and name of a lhotse cut.

Features and evaluation read audio here and nowhere else: with soundfile, from files or from bytes in
memory. A manifest may come from a stranger, so a command in it is refused, never run.

Letters: S samples, C channels, T frames.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from todm.asr.data.features import SAMPLE_RATE, fbank, num_frames
from todm.errors import CorpusError, first_line

SUFFIXES = frozenset(
    (".flac", ".wav", ".opus", ".ogg", ".mp3", ".aiff", ".aif", ".au", ".sph", ".w64", ".caf")
)
"""Of files with audio."""

_TOLERANCE = 0.1
"""Seconds by which a recording may differ from its manifest: both it and a decoder may round."""


def cut_samples(cut: Any) -> np.ndarray:  # noqa: ANN401 - a lhotse Cut
    """The sound of a lhotse cut: its part of the recording, its channels averaged.

    Returns:
        [S] float32 at 16 kHz.

    Raises:
        CorpusError: the audio cannot be read or is damaged, the recording ends before the cut does,
            or the cut is not simply a part of one recording.
    """
    recording = getattr(cut, "recording", None)
    if recording is None or hasattr(cut, "tracks"):
        raise CorpusError("the cut is not a plain part of one recording")
    _check_transforms(recording)
    channels = {cut.channel} if isinstance(cut.channel, int) else set(cut.channel)
    sums, num = [], 0
    for source in recording.sources:
        wanted = [i for i, channel in enumerate(source.channels) if channel in channels]
        if wanted:
            wave_SC, rate = _read(source, cut, whole=cut.duration >= recording.duration)
            if wave_SC.shape[1] <= max(wanted):
                raise CorpusError(f"the audio has {wave_SC.shape[1]} channels, not {max(wanted)}")
            sums.append(resample(wave_SC[:, wanted].sum(1), rate))
            num += len(wanted)
    if not sums:
        raise CorpusError(f"the recording has no channel {sorted(channels)}")
    shortest = min(map(len, sums))
    return np.sum([row[:shortest] for row in sums], axis=0) / np.float32(num)


def cut_features(cut: Any, speeds: Sequence[float]) -> list[Tensor]:  # noqa: ANN401 - a lhotse Cut
    """[T, 80] features of a lhotse cut at each speed.

    Raises:
        CorpusError: the audio cannot be read, is damaged or too short.
    """
    return [fbank(torch.from_numpy(wave_S)) for wave_S in cut_waves(cut, speeds)]


def cut_waves(cut: Any, speeds: Sequence[float]) -> list[np.ndarray]:  # noqa: ANN401 - a lhotse Cut
    """The sound of a lhotse cut at each speed, float32 (S,); the audio is read once.

    The same as `cut.perturb_speed(speed)`, for which lhotse would decode the audio once a speed.

    Raises:
        CorpusError: the audio cannot be read or is damaged.
    """
    from lhotse.augmentation import Speed

    wave_1S = cut_samples(cut)[None]
    if not np.isfinite(wave_1S).all():
        raise CorpusError("the audio holds values that are not numbers")
    waves = (wave_1S if s == 1.0 else Speed(factor=s)(wave_1S, SAMPLE_RATE) for s in speeds)
    return [np.asarray(wave[0]) for wave in waves]


def frames_at(seconds_N: np.ndarray | float, speed: float) -> np.ndarray:
    """The number of frames at a speed of utterances of these lengths, [N] int64.

    Halves of samples are rounded as `lhotse.utils.perturb_num_samples` does.
    """
    samples_N = np.round(np.rint(np.asarray(seconds_N) * SAMPLE_RATE) / speed, 8)
    rounded = np.floor(samples_N + 0.5) if speed >= 1 else np.ceil(samples_N - 0.5)
    return num_frames(rounded.astype(np.int64))


def cut_text(cut: Any) -> tuple[str, str]:  # noqa: ANN401 - a lhotse Cut
    """Transcript and speaker of a lhotse cut."""
    texts = [s.text for s in cut.supervisions if s.text]
    speakers = [s.speaker for s in cut.supervisions if s.speaker]
    return " ".join(texts), speakers[0] if speakers else ""


def json_text(cut: Mapping[str, Any]) -> tuple[str, str]:
    """Transcript and speaker of a lhotse cut as JSON."""
    rows = cut.get("supervisions") or ()
    texts = [s["text"] for s in rows if s.get("text")]
    return " ".join(texts), next((str(s["speaker"]) for s in rows if s.get("speaker")), "")


def speed_id(cut_id: str, speed: float) -> str:
    """The id of a cut at a speed, as lhotse names it."""
    return cut_id if speed == 1.0 else f"{cut_id}_sp{speed}"


def _check_transforms(recording: Any) -> None:  # noqa: ANN401 - a lhotse Recording
    names = {
        t["name"] if isinstance(t, dict) else type(t).__name__ for t in recording.transforms or ()
    }
    # Files of any rate are resampled here anyway.
    if names - {"Resample"}:
        raise CorpusError(f"the recording is to be changed by {', '.join(sorted(names))}")


def _read(source: Any, cut: Any, *, whole: bool) -> tuple[np.ndarray, int]:  # noqa: ANN401
    """The samples of a cut from one source of its recording, [S, C], and their rate."""
    import soundfile

    if source.type not in ("file", "memory"):
        raise CorpusError(f"audio of type {source.type!r} is not read, only files are")
    place = io.BytesIO(source.source) if source.type == "memory" else str(source.source)
    try:
        with soundfile.SoundFile(place) as file:
            rate = file.samplerate
            if not whole and cut.start:
                file.seek(min(round(cut.start * rate), file.frames))
            num = -1 if whole else round(cut.duration * rate)
            wave_SC = file.read(num, dtype="float32", always_2d=True)
    except (OSError, RuntimeError, ValueError, TypeError) as error:  # soundfile's are RuntimeErrors
        raise CorpusError(f"unreadable audio: {first_line(error, 300)}") from None
    seconds = len(wave_SC) / rate
    if abs(seconds - cut.duration) > _TOLERANCE:
        raise CorpusError(
            f"{seconds:.2f} s of audio are there, and {cut.duration:.2f} s are expected"
        )
    return wave_SC, rate


def resample(wave_S: np.ndarray, rate: int) -> np.ndarray:
    """Samples at 16 kHz, (S,), of samples at another rate."""
    from lhotse.augmentation import Resample

    if rate == SAMPLE_RATE:
        return wave_S
    resampled = Resample(source_sampling_rate=rate, target_sampling_rate=SAMPLE_RATE)
    return np.asarray(resampled(wave_S[None], rate))[0]

"""What a lhotse cut gives a recogniser: features at several speeds, transcript, name.

Both ways to features, the memory map and the loader processes, read audio here and nowhere else.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from todm.asr.features import SAMPLE_RATE, fbank, num_frames
from todm.errors import CorpusError


def decoding_errors() -> tuple[type[Exception], ...]:
    """What reading audio that is missing or damaged may raise."""
    from lhotse.audio.utils import AudioLoadingError, DurationMismatchError

    # lhotse wraps some of what decoders raise and not the rest; soundfile's is a RuntimeError.
    wrapped = (AudioLoadingError, DurationMismatchError)
    return (*wrapped, OSError, RuntimeError, ValueError, AssertionError)


def cut_features(cut: Any, speeds: Sequence[float]) -> list[Tensor]:  # noqa: ANN401 - a lhotse Cut
    """[T, 80] features of a lhotse cut at each speed, read from disk once.

    The same as `fbank` of `cut.perturb_speed(speed)`, of which lhotse would decode the audio anew
    for every speed.

    Raises:
        CorpusError: the audio cannot be read, is damaged or too short.
    """
    from lhotse.augmentation import Speed

    try:
        if cut.sampling_rate != SAMPLE_RATE:
            cut = cut.resample(SAMPLE_RATE)
        wave_CS = cut.load_audio()
    except decoding_errors() as error:
        raise CorpusError(f"unreadable audio: {_first_line(error)}") from None
    if not np.isfinite(wave_CS).all():
        raise CorpusError("the audio holds values that are not numbers")
    wave_1S = wave_CS.mean(0, keepdims=True)
    waves = (wave_1S if s == 1.0 else Speed(factor=s)(wave_1S, SAMPLE_RATE) for s in speeds)
    return [fbank(torch.from_numpy(w[0])) for w in waves]


def cut_frames(cut: Any, speed: float) -> int:  # noqa: ANN401 - a lhotse Cut
    """The frames that a cut will have at a speed, by its manifest."""
    from lhotse.utils import perturb_num_samples

    samples = round(cut.duration * SAMPLE_RATE)
    return num_frames(samples if speed == 1.0 else perturb_num_samples(samples, speed))


def cut_text(cut: Any) -> tuple[str, str]:  # noqa: ANN401 - a lhotse Cut
    """Transcript and speaker of a lhotse cut."""
    texts = [s.text for s in cut.supervisions if s.text]
    speakers = [s.speaker for s in cut.supervisions if s.speaker]
    return " ".join(texts), speakers[0] if speakers else ""


def speed_id(cut_id: str, speed: float) -> str:
    """The id of a cut at a speed, as lhotse names it."""
    return cut_id if speed == 1.0 else f"{cut_id}_sp{speed}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

"""Log-mel features, the same in training and on a device.

80 natural-log mel energies a frame, 100 frames a second, on 16 kHz samples in [-1, 1]: lhotse's
`Fbank()` with its defaults, which is what sherpa-onnx computes (kaldi-native-fbank with povey
window, no dither, snip_edges off, 20..7600 Hz). There is no normalisation here: the device has
none, so it is part of the exported encoder.

Letters: S samples, B batch, T frames, F bins.
"""

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from todm.device.audio import SAMPLE_RATE
from todm.errors import CorpusError

NUM_BINS = 80
FRAME_SHIFT = 0.01
FRAME_SAMPLES = 160
MIN_SAMPLES = 400
"""One window of 25 ms: less cannot be framed."""

SILENCE_FLOOR = math.log(torch.finfo(torch.float32).eps)
"""Every bin of digital silence, -15.942: energies are floored at the float32 epsilon."""

PADDING = math.log(1e-10)
"""Fills a batch beyond the end of an utterance, -23.0258509, as sherpa-onnx pads one."""

LOWEST_HERTZ, HIGHEST_HERTZ = 20.0, 7600.0
"""The ends of the mel filters."""

Count = TypeVar("Count", int, np.ndarray)


def num_frames(num_samples: Count) -> Count:
    """The number of frames of `num_samples` samples at 16 kHz."""
    return (num_samples + FRAME_SAMPLES // 2) // FRAME_SAMPLES


def fbank(wave_S: Tensor, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Log-mel features of one utterance.

    Args:
        wave_S: samples in [-1, 1], any float type; computed in float32.
        sample_rate: must be 16000; the caller resamples.

    Returns:
        [T, 80] float32 with T = (S + 80) // 160.

    Raises:
        CorpusError: another sample rate, not one channel, or shorter than 25 ms.
    """
    if sample_rate != SAMPLE_RATE:
        raise CorpusError(f"features need audio at 16000 Hz, not {sample_rate}: resample it first")
    if wave_S.ndim != 1:
        raise CorpusError(f"features need one channel, got a tensor of shape {tuple(wave_S.shape)}")
    if wave_S.numel() < MIN_SAMPLES:
        raise CorpusError(f"{wave_S.numel()} samples are too few: at least {MIN_SAMPLES} (25 ms)")
    with torch.no_grad():
        return _extractor()(wave_S.float()[None])[0]


def mel(hertz: Tensor) -> Tensor:
    """Frequencies on the mel scale, as Kaldi has it."""
    return 1127.0 * torch.log1p(hertz / 700.0)


def bin_hertz() -> Tensor:
    """[F] the centre of each bin, in hertz."""
    low, high = (float(mel(torch.tensor(end))) for end in (LOWEST_HERTZ, HIGHEST_HERTZ))
    return 700.0 * torch.expm1(torch.linspace(low, high, NUM_BINS + 2)[1:-1] / 1127.0)


def pad(features: Sequence[Tensor]) -> Tensor:
    """Stack [T, F] tensors of different T to [B, T, F], padded with `PADDING`."""
    return torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True, padding_value=PADDING)


@functools.cache
def _extractor() -> Any:  # noqa: ANN401 - lhotse's module, which is not imported at the top
    from lhotse import Fbank

    with warnings.catch_warnings():
        # lhotse makes the mel filters with numpy calls on torch tensors, which numpy 2 deprecates.
        warnings.filterwarnings("ignore", "__array_wrap__", DeprecationWarning)
        return Fbank().extractor

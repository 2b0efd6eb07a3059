"""Audio files to 16 kHz mono samples, without torch.

Letters: S samples of one channel; K taps of the interpolation filter.
"""

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from todm.errors import CorpusError

SAMPLE_RATE = 16_000
_ZERO_CROSSINGS = 32
_ROLLOFF = 0.95
_KAISER_BETA = 10.0
_BLOCK = 1 << 16

Samples = NDArray[np.float32]


def read_audio(path: str | Path) -> Samples:
    """Read wav, flac, ogg, opus or any other format of libsndfile.

    Channels are averaged and any rate is brought to 16 kHz.

    Args:
        path: the audio file.

    Returns:
        Samples in [-1, 1], float32 [S].

    Raises:
        CorpusError: no such file, not audio, no samples, or samples that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise CorpusError(f"{path} is not a file: give the path of a wav, flac, ogg or opus file")
    samples, rate = _decode(path)
    if samples.shape[0] == 0:
        raise CorpusError(f"{path} holds no samples: record it again or leave it out")
    if not np.isfinite(samples).all():
        raise CorpusError(f"{path} holds samples that are not finite numbers: write it again")
    return resample(samples.mean(axis=1), rate)


def write_wav(path: str | Path, samples_S: Samples) -> None:
    """Write 16 kHz samples in [-1, 1], float32 [S], as a 16-bit wav file."""
    import soundfile

    soundfile.write(str(path), samples_S, SAMPLE_RATE, subtype="PCM_16", format="WAV")


def resample(samples_S: Samples, rate: int, target: int = SAMPLE_RATE) -> Samples:
    """Band-limited resampling by a polyphase Kaiser-windowed sinc.

    Args:
        samples_S: float32 [S].
        rate: samples per second of the input, at least 1.
        target: samples per second of the output, at least 1.

    Returns:
        float32 [ceil(S * target / rate)]; the input itself where the rates are equal.

    Raises:
        CorpusError: a rate below 1.
    """
    if rate < 1 or target < 1:
        raise CorpusError(f"a sample rate of {min(rate, target)} Hz: it must be at least 1 Hz")
    if rate == target:
        return samples_S.astype(np.float32, copy=False)
    divisor = math.gcd(rate, target)
    up, down = target // divisor, rate // divisor
    bank, half = _filter_bank(up, down)
    padded = np.pad(samples_S.astype(np.float32, copy=False), (half, half + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, bank.shape[1])
    num_out = -(-len(samples_S) * up // down)
    out = np.empty(num_out, np.float32)
    for start in range(0, num_out, _BLOCK):
        ticks = np.arange(start, min(start + _BLOCK, num_out), dtype=np.int64) * down
        out[start : start + len(ticks)] = np.einsum(
            "nk,nk->n", windows[ticks // up], bank[ticks % up], optimize=False
        )
    return out


@lru_cache(maxsize=8)
def _filter_bank(up: int, down: int) -> tuple[Samples, int]:
    """One row of K taps for each of the `up` sub-sample phases, and K // 2."""
    cutoff = _ROLLOFF * min(1.0, up / down)
    half = math.ceil(_ZERO_CROSSINGS / cutoff)
    offsets = np.arange(-half, half + 1)[None, :] - (np.arange(up) / up)[:, None]
    window = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (offsets / (half + 1)) ** 2, 0, None)))
    taps = cutoff * np.sinc(cutoff * offsets) * window
    # Every phase passes a constant signal unchanged.
    return (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32), half


def _decode(path: Path) -> tuple[NDArray[np.float32], int]:
    import soundfile

    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
        return np.asarray(samples, np.float32), rate
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise CorpusError(f"{path} cannot be read as audio ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return str(error).rpartition(": ")[2].rstrip(".") or type(error).__name__

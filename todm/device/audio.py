"""Audio files to 16 kHz mono samples, without torch.

The resampler is ours because the web page needs the same one (`todm/export/page/audio.js`, equal within
1e-6): the libraries for Python and for browsers use different filters.

Letters: S samples of one channel; K taps of the interpolation filter.
"""

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from todm.errors import CorpusError

if TYPE_CHECKING:
    import soundfile

SAMPLE_RATE = 16_000
_ZERO_CROSSINGS = 32
_ROLLOFF = 0.95
_KAISER_BETA = 10.0
_BLOCK = 1 << 14  # taps at a time: fits the cache, and malloc does not map so little anew
# A block in which decoding fails is lost as a whole, so blocks are short.
_BLOCK_SECONDS = 0.25
_MISSING_SECONDS = 0.1  # the stated length of lossy formats is approximate
_UNKNOWN_BYTES = 0x7FFF_0000  # a wav header written before the length was known

Samples = NDArray[np.float32]


def read_audio(path: str | Path) -> Samples:
    """Read wav, flac, ogg, opus or any other format of libsndfile.

    Channels are averaged and any rate is brought to 16 kHz.

    Args:
        path: the audio file.

    Returns:
        Samples in [-1, 1], float32 [S].

    Raises:
        CorpusError: the file is missing, is not audio, or has no samples or non-finite ones.
    """
    path = Path(path)
    _check_file(path)
    samples, rate = _decode(path)
    if samples.shape[0] == 0:
        raise CorpusError(_no_samples(path))
    if not np.isfinite(samples).all():
        raise CorpusError(f"{path} holds samples that are not finite numbers: write it again")
    return resample(samples.mean(axis=1), rate)


class AudioReader:
    """A recording of any length, read in blocks.

    Channels are averaged and any rate is brought to 16 kHz: the blocks together equal the result of
    `read_audio`.

    Attributes:
        path: the file.
        total_seconds: the length that the file states.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a file.

        Raises:
            CorpusError: no such file, or not audio.
        """
        self.path = Path(path)
        _check_file(self.path)
        self._file = _open(self.path)
        self._frames = 0
        self._resampler = Resampler(self._file.samplerate)
        self.total_seconds = self._file.frames / self._file.samplerate

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def seconds(self) -> float:
        """The length read so far."""
        return self._frames / self._file.samplerate

    def __iter__(self) -> Iterator[Samples]:
        """Samples in [-1, 1], float32 [S] each.

        Raises:
            CorpusError: after the last good block, if the file is damaged, ends before its stated
                length, or has no samples or non-finite ones.
        """
        size = max(1, round(_BLOCK_SECONDS * self._file.samplerate))
        while len(samples := self._read(size)):
            self._frames += len(samples)
            yield self._resampler.feed(samples.mean(axis=1))
        yield self._resampler.finish()
        if not self._frames:
            raise CorpusError(_no_samples(self.path))
        if _stated_frames(self._file) - self._frames > _MISSING_SECONDS * self._file.samplerate:
            raise self._damaged("the file ends before its stated length")

    def _read(self, size: int) -> NDArray[np.float32]:
        import soundfile

        try:
            samples = self._file.read(size, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
            raise self._damaged(_reason(error)) from None
        if not np.isfinite(samples).all():
            raise self._damaged("samples that are not finite numbers")
        return np.asarray(samples, np.float32)

    def _damaged(self, reason: str) -> CorpusError:
        return CorpusError(f"{self.path} is damaged after {self.seconds:.1f} s ({reason})")


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
    resampler = Resampler(rate, target)
    if rate == target:
        return samples_S.astype(np.float32, copy=False)
    return np.concatenate([resampler.feed(samples_S), resampler.finish()])


class Resampler:
    """`resample` for a signal in pieces: the outputs together equal those of the whole signal."""

    def __init__(self, rate: int, target: int = SAMPLE_RATE) -> None:
        """The start of a signal.

        Raises:
            CorpusError: a rate below 1.
        """
        if rate < 1 or target < 1:
            raise CorpusError(f"a sample rate of {min(rate, target)} Hz: it must be at least 1 Hz")
        divisor = math.gcd(rate, target)
        self._up, self._down = target // divisor, rate // divisor
        self._bank, self._half = _filter_bank(self._up, self._down)
        # The inputs that later outputs still need, and the position of the first in the signal.
        self._kept = np.zeros(self._half, np.float32)
        self._first = -self._half
        self._num_in = self._num_out = 0

    def feed(self, samples_S: Samples) -> Samples:
        """Add samples, float32 [S]; returns the finished ones at the target rate."""
        samples = samples_S.astype(np.float32, copy=False)
        if self._up == self._down:
            return samples
        self._num_in += len(samples)
        self._kept = np.concatenate([self._kept, samples])
        return self._upto(-(-(self._num_in - self._half) * self._up // self._down))

    def finish(self) -> Samples:
        """End the signal: returns the last samples at the target rate, float32."""
        if self._up == self._down:
            return np.empty(0, np.float32)
        self._kept = np.pad(self._kept, (0, self._half + 1))
        return self._upto(-(-self._num_in * self._up // self._down))

    def _upto(self, end: int) -> Samples:
        """Outputs up to number `end`, whose windows are all complete."""
        start, self._num_out = self._num_out, max(end, self._num_out)
        out = np.empty(self._num_out - start, np.float32)
        if not len(out):
            return out
        windows = np.lib.stride_tricks.sliding_window_view(self._kept, self._bank.shape[1])
        step = max(1, _BLOCK // self._bank.shape[1])
        for at in range(0, len(out), step):
            part = out[at : at + step]
            ticks = np.arange(start + at, start + at + len(part), dtype=np.int64) * self._down
            rows = ticks // self._up - self._half - self._first
            part[:] = np.einsum(
                "nk,nk->n", windows[rows], self._bank[ticks % self._up], optimize=False
            )
        next_first = self._num_out * self._down // self._up - self._half
        self._kept = self._kept[next_first - self._first :].copy()
        self._first = next_first
        return out


@lru_cache(maxsize=8)
def _filter_bank(up: int, down: int) -> tuple[Samples, int]:
    """K taps for each of the `up` sub-sample phases, [up, K], and K // 2."""
    cutoff = _ROLLOFF * min(1.0, up / down)
    half = math.ceil(_ZERO_CROSSINGS / cutoff)
    offsets = np.arange(-half, half + 1)[None, :] - (np.arange(up) / up)[:, None]
    window = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (offsets / (half + 1)) ** 2, 0, None)))
    taps = cutoff * np.sinc(cutoff * offsets) * window
    # Normalised so that every phase passes a constant signal unchanged.
    return (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32), half


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise CorpusError(f"{path} is not a file: give the path of a wav, flac, ogg or opus file")


def _no_samples(path: Path) -> str:
    return f"{path} holds no samples: record it again or leave it out"


def _decode(path: Path) -> tuple[NDArray[np.float32], int]:
    import soundfile

    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
        return np.asarray(samples, np.float32), rate
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise CorpusError(f"{path} cannot be read as audio ({_reason(error)})") from None


def _open(path: Path) -> "soundfile.SoundFile":
    import soundfile

    try:
        return soundfile.SoundFile(str(path))
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise CorpusError(f"{path} cannot be read as audio ({_reason(error)})") from None


def _stated_frames(file: "soundfile.SoundFile") -> int:
    """The length that a file states; for a truncated wav file libsndfile gives it only in its log."""
    stated = re.search(r"^\s*data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if stated is None or not 0 < int(stated[1]) < _UNKNOWN_BYTES:
        return file.frames
    return file.frames * int(stated[1]) // max(1, int(stated[2]))


def _reason(error: Exception) -> str:
    return str(error).rpartition(": ")[2].rstrip(".") or type(error).__name__

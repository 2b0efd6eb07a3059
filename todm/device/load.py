"""A bundle as a recogniser for Python: `todm.load(BUNDLE).transcribe(AUDIO)`.

Letters: S samples; C channels.
"""

import dataclasses
import math
import operator
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from todm.device.audio import AudioReader, Samples, resample
from todm.device.bundle import Bundle, Precision, best_int8, open_bundle
from todm.device.recognizer import StreamingRecognizer
from todm.device.segments import Segment, Word, transcribe_blocks
from todm.errors import BundleError, ConfigError, CorpusError

_LOUDEST = 4.0  # floats are meant to lie in [-1, 1]; filters overshoot a little


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcription:
    """What was said in a recording.

    Attributes:
        text: all of it.
        words: with start and end in seconds and a confidence each.
        segments: words between two pauses.
        confidence: geometric mean of the probabilities of all symbols; 0 where nothing was recognised.
    """

    text: str
    words: tuple[Word, ...]
    segments: tuple[Segment, ...]
    confidence: float


class Recognizer:
    """A loaded bundle; transcribes any number of recordings."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: str = "fp32",
        beam: int = 1,
        threads: int = 1,
        threshold: float | None = None,
    ) -> None:
        """Load the graphs; see `load`."""
        self._threshold = threshold
        self._streaming = StreamingRecognizer(
            bundle, precision=form_of(bundle, precision), num_threads=threads, beam=beam
        )

    def transcribe(
        self, audio: str | Path | ArrayLike, *, rate: int | None = None
    ) -> Transcription:
        """Transcribe a recording of any length.

            >>> recognizer.transcribe(wav).text == recognizer.transcribe(samples, rate=16000).text
            True

        Args:
            audio: a path (wav, flac, ogg, opus), or samples [S] or [S, C]: floats in [-1, 1], or
                integers of 16 or 32 bits; channels are averaged.
            rate: samples per second of an array; a file has its own.

        Raises:
            CorpusError: the recording is damaged or empty.
            ConfigError: an array without a rate, or one that is not audio.
        """
        if isinstance(audio, (str, Path)):
            if rate is not None:
                raise ConfigError(
                    f"rate is {rate!r}, and {audio} is a file, which has its own: leave out rate"
                )
            with AudioReader(audio) as reader:
                return _collected(self._decoded(reader))
        return _collected(self._decoded([_samples(audio, rate)]))

    def _decoded(self, blocks: Iterable[Samples]) -> Iterator[Segment]:
        return transcribe_blocks(self._streaming, blocks, threshold=self._threshold)


def load(
    bundle: str | Path,
    *,
    precision: Literal["fp32", "int8", "int8.block", "int4"] = "fp32",
    beam: int = 1,
    threads: int = 1,
    threshold: float | None = None,
) -> Recognizer:
    """Load a bundle for transcription. Needs no torch.

        >>> recognizer = todm.load(bundle)
        >>> recognizer.transcribe(wav).text.isprintable()
        True

    Args:
        bundle: directory that  todm export  wrote.
        precision: which graphs; int8 is the one of its two forms that is for this processor.
        beam: hypotheses kept; 1 is greedy.
        threads: of onnxruntime.
        threshold: confidence from 0 to 1 below which a segment gives no text; the bundle's by default.

    Raises:
        BundleError: the bundle is damaged, or has no such graphs.
        ConfigError: a number below 1, or a threshold that is none.
    """
    for name, value in (("beam", beam), ("threads", threads)):
        if value < 1:
            raise ConfigError(f"{name} is {value}: it must be at least 1")
    check_threshold(threshold)
    return Recognizer(
        open_bundle(bundle), precision=precision, beam=beam, threads=threads, threshold=threshold
    )


def check_threshold(threshold: float | None) -> None:
    """Raise ConfigError if a threshold is given and is no confidence."""
    if threshold is not None and not 0 <= threshold <= 1:  # false for NaN too
        raise ConfigError(
            f"threshold is {threshold:g}: a confidence from 0 (all segments) to 1 is needed"
        )


def form_of(bundle: Bundle, precision: str) -> Precision:
    """The form of a bundle's graphs by what a user writes: `int8` is the one for this processor.

    Raises:
        BundleError: the bundle does not hold it.
    """
    form: Any = best_int8(bundle) if precision == "int8" else precision
    if form not in bundle.precisions():
        raise BundleError(
            f"{bundle.path} holds no {form} graphs, only {', '.join(bundle.precisions())}"
        )
    return form


def _collected(found: Iterator[Segment]) -> Transcription:
    segments = tuple(found)
    log_probs = [value for segment in segments for value in segment.log_probs]
    mean = sum(log_probs) / len(log_probs) if log_probs else -math.inf
    return Transcription(
        text=" ".join(segment.text for segment in segments),
        words=tuple(word for segment in segments for word in segment.words),
        segments=segments,
        confidence=round(math.exp(mean), 4),
    )


def _samples(audio: ArrayLike, rate: int | None) -> Samples:
    """An array as float32 [S] at 16 kHz.

    Raises:
        ConfigError: it is not audio, or has no rate.
        CorpusError: it is empty.
    """
    if rate is None:
        raise ConfigError("an array of samples needs its rate: transcribe(samples, rate=16000)")
    try:
        hertz = operator.index(rate)
    except TypeError:
        hertz = 0
    if isinstance(rate, bool) or hertz < 1:
        raise ConfigError(f"rate is {rate!r}: samples per second, a whole number such as 16000")
    samples = np.asarray(audio)
    if not samples.size:
        raise CorpusError("the array holds no samples: give at least one")
    if samples.dtype in (np.int16, np.int32):
        samples = samples / -float(np.iinfo(samples.dtype).min)
    elif not np.issubdtype(samples.dtype, np.floating):
        raise ConfigError(
            f"samples are of type {samples.dtype}: give floats in [-1, 1], int16 or int32"
        )
    if samples.ndim == 2 and samples.shape[0] >= samples.shape[1]:
        samples = samples.mean(1)
    if samples.ndim != 1:
        raise ConfigError(
            f"samples have the shape {samples.shape}: give [samples] or [samples, channels]"
        )
    if not np.isfinite(samples).all() or np.abs(samples).max() > _LOUDEST:
        raise ConfigError(
            "samples are not finite numbers in [-1, 1]: divide 16-bit values by 32768, or give them as "
            "int16"
        )
    return resample(samples.astype(np.float32), hertz)

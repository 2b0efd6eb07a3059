"""How fast a bundle decodes on this machine: latency of a chunk and real-time factor."""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from todm.device.audio import SAMPLE_RATE, Samples
from todm.device.bundle import Bundle, Precision
from todm.device.features import FRAMES_PER_SECOND
from todm.device.recognizer import Stream, StreamingRecognizer, pad_tail

_WARM_UP_CHUNKS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Figures of one stream, decoded chunk by chunk on a fixed number of threads.

    Attributes:
        precision: of the graphs.
        num_threads: that onnxruntime was given.
        chunk_seconds: audio a chunk stands for.
        p50_ms: median time from a chunk's last frame to its symbols, in milliseconds.
        p95_ms: the same, 95th percentile.
        rtf: decoding time by audio time, features included.
        audio_seconds: audio measured, over all repeats.
    """

    precision: Precision
    num_threads: int
    chunk_seconds: float
    p50_ms: float
    p95_ms: float
    rtf: float
    audio_seconds: float


def time_bundle(
    bundle: Bundle,
    recordings: Sequence[Samples],
    *,
    precision: Precision = "fp32",
    num_threads: int = 1,
    repeats: int = 3,
) -> Timing:
    """Decode recordings one by one, several times over, and take the time.

    Args:
        bundle: an opened bundle.
        recordings: each float32 [S] at 16 kHz; the bundle's tail is added.
        precision: which graphs.
        num_threads: of onnxruntime.
        repeats: passes over all recordings; the fastest pass counts for the real-time factor.

    Raises:
        BundleError: the bundle cannot be loaded.
    """
    recognizer = StreamingRecognizer(bundle, precision=precision, num_threads=num_threads)
    padded = [pad_tail(samples, bundle.tail_seconds) for samples in recordings]
    _warm_up(recognizer)
    seconds = sum(len(samples) for samples in padded) / SAMPLE_RATE
    passes, chunks = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        for samples in padded:
            chunks += _time_chunks(recognizer, samples)
        passes.append(time.perf_counter() - start)
    return Timing(
        precision=precision,
        num_threads=num_threads,
        chunk_seconds=recognizer.spec.shift_frames / FRAMES_PER_SECOND,
        p50_ms=1000 * float(np.percentile(chunks, 50)),
        p95_ms=1000 * float(np.percentile(chunks, 95)),
        rtf=min(passes) / seconds,
        audio_seconds=seconds * repeats,
    )


def _time_chunks(recognizer: StreamingRecognizer, samples_S: Samples) -> list[float]:
    stream = _fed(recognizer, samples_S)
    times = []
    while True:
        start = time.perf_counter()
        if not recognizer.step([stream]):
            return times
        times.append(time.perf_counter() - start)


def _warm_up(recognizer: StreamingRecognizer) -> None:
    frames = (_WARM_UP_CHUNKS + 1) * recognizer.spec.chunk_frames
    silence = np.zeros(frames * SAMPLE_RATE // FRAMES_PER_SECOND, np.float32)
    _time_chunks(recognizer, silence)


def _fed(recognizer: StreamingRecognizer, samples_S: Samples) -> Stream:
    stream = recognizer.create_stream()
    stream.accept(samples_S)
    stream.finish()
    return stream

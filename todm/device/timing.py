"""What a bundle costs on this machine: latency of a chunk, real-time factor, bytes."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from todm.device.audio import SAMPLE_RATE, Samples
from todm.device.bundle import Bundle, Precision, graph_files
from todm.device.features import FRAMES_PER_SECOND
from todm.device.recognizer import StreamingRecognizer, pad_tail

_WARM_UP_CHUNKS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Figures of one stream, decoded chunk by chunk on a fixed number of threads.

    Attributes:
        precision: of the graphs.
        num_threads: of onnxruntime.
        chunk_seconds: audio in a chunk.
        p50_ms: median time from a chunk's last frame to its symbols, in milliseconds.
        p95_ms: the same, 95th percentile.
        rtf: decoding time per audio time, features included.
        audio_seconds: audio decoded, over all repeats.
    """

    precision: Precision
    num_threads: int
    chunk_seconds: float
    p50_ms: float
    p95_ms: float
    rtf: float
    audio_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runtime:
    """What a bundle costs at run time in one precision.

    Attributes:
        timing: latency and real-time factor.
        megabytes: encoder, decoder and joiner of this precision, in units of 10^6 bytes.
        machine: processor, cores, and versions (`todm.device.profiler.machine`).
    """

    timing: Timing
    megabytes: float
    machine: dict[str, Any]


def time_bundle(
    bundle: Bundle,
    recordings: Sequence[Samples],
    *,
    precision: Precision = "fp32",
    num_threads: int = 1,
    repeats: int = 3,
) -> Timing:
    """Time the decoding of recordings, one by one, several times over.

    Args:
        bundle: an opened bundle.
        recordings: each float32 [S] at 16 kHz; the bundle's tail is added.
        precision: which graphs.
        num_threads: of onnxruntime.
        repeats: passes over all recordings; the real-time factor is that of the fastest.

    Raises:
        BundleError: the bundle cannot be loaded.
    """
    recognizer = StreamingRecognizer(bundle, precision=precision, num_threads=num_threads)
    padded = [pad_tail(samples, bundle.tail_seconds) for samples in recordings]
    warm_up = (
        (_WARM_UP_CHUNKS + 1) * recognizer.spec.chunk_frames * SAMPLE_RATE // FRAMES_PER_SECOND
    )
    _time_chunks(recognizer, np.zeros(warm_up, np.float32))
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


def megabytes(bundle: Bundle, precision: Precision = "fp32") -> float:
    """Size of encoder, decoder and joiner of one precision, in units of 10^6 bytes."""
    files = graph_files(precision).values()
    return sum(bundle.file(name).stat().st_size for name in files) / 1e6


def _time_chunks(recognizer: StreamingRecognizer, samples_S: Samples) -> list[float]:
    stream = recognizer.create_stream()
    stream.accept(samples_S)
    stream.finish()
    times = []
    while True:
        start = time.perf_counter()
        if not recognizer.step([stream]):
            return times
        times.append(time.perf_counter() - start)

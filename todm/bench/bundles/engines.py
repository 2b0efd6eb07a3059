"""The runtimes that a bundle is measured in. Each decodes recordings chunk by chunk and times them.

Letters: S samples.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

from todm.device.audio import SAMPLE_RATE, Samples
from todm.device.bundle import Bundle, Precision, graph_files
from todm.device.recognizer import StreamingRecognizer, pad_tail
from todm.errors import ConfigError, MissingExtra

Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoded:
    """One recording.

    Attributes:
        text: what was recognised.
        chunks: seconds from a chunk's features to its symbols, for every chunk.
        seconds: all of the decoding, features included.
        first: seconds of audio before the first symbol; None if there was no symbol.
    """

    text: str
    chunks: list[float]
    seconds: float
    first: float | None


class Engine(Protocol):
    """A bundle, loaded in a runtime."""

    def decode(self, samples_S: Samples) -> Decoded:
        """One recording with its tail, chunk by chunk."""
        ...


class Onnxruntime:
    """This project's own recogniser."""

    def __init__(
        self, bundle: Bundle, *, precision: Precision, num_threads: int, clock: Clock
    ) -> None:
        """Load the graphs.

        Raises:
            BundleError: the bundle lacks this form, or cannot be loaded.
        """
        self._recognizer = StreamingRecognizer(bundle, precision=precision, num_threads=num_threads)
        self._clock = clock

    def decode(self, samples_S: Samples) -> Decoded:
        """See `Engine`."""
        recognizer, clock = self._recognizer, self._clock
        shift = recognizer.spec.shift_frames / 100
        stream = recognizer.create_stream()
        start = clock()
        stream.accept(pad_tail(samples_S, recognizer.tail_seconds))
        stream.finish()
        seconds, chunks, first = clock() - start, [], None
        while True:
            start = clock()
            ready = recognizer.step([stream])
            taken = clock() - start
            seconds += taken
            if not ready:
                break
            chunks.append(taken)
            if first is None and recognizer.result(stream).ids:
                first = len(chunks) * shift
        text = recognizer.result(stream).text
        return Decoded(text=text, chunks=chunks, seconds=seconds, first=first)


class Sherpa:
    """sherpa-onnx as it is released."""

    def __init__(
        self, bundle: Bundle, *, precision: Precision, num_threads: int, clock: Clock
    ) -> None:
        """Load the graphs.

        Raises:
            BundleError: the bundle lacks this form.
            MissingExtra: sherpa-onnx is not installed.
        """
        try:
            import sherpa_onnx
        except ImportError:
            raise MissingExtra("sherpa-onnx", "train", "measuring sherpa-onnx") from None
        # A graph without metadata would end the process, so our own recogniser checks it first.
        spec = StreamingRecognizer(bundle, precision=precision).spec
        files = {**graph_files(precision), "tokens": "tokens.txt"}
        make: Any = sherpa_onnx.OnlineRecognizer.from_transducer
        self._recognizer = make(
            **{key: str(bundle.file(name)) for key, name in files.items()},
            num_threads=num_threads,
            model_type="lstm",
        )
        self._shift, self._tail = spec.shift_frames / 100, bundle.tail_seconds
        self._clock = clock

    def decode(self, samples_S: Samples) -> Decoded:
        """See `Engine`."""
        recognizer, clock = self._recognizer, self._clock
        stream = recognizer.create_stream()
        start = clock()
        stream.accept_waveform(SAMPLE_RATE, pad_tail(samples_S, self._tail))
        stream.input_finished()
        seconds, chunks, first = clock() - start, [], None
        while recognizer.is_ready(stream):
            start = clock()
            recognizer.decode_stream(stream)
            taken = clock() - start
            seconds += taken
            chunks.append(taken)
            if first is None and recognizer.tokens(stream):
                first = len(chunks) * self._shift
        text = recognizer.get_result(stream).strip()
        return Decoded(text=text, chunks=chunks, seconds=seconds, first=first)


ENGINES = {"onnxruntime": Onnxruntime, "sherpa-onnx": Sherpa}


def open_engine(name: str, bundle: Bundle, *, precision: Precision, num_threads: int) -> Engine:
    """A bundle in a runtime.

    Raises:
        ConfigError: no such runtime.
        BundleError: the bundle lacks this form, or cannot be loaded.
        MissingExtra: the runtime is not installed.
    """
    if name not in ENGINES:
        raise ConfigError(f"unknown runtime {name!r}; choose from {', '.join(ENGINES)}")
    return ENGINES[name](
        bundle, precision=precision, num_threads=num_threads, clock=time.perf_counter
    )

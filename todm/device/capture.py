"""Live audio: from a microphone, or from a program that writes it into a pipe.

Each source is read in its own thread (PortAudio has one), so that neither Ctrl-C nor slow decoding stops
the recording. A microphone is opened through the package `sounddevice`; without it, any program that
records can be piped in, such as `arecord -t raw -f S16_LE -r 16000`.
"""

import importlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

import numpy as np

from todm.device.audio import SAMPLE_RATE, Resampler, Samples
from todm.errors import CorpusError, MissingExtra

_BLOCK_BYTES = SAMPLE_RATE // 5  # a tenth of a second of 16-bit samples
_MOST_BLOCKS = 600  # a minute
_LONGEST_HEADER = 1 << 16
_PCM, _EXTENSIBLE = 1, 0xFFFE  # formats of a wav header

Put = Callable[[Samples | CorpusError | None], bool]
"""Accepts a block, an error, or None for the end; returns False if there was no room for it."""


class Source(Protocol):
    """Something that produces audio by itself."""

    name: str

    def start(self, put: Put) -> None:
        """Begin to put blocks, each float32 [S] at 16 kHz, from another thread."""
        ...

    def close(self) -> None:
        """Stop producing audio."""
        ...


class Capture:
    """The blocks of a source, until it ends or `stop` is called.

    Attributes:
        seconds: length of the audio passed on so far.
        lost: blocks dropped for lack of room, because decoding was too slow.
    """

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self.seconds, self.lost = 0.0, 0
        self._source = source
        self._stopped = threading.Event()
        self._blocks: queue.Queue[Samples | CorpusError | None] = queue.Queue(_MOST_BLOCKS)

    def stop(self) -> None:
        """End the recording; what was recorded so far stays valid."""
        self._stopped.set()

    def __iter__(self) -> Iterator[Samples]:
        """Samples in [-1, 1], float32 [S] each.

        Raises:
            CorpusError: the source failed, or ended without a sample.
        """
        self._source.start(self._put)
        try:
            while (block := self._next()) is not None:
                self.seconds += len(block) / SAMPLE_RATE
                yield block
        finally:
            self._source.close()
        if not self.seconds and not self._stopped.is_set():
            raise CorpusError(f"{self.name} gave no sound: it ended before the first sample")

    def _next(self) -> Samples | None:
        while not self._stopped.is_set():
            try:
                block = self._blocks.get(timeout=0.05)
            except queue.Empty:
                continue
            if isinstance(block, CorpusError):
                raise block
            return block
        return None

    def _put(self, block: Samples | CorpusError | None) -> bool:
        try:
            self._blocks.put(block, timeout=0.05)
        except queue.Full:
            self.lost += 1
            return False
        return True


class Pipe:
    """16-bit PCM from a stream of bytes: raw at 16 kHz, or with a wav header at any rate."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.name = name
        self._stream, self._closed = stream, False

    def start(self, put: Put) -> None:
        """Read in a daemon thread: a pipe that never ends does not keep the program alive."""
        threading.Thread(target=self._read, args=(put,), daemon=True).start()

    def close(self) -> None:
        """Stop reading."""
        self._closed = True

    def _read(self, put: Put) -> None:
        end: CorpusError | None = None
        try:
            for block in decode_pcm(self._bytes(), self.name):
                # A pipe can wait, so none of its audio is lost.
                while not put(block) and not self._closed:
                    continue
        except CorpusError as error:
            end = error
        while not put(end) and not self._closed:
            continue

    def _bytes(self) -> Iterator[bytes]:
        read = getattr(
            self._stream, "read1", self._stream.read
        )  # whatever is available, up to a block
        while not self._closed and (data := read(_BLOCK_BYTES)):
            yield data


class SoundDevice:
    """A microphone through the package `sounddevice`, at its own rate."""

    def __init__(self, library: Any, device: str | None) -> None:  # noqa: ANN401 - a module
        self._library = library
        self._device = int(device) if device and device.isdecimal() else device
        try:
            chosen = library.query_devices(self._device, "input")
        except (ValueError, library.PortAudioError):
            raise CorpusError(self._no_such()) from None
        self.name = str(chosen["name"])
        self._rate = round(chosen["default_samplerate"])
        self._channels = max(1, min(2, chosen["max_input_channels"]))
        self._stream: Any = None

    def start(self, put: Put) -> None:
        """Open the device.

        Raises:
            CorpusError: it cannot be opened.
        """
        resampler = Resampler(self._rate)

        def receive(samples_SC: np.ndarray, *_: object) -> None:
            put(resampler.feed(samples_SC.mean(axis=1)))

        try:
            self._stream = self._library.InputStream(
                samplerate=self._rate,
                blocksize=self._rate // 10,
                device=self._device,
                channels=self._channels,
                dtype="float32",
                callback=receive,
            )
            self._stream.start()
        except self._library.PortAudioError as error:
            raise CorpusError(
                f"the microphone {self.name!r} cannot be opened ({error}): name another with --device"
            ) from None

    def close(self) -> None:
        """Close the device."""
        if self._stream is not None:
            self._stream.close()

    def _no_such(self) -> str:
        inputs = [d["name"] for d in self._library.query_devices() if d["max_input_channels"]]
        if not inputs:
            return "this machine has no microphone: connect one, or pipe audio into  todm transcribe BUNDLE -"
        wanted = "default microphone" if self._device is None else f"microphone {self._device!r}"
        return f"there is no {wanted}: give --device one of {', '.join(map(repr, inputs))}"


def open_microphone(device: str | None = None) -> Source:
    """The microphone of that name, or the default one.

    Raises:
        CorpusError: no such device, or PortAudio is missing.
        MissingExtra: the package `sounddevice` is not installed.
    """
    try:
        library = importlib.import_module("sounddevice")
    except ModuleNotFoundError:
        raise MissingExtra("sounddevice", "mic", "todm transcribe --mic") from None
    except OSError as error:
        raise CorpusError(
            f"the package 'sounddevice' finds no PortAudio ({error}): install libportaudio2, or pipe audio "
            "into  todm transcribe BUNDLE -"
        ) from None
    return SoundDevice(library, device)


def decode_pcm(data: Iterator[bytes], name: str) -> Iterator[Samples]:
    """16-bit PCM to blocks: raw mono at 16 kHz, unless a wav header says otherwise.

    Args:
        data: the bytes, split at any place.
        name: of the source, for messages.

    Yields:
        Samples in [-1, 1], float32 [S] at 16 kHz.

    Raises:
        CorpusError: a wav header of another format.
    """
    rest, rate, channels = b"", SAMPLE_RATE, 1
    for part in data:
        rest += part
        if rest[:4] != b"RIFF"[: len(rest)] or len(rest) >= 4:
            break
    if rest[:4] == b"RIFF":
        rate, channels, rest = _header(rest, data, name)
    resampler, size = Resampler(rate), 2 * channels
    while True:
        whole = len(rest) - len(rest) % size
        if whole:
            samples = np.frombuffer(rest[:whole], "<i2").reshape(-1, channels).mean(axis=1)
            yield resampler.feed((samples / 32768).astype(np.float32))
        more = next(data, b"")
        if not more:
            break
        rest = rest[whole:] + more
    yield resampler.finish()


def _header(read: bytes, data: Iterator[bytes], name: str) -> tuple[int, int, bytes]:
    """The rate and channels that a wav header states, and the bytes read beyond it."""
    rate = channels = bits = form = 0
    at = 12
    while True:
        while len(read) < at + 8 + 16 and (more := next(data, b"")):
            read += more
        kind, size = read[at : at + 4], int.from_bytes(read[at + 4 : at + 8], "little")
        if kind == b"data" or len(read) < at + 8 or at > _LONGEST_HEADER:
            break
        if kind == b"fmt ":
            form, channels = (int.from_bytes(read[at + i : at + i + 2], "little") for i in (8, 10))
            rate = int.from_bytes(read[at + 12 : at + 16], "little")
            bits = int.from_bytes(read[at + 22 : at + 24], "little")
        at += 8 + size + size % 2
    right = kind == b"data" and form in (_PCM, _EXTENSIBLE) and bits == 16
    if not right or not 1 <= channels <= 64 or not 1000 <= rate <= 1_000_000:
        raise CorpusError(
            f"{name} sends wav audio of {bits} bits, {channels} channels and {rate} Hz: record 16-bit PCM, "
            "as with  arecord -f S16_LE -r 16000"
        )
    return rate, channels, read[at + 8 :]

"""Transcription with onnxruntime: streaming with carried states, or a whole recording at once.

Letters: S samples; N streams; T feature frames of a chunk; L axis of layers in the states.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from todm.device.audio import SAMPLE_RATE, Samples
from todm.device.bundle import Bundle, Networks, Precision, run
from todm.device.contract import check_offline, streaming_spec, zero_states
from todm.device.decode import (
    FRAME_SECONDS,
    BeamDecoder,
    DecoderState,
    Floats,
    GreedyDecoder,
    Hypothesis,
    TransducerDecoder,
    endpoint_frames,
)
from todm.device.features import OnlineFeatures, fbank

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
    """Recognised text with its tokens; times in seconds from the start of the stream."""

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    timestamps: tuple[float, ...]
    log_probs: tuple[float, ...]


class Stream:
    """One audio stream in a `StreamingRecognizer`: its features, states and hypotheses."""

    def __init__(self, states: list[Floats], decoder_state: DecoderState) -> None:
        self._features = OnlineFeatures()
        self.states = states
        self.decoder_state = decoder_state

    def accept(self, samples_S: Samples) -> None:
        """Add audio: float32 [S] at 16 kHz, in [-1, 1]."""
        self._features.accept(samples_S)

    def finish(self) -> None:
        """End the audio. Feed `Bundle.tail_seconds` of silence first, or the last words are lost."""
        self._features.finish()

    def drop(self, num_frames: int) -> None:
        """Leave out the next feature frames, which only gave the following ones their context."""
        self._features.take(num_frames)

    def is_ready(self, chunk_frames: int) -> bool:
        """Whether a chunk can be decoded; as in sherpa-onnx, it takes one frame more than a chunk."""
        return self._features.num_ready > chunk_frames

    def take(self, chunk_frames: int, shift_frames: int) -> Floats:
        """The next chunk, float32 [chunk_frames, 80]."""
        return self._features.take(chunk_frames, advance=shift_frames)


class StreamingRecognizer:
    """Decodes streams chunk by chunk and carries their packed states from call to call."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: Precision = "fp32",
        num_threads: int = 1,
        beam: int = 1,
    ) -> None:
        """Load the graphs of one precision; `beam` is the number of hypotheses, 1 for greedy search.

        Raises:
            BundleError: a graph is missing, or graphs, metadata and tokens do not fit together.
        """
        networks = bundle.networks(precision, num_threads=num_threads)
        self.spec = streaming_spec(networks, bundle.path)
        self._networks, self._bundle = networks, bundle
        self._decoder = _decoder(networks, self.spec.context_size, bundle, beam)

    @property
    def tail_seconds(self) -> float:
        """Seconds of silence to feed after speech to get the last words."""
        return self._bundle.tail_seconds

    @property
    def pause_seconds(self) -> float:
        """Seconds without a symbol that end a segment."""
        return self._bundle.pause_seconds

    @property
    def threshold(self) -> float:
        """The bundle's confidence below which a segment gives no text."""
        return self._bundle.threshold

    def create_stream(self) -> Stream:
        """A new stream, with states at zero."""
        return Stream(zero_states(self.spec, 1), self._decoder.start())

    def step(self, streams: Sequence[Stream]) -> int:
        """Decode one chunk of every stream that is ready, in one batch.

        Returns:
            The number of streams that were ready.
        """
        size, shift = self.spec.chunk_frames, self.spec.shift_frames
        ready = [s for s in streams if s.is_ready(size)]
        if not ready:
            return 0
        frames = np.stack([s.take(size, shift) for s in ready])
        states = [np.concatenate([s.states[i] for s in ready], axis=1) for i in range(2)]
        encoder_out, *states = self.encode(frames, states)
        for row, stream in enumerate(ready):
            stream.states = [state[:, row : row + 1] for state in states]
        self._decoder.advance(encoder_out, [s.decoder_state for s in ready])
        return len(ready)

    def encode(self, frames_NTF: Floats, states: list[Floats]) -> list[Floats]:
        """Run the encoder: float32 [N, T, 80] and two states [L, N, ...] -> [N, C, J] and new states."""
        return run(self._networks.encoder, [frames_NTF, *states], "encoder", self._bundle.path)

    def result(self, stream: Stream) -> Transcript:
        """The transcript so far."""
        return _transcript(self._decoder.best(stream.decoder_state), self._networks)

    def commit(self, stream: Stream, num_tokens: int) -> Transcript:
        """Fix the first tokens of the best hypothesis and return them; the stream forgets them.

        Decoding continues from the best hypothesis alone, with the same context.
        """
        best = self._decoder.best(stream.decoder_state)
        stream.decoder_state.hypotheses = [best.forget(num_tokens)]
        return _transcript(best, self._networks, num_tokens)

    def transcribe(self, samples_S: Samples, *, tail_seconds: float | None = None) -> Transcript:
        """Transcribe one recording: float32 [S] at 16 kHz, with silence added after it."""
        return self.transcribe_batch([samples_S], tail_seconds=tail_seconds)[0]

    def transcribe_batch(
        self, recordings: Sequence[Samples], *, tail_seconds: float | None = None
    ) -> list[Transcript]:
        """Transcribe recordings of any lengths in one batch.

        Args:
            recordings: each float32 [S] at 16 kHz.
            tail_seconds: silence added to each; by default the bundle's.
        """
        tail = self._bundle.tail_seconds if tail_seconds is None else tail_seconds
        streams = [self.create_stream() for _ in recordings]
        for stream, samples in zip(streams, recordings, strict=True):
            stream.accept(pad_tail(samples, tail))
            stream.finish()
        while self.step(streams):
            pass
        return [self.result(stream) for stream in streams]


class OfflineRecognizer:
    """Decodes a whole recording in one call of the offline encoder, which adds its own tail."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: Precision = "fp32",
        num_threads: int = 1,
        beam: int = 1,
    ) -> None:
        """Load the graphs of one precision; `beam` is the number of hypotheses, 1 for greedy search.

        Raises:
            BundleError: a graph is missing, or graphs, metadata and tokens do not fit together.
        """
        self._networks = bundle.networks(precision, offline=True, num_threads=num_threads)
        self._bundle = bundle
        self._decoder = _decoder(
            self._networks, check_offline(self._networks, bundle.path), bundle, beam
        )

    @property
    def pause_seconds(self) -> float:
        """Seconds without a symbol that end a segment."""
        return self._bundle.pause_seconds

    @property
    def threshold(self) -> float:
        """The bundle's confidence below which a segment gives no text."""
        return self._bundle.threshold

    def transcribe(self, samples_S: Samples) -> Transcript:
        """Transcribe one recording: float32 [S] at 16 kHz."""
        frames = fbank(samples_S)
        inputs = [frames[None], np.array([len(frames)], np.int64)]
        out, lens = run(self._networks.encoder, inputs, "offline encoder", self._bundle.path)
        state = self._decoder.start()
        self._decoder.advance(out[:, : int(lens[0])], [state])
        return _transcript(self._decoder.best(state), self._networks)


def pad_tail(samples_S: Samples, seconds: float) -> Samples:
    """The samples, float32 [S], followed by digital silence."""
    return np.pad(samples_S, (0, round(seconds * SAMPLE_RATE)))


def detokenize(tokens: Sequence[str]) -> str:
    """Tokens to text: U+2581 is a space, `<0x..>` a byte of UTF-8."""
    data = b""
    for token in tokens:
        byte = _BYTE.fullmatch(token)
        data += bytes([int(byte[1], 16)]) if byte else token.encode()
    return data.decode(errors="ignore").replace("\u2581", " ").strip()


def _decoder(networks: Networks, context_size: int, bundle: Bundle, beam: int) -> TransducerDecoder:
    seconds = bundle.endpoint_seconds
    endpoint = None if seconds is None else endpoint_frames(seconds)
    if beam == 1:
        return GreedyDecoder(networks, context_size, bundle.path, endpoint=endpoint)
    return BeamDecoder(networks, context_size, bundle.path, endpoint=endpoint, max_active=beam)


def _transcript(best: Hypothesis, networks: Networks, num: int | None = None) -> Transcript:
    """The first `num` symbols of a hypothesis, or all."""
    tokens = tuple(networks.tokens[i] for i in best.ids[:num])
    return Transcript(
        text=detokenize(tokens),
        ids=best.ids[:num],
        tokens=tokens,
        timestamps=tuple(round(FRAME_SECONDS * frame, 2) for frame in best.frames[:num]),
        log_probs=best.log_probs[:num],
    )

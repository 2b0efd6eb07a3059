"""Decode a bundle with sherpa-onnx; results are `Transcript`s, for comparison."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from todm.device.audio import SAMPLE_RATE, Samples
from todm.device.bundle import Bundle, Precision, graph_files
from todm.device.recognizer import Transcript
from todm.errors import MissingExtra

if TYPE_CHECKING:
    import sherpa_onnx


def online(bundle: Bundle, precision: Precision) -> "sherpa_onnx.OnlineRecognizer":
    """The streaming recognizer, greedy, one thread.

    Validate the bundle first: sherpa-onnx ends the process if metadata is missing.

    Raises:
        MissingExtra: sherpa-onnx is not installed.
    """
    return _sherpa().OnlineRecognizer.from_transducer(
        **_files(bundle, precision, offline=False),
        num_threads=1,
        temperature_scale=1.0,  # keeps log-probabilities unscaled
    )


def offline(bundle: Bundle, precision: Precision) -> "sherpa_onnx.OfflineRecognizer":
    """The offline recognizer, greedy, one thread.

    Raises:
        MissingExtra: sherpa-onnx is not installed.
    """
    return _sherpa().OfflineRecognizer.from_transducer(
        **_files(bundle, precision, offline=True), num_threads=1
    )


def decode_online(
    recognizer: "sherpa_onnx.OnlineRecognizer", recordings: Sequence[Samples]
) -> list[Transcript]:
    """Transcribe recordings (16 kHz, float32 [S]) in one batch, chunk by chunk."""
    streams = [recognizer.create_stream() for _ in recordings]
    for stream, samples in zip(streams, recordings, strict=True):
        stream.accept_waveform(SAMPLE_RATE, samples)
        stream.input_finished()
    while ready := [s for s in streams if recognizer.is_ready(s)]:
        recognizer.decode_streams(ready)
    return [
        _transcript(
            recognizer.get_result(s),
            recognizer.tokens(s),
            recognizer.timestamps(s),
            recognizer.ys_probs(s),
        )
        for s in streams
    ]


def decode_offline(
    recognizer: "sherpa_onnx.OfflineRecognizer", recordings: Sequence[Samples]
) -> list[Transcript]:
    """Transcribe recordings (16 kHz, float32 [S]) in one padded batch."""
    streams = [recognizer.create_stream() for _ in recordings]
    for stream, samples in zip(streams, recordings, strict=True):
        stream.accept_waveform(SAMPLE_RATE, samples)
    recognizer.decode_streams(streams)
    results = [stream.result for stream in streams]
    return [_transcript(r.text, r.tokens, r.timestamps, r.ys_log_probs) for r in results]


def _sherpa() -> Any:  # noqa: ANN401 - a module
    try:
        import sherpa_onnx
    except ImportError:
        raise MissingExtra("sherpa-onnx", "train", "verifying a bundle") from None
    return sherpa_onnx


def _files(bundle: Bundle, precision: Precision, *, offline: bool) -> dict[str, str]:
    files = {**graph_files(precision, offline=offline), "tokens": "tokens.txt"}
    return {key: str(bundle.file(name)) for key, name in files.items()}


def _transcript(
    text: str, tokens: Sequence[str], timestamps: Sequence[float], log_probs: Sequence[float]
) -> Transcript:
    # sherpa-onnx shows a leading U+2581 as a space, and gives no ids.
    return Transcript(
        text=text.strip(),
        ids=(),
        tokens=tuple(token.replace(" ", "\u2581") for token in tokens),
        timestamps=tuple(timestamps),
        log_probs=tuple(log_probs),
    )

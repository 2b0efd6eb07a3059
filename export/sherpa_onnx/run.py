"""Transcribe with a bundle in plain sherpa-onnx: no torch, no todm.

pip install sherpa-onnx soundfile
python run.py BUNDLE a.wav b.flac [--precision auto] [--offline] [--beam 4]
arecord -t raw -f S16_LE -r 16000 -c 1 | python run.py BUNDLE -            (as long as you like)
"""

import argparse
import hashlib
import inspect
import itertools
import json
import math
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import sherpa_onnx
import soundfile

RATE = 16000
ENDPOINT = 0.8  # seconds without a symbol that end a segment, where the bundle states none
FRESH = 2.4  # and, where a stream has heard none yet, those after which a new one begins
REPLAY = 0.5  # seconds that the new one hears again: a word may have begun
NEVER = 1e9
CERTAIN = -math.log1p(math.exp(-8))  # the log-probability of the most that a symbol counts for
FORMS = ("fp32", "int8", "int8.rr", "int8.block", "int4")


def main() -> None:
    """Print one line per recording: its path, a tab, its transcript; of `-` one line per segment."""
    parser = argparse.ArgumentParser(description="Transcribe with a bundle in plain sherpa-onnx.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--precision", choices=(*FORMS, "auto"), default="fp32")
    parser.add_argument("--offline", action="store_true")
    parser.add_argument("--beam", type=int, default=1, help="hypotheses; 1 (default) is greedy")
    parser.add_argument(
        "--threshold",
        type=float,
        help="confidence below which a segment gives no text, 0 to 1 (default: the bundle's)",
    )
    args = parser.parse_args()
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        parser.error(f"--threshold is {args.threshold}: a confidence from 0 to 1")
    if args.precision == "auto":
        args.precision = best_int8()
    if args.audio == ["-"]:
        if args.offline:
            parser.error("--offline needs whole recordings, and - may never end: leave one out")
        listen(args)
    else:
        transcribe = offline(args) if args.offline else streaming(args)
        for path in args.audio:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
            print(f"{path}\t{transcribe(samples.mean(axis=1), rate)}")


def best_int8() -> str:
    """The int8 form for this processor: sums of full-range weights overflow on x86 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return "int8"
    try:
        return "int8" if "vnni" in Path("/proc/cpuinfo").read_text() else "int8.rr"
    except OSError:  # not Linux: the form that is right everywhere
        return "int8.rr"


def checked(bundle: Path, name: str) -> str:
    """The path of a file, after its size and SHA-256 were held against the manifest.

    sherpa-onnx ends the process without a word where a file is not what it should be.
    """
    try:
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        entry = manifest["files"][name]
        size, digest = (bundle / name).stat().st_size, entry["sha256"]
        seconds = manifest["info"]["tail_seconds"], manifest["info"].get("endpoint_seconds", 1)
        whole = manifest["kind"] == "bundle" and size == entry["bytes"]
        whole = whole and 0 <= manifest["info"].get("decision_threshold", 0) <= 1
        if not whole or not all(0 <= s <= 100 for s in seconds):
            raise ValueError(name)
        data = (bundle / name).read_bytes()
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        raise SystemExit(
            f"{bundle} is not a bundle with a valid file {name}: export it again"
        ) from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise SystemExit(f"{bundle} is damaged: {name} does not match its manifest")
    if (
        name.endswith(".onnx") and b"location" in data
    ):  # the key under which ONNX names another file
        raise SystemExit(f"{bundle} is not to be trusted: {name} has weights in another file")
    return str(bundle / name)


def options(bundle: Path, precision: str, *, beam: int = 1, folder: str = "") -> dict:
    """The arguments that both recognisers take."""
    middle = "" if precision == "fp32" else f".{precision}"
    rest = "" if precision == "fp32" else ".int8"
    return {
        "tokens": checked(bundle, "tokens.txt"),
        "encoder": checked(bundle, f"{folder}encoder{middle}.onnx"),
        "decoder": checked(bundle, f"decoder{rest}.onnx"),
        "joiner": checked(bundle, f"joiner{rest}.onnx"),
        "num_threads": 1,
        "decoding_method": "greedy_search" if beam == 1 else "modified_beam_search",
        "max_active_paths": beam,
    }


def info(bundle: Path) -> dict:
    """What the manifest states, after `checked`."""
    return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["info"]


def streaming(args: argparse.Namespace):  # noqa: ANN201 - a function
    """A function from samples and their rate to text, chunk by chunk."""
    graphs = options(args.bundle, args.precision, beam=args.beam)  # checks the manifest first
    threshold = threshold_of(args)
    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
        **graphs,
        model_type="lstm",  # saves one load of the encoder
        **scores(threshold),
    )
    tail_seconds = info(args.bundle)["tail_seconds"]
    pause = info(args.bundle).get("endpoint_seconds", ENDPOINT)

    def transcribe(samples: np.ndarray, rate: int) -> str:
        stream = recognizer.create_stream()
        padded = np.concatenate([samples, np.zeros(round(tail_seconds * rate), np.float32)])
        for start in range(0, len(padded), rate // 10):  # as from a microphone, 100 ms at a time
            stream.accept_waveform(rate, padded[start : start + rate // 10])
            while recognizer.is_ready(stream):
                recognizer.decode_stream(stream)
        stream.input_finished()
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
        if not threshold:
            return recognizer.get_result(stream).strip()
        kept = [
            "".join(recognizer.tokens(stream)[start:end]).strip()
            for start, end in spans(recognizer.timestamps(stream), pause)
            if confidence(recognizer.ys_probs(stream)[start:end]) >= threshold
        ]
        return " ".join(filter(None, kept))

    return transcribe


def threshold_of(args: argparse.Namespace) -> float:
    """The confidence below which a segment gives no text: the one given, or the bundle's, or 0."""
    given = args.threshold
    return info(args.bundle).get("decision_threshold", 0.0) if given is None else given


def scores(threshold: float) -> dict:
    """The option with which `ys_probs` are those of the graphs; nothing where no threshold needs them."""
    if not threshold:
        return {}
    known = inspect.signature(sherpa_onnx.OnlineRecognizer.from_transducer).parameters
    if "temperature_scale" not in known or not hasattr(sherpa_onnx.OnlineRecognizer, "ys_probs"):
        raise SystemExit(
            "this sherpa-onnx gives no probabilities, which the bundle's threshold of confidence needs: "
            "take a newer one (2.0.1 has them), or --threshold 0"
        )
    return {"temperature_scale": 1.0}


def confidence(log_probs: Sequence[float]) -> float:
    """How sure the recogniser is of a segment, 0 to 1, as todm computes it (todm/device/decision.py)."""
    capped = [min(value, CERTAIN) for value in log_probs]
    odds = sum(value - math.log1p(-math.exp(value)) for value in capped) / (len(capped) + 1)
    return (1 + math.tanh(odds / 2)) / 2


def spans(times: Sequence[float], pause: float) -> list[tuple[int, int]]:
    """Where segments begin and end among symbols, by the seconds of these: at pauses."""
    frames, longest = [round(25 * t) for t in times], math.floor(25 * pause + 0.5)
    begins = [i for i, at in enumerate(frames) if not i or at - frames[i - 1] > longest]
    return list(itertools.pairwise([*begins, len(frames)]))


def offline(args: argparse.Namespace):  # noqa: ANN201 - a function
    """A function from samples and their rate to text, in one call; the graph adds the tail."""
    recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
        **options(args.bundle, args.precision, beam=args.beam, folder="offline/")
    )

    def transcribe(samples: np.ndarray, rate: int) -> str:
        stream = recognizer.create_stream()
        stream.accept_waveform(rate, samples)
        recognizer.decode_stream(stream)
        return stream.result.text.strip()

    return transcribe


def recogniser(
    bundle: Path,
    precision: str,
    *,
    beam: int = 1,
    rule1: float = NEVER,
    rule2: float | None = None,
    reset_encoder: bool = False,
    threshold: float = 0.0,
) -> sherpa_onnx.OnlineRecognizer:
    """A streaming recogniser with endpoints.

    Args:
        bundle: the bundle's folder.
        precision: which graphs.
        beam: hypotheses.
        rule1: seconds without a symbol that are an endpoint where there was none before.
        rule2: seconds without a symbol after the last one that are an endpoint; the bundle's if None.
        reset_encoder: see README.md.
        threshold: confidence below which a segment is to give no text; see `Listener`.
    """
    graphs = options(bundle, precision, beam=beam)  # checks the manifest first
    pause = info(bundle).get("endpoint_seconds", ENDPOINT) if rule2 is None else rule2
    return sherpa_onnx.OnlineRecognizer.from_transducer(
        **graphs,
        model_type="lstm",
        **scores(threshold),
        enable_endpoint_detection=True,
        rule1_min_trailing_silence=rule1,
        rule2_min_trailing_silence=float(pause),
        rule3_min_utterance_length=NEVER,  # 20 s by default, which may be the middle of a word
        reset_encoder=reset_encoder,
    )


class Listener:
    """Audio without end; after an endpoint a new stream begins, which hears the last moment again."""

    def __init__(
        self,
        recognizer: sherpa_onnx.OnlineRecognizer,
        *,
        fresh: bool = True,
        replay: float = REPLAY,
        threshold: float = 0.0,
    ) -> None:
        """Start; not `fresh` goes on with the same stream and sherpa-onnx's own `reset`."""
        self._threshold = threshold
        self._recognizer, self._fresh = recognizer, fresh
        self._replay = round(replay * RATE)
        self._stream = recognizer.create_stream()
        self._last = np.zeros(0, np.float32)
        self._heard = 0  # samples
        self.began = 0  # the sample with which the present stream begins

    @property
    def text(self) -> str:
        """The words since the last endpoint."""
        return self._recognizer.get_result(self._stream).strip()

    def accept(self, samples: np.ndarray) -> Iterator[tuple[float, float, str]]:
        """Add audio, float32 at 16 kHz; yields start, end and text of a segment that it ends."""
        self._stream.accept_waveform(RATE, samples)
        self._heard += len(samples)
        recent = np.concatenate([self._last, samples])
        self._last = recent[max(0, len(recent) - self._replay) :]
        while self._recognizer.is_ready(self._stream):
            self._recognizer.decode_stream(self._stream)
        if self._recognizer.is_endpoint(self._stream):
            yield from self._segment()
            self._restart()

    def finish(self, tail_seconds: float) -> Iterator[tuple[float, float, str]]:
        """End the audio; yields the last segment."""
        yield from self.accept(np.zeros(round(tail_seconds * RATE), np.float32))
        yield from self._segment()

    def _segment(self) -> Iterator[tuple[float, float, str]]:
        times = self._recognizer.timestamps(self._stream)
        if self.text and self._is_sure():
            start = self.began / RATE + self._recognizer.start_time(self._stream)
            yield start + times[0], start + times[-1] + 0.04, self.text

    def _is_sure(self) -> bool:
        if not self._threshold:
            return True
        return confidence(self._recognizer.ys_probs(self._stream)) >= self._threshold

    def _restart(self) -> None:
        if not self._fresh:
            self._recognizer.reset(self._stream)
            return
        self._stream = self._recognizer.create_stream()
        self._stream.accept_waveform(RATE, self._last)
        self.began = self._heard - len(self._last)


def listen(args: argparse.Namespace) -> None:
    """Print start, end and text of every segment of standard input: raw 16-bit samples, 16 kHz, mono."""
    checked(args.bundle, "tokens.txt")
    threshold = threshold_of(args)
    recognizer = recogniser(
        args.bundle, args.precision, beam=args.beam, rule1=FRESH, threshold=threshold
    )
    # No more than the pause, or the new stream would hear the last word again.
    replay = min(REPLAY, info(args.bundle).get("endpoint_seconds", ENDPOINT))
    listener = Listener(recognizer, replay=replay, threshold=threshold)
    for data in pieces():
        samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 2**15
        for start, end, text in listener.accept(samples):
            print(f"{start:.2f}\t{end:.2f}\t{text}", flush=True)
    for start, end, text in listener.finish(info(args.bundle)["tail_seconds"]):
        print(f"{start:.2f}\t{end:.2f}\t{text}", flush=True)


def pieces() -> Iterator[bytes]:
    """Standard input, 100 ms at a time, until it ends or somebody presses Ctrl-C."""
    try:
        while data := sys.stdin.buffer.read(RATE // 5):
            yield data
    except KeyboardInterrupt:  # the usual end: what was said last is still printed
        return


if __name__ == "__main__":
    main()

"""Transcribe with a bundle in plain sherpa-onnx: no torch, no todm.

pip install sherpa-onnx soundfile
python run.py BUNDLE a.wav b.flac [--precision auto] [--offline] [--beam 4]
"""

import argparse
import hashlib
import json
import platform
from pathlib import Path

import numpy as np
import sherpa_onnx
import soundfile

FORMS = ("fp32", "int8", "int8.rr", "int8.block", "int4")


def main() -> None:
    """Print one line per recording: its path, a tab, its transcript."""
    parser = argparse.ArgumentParser(description="Transcribe with a bundle in plain sherpa-onnx.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--precision", choices=(*FORMS, "auto"), default="fp32")
    parser.add_argument("--offline", action="store_true")
    parser.add_argument("--beam", type=int, default=1, help="hypotheses; 1 (default) is greedy")
    args = parser.parse_args()
    if args.precision == "auto":
        args.precision = best_int8()
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
        tail_seconds = manifest["info"]["tail_seconds"]
        if manifest["kind"] != "bundle" or size != entry["bytes"] or not 0 <= tail_seconds <= 100:
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


def options(args: argparse.Namespace) -> dict:
    """The arguments that both recognisers take."""
    folder = "offline/" if args.offline else ""
    middle = "" if args.precision == "fp32" else f".{args.precision}"
    rest = "" if args.precision == "fp32" else ".int8"
    search = "greedy_search" if args.beam == 1 else "modified_beam_search"
    return {
        "tokens": checked(args.bundle, "tokens.txt"),
        "encoder": checked(args.bundle, f"{folder}encoder{middle}.onnx"),
        "decoder": checked(args.bundle, f"decoder{rest}.onnx"),
        "joiner": checked(args.bundle, f"joiner{rest}.onnx"),
        "num_threads": 1,
        "decoding_method": search,
        "max_active_paths": args.beam,
    }


def streaming(args: argparse.Namespace):  # noqa: ANN201 - a function
    """A function from samples and their rate to text, chunk by chunk."""
    # model_type saves one load of the encoder.
    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(**options(args), model_type="lstm")
    manifest = json.loads((args.bundle / "manifest.json").read_text())
    tail_seconds = manifest["info"]["tail_seconds"]

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
        return recognizer.get_result(stream).strip()

    return transcribe


def offline(args: argparse.Namespace):  # noqa: ANN201 - a function
    """A function from samples and their rate to text, in one call; the graph adds the tail."""
    recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(**options(args))

    def transcribe(samples: np.ndarray, rate: int) -> str:
        stream = recognizer.create_stream()
        stream.accept_waveform(rate, samples)
        recognizer.decode_stream(stream)
        return stream.result.text.strip()

    return transcribe


if __name__ == "__main__":
    main()

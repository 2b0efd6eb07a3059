"""Every form of a bundle on this processor, in plain onnxruntime: its noise, its speed, its transcript.

Which form to ship is a question to the device: where 8-bit sums overflow (x86 without VNNI) the signal
over the noise drops by 20 dB, and a smaller file is not a faster one everywhere.

pip install onnxruntime kaldi-native-fbank numpy soundfile
python forms.py BUNDLE [a.wav] [--repeats 20]            (16 kHz audio; its own recording by default)
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
from run import FORMS, checked, decode, features, middles  # the page beside this one


def main() -> None:
    """Print a line per form: file, MB, dB against fp32, ms a chunk, transcript."""
    parser = argparse.ArgumentParser(description="Measure every form of a bundle.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("audio", nargs="?")
    parser.add_argument("--repeats", type=int, default=20, help="passes that are timed; 0: none")
    args = parser.parse_args()
    samples, rate = soundfile.read(
        args.audio or str(args.bundle / "test_wavs" / "0.wav"), dtype="float32"
    )
    if rate != 16000 or samples.ndim != 1:
        raise SystemExit("this page reads one channel of 16000 samples a second only")
    frames = features(samples)
    exact = None
    print(f"{'form':12}{'MB':>8}{'dB':>8}{'ms':>8}  transcript")
    for form in FORMS:
        graphs = load(args.bundle, form)
        if graphs is None:
            continue
        out = encoded(graphs[0], frames)
        exact = out if exact is None else exact
        noise = float(((out - exact) ** 2).sum())
        level = f"{10 * np.log10((exact**2).sum() / noise):8.1f}" if noise else " " * 8
        megabytes = sum(path(args.bundle, n, form).stat().st_size for n in NAMES) / 1e6
        line = f"{form:12}{megabytes:8.3f}{level}{milliseconds(graphs[0], frames, args.repeats)}"
        print(f"{line}  {text(args.bundle, graphs, frames)}", flush=True)


NAMES = ("encoder", "decoder", "joiner")


def path(bundle: Path, name: str, form: str) -> Path:
    """The file of a graph."""
    encoder, rest = middles(form)
    return bundle / f"{name}{encoder if name == 'encoder' else rest}.onnx"


def load(bundle: Path, form: str) -> list | None:
    """The three graphs of a form; None where the bundle has no such form."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not path(bundle, "encoder", form).is_file():
        return None
    try:
        return [
            onnxruntime.InferenceSession(checked(bundle, path(bundle, name, form).name), options)
            for name in NAMES
        ]
    except Exception as error:  # noqa: BLE001 - the others are measured all the same
        print(f"{form:12}  not loaded: {str(error).splitlines()[0][:90]}")
        return None


def encoded(encoder: "onnxruntime.InferenceSession", frames: np.ndarray) -> np.ndarray:
    """The encoder's output over a recording, chunk by chunk, float32 [frames / 4, J]."""
    metadata = encoder.get_modelmeta().custom_metadata_map
    shift = int(metadata["decode_chunk_len"])
    layers = int(metadata["num_encoder_layers"])
    states = [
        np.zeros((layers, 1, int(metadata[key])), np.float32)
        for key in ("d_model", "rnn_hidden_size")
    ]
    outs = []
    for start in range(0, len(frames) - shift, shift):
        inputs = [frames[None, start : start + shift], *states]
        names = [port.name for port in encoder.get_inputs()]
        out, *states = encoder.run(None, dict(zip(names, inputs, strict=True)))
        outs.append(np.asarray(out)[0])
    return np.concatenate(outs)


def milliseconds(encoder: "onnxruntime.InferenceSession", frames: np.ndarray, repeats: int) -> str:
    """Of the encoder for a chunk, the best of some passes."""
    if not repeats:
        return " " * 8
    shift = int(encoder.get_modelmeta().custom_metadata_map["decode_chunk_len"])
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        encoded(encoder, frames)
        taken.append(time.perf_counter() - begin)
    return f"{1000 * min(taken) / len(range(0, len(frames) - shift, shift)):8.3f}"


def text(bundle: Path, graphs: list, frames: np.ndarray) -> str:
    """The transcript."""
    lines = checked(bundle, "tokens.txt").decode().splitlines()
    tokens = [line.rpartition(" ")[0] for line in lines]
    info = json.loads((bundle / "manifest.json").read_text())["info"]
    ids = decode(graphs, tokens, frames, info.get("endpoint_seconds"))
    return "".join(tokens[i] for i in ids).replace("\u2581", " ").strip()


if __name__ == "__main__":
    main()

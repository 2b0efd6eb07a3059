"""Transcribe with a bundle in plain onnxruntime: no torch, no todm, the whole loop on one page.

pip install onnxruntime kaldi-native-fbank numpy soundfile
python run.py BUNDLE a.wav [--precision int8]            (16 kHz audio)
"""

import argparse
import hashlib
import json
import math
from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import onnxruntime
import soundfile

BLANK = 0
FRAME_SECONDS = 0.04
FORMS = ("fp32", "int8", "int8.rr", "int8.block", "int4")


def main() -> None:
    """Print one line per recording: its path, a tab, its transcript."""
    parser = argparse.ArgumentParser(description="Transcribe with a bundle in plain onnxruntime.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--precision", choices=FORMS, default="fp32")
    args = parser.parse_args()
    encoder, rest = middles(args.precision)
    graphs = [
        onnxruntime.InferenceSession(checked(args.bundle, name))
        for name in (f"encoder{encoder}.onnx", f"decoder{rest}.onnx", f"joiner{rest}.onnx")
    ]
    lines = checked(args.bundle, "tokens.txt").decode().splitlines()
    tokens = [line.rpartition(" ")[0] for line in lines]
    info = json.loads((args.bundle / "manifest.json").read_text())["info"]
    for path in args.audio:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        if rate != 16000:
            raise SystemExit(f"{path} has {rate} samples a second: this page reads 16000 only")
        tail = np.zeros(round(info["tail_seconds"] * rate), np.float32)
        frames = features(np.concatenate([samples.mean(axis=1), tail]))
        ids = decode(graphs, tokens, frames, info.get("endpoint_seconds"))
        text = "".join(tokens[i] for i in ids).replace("\u2581", " ").strip()
        print(f"{path}\t{text}")


def checked(bundle: Path, name: str) -> bytes:
    """A file of a bundle, after its size and SHA-256 were held against the manifest."""
    try:
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        entry = manifest["files"][name]
        size, digest = (bundle / name).stat().st_size, entry["sha256"]
        seconds = manifest["info"]["tail_seconds"], manifest["info"].get("endpoint_seconds", 1)
        whole = manifest["kind"] == "bundle" and size == entry["bytes"]
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
    return data


def middles(precision: str) -> tuple[str, str]:
    """The middle of the encoder's file name, and of the decoder's and joiner's."""
    if precision == "fp32":
        return "", ""
    return f".{precision}", ".int8"


def features(samples: np.ndarray) -> np.ndarray:
    """80 log-mel bins, float32 [T, 80], as sherpa-onnx computes them."""
    options = knf.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    options.mel_opts.high_freq = -400
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(16000, samples.tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


def decode(
    graphs: list, tokens: list[str], frames: np.ndarray, endpoint_seconds: float | None = None
) -> list[int]:
    """Greedy search, at most one symbol a frame, the encoder's two states carried along.

    After so many seconds without a symbol the decoder's context starts again, and the states go on.
    """
    encoder, decoder, joiner = graphs
    sizes = {
        k: int(v) for k, v in encoder.get_modelmeta().custom_metadata_map.items() if v.isdecimal()
    }
    context_size = int(decoder.get_modelmeta().custom_metadata_map["context_size"])
    layers = sizes["num_encoder_layers"]
    state0 = np.zeros((layers, 1, sizes["d_model"]), np.float32)
    state1 = np.zeros((layers, 1, sizes["rnn_hidden_size"]), np.float32)
    silent = {BLANK, tokens.index("<unk>") if "<unk>" in tokens else BLANK}
    endpoint = math.inf  # in frames, a half counts as one
    if endpoint_seconds is not None:
        endpoint = math.floor(endpoint_seconds / FRAME_SECONDS + 0.5)
    fresh = [-1] * (context_size - 1) + [BLANK]
    ids, context, now, last = [], fresh, 0, 0
    (predicted,) = decoder.run(None, {"y": np.array([context])})
    for start in range(0, len(frames) - sizes["T"], sizes["decode_chunk_len"]):
        chunk = frames[None, start : start + sizes["T"]]
        out, state0, state1 = encoder.run(None, {"x": chunk, "state0": state0, "state1": state1})
        for frame in range(out.shape[1]):
            if context != fresh and now - last > endpoint:
                context = fresh
                (predicted,) = decoder.run(None, {"y": np.array([context])})
            inputs = {"encoder_out": out[:, frame], "decoder_out": predicted}
            best = int(joiner.run(None, inputs)[0].argmax())
            if best not in silent:
                ids.append(best)
                context, last = [*context[1:], best], now
                (predicted,) = decoder.run(None, {"y": np.array([context])})
            now += 1
    return ids


if __name__ == "__main__":
    main()

"""Transcribe with ExecuTorch programs: no todm, the whole loop on one page.

pip install executorch==1.2.0 torch==2.11.0 kaldi-native-fbank numpy soundfile
python run.py DIR a.wav [--precision int8]            (16 kHz audio)

ExecuTorch's Python runtime takes its inputs as torch tensors: torch is used for that and for nothing
else. On a phone, the C++, Kotlin and Swift runtimes take plain buffers and need none of it.
"""

import argparse
import hashlib
import json
import math
from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import soundfile
import torch
from executorch.runtime import Runtime, Verification

BLANK = 0
FRAME_SECONDS = 0.04


class Program:
    """A .pte file; keeps the program beside its method, which reads the program's memory."""

    def __init__(self, path: Path) -> None:
        self.program = Runtime.get().load_program(path, verification=Verification.Minimal)
        self.method = self.program.load_method("forward")

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Run it; the results are copies, since the next call writes over them."""
        tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in inputs]
        return [out.numpy().copy() for out in self.method.execute(tensors)]


def main() -> None:
    """Print one line per recording: its path, a tab, its transcript."""
    parser = argparse.ArgumentParser(description="Transcribe with ExecuTorch programs.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    args = parser.parse_args()
    middle = "" if args.precision == "fp32" else ".int8"
    names = (f"encoder{middle}.pte", "decoder.pte", "joiner.pte")
    programs = [Program(checked(args.directory, name)) for name in names]
    lines = checked(args.directory, "tokens.txt").read_text(encoding="utf-8").splitlines()
    tokens = [line.rpartition(" ")[0] for line in lines]
    info = json.loads((args.directory / "manifest.json").read_text())["info"]
    for path in args.audio:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        if rate != 16000:
            raise SystemExit(f"{path} has {rate} samples a second: this page reads 16000 only")
        tail = np.zeros(round(info["tail_seconds"] * rate), np.float32)
        frames = features(np.concatenate([samples.mean(axis=1), tail]))
        ids = decode(programs, tokens, frames, info["sizes"], info.get("endpoint_seconds"))
        text = "".join(tokens[i] for i in ids).replace("\u2581", " ").strip()
        print(f"{path}\t{text}")


def checked(bundle: Path, name: str) -> Path:
    """The path of a file, after its size and SHA-256 were held against the manifest."""
    try:
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        entry = manifest["files"][name]
        size, digest = (bundle / name).stat().st_size, entry["sha256"]
        seconds = manifest["info"]["tail_seconds"], manifest["info"].get("endpoint_seconds", 1)
        whole = manifest["kind"] == "executorch" and size == entry["bytes"]
        if not whole or not all(0 <= s <= 100 for s in seconds):
            raise ValueError(name)
        data = (bundle / name).read_bytes()
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        raise SystemExit(
            f"{bundle} is not a bundle with a valid file {name}: export it again"
        ) from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise SystemExit(f"{bundle} is damaged: {name} does not match its manifest")
    return bundle / name


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
    programs: list,
    tokens: list[str],
    frames: np.ndarray,
    sizes: dict,
    endpoint_seconds: float | None = None,
) -> list[int]:
    """Greedy search, at most one symbol a frame, the encoder's two states carried along.

    After so many seconds without a symbol the decoder's context starts again, and the states go on.
    """
    encoder, decoder, joiner = programs
    states = [np.zeros((1, 1, sizes[name]), np.float32) for name in ("S", "R")]
    silent = {BLANK, tokens.index("<unk>") if "<unk>" in tokens else BLANK}
    endpoint = math.inf  # in frames, a half counts as one
    if endpoint_seconds is not None:
        endpoint = math.floor(endpoint_seconds / FRAME_SECONDS + 0.5)
    fresh = [-1] * (sizes["K"] - 1) + [BLANK]
    ids, context, now, last = [], fresh, 0, 0
    (predicted,) = decoder(np.array([context]))
    for start in range(0, len(frames) - sizes["T"], sizes["T"]):
        out, *states = encoder(frames[None, start : start + sizes["T"]], *states)
        for frame in range(out.shape[1]):
            if context != fresh and now - last > endpoint:
                context = fresh
                (predicted,) = decoder(np.array([context]))
            best = int(joiner(out[:, frame], predicted)[0].argmax())
            if best not in silent:
                ids.append(best)
                context, last = [*context[1:], best], now
                (predicted,) = decoder(np.array([context]))
            now += 1
    return ids


if __name__ == "__main__":
    main()

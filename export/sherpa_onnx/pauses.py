"""Measure how sherpa-onnx hears a recording again after a pause, by what is done at its endpoints.

python pauses.py BUNDLE a.wav b.flac [--pauses 1,2,5,20,60] [--noise -60]
"""

import argparse
from pathlib import Path

import numpy as np
import sherpa_onnx
import soundfile
from run import FRESH, NEVER, RATE, Listener, recogniser

# What is done where a segment ends: the rules' seconds, and the options of `Listener`.
WAYS = {
    "nothing": ({"rule2": NEVER}, {}),
    "`reset`": ({"rule1": FRESH}, {"fresh": False}),
    "`reset`, `reset_encoder=True`": ({"rule1": FRESH, "reset_encoder": True}, {"fresh": False}),
    "a new stream, without rule1": ({}, {"replay": 0}),
    "a new stream": ({"rule1": FRESH}, {"replay": 0}),
    "a new stream that hears 0.5 s again": ({"rule1": FRESH}, {}),
}


def main() -> None:
    """Print, for each way, how many repetitions had the text of a stream of their own."""
    parser = argparse.ArgumentParser(description="Repeat recordings after pauses in sherpa-onnx.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--pauses", default="1,2,5,20,60", help="seconds")
    parser.add_argument("--noise", type=float, default=-60.0, help="level of the pauses, in dB")
    args = parser.parse_args()
    recordings = [read(path) for path in args.audio]
    pauses = [float(seconds) for seconds in args.pauses.split(",")]
    print(f"| at an endpoint | {' | '.join(f'{p:g} s' for p in pauses)} |")
    print("| --- |" + " --- |" * len(pauses))
    for name, (rules, options) in WAYS.items():
        recognizer = recogniser(args.bundle, args.precision, **rules)
        rows = [repeated(recognizer, s, pauses, args.noise, options) for s in recordings]
        counts = [f"{sum(column)} of {len(rows)}" for column in zip(*rows, strict=True)]
        print(f"| {name} | {' | '.join(counts)} |", flush=True)


def read(path: str) -> np.ndarray:
    """A recording at 16 kHz, its channels averaged."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if rate != RATE:
        raise SystemExit(f"{path} has {rate} samples a second: convert it to {RATE}")
    return samples.mean(axis=1)


def repeated(
    recognizer: sherpa_onnx.OnlineRecognizer,
    samples: np.ndarray,
    pauses: list[float],
    level: float,
    options: dict,
) -> list[bool]:
    """Whether a recording has the same text after each of the pauses as at the start of a stream."""
    noise = np.random.default_rng(1)

    def quiet(seconds: float) -> np.ndarray:
        return (10 ** (level / 20) * noise.standard_normal(int(RATE * seconds))).astype(np.float32)

    listener = Listener(recognizer, **options)
    wanted, found = heard(listener, samples, quiet(1.5)), []
    for seconds in pauses:
        heard(listener, quiet(seconds), quiet(0))  # what it hears in the pause does not count
        found.append(heard(listener, samples, quiet(1.5)) == wanted)
    return found


def heard(listener: Listener, *pieces: np.ndarray) -> str:
    """The words of a stretch of audio, in ended segments or not."""
    before, found = listener.text, []
    for piece in pieces:
        for start in range(0, len(piece), RATE // 10):
            for *_, text in listener.accept(piece[start : start + RATE // 10]):
                found.append(text)
    return " ".join([*found, listener.text]).removeprefix(before).strip()


if __name__ == "__main__":
    main()

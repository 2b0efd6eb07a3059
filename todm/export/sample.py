"""The recording that travels with an export, and what each form makes of it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from todm.device.audio import SAMPLE_RATE, Samples, read_audio, write_wav
from todm.device.recognizer import Transcript, pad_tail

FOLDER = "test_wavs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A recording, float32 [S] at 16 kHz, and its reference transcript, if known."""

    samples_S: Samples
    reference: str | None = None

    @classmethod
    def read(cls, path: Path, reference: str | None = None) -> "Sample":
        """From an audio file.

        Raises:
            CorpusError: it cannot be read.
        """
        return cls(samples_S=read_audio(path), reference=reference)

    def write(self, folder: Path, tail_seconds: float) -> Samples:
        """Write the recording into `test_wavs`; returns it in 16 bits, as others will read it.

        Its tail is written too, so that a program that adds none gives the whole transcript.
        """
        wav = folder / FOLDER / "0.wav"
        wav.parent.mkdir()
        write_wav(wav, pad_tail(self.samples_S, tail_seconds))
        return read_audio(wav)


def write_expected(folder: Path, expected: Mapping[str, Any]) -> None:
    """Write the transcripts of all forms beside the recording."""
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (folder / FOLDER / "expected.json").write_text(text + "\n", encoding="utf-8")


def expected_of(transcript: Transcript) -> dict[str, Any]:
    """The entry of one form in `test_wavs/expected.json`."""
    return {
        "text": transcript.text,
        "tokens": list(transcript.tokens),
        "timestamps": list(transcript.timestamps),
        "log_probs": [round(p, 5) for p in transcript.log_probs],
    }


def sample_signal(seconds: float = 6.0) -> Samples:
    """A speech-like signal for want of a recording: buzzing vowels with pauses, float32 [S]."""
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    formants = (
        700 + 300 * np.sin(2 * np.pi * 1.1 * time),
        1700 + 500 * np.sin(2 * np.pi * 0.6 * time),
    )
    signal = np.zeros_like(time)
    for harmonic in range(1, 30):
        gains = [1 / (1 + ((harmonic * pitch - f) / 150) ** 2) for f in formants]
        signal += (gains[0] + 0.5 * gains[1]) * np.sin(harmonic * phase)
    signal *= np.sin(2 * np.pi * 1.3 * time) > -0.4
    signal = 0.3 * signal / np.abs(signal).max() + 1e-3 * rng.standard_normal(len(time))
    return signal.astype(np.float32)

"""Sounds that may go on for hours, as functions of time, so that any part can be had without the rest.

Letters: S samples.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from todm.device.audio import SAMPLE_RATE, Samples

_BLOCK = 10 * SAMPLE_RATE  # samples that are drawn together


@dataclasses.dataclass(frozen=True)
class Sound:
    """An endless sound.

    Attributes:
        name: for people.
        level: root mean square in dB against full scale; None for digital silence.
        part: samples from a start, float32 [S] at 16 kHz: (start, num) -> [num].
    """

    name: str
    level: float | None
    part: Callable[[int, int], Samples]


def silence() -> Sound:
    """Digital silence."""
    return Sound("digital silence", None, lambda _start, num: np.zeros(num, np.float32))


def white_noise(level: float) -> Sound:
    """Gaussian noise at a level in dB."""

    def block(number: int) -> Samples:
        return np.random.default_rng([17, number]).normal(size=_BLOCK).astype(np.float32)

    return _scaled(f"white noise, {level:.0f} dBFS", level, _in_blocks(block), gain=1.0)


def hum(level: float, *, hertz: float = 50.0) -> Sound:
    """Mains hum with fourteen overtones, at a level in dB."""
    rng = np.random.default_rng(50)
    tones = [(k * hertz, rng.uniform(0.1, 1) / k, rng.uniform()) for k in range(1, 16)]

    def part(start: int, num: int) -> Samples:
        # A second is a period of all tones.
        time_S = ((start + np.arange(num)) % SAMPLE_RATE) / SAMPLE_RATE
        waves = (a * np.sin(2 * np.pi * (f * time_S + turn)) for f, a, turn in tones)
        return np.sum(list(waves), axis=0).astype(np.float32)

    return _scaled(f"mains hum, {level:.0f} dBFS", level, part, gain=rms(part(0, SAMPLE_RATE)))


def babble(level: float, voices: Sequence[Samples]) -> Sound:
    """Several voices at a time, each repeating its own recording, at a level in dB."""

    def part(start: int, num: int) -> Samples:
        at_S = start + np.arange(num)
        return np.sum([v[at_S % len(v)] / rms(v) for v in voices], axis=0).astype(np.float32)

    name = f"babble of {len(voices)}, {level:.0f} dBFS"
    return _scaled(name, level, part, gain=len(voices) ** 0.5)


def looped(name: str, samples_S: Samples) -> Sound:
    """A recording, again and again, at its own level."""

    def part(start: int, num: int) -> Samples:
        return samples_S[(start + np.arange(num)) % len(samples_S)]

    return Sound(name, decibels(rms(samples_S)), part)


def rms(samples_S: Samples) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(np.square(samples_S, dtype=np.float64)) + 1e-20))


def decibels(amplitude: float) -> float:
    """An amplitude against full scale, in dB."""
    return float(20 * np.log10(amplitude))


def speech_level(samples_S: Samples) -> float:
    """The level of speech in dB: of its 20 ms frames within 20 dB of the loudest."""
    frames = samples_S[: len(samples_S) // 320 * 320].reshape(-1, 320).astype(np.float64)
    power = np.square(frames).mean(1) + 1e-20
    return float(10 * np.log10(power[power >= power.max() / 100].mean()))


def _in_blocks(block: Callable[[int], Samples]) -> Callable[[int, int], Samples]:
    def part(start: int, num: int) -> Samples:
        first, last = start // _BLOCK, (start + num - 1) // _BLOCK
        joined = np.concatenate([block(number) for number in range(first, last + 1)])
        return joined[start - first * _BLOCK :][:num]

    return part


def _scaled(name: str, level: float, part: Callable[[int, int], Samples], *, gain: float) -> Sound:
    """A sound at a level, from one whose root mean square is `gain`."""
    scale = np.float32(10 ** (level / 20) / gain)
    return Sound(name, level, lambda start, num: part(start, num) * scale)

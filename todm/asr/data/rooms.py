"""Noise and simulated rooms. Signals are float32 in [-1, 1] at 16 kHz."""

import dataclasses
from collections.abc import Callable

import numpy as np

from todm.config import Config
from todm.device.audio import SAMPLE_RATE

KINDS = ("white", "pink", "brown", "hum", "babble")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoomConfig(Config):
    """How spoken audio is changed: shares of utterances, and ranges that each draws from.

    `clean` is the share left unchanged; of the others a share `room` is reverberated and a share
    `noise` gets noise. `rt60` is in seconds, `direct_db` is direct sound against reverberation.
    """

    clean: float = 0.3
    room: float = 0.6
    noise: float = 0.75
    snr_db: tuple[float, float] = (8.0, 30.0)
    rt60: tuple[float, float] = (0.12, 0.5)
    direct_db: tuple[float, float] = (0.0, 15.0)

    def __post_init__(self) -> None:
        names, allowed = ("snr_db", "rt60", "direct_db"), "the lower value comes first"
        self.check("room", names, holds=lambda pair: pair[0] <= pair[1], allowed=allowed)
        names, allowed = ("clean", "room", "noise"), "a share from 0 to 1 is needed"
        self.check("room", names, holds=lambda share: 0 <= share <= 1, allowed=allowed)


def impulse_response(rng: np.random.Generator, rt60: float, direct_db: float) -> np.ndarray:
    """A room: direct sound at sample 0, a few early reflections and an exponentially decaying tail.

    Args:
        rng: source of randomness.
        rt60: seconds until reverberation has fallen by 60 dB.
        direct_db: energy of the direct sound relative to all the rest.
    """
    num = int(rt60 * SAMPLE_RATE)
    time = np.arange(num) / SAMPLE_RATE
    tail = rng.standard_normal(num) * np.exp(-6.9078 * time / rt60)
    tail[: int(0.004 * SAMPLE_RATE)] = 0
    early = rng.integers(int(0.002 * SAMPLE_RATE), int(0.03 * SAMPLE_RATE), size=6)
    tail[early] += rng.choice([-1.0, 1.0], 6) * rng.uniform(1, 4, 6)
    tail *= np.sqrt(10 ** (-direct_db / 10) / np.sum(tail**2))
    tail[0] = 1.0
    return tail.astype(np.float32)


def reverberate(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """`samples` in a room, as long as before."""
    from scipy.signal import oaconvolve

    return oaconvolve(samples, response)[: len(samples)].astype(np.float32)


def noise(rng: np.random.Generator, kind: str, num: int) -> np.ndarray:
    """White, pink (1/f power), brown (1/f^2) noise or mains hum, at no particular level."""
    if kind == "hum":
        base = rng.choice([50.0, 60.0]) * rng.uniform(0.99, 1.01)
        time = np.arange(num) / SAMPLE_RATE
        tones = [
            rng.uniform(0.2, 1) / k * np.sin(2 * np.pi * k * base * time + rng.uniform(0, 6.28))
            for k in range(1, 9)
        ]
        return (np.sum(tones, axis=0) + 0.02 * rng.standard_normal(num)).astype(np.float32)
    exponent = {"white": 0.0, "pink": 0.5, "brown": 1.0}[kind]
    spectrum = np.fft.rfft(rng.standard_normal(num))
    # Flat below 20 Hz: otherwise brown noise is nearly all rumble that no microphone passes.
    frequency = np.maximum(np.fft.rfftfreq(num, 1 / SAMPLE_RATE), 20.0)
    return np.fft.irfft(spectrum / frequency**exponent, num).astype(np.float32)


def add_noise(samples: np.ndarray, disturbance: np.ndarray, snr_db: float) -> np.ndarray:
    """`samples` plus `disturbance` at a ratio that is measured over the speech, without the pauses."""
    power = np.mean(samples[np.abs(samples) > 0.05 * np.max(np.abs(samples), initial=1e-9)] ** 2)
    scale = np.sqrt(power / max(float(np.mean(disturbance**2)), 1e-12) * 10 ** (-snr_db / 10))
    return samples + scale.astype(np.float32) * disturbance


def disturb(
    samples: np.ndarray,
    rng: np.random.Generator,
    config: RoomConfig,
    *,
    babble: Callable[[np.random.Generator, int], np.ndarray],
) -> np.ndarray:
    """Put an utterance into a random room with random noise, or leave it clean.

    Args:
        samples: (S,).
        rng: source of randomness.
        config: shares and ranges.
        babble: other people talking, `babble(rng, S)`.
    """
    if rng.random() < config.clean:
        return samples
    if rng.random() < config.room:
        response = impulse_response(rng, rng.uniform(*config.rt60), rng.uniform(*config.direct_db))
        samples = reverberate(samples, response)
    if rng.random() < config.noise:
        kind = str(rng.choice(KINDS))
        make = babble(rng, len(samples)) if kind == "babble" else noise(rng, kind, len(samples))
        samples = add_noise(samples, make, rng.uniform(*config.snr_db))
    return samples

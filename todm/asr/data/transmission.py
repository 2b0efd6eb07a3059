"""What an amplifier and a line do to speech: overload, level, 16 bits and codecs. 16 kHz in, 16 kHz out."""

import io
from collections.abc import Callable

import numpy as np

from todm.device.audio import SAMPLE_RATE

_NARROW = SAMPLE_RATE // 2


def overload(samples: np.ndarray, over_db: float) -> np.ndarray:
    """Samples clipped so many dB below their peak; the new peak is 1."""
    gain = 10 ** (over_db / 20) / max(float(np.abs(samples).max(initial=0)), 1e-9)
    return np.clip(samples * np.float32(gain), -1, 1)


def at_level(samples: np.ndarray, level_db: float) -> np.ndarray:
    """Samples with a peak of so many dB relative to full scale, rounded to 16 bits as a converter does."""
    gain = 10 ** (level_db / 20) / max(float(np.abs(samples).max(initial=0)), 1e-9)
    return np.rint(samples * np.float32(32767 * gain)) * np.float32(1 / 32768)


def narrow_band(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Nothing above 4 kHz."""
    return _at_8_khz(samples, lambda narrow: narrow)


def mu_law(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A telephone line: G.711 at 8 kHz."""
    return _at_8_khz(samples, lambda narrow: _coded(narrow, _NARROW, "WAV", "ULAW"))


def gsm(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mobile phone: GSM 06.10 at 8 kHz, 13 kbit/s."""
    return _at_8_khz(samples, lambda narrow: _coded(narrow, _NARROW, "WAV", "GSM610"))


def opus(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A call over a network: Opus at some 8 to 50 kbit/s."""
    return _coded(samples, SAMPLE_RATE, "OGG", "OPUS", compression=rng.uniform(0.8, 1.0))


CODECS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "narrow": narrow_band,
    "mu-law": mu_law,
    "gsm": gsm,
    "opus": opus,
}


def _at_8_khz(samples: np.ndarray, line: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    from scipy.signal import resample_poly

    narrow = line(resample_poly(samples, 1, 2))
    return resample_poly(narrow, 2, 1)[: len(samples)].astype(np.float32)


def _coded(
    samples: np.ndarray, rate: int, container: str, codec: str, *, compression: float | None = None
) -> np.ndarray:
    """Encoded and decoded in memory, as long as before."""
    import soundfile

    file = io.BytesIO()
    how = {"format": container, "subtype": codec, "compression_level": compression}
    soundfile.write(file, samples, rate, **how)
    file.seek(0)
    decoded, _ = soundfile.read(file, dtype="float32")
    return np.pad(decoded[: len(samples)], (0, max(len(samples) - len(decoded), 0)))

"""Recorded rooms: a folder of impulse responses, audio of any rate; every channel is a response."""

import functools
import logging
from pathlib import Path

import numpy as np

from todm.asr.data.audio import SUFFIXES, resample
from todm.device.audio import SAMPLE_RATE
from todm.errors import CorpusError, first_line

_BEFORE, _AFTER = 0.001, 2.0
"""Seconds kept before the direct sound, and after it."""

_log = logging.getLogger(__name__)


@functools.cache
def read_responses(folder: str) -> tuple[np.ndarray, ...]:
    """The responses in a folder, at any depth, in the order of their names; read once a process.

    Returns:
        Float32 (S,) at 16 kHz each: 1 ms before the direct sound, whose sample is 1 or -1, and at most 2 s.

    Raises:
        CorpusError: no folder, no readable audio in it, or a response of silence.
    """
    root = Path(folder)
    if not root.is_dir():
        raise CorpusError(f"{root} is not a directory: give a folder with impulse responses")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    responses: list[np.ndarray] = []
    unreadable: list[str] = []
    for path in paths:
        try:
            responses += _read(path)
        except (OSError, RuntimeError) as error:  # soundfile's are RuntimeErrors
            unreadable.append(f"{path.relative_to(root)}: {first_line(error)}")
    if not responses:
        raise CorpusError(
            f"{root} holds no readable impulse response ({len(unreadable)} unreadable files): "
            "give a folder with recordings of them"
        )
    if unreadable:
        most = len(paths)
        _log.warning(
            "rirs: %d of %d files left out, the first %s", len(unreadable), most, unreadable[0]
        )
    return tuple(responses)


def _read(path: Path) -> list[np.ndarray]:
    import soundfile

    wave_SC, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return [_from_direct_sound(resample(wave_S, rate), path) for wave_S in wave_SC.T]


def _from_direct_sound(wave_S: np.ndarray, path: Path) -> np.ndarray:
    peak = float(np.abs(wave_S).max(initial=0))
    if not np.isfinite(wave_S).all() or peak < 1e-6:
        what = "silent" if peak < 1e-6 else "damaged"
        raise CorpusError(
            f"{path} is {what}: an impulse response has a direct sound; take the file out of the folder"
        )
    direct = int(np.abs(wave_S).argmax())
    start = max(direct - round(_BEFORE * SAMPLE_RATE), 0)
    return wave_S[start : direct + round(_AFTER * SAMPLE_RATE)] / np.float32(peak)

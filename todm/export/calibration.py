"""The threshold of confidence of a bundle, from what it makes of commands and of other speech.

With one confidence for each segment, the fewest false accepts at a given share of commands lost come from
spending that share: at most `max_lost` of the commands that are recognised exactly fall below the threshold.
It is lower where the other speech already shows, with 95 % confidence, that false accepts stay below
`FEW_AN_HOUR`; that takes three quarters of an hour of it. Every form of a bundle keeps to this, so the
lowest of their thresholds is the bundle's.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from todm.device.audio import SAMPLE_RATE, Samples
from todm.device.bundle import Bundle, Precision
from todm.device.false_accepts import poisson_interval
from todm.device.recognizer import StreamingRecognizer
from todm.device.segments import Pauses, split

FEW_AN_HOUR = 5.0
_SHARES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2)  # of commands, on the curve
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Spoken:
    """A recording and what is said in it; an empty text is speech that is no command.

    `samples` reads the recording, float32 [S] at 16 kHz.
    """

    text: str
    samples: Callable[[], Samples]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heard:
    """What one form makes of the recordings.

    Attributes:
        commands_N: the confidence of every command recognised exactly (its weakest segment's), ascending.
        others_M: the confidence of every segment in other speech, ascending.
        num_commands: all commands, recognised or not.
        other_hours: of other speech.
    """

    commands_N: np.ndarray
    others_M: np.ndarray
    num_commands: int
    other_hours: float

    def lost(self, threshold: float) -> float:
        """The share of commands recognised exactly that are below a threshold; 0 if there are none."""
        return float(np.mean(self.commands_N < threshold)) if len(self.commands_N) else 0.0

    def accepts(self, threshold: float) -> int:
        """Segments in other speech that are not below a threshold."""
        return int((self.others_M >= threshold).sum())

    def threshold(self, max_lost: float) -> float:
        """The threshold of this form alone; 0 if it recognises no command exactly."""
        if not len(self.commands_N):
            return 0.0
        most = _floor(self.commands_N[math.floor(max_lost * len(self.commands_N))])
        for threshold in sorted({0.0, *map(_ceil, self.others_M)}):
            if threshold >= most:
                break
            if self.other_hours and self._highest_rate(threshold) <= FEW_AN_HOUR:
                return threshold
        return most

    def _highest_rate(self, threshold: float) -> float:
        """The upper end of the 95 % interval of false accepts an hour."""
        return poisson_interval(self.accepts(threshold))[1] / self.other_hours


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """A threshold, and how it was found.

    Attributes:
        threshold: the confidence below which a segment gives no text.
        max_lost: the share of commands that it may cost.
        forms: of each form: `commands`, `exact` (of these recognised exactly), `lost` (share of the exact
            ones), `other_hours`, and `accepts` in these.
        curve: by threshold, ascending: `lost`, and `accepts_per_hour` in the other speech of the split (None
            without any), in each the worst of the forms.
    """

    threshold: float
    max_lost: float
    forms: dict[str, dict[str, Any]]
    curve: list[dict[str, Any]]


def calibrate(
    bundle: Bundle,
    forms: Sequence[Precision],
    recordings: Sequence[Spoken],
    *,
    max_lost: float,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Find the threshold of a bundle on recordings that it was not trained on.

    Args:
        bundle: without a threshold yet.
        forms: those that this processor computes right.
        recordings: commands, and other speech if there is some.
        max_lost: the share of commands that may be lost.
        progress: called with recordings done and in all.

    Raises:
        CorpusError: a recording cannot be read.
    """
    total = len(forms) * len(recordings)

    def report(done: int) -> None:
        if progress:
            progress(done, total)

    heard = {
        form: _hear(bundle, form, recordings, lambda n, k=k: report(k * len(recordings) + n))
        for k, form in enumerate(forms)
    }
    threshold = min(found.threshold(max_lost) for found in heard.values())
    return Calibration(
        threshold=threshold,
        max_lost=max_lost,
        forms={form: _row(found, threshold) for form, found in heard.items()},
        curve=_curve(list(heard.values()), threshold),
    )


def _hear(
    bundle: Bundle, form: Precision, recordings: Sequence[Spoken], report: Callable[[int], None]
) -> Heard:
    """Recognise everything with one form; one at a time where activations are quantised."""
    recognizer = StreamingRecognizer(bundle, precision=form)
    pauses, size = Pauses.of(recognizer), _BATCH if form == "fp32" else 1
    commands, others, num_commands, seconds = list[float](), list[float](), 0, 0.0
    for start in range(0, len(recordings), size):
        group = recordings[start : start + size]
        audio = [recording.samples() for recording in group]
        transcripts = recognizer.transcribe_batch(audio)
        for recording, samples, found in zip(group, audio, transcripts, strict=True):
            sure = [segment.confidence for segment in split(found, pauses=pauses)]
            if not recording.text:
                seconds += len(samples) / SAMPLE_RATE
                others += sure
                continue
            num_commands += 1
            if found.text.strip() == recording.text:
                commands.append(min(sure))
        report(min(start + size, len(recordings)))
    return Heard(
        commands_N=np.sort(commands),
        others_M=np.sort(others),
        num_commands=num_commands,
        other_hours=seconds / 3600,
    )


def _row(heard: Heard, threshold: float) -> dict[str, Any]:
    return {
        "commands": heard.num_commands,
        "exact": len(heard.commands_N),
        "lost": heard.lost(threshold),
        "other_hours": round(heard.other_hours, 4),
        "accepts": heard.accepts(threshold),
    }


def _curve(heard: Sequence[Heard], chosen: float) -> list[dict[str, Any]]:
    """The curve at round shares of commands lost, at the threshold, and at none."""
    places = {0.0, chosen}
    for found in heard:
        num = len(found.commands_N)
        places |= {_floor(found.commands_N[math.floor(share * num)]) for share in _SHARES if num}
    rows = []
    for threshold in sorted(places):
        rates = [h.accepts(threshold) / h.other_hours for h in heard if h.other_hours]
        lost = max(h.lost(threshold) for h in heard)
        rows.append(
            {
                "threshold": threshold,
                "lost": round(lost, 4),
                "accepts_per_hour": round(max(rates), 2) if rates else None,
            }
        )
    return rows


def _floor(value: float) -> float:
    """Four digits, so that other runtimes, which differ in the last bits, keep what is just accepted."""
    return math.floor(1e4 * value) / 1e4


def _ceil(value: float) -> float:
    """The next threshold with four digits that is above a confidence."""
    return (math.floor(1e4 * value) + 1) / 1e4

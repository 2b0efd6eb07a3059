"""Bundle -> false accepts an hour, in silence, noise and speech outside its grammar."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm.errors import ConfigError
from todm.files import Progress, no_progress, read_json, write_text

if TYPE_CHECKING:
    import numpy as np

    from todm.device.audio import Samples
    from todm.device.bundle import Bundle
    from todm.device.false_accepts import Speaker
    from todm.device.recognizer import StreamingRecognizer

_FIGURES = "false_accepts.json"
_THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99)


def count_false_accepts(
    bundle: str | Path,
    *,
    speech: str | Path | None = None,
    minutes: float = 10.0,
    out: str | Path | None = None,
    card: bool = False,
    progress: Progress = no_progress,
) -> dict[str, dict[str, Any]]:
    """Count false accepts: how often a bundle writes a word when nobody spoke to it.

    The segments below the bundle's threshold (`decision_threshold` of its manifest) do not count; the curve
    has what every other threshold would give.

    Args:
        bundle: what  todm export  wrote.
        speech: folder of recordings outside its grammar; by default LibriSpeech-mini of
            TODM_SHARED_DATA, or sentences spoken by espeak-ng.
        minutes: of each kind of sound.
        out: directory for the figures.
        card: put them into the bundle's card and manifest too.
        progress: called with (what, done, all).

    Returns:
        By precision and kind of sound, the fields of `todm.device.false_accepts.FalseAccepts`.

    Raises:
        TodmError: something given cannot be used; the message says what to do.
    """
    from todm.device import false_accepts
    from todm.device.bundle import forms_here, open_bundle
    from todm.device.recognizer import StreamingRecognizer

    if not 0 < minutes <= 100_000:
        raise ConfigError(f"--minutes is {minutes}: it must be above 0")
    opened = open_bundle(bundle)
    file = Path(out) / _FIGURES if out else None
    asked = {
        "reject": _key(opened),
        "speech": str(speech or ""),
        "minutes": minutes,
        "threshold": opened.threshold,
    }
    losses = _losses(opened)
    found = read_json(file) if file else {}
    if found.get("asked") != asked:
        results = {}
        for precision in forms_here(opened):
            recognizer = StreamingRecognizer(opened, precision=precision)
            score = _Scorer(recognizer, precision, minutes, list(losses))
            results[precision] = score(speech, progress)
        found = {"asked": asked, "sure": false_accepts.SURE, "results": results}
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(found, indent=1) + "\n")
    if card:
        from todm.export.false_accepts import write_false_accepts

        write_false_accepts(opened.path, found["results"], sure=found["sure"], losses=losses)
    return found["results"]


def _losses(bundle: "Bundle") -> dict[float, float | None]:
    """The share of commands lost by threshold, ascending; None in bundles that were not calibrated."""
    from todm import artifact
    from todm.device.bundle import KIND

    decision = artifact.load(bundle.path, kind=KIND).metrics.get("decision", {})
    rows = {row["threshold"]: row["lost"] for row in decision.get("curve", ())}
    return dict(sorted((rows or dict.fromkeys(_THRESHOLDS)).items()))


@dataclasses.dataclass(frozen=True)
class _Scorer:
    """Scores every kind of sound through one form of a bundle."""

    recognizer: "StreamingRecognizer"
    precision: str
    minutes: float
    thresholds: "list[float]"

    def __call__(self, speech: str | Path | None, progress: Progress) -> dict[str, Any]:
        from todm.device import false_accepts

        settings: dict[str, Any] = {"minutes": self.minutes, "thresholds": self.thresholds}
        results = {}
        for kind in ("silence", *false_accepts.noises()):
            told = self._told(kind, progress)
            results[kind] = false_accepts.score_noise(
                self.recognizer, kind, progress=told, **settings
            )
        name, utterances = _speech(speech)
        told = self._told(f"{name} (s)", progress)
        results[name] = false_accepts.score_speech(
            self.recognizer, utterances, progress=told, **settings
        )
        return {kind: dataclasses.asdict(found) for kind, found in results.items()}

    def _told(self, kind: str, progress: Progress) -> Callable[[int, int], None]:
        return lambda done, total: progress(f"{self.precision} {kind}", done, total)


def _speech(given: str | Path | None) -> "tuple[str, Iterable[Samples]]":
    """Speech outside the grammar, and its name."""
    from todm.device import false_accepts

    folder = Path(given) if given else false_accepts.shared_speech()
    if folder is not None:
        return f"speech ({folder.name})", false_accepts.folder_of_speech(folder)
    return "speech (espeak-ng)", false_accepts.spoken_sentences(_espeak())


def _espeak() -> "Speaker":
    """Speaks by espeak-ng in the voices of the test split.

    Raises:
        MissingExtra: espeak-ng is not installed.
    """
    from todm.asr.corpora.config import SpeechConfig
    from todm.asr.corpora.voices import catalogue, shares
    from todm.asr.corpora.voices.engine import Manner
    from todm.device.audio import resample

    engine = catalogue.engine("espeak", catalogue.setting(SpeechConfig()))
    engine.check()
    speakers = shares.voices(engine, 0, "test", 12)

    def speak(sentence: str, rng: "np.random.Generator") -> "Samples":
        voice = speakers[int(rng.integers(len(speakers)))]
        manner = Manner(int(rng.integers(140, 216)), int(rng.integers(25, 76)), 50)
        spoken = engine.speak(sentence, voice, manner)
        return resample(spoken.samples_S, spoken.rate)

    return speak


def _key(bundle: "Bundle") -> str:
    """A hash of what is scored: not of the card, which this changes."""
    digest = hashlib.sha256()
    for file in sorted([*bundle.path.glob("*.onnx"), bundle.file("tokens.txt")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()

"""`todm evaluate BUNDLE [SPEECH] --reject`: false accepts an hour in silence, noise and other speech."""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from todm.cli.progress import progress_report
from todm.device import false_accepts
from todm.device.audio import Samples, resample
from todm.device.bundle import Bundle, Precision, forms_here, open_bundle
from todm.device.recognizer import StreamingRecognizer
from todm.errors import ConfigError
from todm.export.false_accepts import table, write_false_accepts
from todm.files import Progress, write_text

_FIGURES = "false_accepts.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this way to evaluate."""
    parser.add_argument(
        "--reject",
        action="store_true",
        help="false accepts an hour of a bundle, in silence, noises and speech outside its grammar "
        "(a folder of recordings in CORPUS's place; default: LibriSpeech-mini of TODM_SHARED_DATA, or "
        "sentences spoken by espeak-ng)",
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="--reject: of each kind, default 10"
    )
    parser.add_argument(
        "--card",
        action="store_true",
        help="--reject: put them into the bundle's card and manifest too",
    )


def run(args: argparse.Namespace) -> int:
    """Print a table of false accepts; they go to --out and, with --card, into the bundle.

    Raises:
        BundleError: not a bundle, or a damaged one.
        ConfigError: minutes that are none.
        CorpusError: speech that cannot be read.
    """
    if not 0 < args.minutes <= 100_000:
        raise ConfigError(f"--minutes is {args.minutes}: it must be above 0")
    bundle = open_bundle(args.artifact)
    asked = {"reject": _key(bundle), "speech": str(args.corpus or ""), "minutes": args.minutes}
    found = _read(args.out, asked)
    if found is None:
        with progress_report() as report:
            results = {p: _score(bundle, p, args, report) for p in forms_here(bundle)}
        found = {"asked": asked, "sure": false_accepts.SURE, "results": results}
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            write_text(args.out / _FIGURES, json.dumps(found, indent=1) + "\n")
    print(table(found["results"]))
    if args.card:
        write_false_accepts(args.artifact, found["results"], sure=found["sure"])
    return 0


def _score(
    bundle: Bundle, precision: Precision, args: argparse.Namespace, report: Progress
) -> dict[str, Any]:
    """Every kind of sound through one form of the bundle."""
    recognizer = StreamingRecognizer(bundle, precision=precision)
    results = {}
    for kind in ("silence", *false_accepts.noises()):
        results[kind] = false_accepts.score_noise(
            recognizer,
            kind,
            minutes=args.minutes,
            progress=lambda done, total, kind=kind: report(f"{precision} {kind}", done, total),
        )
    name, speech = _speech(args.corpus)
    results[name] = false_accepts.score_speech(
        recognizer,
        speech,
        minutes=args.minutes,
        progress=lambda done, total: report(f"{precision} {name} (s)", done, total),
    )
    return {kind: dataclasses.asdict(found) for kind, found in results.items()}


def _speech(given: Path | None) -> tuple[str, Iterator[Samples]]:
    """Speech outside the grammar, and its name."""
    folder = given or false_accepts.shared_speech()
    if folder is not None:
        return f"speech ({folder.name})", false_accepts.folder_of_speech(folder)
    return "speech (espeak-ng)", false_accepts.spoken_sentences(_espeak())


def _espeak() -> false_accepts.Speaker:
    """Speaks by espeak-ng in the voices of the test split.

    Raises:
        MissingExtra: espeak-ng is not installed.
    """
    from todm.asr.corpora.voices import SAMPLE_RATE, Manner, Synthesizer, voices

    synthesizer, speakers = Synthesizer(), voices("test", 12)

    def speak(sentence: str, rng: np.random.Generator) -> Samples:
        voice = speakers[int(rng.integers(len(speakers)))]
        manner = Manner(int(rng.integers(140, 216)), int(rng.integers(25, 76)), 50)
        return resample(synthesizer(sentence, voice, manner).samples_S, SAMPLE_RATE)

    return speak


def _key(bundle: Bundle) -> str:
    """A hash of what is scored: not of the card, which this changes."""
    digest = hashlib.sha256()
    for file in sorted([*bundle.path.glob("*.onnx"), bundle.file("tokens.txt")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _read(out: Path | None, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Figures of an earlier call that asked for the same."""
    try:
        found = json.loads((out / _FIGURES).read_text()) if out else {}
    except (OSError, json.JSONDecodeError):
        return None
    return found if found.get("asked") == asked else None

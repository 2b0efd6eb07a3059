"""A row of the ingredients: material, corpus, training, bundle and figures, each kept once it is done."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies import processes
from benchmarks.studies.orders import data, evaluate
from benchmarks.studies.orders.plan import SHARED, Run
from benchmarks.studies.orders.recordings import shared
from benchmarks.studies.results import read, write
from todm import artifact
from todm.errors import ConfigError, TrainingError
from todm.files import Progress, no_progress

_BUDGET = "0.65M"  # of the largest net
_SETTINGS, _NET, BUNDLE = "settings.json", "supernet", "bundle"


def bundle_of(out: Path, run: Run) -> Path:
    """Where the bundle of a run is made."""
    return out / run.name / BUNDLE


def finish(
    run: Run,
    out: Path,
    request: evaluate.Request,
    *,
    natural: Path,
    init: Path | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Train a row to its end and evaluate its largest net.

    Args:
        run: what to train.
        out: where material, corpora and trainings are kept.
        request: of the figures, for `bundle_of(out, run)`.
        natural: folder of natural voices.
        init: the pretrained net, for rows that start from one.
        progress: called with (what, done, all).

    Returns:
        The row: see `evaluate.evaluate`, with `training`.

    Raises:
        TodmError: something given cannot be used, or a stage failed; the message names its log.
    """
    if run.init and init is None:
        raise ConfigError(f"the row {run.name} starts from a pretrained net: name it with --init")
    place = out / run.name
    _claim(place, run)
    with processes.locked(out) as lock:
        corpus = _corpus(run, out, natural, lock=lock, progress=progress)
    with processes.locked(place) as lock:
        seconds = _train(run, place, corpus, lock=lock, init=init)
    found = evaluate.evaluate(request, progress=progress)
    trained = artifact.load(place / _NET, kind="supernet")
    found["training"] = {
        **dataclasses.asdict(run),
        "updates": trained.metrics["updates"],
        "artifact": trained.hash,
        "cpu_seconds": seconds,
    }
    write(request.row, found)
    return found


def _train(run: Run, place: Path, corpus: Path, *, lock: int, init: Path | None) -> float:
    """From the corpus to the bundle; the CPU seconds of the training alone."""
    words = ["train", str(corpus), "--config", data.RECIPE, "--out", str(place), *_set(run.train)]
    seconds = _stage([*words, *(["--init", str(init)] if run.init else [])], place, lock)
    net, subnet, bundle = place / _NET, place / "subnet", place / BUNDLE
    made = ["--corpus", str(corpus), "--out"]
    _stage(["extract-subnet", str(net), "--budget", _BUDGET, *made, str(subnet)], place, lock)
    _stage(["export", str(subnet), "--target", "onnx", *made, str(bundle)], place, lock)
    return seconds


def _claim(place: Path, run: Run) -> None:
    """Mark a folder as that of a run.

    Raises:
        ConfigError: it holds a training with other settings.
    """
    wanted = json.loads(json.dumps({**dataclasses.asdict(run), "adds": None}))
    found = read(place / _SETTINGS)
    if found not in (None, wanted):
        raise ConfigError(f"{place} holds a training with other settings: choose another --out")
    write(place / _SETTINGS, wanted)


def _corpus(run: Run, out: Path, natural: Path, *, lock: int, progress: Progress) -> Path:
    """The corpus of a run; runs with the same material and settings share it."""
    material = data.Material(
        natural=natural if run.natural else None, renderings=run.renderings, settings=run.material
    )
    made_of = f"{'natural' if run.natural else 'espeak'}-{_mark(run.renderings, run.material)}"
    folder = data.make(out / f"material-{made_of}", material, progress=progress)
    corpus = out / f"corpus-{made_of}-{_mark(run.prepare)}"
    words = ["prepare", "--config", data.RECIPE, "--data", str(folder), "--out", str(corpus)]
    _stage([*words, *_set(run.prepare)], out, lock)
    return corpus


def _mark(*settings: object) -> str:
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def _set(settings: Sequence[str]) -> list[str]:
    return [word for s in settings for word in ("--set", s.replace(SHARED, str(shared())))]


def _stage(words: Sequence[str], place: Path, lock: int) -> float:
    """Run a verb of todm, which goes on where it was; the CPU seconds that it took over all attempts.

    Raises:
        TrainingError: it failed.
    """
    log, kept = place / f"{words[0]}.log", place / f"{words[0]}-seconds.json"
    before = seconds = read(kept) or 0.0

    def note(more: float, status: int | None) -> None:
        nonlocal seconds
        seconds = round(before + more, 1)
        write(kept, seconds)

    status = processes.run_verb(words, log, note=note, lock=lock)
    if status:
        raise TrainingError(
            f"todm {words[0]} ended with status {status}: see {log}, then run the same command again"
        )
    return seconds

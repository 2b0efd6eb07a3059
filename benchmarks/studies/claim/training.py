"""One run: trained by `todm train` in a process of its own, decoded, and written as a row.

The folder of a run, OUT/PART/RUN-SEED, holds the training, its log, and `attempts.json`: the CPU seconds
of every process that worked on it, noted while it runs, so that a study that is killed loses few.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies import processes
from benchmarks.studies.claim import rows
from benchmarks.studies.claim.plan import RECIPE, Run, part_named
from benchmarks.studies.results import read, write
from todm import artifact
from todm.artifact import Artifact
from todm.asr.backend import AsrBackend
from todm.asr.corpora.config import DataConfig
from todm.asr.decode.utterances import score_all
from todm.asr.loading import backend_of, load_model
from todm.bench.kernels.machine import commit, describe
from todm.errors import ConfigError, TrainingError

ATTEMPTS, NET = "attempts.json", "supernet"


def check(runs: Sequence[Run], corpus: Artifact, *, out: Path, folder: Path) -> list[Run]:
    """The runs without a row; reports errors before hours of training.

    Args:
        runs: of one part.
        corpus: to train and test on.
        out: where trainings are kept.
        folder: of the rows.

    Raises:
        ConfigError: settings that are invalid or lack one of the sizes; or there are rows, or trainings in
            `out`, of another corpus or other settings.
    """
    part = runs[0].part
    known = rows.load(folder, part)
    if base := part_named(part).base:
        compared = [row for row in rows.load(folder, base).values() if row.run == "supernet"]
    else:
        compared = []
    for run in runs:
        run.subnets()
        for row in (*known.values(), *compared):
            rows.check_planned(row, run, corpus.info["fingerprint"])
        if (run.name, run.seed) not in known:
            _check_begun(run, corpus, out / run.stem)
    return [run for run in runs if (run.name, run.seed) not in known]


def _check_begun(run: Run, corpus: Artifact, place: Path) -> None:
    """Check that what is in a run's folder, if anything, is this very training."""
    begun, remedy = read(place / ATTEMPTS), "choose another --out or remove it"
    done = artifact.existing(place / NET, kind="supernet")
    if begun and begun["settings"] != list(run.settings):
        there = " ".join(begun["settings"])
        raise ConfigError(f"{place} holds a training with other settings ({there}): {remedy}")
    if begun and begun["fingerprint"] != corpus.info["fingerprint"]:
        raise ConfigError(f"{place} holds a training on another corpus: {remedy}")
    if done and not begun:
        raise ConfigError(f"{place} holds a net that this study has not trained: {remedy}")
    if done and (changed := next(rows.differences(done.config, run.config), None)):
        raise ConfigError(f"{place} was trained when {changed[0]} was {changed[1]!r}: {remedy}")


def compute_features(run: Run, corpus: Artifact) -> None:
    """Compute the corpus's features, which are not to count as any training's time."""
    data = DataConfig.from_json(corpus.config, where="asr.data.")
    config = run.recipe.asr.replace(data=data)
    backend = AsrBackend(config, corpus.path, corpus=corpus.path)
    backend.prepare()
    backend.store("test")


def finish(run: Run, corpus: Artifact, *, out: Path, folder: Path) -> None:
    """Train a run to its end, and write its row.

    Raises:
        TrainingError: the training failed; the message names its log.
        ConfigError: another process trains it at this moment.
    """
    place = out / run.stem
    place.mkdir(parents=True, exist_ok=True)
    words = ["train", str(corpus.path), "--config", RECIPE, "--out", str(place)]
    words += [word for setting in run.settings for word in ("--set", setting)]
    with processes.locked(place) as lock:
        if artifact.existing(place / NET, kind="supernet") is None:
            _train(run, words, corpus, place=place, lock=lock)
        # Without the folders of this machine.
        words[1], words[5] = corpus.path.name, run.stem
        row = _row(run, shlex.join(["todm", *words]), corpus, place)
    rows.write(rows.path_of(folder, run), row)


def _train(run: Run, words: list[str], corpus: Artifact, *, place: Path, lock: int) -> None:
    """One attempt."""
    fingerprint = corpus.info["fingerprint"]
    record: dict[str, Any] = read(place / ATTEMPTS) or {
        "settings": list(run.settings),
        "fingerprint": fingerprint,
        "attempts": [],
    }
    attempt: dict[str, Any] = {"commit": commit(), "cpu_seconds": 0.0, "status": None}
    record["attempts"].append(attempt)

    def note(seconds: float, status: int | None) -> None:
        attempt.update(cpu_seconds=seconds, status=status)
        write(place / ATTEMPTS, record)

    status = processes.run_verb(words, place / "train.log", note=note, lock=lock)
    if status:
        raise TrainingError(
            f"the training of {run} ended with status {status}: see "
            f"{place / 'train.log'}, then run the same command again to continue"
        )


def _row(run: Run, command: str, corpus: Artifact, place: Path) -> rows.Row:
    """Decode the test split with every size of a finished training."""
    found = artifact.load(place / NET, kind="supernet")
    attempts = read(place / ATTEMPTS)["attempts"]
    backend = backend_of(found, corpus=corpus.path)
    model = load_model(found, backend)
    words: list[int] = []
    errors: dict[str, list[int]] = {}
    parameters: dict[str, int] = {}
    for size, subnet in run.subnets().items():
        plain = backend.extract(model, subnet).eval()
        decoded = backend.recognise(plain, subnet=None, split="test")
        pairs = score_all(sorted(decoded, key=lambda u: u.id)).utterances
        words = [num for _, num in pairs]
        errors[size] = [num for num, _ in pairs]
        parameters[size] = sum(p.numel() for p in plain.parameters())
    return rows.Row(
        part=run.part,
        run=run.name,
        seed=run.seed,
        settings=list(run.settings),
        changes=list(run.changes),
        updates=found.metrics["updates"],
        command=command,
        attempts=attempts,
        cpu_seconds=sum(attempt["cpu_seconds"] for attempt in attempts),
        machine=describe("cpu"),
        corpus=corpus.hash,
        fingerprint=corpus.info["fingerprint"],
        artifact=found.hash,
        config=found.config,
        parameters=parameters,
        words=words,
        errors=errors,
    )

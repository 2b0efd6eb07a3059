"""An engine on the recordings in every condition: one row, a file of JSON that grows condition by condition."""

import concurrent.futures
import dataclasses
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.studies.orders.engines import Engine, open_engine
from benchmarks.studies.orders.parsing import Parser
from benchmarks.studies.orders.recordings import (
    Condition,
    Recording,
    disturbed,
    fingerprint,
    noise_of,
    read,
)
from benchmarks.studies.orders.scoring import judge, order_parser
from benchmarks.studies.results import write
from todm.bench.kernels.machine import commit, describe
from todm.device.audio import SAMPLE_RATE
from todm.errors import ConfigError
from todm.files import Progress, no_progress, read_json

ROWS = Path(__file__).resolve().parents[2] / "results" / "orders"


class _Work(NamedTuple):
    """What a process needs to decode a condition; loaded once."""

    engine: Engine
    recordings: list[Recording]
    parser: Parser


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to evaluate.

    Attributes:
        engine: a peer's name, or the directory of a bundle.
        recordings: a folder of recordings with labels.
        row: the file that keeps the results.
        conditions: clean and noises.
        jobs: processes.
    """

    engine: str
    recordings: Path
    row: Path
    conditions: Sequence[Condition]
    jobs: int = 1

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ConfigError(f"--jobs is {self.jobs}: at least 1 is needed")


def evaluate(request: Request, *, progress: Progress = no_progress) -> dict[str, Any]:
    """Decode the conditions that the row lacks, and write it after each.

    Args:
        request: what to evaluate.
        progress: called with (condition, conditions done, conditions in all).

    Returns:
        The row: `engine`, `recordings`, `machine`, and `conditions` by name (see `scoring.judge`), each with its
        commit, CPU seconds and seconds of audio.

    Raises:
        TodmError: the engine or the recordings cannot be used, or the row is of others.
    """
    row = open_row(request.row, open_engine(request.engine).describe(), request.recordings)
    missing = [c for c in request.conditions if str(c) not in row["conditions"]]
    total = len(request.conditions)
    for condition, found in _decoded(request, missing):
        row["conditions"][str(condition)] = {"commit": commit(), **found}
        write(request.row, row)
        num = sum(str(c) in row["conditions"] for c in request.conditions)
        progress(str(condition), num, total)
    return row


def open_row(path: Path, engine: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The row in a file, or a new one.

    Raises:
        ConfigError: the file holds a row of another engine or of other recordings.
        CorpusError: the folder has no labels.
    """
    about = {"name": folder.name, "fingerprint": fingerprint(folder)}
    found = read_json(path)
    remedy = "remove that file, or name another row with --name"
    if not found:
        return {"engine": engine, "recordings": about, "machine": describe("cpu"), "conditions": {}}
    if found.get("engine") != engine:
        raise ConfigError(f"{path} is the row of another engine than {engine['name']}: {remedy}")
    if found.get("recordings") != about:
        raise ConfigError(f"{path} is a row of other recordings than {folder}: {remedy}")
    return found


def _decoded(
    request: Request, missing: Sequence[Condition]
) -> Iterator[tuple[Condition, dict[str, Any]]]:
    """Each condition as it is done."""
    if not missing:
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        min(request.jobs, len(missing)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_load,
        initargs=(request.engine, request.recordings),
    )
    try:
        jobs = {pool.submit(_condition, condition): condition for condition in missing}
        for job in concurrent.futures.as_completed(jobs):
            yield jobs[job], job.result()
    finally:
        pool.shutdown(cancel_futures=True)


_LOADED: list[_Work] = []
"""Of a worker process: what `_load` loaded, once."""


def _load(engine: str, folder: Path) -> None:
    _LOADED.append(_Work(open_engine(engine), read(folder), order_parser()))


def _condition(condition: Condition) -> dict[str, Any]:
    """All recordings in a condition."""
    engine, recordings, parser = _LOADED[0]
    noise_S = noise_of(condition.noise) if condition.noise else recordings[0].samples_S
    heard = [disturbed(recording, noise_S, condition) for recording in recordings]
    begun = time.process_time()
    texts = {r.name: engine.recognise(s) for r, s in zip(recordings, heard, strict=True)}
    seconds = {
        "cpu_seconds": round(time.process_time() - begun, 1),
        "audio_seconds": round(sum(map(len, heard)) / SAMPLE_RATE, 1),
    }
    return {**judge(recordings, texts, parser), **seconds}

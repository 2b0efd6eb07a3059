"""An engine on the recordings, in noise, on what is no order, and after waits.

All of it is one row: a file of JSON that grows task by task, so that an interrupted run loses few minutes.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.studies.orders import listening
from benchmarks.studies.orders.engines import BundleEngine, Engine, open_engine
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
PARTS = ("conditions", "false_accepts", "waits")


class _Work(NamedTuple):
    """What a process needs; loaded once."""

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
        parts: of `PARTS`; a peer has the first alone.
        jobs: processes.
    """

    engine: str
    recordings: Path
    row: Path
    conditions: Sequence[Condition]
    parts: Sequence[str] = PARTS[:1]
    jobs: int = 1

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ConfigError(f"--jobs is {self.jobs}: at least 1 is needed")


def evaluate(request: Request, *, progress: Progress = no_progress) -> dict[str, Any]:
    """Do what the row lacks, and write it after each task.

    Args:
        request: what to evaluate.
        progress: called with (task, tasks done, tasks in all).

    Returns:
        The row: `engine`, `recordings`, `machine`; `conditions` by name (see `scoring.judge`), each with its
        commit, CPU seconds and seconds of audio; `false_accepts` and `waits` by sound.

    Raises:
        TodmError: the engine or the recordings cannot be used, or the row is of others.
    """
    row = open_row(request.row, open_engine(request.engine).describe(), request.recordings)
    tasks = list(_tasks(request))
    missing = [(part, name) for part, name in tasks if name not in row[part]]
    for num, ((part, name), found) in enumerate(_done(request, missing), 1):
        row[part][name] = found
        write(request.row, row)
        progress(name, len(tasks) - len(missing) + num, len(tasks))
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
        found = {"engine": engine, "recordings": about, "machine": describe("cpu")}
    if found.get("engine") != engine:
        raise ConfigError(f"{path} is the row of another engine than {engine['name']}: {remedy}")
    if found.get("recordings") != about:
        raise ConfigError(f"{path} is a row of other recordings than {folder}: {remedy}")
    return {**found, **{part: found.get(part, {}) for part in PARTS}}


def _tasks(request: Request) -> Iterator[tuple[str, str]]:
    """Part and name of each task; the long ones first, so that two processes end together."""
    if "false_accepts" in request.parts:
        yield from (("false_accepts", kind) for kind in listening.kinds())
    if "waits" in request.parts:
        yield from (("waits", sound) for sound in listening.SOUNDS)
    if "conditions" in request.parts:
        yield from (("conditions", str(condition)) for condition in request.conditions)


def _done(
    request: Request, missing: Sequence[tuple[str, str]]
) -> Iterator[tuple[tuple[str, str], Any]]:
    """Each task with its result, as it is done."""
    if not missing:
        return
    by_name = {str(condition): condition for condition in request.conditions}
    pool = concurrent.futures.ProcessPoolExecutor(
        min(request.jobs, len(missing)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_load,
        initargs=(request.engine, request.recordings),
    )
    try:
        jobs = {
            pool.submit(_run, part, by_name.get(name, name)): (part, name) for part, name in missing
        }
        for job in concurrent.futures.as_completed(jobs):
            yield jobs[job], job.result()
    finally:
        pool.shutdown(cancel_futures=True)


_LOADED: list[_Work] = []
"""Of a worker process: what `_load` loaded, once."""


def _load(engine: str, folder: Path) -> None:
    _LOADED.append(_Work(open_engine(engine), read(folder), order_parser()))


def _run(part: str, what: Condition | str) -> Any:  # noqa: ANN401 - JSON
    """One task in a worker process."""
    work = _LOADED[0]
    if isinstance(what, Condition):
        return condition(work.engine, work.recordings, what, work.parser)
    assert isinstance(work.engine, BundleEngine), "a peer has no such task"
    if part == "waits":
        return listening.waits(work.engine.streaming(), what, work.recordings, work.parser)
    return listening.accepts(work.engine.streaming(), what, work.parser)


def condition(
    engine: Engine, recordings: Sequence[Recording], what: Condition, parser: Parser
) -> dict[str, Any]:
    """All recordings in a condition, as JSON: see `scoring.judge`."""
    noise_S = noise_of(what.noise) if what.noise else recordings[0].samples_S
    heard = [disturbed(recording, noise_S, what) for recording in recordings]
    begun = time.process_time()
    texts = {r.name: engine.recognise(s) for r, s in zip(recordings, heard, strict=True)}
    seconds = time.process_time() - begun
    return {
        **judge(recordings, texts, parser),
        "commit": commit(),
        "cpu_seconds": round(seconds, 1),
        "audio_seconds": round(sum(map(len, heard)) / SAMPLE_RATE, 1),
    }

"""Measure a device: latency of whole chunks of many subnets, as a table in one JSON file.

    python3 measure.py --name pi5

Runs anywhere with Python, onnxruntime and numpy: `todm profile --pack` copies this file unchanged into
the folder that it writes, so it imports nothing of todm and has its own clock and its own writer. It reads
plan.json and graphs/ beside itself.

All graphs take turns, round after round, so that a slow moment affects all of them alike and can be
removed afterwards. The clock is the thread's CPU time if the system has one that is fine enough: other
programs on the machine then do not count.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnxruntime
    from numpy.typing import NDArray

    Json = dict[str, Any]
    Progress = Callable[[int, int], None]
    Clock = Callable[[], float]

KIND = "todm device table"
PACK_KIND = "todm profile pack"
FORMAT_VERSION = 1
CALLS = 3  # of a graph in a round, after one call that warms the caches
SYMBOLS = 6  # frames per emitted symbol, after which the predictor runs
GROUP_BYTES = 512 << 20  # weights loaded at the same time
_QUIET = 0.25
_FINE = 1e-5  # seconds: a sufficient resolution of a clock


class ProfileError(Exception):
    """The pack cannot be measured; the message says why."""


def read_plan(folder: str | Path) -> Json:
    """Read the plan of a pack and check that its files are there.

    Raises:
        ProfileError: it is not a pack, or it is incomplete.
    """
    folder = Path(folder)
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        files = [g["file"] for g in plan["graphs"]]
        files += [name for pair in plan["search"].values() for name in pair.values()]
        known = plan["kind"] == PACK_KIND and plan["format_version"] == FORMAT_VERSION
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ProfileError(f"{folder} has no plan.json of a profile pack") from None
    if not known:
        raise ProfileError(f"{folder}/plan.json is of another version: make the pack again")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ProfileError(f"{folder} has no file {missing[0]}: copy the whole folder")
    return plan


def measure(
    folder: str | Path,
    name: str,
    *,
    rounds: int = 30,
    num_threads: int = 1,
    progress: Progress | None = None,
) -> Json:
    """Measure every graph of a pack.

    Args:
        folder: the pack.
        name: of the device, for budgets.
        rounds: how often every graph is measured.
        num_threads: of onnxruntime.
        progress: called with (done, all) rounds.

    Returns:
        The table, as JSON types.

    Raises:
        ProfileError: not a pack, or onnxruntime does not run a graph.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    clock, clock_name = _clock(num_threads)
    table = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "name": name,
        "space": plan["space"],
        "chunk_seconds": plan["chunk_seconds"],
        "frames": plan["frames"],
        "machine": machine(),
        "num_threads": num_threads,
        "rounds": rounds,
        "clock": clock_name,
        "entries": _encoders(folder, plan["graphs"], rounds, num_threads, progress),
        "search_ms": {
            precision: 1e3 * _search(folder, pair, plan, clock, rounds)
            for precision, pair in plan["search"].items()
        },
        "features_ms": _features(plan["frames"], clock, rounds),
        "operators_ms": _operators(folder, plan, num_threads),
    }
    table["sha256"] = checksum(table)
    return table


def settle(times_RG: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of each graph [G] from rounds [R, G], corrected for slow rounds.

    A round's factor is the median over graphs of its time relative to the graph's own median. The result
    is the lower quartile of the corrected times, times the lower quartile of the factors: other work on
    the machine can only make a call slower.
    """
    factor_R = np.median(times_RG / np.median(times_RG, axis=0), axis=1)
    return np.quantile(times_RG / factor_R[:, None], _QUIET, axis=0) * np.quantile(factor_R, _QUIET)


def checksum(table: Json) -> str:
    """SHA-256 of a table, without the field that holds it."""
    rest = {key: value for key, value in table.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def machine() -> Json:
    """Processor, cores and the versions a speed depends on."""
    import onnxruntime

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }


def write_table(path: str | Path, table: Json) -> None:
    """Write a table atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _clock(num_threads: int) -> tuple[Clock, str]:
    """The thread's CPU time in seconds; real time if that is too coarse or there are several threads."""
    try:
        fine = time.get_clock_info("thread_time").resolution <= _FINE
    except ValueError:
        fine = False
    if fine and num_threads == 1:
        return time.thread_time, "cpu"
    return time.perf_counter, "wall"


def _groups(graphs: list[Json]) -> list[list[Json]]:
    """Groups of graphs that are loaded together; each begins with the smallest graph, to compare groups."""
    ordered = sorted(graphs, key=lambda g: g["bytes"])
    anchor, groups, room = ordered[0], [[ordered[0]]], GROUP_BYTES
    for graph in ordered[1:]:
        if graph["bytes"] > room and len(groups[-1]) > 1:
            groups.append([anchor])
            room = GROUP_BYTES
        groups[-1].append(graph)
        room -= graph["bytes"]
    return groups


def _encoders(
    folder: Path, graphs: list[Json], rounds: int, num_threads: int, progress: Progress | None
) -> list[Json]:
    """A table entry for every graph; the groups are scaled to the pace of the fastest one."""
    groups, done = _groups(graphs), 0
    clock, _ = _clock(num_threads)
    measured = []
    for group in groups:
        runs = [_encoder(folder / g["file"], num_threads) for g in group]
        times_RG2 = np.zeros((rounds, len(runs), 2))
        for turn in range(rounds):
            for i in np.random.default_rng(turn).permutation(len(runs)):
                times_RG2[turn, i] = _turn(runs[i], clock)
            done += 1
            if progress:
                progress(done, rounds * len(groups))
        measured.append((settle(times_RG2[:, :, 0]), np.median(times_RG2[:, :, 1], axis=0)))
    quickest = min(seconds[0] for seconds, _ in measured)
    return [
        {
            "subnet": graph["subnet"],
            "precision": graph["precision"],
            "ms": 1e3 * float(seconds[i] * quickest / seconds[0]),
            "wall_ms": 1e3 * float(wall[i]),
        }
        for at, (group, (seconds, wall)) in enumerate(zip(groups, measured))  # noqa: B905 - older Pythons have no strict
        for i, graph in enumerate(group)
        if i or not at
    ]


def _session(
    path: Path, num_threads: int, profile: Path | None = None
) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime's classes share no base but this
        raise ProfileError(f"{path} cannot be loaded by onnxruntime: {error}") from None


def _encoder(path: Path, num_threads: int) -> Callable[[], object]:
    """A function that runs a graph for one stream, with noise as features and zero states."""
    session = _session(path, num_threads)
    feed = _feed(session)
    return lambda: session.run(None, feed)


def _feed(session: onnxruntime.InferenceSession) -> dict[str, NDArray[np.float32]]:
    draws = np.random.default_rng(0)
    feed = {}
    for port in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in port.shape]
        noise = draws.standard_normal(shape) if port.name == "x" else np.zeros(shape)
        feed[port.name] = noise.astype(np.float32)
    return feed


def _turn(run: Callable[[], object], clock: Clock) -> tuple[float, float]:
    """The minimum over a few calls: by the clock, and in real time."""
    run()
    best = best_wall = float("inf")
    for _ in range(CALLS):
        wall, start = time.perf_counter(), clock()
        run()
        best = min(best, clock() - start)
        best_wall = min(best_wall, time.perf_counter() - wall)
    return best, best_wall


def _search(folder: Path, pair: Json, plan: Json, clock: Clock, rounds: int) -> float:
    """Seconds of greedy search over a chunk: the joiner at every frame, the predictor at every sixth."""
    joiner = _session(folder / pair["joiner"], 1)
    decoder = _session(folder / pair["decoder"], 1)
    rows = [port.name for port in joiner.get_inputs()]
    context = {decoder.get_inputs()[0].name: np.zeros((1, plan["context_size"]), np.int64)}
    noise = np.random.default_rng(0).standard_normal((plan["frames"], plan["joiner_dim"]))
    frames = noise.astype(np.float32)

    def run() -> None:
        (known,) = decoder.run(None, context)
        for frame in range(plan["frames"]):
            (logits,) = joiner.run(None, {rows[0]: frames[frame : frame + 1], rows[1]: known})
            int(np.argmax(np.asarray(logits)))
            if frame % SYMBOLS == SYMBOLS - 1:
                (known,) = decoder.run(None, context)

    return float(np.median([_turn(run, clock)[0] for _ in range(rounds)]))


def _features(frames: int, clock: Clock, rounds: int) -> float | None:
    """Milliseconds of the features of a chunk, if the package that computes them is installed."""
    try:
        import kaldi_native_fbank
    except ImportError:
        return None
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = 80
    noise = np.random.default_rng(0).standard_normal(frames * 640) * 0.1
    samples = noise.astype(np.float32).tolist()
    stream = kaldi_native_fbank.OnlineFbank(options)
    run = functools.partial(stream.accept_waveform, 16000, samples)
    return 1e3 * float(np.median([_turn(run, clock)[0] for _ in range(rounds)]))


def _operators(folder: Path, plan: Json, num_threads: int, calls: int = 20) -> Json:
    """Milliseconds of each operator type in the largest graph of every precision, largest first."""
    operators = {}
    for precision in sorted({g["precision"] for g in plan["graphs"]}):
        graphs = [g for g in plan["graphs"] if g["precision"] == precision]
        largest = max(graphs, key=lambda g: g["bytes"])
        with tempfile.TemporaryDirectory() as scratch:
            session = _session(folder / largest["file"], num_threads, Path(scratch) / "run")
            feed = _feed(session)
            for _ in range(calls):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text())
        least: dict[str, tuple[str, float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                before = least.get(event["name"], ("", float("inf")))[1]
                least[event["name"]] = event["args"]["op_name"], min(before, event["dur"])
        total: dict[str, float] = {}
        for op, microseconds in least.values():
            total[op] = total.get(op, 0.0) + microseconds / 1e3
        operators[precision] = dict(sorted(total.items(), key=lambda item: -item[1]))
    return operators


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    for key in ("model name", "Model", "Hardware"):
        names = [line.partition(":")[2].strip() for line in lines if line.startswith(key)]
        if names:
            return names[0]
    return platform.machine()


def main(argv: list[str] | None = None) -> int:
    """Measure the pack in this file's folder; returns the exit status."""
    parser = argparse.ArgumentParser(description="measure this device for todm search")
    parser.add_argument("--name", default=platform.node() or "device", help="name for budgets")
    parser.add_argument("--out", help="the table (NAME.json here)")
    parser.add_argument("--rounds", type=int, default=30, help="measurements of every graph (30)")
    parser.add_argument("--threads", type=int, default=1, help="threads of onnxruntime (1)")
    args = parser.parse_args(argv)
    write = sys.stderr.write

    def progress(done: int, total: int) -> None:
        write(f"\r{done} of {total} rounds" + ("\n" if done == total else ""))

    try:
        table = measure(
            Path(__file__).resolve().parent,
            args.name,
            rounds=args.rounds,
            num_threads=args.threads,
            progress=progress,
        )
    except ProfileError as error:
        write(f"measure: {error}\n")
        return 2
    path = Path(args.out or f"{args.name}.json")
    write_table(path, table)
    write(f"{path}: import it with  todm profile SUPERNET --import {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`todm bench BUNDLE`: speed, latency, memory and size of a bundle. Imports no torch.

All runtimes, forms and numbers of threads take turns, round after round, so that other work on the
machine affects them alike; quote ratios within one run.
"""

import dataclasses
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from todm.bench.bundles.engines import Decoded, Engine, open_engine
from todm.bench.bundles.footprint import Footprint, footprint
from todm.device.audio import SAMPLE_RATE, Samples, read_audio
from todm.device.bundle import PRECISIONS, Bundle, Precision, forms_here, open_bundle
from todm.device.profiler import machine
from todm.device.recognizer import pad_tail
from todm.device.timing import megabytes
from todm.errors import ConfigError
from todm.files import Progress, markdown_table, write_text

RESULTS, PLOT = "bench.json", "latency.png"
Setup = tuple[str, Precision, int]
"""Runtime, form, number of threads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure.

    Attributes:
        bundle: its directory.
        audio: recordings; the bundle's own by default.
        runtimes: of onnxruntime and sherpa-onnx.
        precisions: forms of the graphs; those for this processor if empty.
        threads: numbers of threads.
        rounds: times that all recordings are decoded.
    """

    bundle: Path
    audio: tuple[Path, ...] = ()
    runtimes: tuple[str, ...] = ("onnxruntime", "sherpa-onnx")
    precisions: tuple[Precision, ...] = ()
    threads: tuple[int, ...] = (1, 2)
    rounds: int = 10

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.threads or min(self.threads) < 1:
            raise ConfigError(
                f"--rounds is {self.rounds} and --threads {self.threads}: both must be at least 1"
            )
        unknown = [p for p in self.precisions if p not in PRECISIONS]
        if unknown:
            raise ConfigError(f"unknown form {unknown[0]!r}; choose from {', '.join(PRECISIONS)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A bundle in one runtime, form and number of threads.

    `megabytes` are encoder, decoder and joiner in 10^6 bytes; `chunk_seconds` is the audio of a chunk,
    `p50_ms`, `p95_ms` and `p99_ms` are percentiles of the times of chunks, all of which `chunks_ms` has for
    the histogram. `rtf` is seconds of computing per second of audio, the median of the rounds, and
    `rtf_low` and `rtf_high` are those of the fastest and the slowest round. `first_seconds` is the audio
    before the first symbol, the median of the recordings that have one.
    """

    runtime: str
    precision: str
    num_threads: int
    megabytes: float
    footprint: Footprint
    chunk_seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    rtf: float
    rtf_low: float
    rtf_high: float
    first_seconds: float | None
    chunks_ms: list[float]


def bench(request: Request, *, progress: Progress | None = None) -> list[Row]:
    """Measure a bundle.

    Raises:
        BundleError: the bundle is damaged, or lacks a form that is asked for.
        ConfigError: an unknown runtime.
        CorpusError: a recording cannot be read.
        MissingExtra: a runtime is not installed.
    """
    bundle = open_bundle(request.bundle)
    recordings = _recordings(bundle, request.audio)
    forms: tuple[Precision, ...] = request.precisions or forms_here(bundle)
    engines: dict[Setup, Engine] = {
        (r, p, t): open_engine(r, bundle, precision=p, num_threads=t)
        for r in request.runtimes
        for p in forms
        for t in request.threads
    }
    rounds = _rounds(engines, recordings, request.rounds, progress)
    first = request.audio[0] if request.audio else _own_recording(bundle)
    return [
        Row(
            runtime=r,
            precision=p,
            num_threads=t,
            megabytes=megabytes(bundle, p),
            footprint=footprint(bundle, r, precision=p, num_threads=t, recording=first),
            **_figures(rounds[r, p, t], recordings, bundle),
        )
        for r, p, t in engines
    ]


def save(rows: Sequence[Row], request: Request, out: Path) -> None:
    """Write figures and a description of the machine as JSON."""
    out.mkdir(parents=True, exist_ok=True)
    found = {
        "bundle": request.bundle.name,
        "rounds": request.rounds,
        "machine": machine(),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_text(out / RESULTS, json.dumps(found, indent=1) + "\n")


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown; times in milliseconds."""
    heads = ("runtime", "form", "threads", "MB", "load, ms", "memory, MB", "p50", "p95", "p99")
    cells = [
        (
            row.runtime,
            row.precision,
            str(row.num_threads),
            f"{row.megabytes:.2f}",
            f"{1000 * row.footprint.load_seconds:.0f}",
            f"{row.footprint.peak_mb:.0f} ({row.footprint.start_mb:.0f} before)",
            *(f"{ms:.2f}" for ms in (row.p50_ms, row.p95_ms, row.p99_ms)),
            f"{row.rtf:.4f} ({row.rtf_low:.4f} to {row.rtf_high:.4f})",
            "none" if row.first_seconds is None else f"{row.first_seconds:.2f} s",
        )
        for row in rows
    ]
    return markdown_table((*heads, "RTF (rounds)", "first symbol after"), cells)


def plot(rows: Sequence[Row], out: Path) -> None:
    """Histograms of the times of chunks, one line for each row; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axis = figure.subplots()
    highest = max(row.p99_ms for row in rows) * 1.2
    bins = np.linspace(0, highest, 80)
    for row in rows:
        name = f"{row.runtime} {row.precision}, {row.num_threads} thread(s)"
        axis.hist(row.chunks_ms, list(bins), histtype="step", density=True, label=name)
    axis.set(xlabel="time of a chunk, ms", ylabel="density", xlim=(0, highest))
    axis.set_title(f"{rows[0].chunk_seconds * 1000:.0f} ms of audio a chunk, {platform.machine()}")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


def _rounds(
    engines: dict[Setup, Engine],
    recordings: Sequence[Samples],
    rounds: int,
    progress: Progress | None,
) -> dict[Setup, list[list[Decoded]]]:
    """Every engine's recordings, round by round, without the first round, a warm-up."""
    results: dict[Setup, list[list[Decoded]]] = {setup: [] for setup in engines}
    for number in range(rounds + 1):
        for setup, engine in engines.items():
            decoded = [engine.decode(samples) for samples in recordings]
            if number:
                results[setup].append(decoded)
        if progress:
            progress("rounds", number, rounds)
    return results


def _figures(
    rounds: Sequence[Sequence[Decoded]], recordings: Sequence[Samples], bundle: Bundle
) -> dict[str, Any]:
    seconds = sum(len(pad_tail(s, bundle.tail_seconds)) for s in recordings) / SAMPLE_RATE
    factors = [sum(d.seconds for d in one) / seconds for one in rounds]
    chunks = [1000 * t for one in rounds for d in one for t in d.chunks]
    firsts = [d.first for d in rounds[0] if d.first is not None]
    p50, p95, p99 = (float(p) for p in np.percentile(chunks, (50, 95, 99)))
    return {
        "chunk_seconds": float(bundle.info.get("chunk_seconds", 0.0)),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "rtf": float(np.median(factors)),
        "rtf_low": min(factors),
        "rtf_high": max(factors),
        "first_seconds": float(np.median(firsts)) if firsts else None,
        "chunks_ms": [round(t, 4) for t in chunks],
    }


def _recordings(bundle: Bundle, audio: Sequence[Path]) -> list[Samples]:
    own = _own_recording(bundle)
    if audio:
        return [read_audio(path) for path in audio]
    if own is None:
        raise ConfigError(f"{bundle.path} has no recording of its own: give some audio files")
    return [read_audio(own)]


def _own_recording(bundle: Bundle) -> Path | None:
    sample = bundle.path / "test_wavs" / "0.wav"
    return sample if sample.is_file() else None

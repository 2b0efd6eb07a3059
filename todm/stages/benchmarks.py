"""Bundle -> its speed, latency and memory; and times of the kernels."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from todm.files import Progress, no_progress, path_or_none

if TYPE_CHECKING:
    from todm.bench.bundles.peer import Row as PeerRow
    from todm.bench.bundles.run import Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benched:
    """Rows of a bundle, and of its encoder beside a Conformer's if they were compared."""

    rows: "list[Row]"
    peer: "list[PeerRow]"


def bench(
    bundle: str | Path,
    *,
    audio: Sequence[str | Path] = (),
    out: str | Path | None = None,
    runtimes: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    threads: Sequence[int] | None = None,
    rounds: int | None = None,
    peer: str | Path | None = None,
    progress: Progress = no_progress,
) -> Benched:
    """Time a bundle in every runtime, precision and number of threads.

    What is left out is as in `todm.bench.bundles.run.Request`.

    Args:
        bundle: what  todm export  wrote.
        audio: recordings; by default the bundle's own.
        out: directory for figures and plots.
        runtimes: of onnxruntime and sherpa-onnx; both, if sherpa-onnx is installed.
        precisions: forms of the graphs; those for this processor.
        threads: numbers of threads.
        rounds: times that all recordings are decoded.
        peer: the subnet that the bundle was made of, to time beside a streaming Conformer.
        progress: called with (what, done, all).

    Raises:
        TodmError: something given cannot be used; the message says what to do.
    """
    from todm.bench.bundles import run
    from todm.bench.bundles.peer import save as save_peer

    options = {
        "runtimes": runtimes or _installed(),
        "precisions": precisions,
        "threads": threads,
        "rounds": rounds,
    }
    request = run.Request(bundle=Path(bundle), audio=tuple(map(Path, audio)), **_given(options))
    beside = _beside_conformer(peer) if peer else []  # first: it may be refused
    rows = run.bench(request, progress=progress)
    if out:
        run.save(rows, request, Path(out))
        run.plot(rows, Path(out) / run.PLOT)
    if out and beside:
        save_peer(beside, Path(out), sys.argv)
    return Benched(rows=rows, peer=beside)


def bench_kernels(
    *,
    ops: Sequence[str] | None = None,
    shapes: str | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    out: str | Path | None = None,
    show: Callable[[str], None] = print,
    progress: Callable[[str], None] = lambda line: None,
) -> int:
    """Check and time the kernels; what was measured is kept and shown if it is interrupted.

    What is left out is as in `todm.bench.kernels.run.Request`.

    Args:
        ops: only these.
        shapes: quick, full or the name of a shape.
        device: where they run.
        out: directory for the results.
        show: called with each table.
        progress: called with a line for each case.

    Returns:
        0; 1 where an op differs from its reference; 130 if interrupted.

    Raises:
        TodmError: something given cannot be used; the message says what to do.
    """
    from todm.bench.kernels.run import Request, run

    options = {"ops": ops, "shapes": shapes, "device": device, "out": path_or_none(out)}
    return run(Request(**_given(options)), show=show, progress=progress)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are given, with tuples for lists."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if value is not None
    }


def _beside_conformer(peer: str | Path) -> "list[PeerRow]":
    from todm import artifact
    from todm.asr.loading import backend_of, load_model
    from todm.asr.model.streaming import StreamingEncoder
    from todm.bench.bundles.peer import compare

    found = artifact.load(peer, kind="subnet")
    backend = backend_of(found, with_data=False)
    return compare(StreamingEncoder(load_model(found, backend), backend.config.chunk))


def _installed() -> tuple[str, ...]:
    """The runtimes that are here; onnxruntime always is."""
    from importlib.util import find_spec

    return ("onnxruntime", "sherpa-onnx") if find_spec("sherpa_onnx") else ("onnxruntime",)

"""A streaming MH-SSM encoder beside a streaming Conformer of equal parameters, on this machine.

python -m todm.bench.bundles.peer --config clean100 --chunk 8 --out peer        sizes of a recipe
`todm bench BUNDLE --peer` does the same for the encoder of a bundle.

Speed does not depend on the weights, so they may be random. Both encoders are exported to ONNX and int8 in
the same way and timed in turns on one thread, by the CPU time of that thread, which other processes
disturb less than wall time.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from todm.asr.model.streaming import StreamingEncoder
from todm.asr.model.transducer import Rnnt
from todm.backend import Graph, Port
from todm.bench.bundles.conformer import StreamingConformer, of_size
from todm.device.bundle import has_vnni, load_session
from todm.device.profiler import machine
from todm.errors import ConfigError, TodmError
from todm.export.quantize import quantize_int8
from todm.export.to_onnx import graph_to_onnx
from todm.files import markdown_table, write_text
from todm.recipe import named
from todm.supernet.space import SearchSpace

RESULTS, PLOT = "peer.json", "peer.png"
_VOCAB = 500
_FRAME = 0.04


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One encoder, `MH-SSM` or `Conformer`, in one form, `fp32` or `int8`.

    `params` are those of the encoder and its projection, `state` the numbers in a stream's state, and
    `megabytes` the file in 10^6 bytes. `ms` are CPU milliseconds per second of audio, the median of the
    rounds' medians; `low` and `high` are those of the fastest and the slowest round.
    """

    name: str
    form: str
    params: int
    state: int
    megabytes: float
    ms: float
    low: float
    high: float


def recipe_encoder(name: str, size: str, chunk: int) -> StreamingEncoder:
    """The encoder of a recipe's largest or smallest subnet, with random weights.

    Raises:
        ConfigError: no such recipe or size.
    """
    asr = named(name).asr
    space = SearchSpace(asr.space)
    subnets = {"largest": space.largest, "smallest": space.smallest}
    if size not in subnets or chunk < 1:
        raise ConfigError(
            f"--size is {size!r} and --chunk {chunk}: give largest or smallest, and at least 1 frame"
        )
    supernet = asr.supernet(_VOCAB)
    config = supernet.replace(encoder=supernet.encoder.narrow(subnets[size]), ctc=False)
    torch.manual_seed(0)
    return StreamingEncoder(Rnnt(config).eval(), chunk)


def compare(ours: StreamingEncoder, *, rounds: int = 9, calls: int = 40) -> list[Row]:
    """Time an encoder beside a Conformer of its size.

    Args:
        ours: the encoder, of any chunk.
        rounds: turns of each.
        calls: chunks of a turn.

    Raises:
        ConfigError: no Conformer has that size.
    """
    parts = [ours.model.encoder, ours.model.project]
    num_params = sum(p.numel() for part in parts for p in part.parameters())
    joiner_dim = ours.model.config.joiner_dim
    config = of_size(num_params, joiner_dim=joiner_dim, chunk=ours.chunk)
    theirs = StreamingConformer(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        modules = {"MH-SSM": ours, "Conformer": theirs}
        files = {
            (name, form): file
            for name, module in modules.items()
            for form, file in _write(Path(folder), name, module, ours.chunk).items()
        }
        times = _time(files, ours.chunk, rounds, calls)
        return [
            Row(
                name=name,
                form=form,
                params={"MH-SSM": num_params, "Conformer": config.num_params}[name],
                state=sum(modules[name].state_sizes),
                megabytes=file.stat().st_size / 1e6,
                ms=float(np.median(times[name, form])),
                low=min(times[name, form]),
                high=max(times[name, form]),
            )
            for (name, form), file in files.items()
        ]


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, and the ratios of the aims."""
    heads = ("encoder", "form", "parameters", "MB", "state, numbers")
    cells = [
        (
            row.name,
            row.form,
            f"{row.params / 1e6:.2f}M",
            f"{row.megabytes:.2f}",
            str(row.state),
            f"{row.ms:.2f} ({row.low:.2f} to {row.high:.2f})",
        )
        for row in rows
    ]
    by = {(row.name, row.form): row for row in rows}
    ours, theirs = by["MH-SSM", "int8"], by["Conformer", "int8"]
    return (
        f"{markdown_table((*heads, 'CPU ms per second of audio (rounds)'), cells)}\n\nin int8 the MH-SSM is "
        f"{theirs.ms / ours.ms:.2f} times as fast, with a state {theirs.state / ours.state:.1f} times "
        f"smaller; its int8 is {by['MH-SSM', 'fp32'].ms / ours.ms:.2f} times as fast as its fp32"
    )


def save(rows: Sequence[Row], out: Path, command: Sequence[str]) -> None:
    """Write figures and a bar chart."""
    out.mkdir(parents=True, exist_ok=True)
    found = {
        "command": list(command),
        "machine": machine(),
        "torch": torch.__version__,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_text(out / RESULTS, json.dumps(found, indent=1) + "\n")
    _plot(rows, out / PLOT)


def main(argv: Sequence[str] | None = None) -> int:
    """The command of the head of this file."""
    parser = argparse.ArgumentParser(description="An MH-SSM encoder beside a Conformer.")
    parser.add_argument("--config", default="clean100", help="recipe (clean100)")
    parser.add_argument("--size", default="largest", help="largest (default) or smallest subnet")
    parser.add_argument("--chunk", type=int, default=8, help="frames of 40 ms (8)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each (9)")
    parser.add_argument("--out", type=Path, help="directory for peer.json and peer.png")
    args = parser.parse_args(argv)
    try:
        rows = compare(recipe_encoder(args.config, args.size, args.chunk), rounds=args.rounds)
    except TodmError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if args.out:
        save(rows, args.out, sys.argv if argv is None else list(argv))
    sys.stdout.write(table(rows) + "\n")
    return 0


def _write(
    folder: Path, name: str, module: StreamingEncoder | StreamingConformer, chunk: int
) -> dict[str, Path]:
    """Export an encoder in both forms."""
    files = {form: folder / f"{name}.{form}.onnx" for form in ("fp32", "int8")}
    graph_to_onnx(_graph(module, module.state_sizes, chunk), files["fp32"])
    quantize_int8(files["fp32"], files["int8"], reduce_range=not has_vnni())
    return files


def _graph(module: nn.Module, sizes: tuple[int, int], chunk: int) -> Graph:
    batch = {0: "N"}
    features = Port(name="x", example=torch.randn(2, 4 * chunk, 80), dynamic=batch)
    states = [
        Port(name=f"state{i}", example=torch.zeros(1, 2, s), dynamic={1: "N"})
        for i, s in enumerate(sizes)
    ]
    with torch.no_grad():
        out: Tensor = module(features.example, *(s.example for s in states))[0]
    outputs = [Port(name="encoder_out", example=out, dynamic=batch)]
    outputs += [dataclasses.replace(s, name=f"new_{s.name}") for s in states]
    return Graph(name="encoder", module=module, inputs=(features, *states), outputs=tuple(outputs))


def _time(
    files: dict[tuple[str, str], Path], chunk: int, rounds: int, calls: int
) -> dict[tuple[str, str], list[float]]:
    """CPU milliseconds per second of audio, the median of every round."""
    sessions = {key: load_session(file) for key, file in files.items()}
    frames = np.random.default_rng(0).standard_normal((1, 4 * chunk, 80)).astype(np.float32)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in sessions}
    for number in range(rounds + 1):
        for key, session in sessions.items():
            taken = 1000 / (chunk * _FRAME) * float(np.median(_turn(session, frames, calls)))
            if number:  # the first turn warms up
                times[key].append(taken)
    return times


def _turn(session: Any, frames: np.ndarray, calls: int) -> list[float]:  # noqa: ANN401 - a session
    """CPU seconds of each chunk of one stream; the session runs on the calling thread alone."""
    ports = session.get_inputs()
    states = [np.zeros((1, 1, port.shape[2]), np.float32) for port in ports[1:]]
    taken = []
    for _ in range(calls):
        feed = dict(zip([p.name for p in ports], [frames, *states], strict=True))
        start = time.thread_time()
        _, *states = session.run(None, feed)
        taken.append(time.thread_time() - start)
    return taken


def _plot(rows: Sequence[Row], out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axis = figure.subplots()
    names = [f"{row.name} {row.form}" for row in rows]
    spread = [[row.ms - row.low for row in rows], [row.high - row.ms for row in rows]]
    axis.barh(names, [row.ms for row in rows], xerr=spread, capsize=3)
    axis.set(xlabel="CPU ms per second of audio, one thread")
    axis.invert_yaxis()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    sys.exit(main())

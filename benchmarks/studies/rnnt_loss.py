"""Time and peak memory of the RNN-T loss, forward and backward, in a fresh process per measurement.

    python -m benchmarks.studies.rnnt_loss [--device cuda] [--out FILE]

Memory is the peak above what the inputs need: resident size, or on a GPU what torch allocates there.
Each process first checks losses and gradients against the reference on a small lattice, and reports
figures only if they agree. k2's loss is pruned to 5 positions a frame (all of them on that lattice), so
it does less work.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from todm.bench.kernels.clock import clock_of
from todm.bench.kernels.op_rnnt_loss import DISTILLED, PEERS, SHAPES, Problem
from todm.files import markdown_table

CASES = ("torch", f"torch{DISTILLED}", *PEERS)
GPU_CASES = ("triton", f"triton{DISTILLED}")
DTYPES = ("float32", "bfloat16")


def measure(
    case: str,
    sizes: Mapping[str, int],
    *,
    repeats: int = 1,
    device: str = "cpu",
    dtype: str = "float32",
) -> dict[str, float | None]:
    """Medians of wall and CPU seconds, their spread, and MB above the inputs; forward and backward.

    Args:
        case: one of `CASES` or `GPU_CASES`.
        sizes: B, T, U, V and J.
        repeats: timed runs; the run whose memory is measured comes before them and warms up.
        device: `cpu` or `cuda`.
        dtype: of the joiner's matmul, `float32` or `bfloat16` by autocast; peers stay in float32.

    Raises:
        RuntimeError: the case does not agree with the reference.
    """
    problem = Problem.draw(sizes, device=device, dtype=dtype)
    checked = problem.check_small(case)
    if not checked.passed:
        raise RuntimeError(f"{case}: error {checked.error:.1e}, {checked.allowed:.0e} is allowed")
    peak_mb = clock_of(device).peak_mb(lambda: problem.run(case))
    wall, cpu = [], []
    for _ in range(repeats):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        problem.run(case)
        if device == "cuda":
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - cpu_begin)
    return {
        "seconds": statistics.median(wall),
        "seconds_spread": max(wall) - min(wall),
        "cpu_seconds": statistics.median(cpu),
        "peak_mb": peak_mb,
    }


def run_case(case: str, shape: str, *, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`measure` in a process of its own; a case that cannot run has an `error` instead of figures.

    Args:
        case: one of `CASES` or `GPU_CASES`.
        shape: one of `SHAPES`.
        settings: further options of the command: threads, repeats, device and dtype.
    """
    options = {"case": case, "shape": shape, **settings}
    command = [sys.executable, "-m", "benchmarks.studies.rnnt_loss"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    row = {"shape": shape, **SHAPES[shape], "case": case, **settings}
    if done.returncode:
        return {**row, "error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return {**row, **json.loads(done.stdout.splitlines()[-1])}


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `run_case` in Markdown."""
    heads = ("B,T,U,V,J", "loss", "threads", "s", "CPU s", "peak MB above inputs")
    return markdown_table(heads, [_cells(row) for row in rows])


def _cells(row: Mapping[str, Any]) -> list[str]:
    cells = [",".join(str(row[k]) for k in "BTUVJ"), row["case"], str(row["threads"])]
    if "error" in row:
        return [*cells, row["error"], "", ""]
    peak = "not available" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
    return [*cells, f"{row['seconds']:.3f}", f"{row['cpu_seconds']:.3f}", peak]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all cases, print the table, and write JSON if `--out` is given. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.rnnt_loss", description=__doc__
    )
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all", help="all: all but gpu")
    parser.add_argument("--case", choices=CASES + GPU_CASES, help="only this one, in this process")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the matmuls")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    shapes = [s for s in SHAPES if args.shape == s or (args.shape == "all" and s != "gpu")]
    settings = {"repeats": args.repeats, "device": args.device, "dtype": args.dtype}
    if args.case is not None:
        torch.set_num_threads(args.threads)
        figures = measure(args.case, SHAPES[shapes[0]], **settings)
        sys.stdout.write(json.dumps(figures) + "\n")
        return 0
    rows = [
        run_case(case, shape, settings={"threads": args.threads, **settings})
        for shape in shapes
        for case in (CASES if args.device == "cpu" else CASES + GPU_CASES)
    ]
    machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    if args.out is not None:
        args.out.write_text(json.dumps({**machine, "rows": rows}, indent=2) + "\n")
    sys.stdout.write(f"{format_table(rows)}\n{machine}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

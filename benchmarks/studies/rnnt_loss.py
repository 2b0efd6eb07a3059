"""Time and peak memory of the RNN-T loss, forward and backward, one fresh process a measurement.

Memory is the peak above what the inputs need: resident size, or on a GPU what torch allocates there.
Each process first holds its loss against the reference on a small lattice; a figure is reported only
after that. k2's loss is pruned to 5 positions a frame, all of them on that lattice: it does less.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from todm.kernels.rnnt_loss import Teacher, rnnt_loss

CASES = ("torch", "torch + distillation", "torchaudio", "k2")
GPU_CASES = ("triton", "triton + distillation")
SHAPES = {
    "issue": {"B": 8, "T": 400, "U": 80, "V": 500, "J": 512},
    "commands": {"B": 32, "T": 70, "U": 10, "V": 96, "J": 128},
    "gpu": {"B": 32, "T": 400, "U": 80, "V": 500, "J": 512},
}
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


def make_inputs(
    *, B: int, T: int, U: int, V: int, J: int, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Seeded positional arguments of the op, full lengths; the first four ask for gradients."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    floats = (normal(B, T, J), normal(B, U + 1, J), normal(V, J) * J**-0.5, normal(V) * 0.1)
    enc, pred, weight, bias = (x.to(device).requires_grad_() for x in floats)
    targets = torch.randint(1, V, (B, U), generator=generator).to(device)
    return enc, pred, weight, bias, targets, torch.full((B,), T), torch.full((B,), U)


def measure(
    case: str,
    shape: dict[str, int],
    *,
    repeats: int = 1,
    device: str = "cpu",
    dtype: str = "float32",
) -> dict[str, float]:
    """Medians of wall and CPU seconds, their spread, and MB above the inputs; forward and backward.

    Args:
        case: One of `CASES` or `GPU_CASES`.
        shape: B, T, U, V and J.
        repeats: Runs to time; on a GPU after one that compiles and is not timed.
        device: `cpu` or `cuda`.
        dtype: Of the joiner's matmul: `float32`, or `bfloat16` by autocast.
    """
    _check(case, device)
    inputs = make_inputs(**shape, device=device)
    # Every node weighs, which is the most work and memory that distillation can ask for.
    ones = torch.ones(shape["B"], shape["T"], shape["U"] + 1, device=device)
    teacher = Teacher(*(x.detach() * 0.9 for x in inputs[:4]), occupancy=ones)
    wall: list[float] = []
    cpu: list[float] = []
    with torch.autocast(device, DTYPES[dtype], enabled=DTYPES[dtype] is not None):
        if device == "cuda":
            _run(case, inputs, teacher)
            torch.cuda.reset_peak_memory_stats()
        before = _used_mb(device)
        for _ in range(repeats):
            begin, cpu_begin = time.perf_counter(), time.process_time()
            _run(case, inputs, teacher)
            if device == "cuda":
                torch.cuda.synchronize()
            wall.append(time.perf_counter() - begin)
            cpu.append(time.process_time() - cpu_begin)
    return {
        "seconds": statistics.median(wall),
        "seconds_spread": max(wall) - min(wall),
        "cpu_seconds": statistics.median(cpu),
        "peak_mb": max(0.0, _peak_mb(device) - before),
    }


def run_case(
    case: str,
    shape: str,
    *,
    threads: int,
    repeats: int,
    device: str = "cpu",
    dtype: str = "float32",
) -> dict[str, object]:
    """`measure` in a process of its own. A case that cannot run gives its `error` instead."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.studies.rnnt_loss",
        "--case",
        case,
        "--shape",
        shape,
    ]
    command += ["--threads", str(threads), "--repeats", str(repeats)]
    command += ["--device", device, "--dtype", dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    row: dict[str, object] = {"shape": shape, **SHAPES[shape], "case": case, "threads": threads}
    row |= {"device": device, "dtype": dtype}
    if done.returncode:
        return {**row, "error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return {**row, **json.loads(done.stdout.splitlines()[-1])}


def format_table(rows: list[dict[str, object]]) -> str:
    """Rows of `run_case` as a markdown table."""
    lines = [
        "| B,T,U,V,J | loss | threads | s | CPU s | peak MB above inputs |",
        "|--|--|--|--|--|--|",
    ]
    for row in rows:
        shape = ",".join(str(row[k]) for k in "BTUVJ")
        figures = (
            f"{row['seconds']:.3f} | {row['cpu_seconds']:.3f} | {row['peak_mb']:.0f}"
            if "error" not in row
            else f"{row['error']} | |"
        )
        lines.append(f"| {shape} | {row['case']} | {row['threads']} | {figures} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure all cases, print the table, write JSON where asked. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.rnnt_loss", description=__doc__
    )
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all", help="all: but gpu")
    parser.add_argument("--case", choices=CASES + GPU_CASES, help="only this, in this process")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the matmuls")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    shapes = [s for s in SHAPES if args.shape == s or (args.shape == "all" and s != "gpu")]
    how = {"repeats": args.repeats, "device": args.device, "dtype": args.dtype}
    if args.case is not None:
        torch.set_num_threads(args.threads)
        figures = measure(args.case, SHAPES[shapes[0]], **how)
        sys.stdout.write(json.dumps(figures) + "\n")
        return 0
    rows = [
        run_case(case, shape, threads=args.threads, **how)
        for shape in shapes
        for case in (CASES if args.device == "cpu" else CASES + GPU_CASES)
    ]
    machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    if args.out is not None:
        args.out.write_text(json.dumps({**machine, "rows": rows}, indent=2) + "\n")
    sys.stdout.write(f"{format_table(rows)}\n{machine}\n")
    return 0


def _run(case: str, inputs: tuple[Tensor, ...], teacher: Teacher | None) -> Tensor:
    impl, _, distilled = case.partition(" + ")
    out = rnnt_loss(*inputs, teacher=teacher if distilled else None, impl=impl)
    (out.loss_B.sum() + out.divergence_B.sum()).backward()
    return out.loss_B.detach()


def _check(case: str, device: str) -> None:
    """A speed is worth nothing without this: the loss is the reference's."""
    inputs = make_inputs(B=2, T=6, U=3, V=11, J=8, device=device)
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    ones = torch.ones(2, 6, 4, device=device)
    teacher = Teacher(*(x.detach() for x in inputs[:4]), occupancy=ones)
    torch.testing.assert_close(
        _run(case, inputs, teacher).double(),
        rnnt_loss(*wide, impl="reference").loss_B.detach(),
        rtol=1e-4,
        atol=1e-4,
    )


def _used_mb(device: str) -> float:
    return torch.cuda.memory_allocated() / 1e6 if device == "cuda" else _resident_mb()


def _peak_mb(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return _to_mb(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _resident_mb() -> float:
    """Resident memory now, where the system tells (Linux), else its peak so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return _to_mb(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return pages * resource.getpagesize() / 1e6


def _to_mb(maxrss: int) -> float:
    """`ru_maxrss` counts bytes on macOS and KiB elsewhere."""
    return maxrss / 1e6 if sys.platform == "darwin" else maxrss * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())

"""`todm bench kernels`: times of the ops beside their peers, on this machine."""

import argparse
import functools
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("what", choices=["kernels"], help="the ops of todm/kernels")
    parser.add_argument("--ops", metavar="A,B", type=_names, default=(), help="only these (all)")
    parser.add_argument(
        "--shapes", default="quick", metavar="quick|full|NAME", help="which problems (quick)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where (cpu)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results"),
        metavar="DIR",
        help="for kernels-DEVICE.json and .png (benchmarks/results)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print; status 1 where an op is not what its reference is."""
    from todm.bench.kernels.run import Request
    from todm.bench.kernels.run import run as run_kernels

    request = Request(ops=args.ops, shapes=args.shapes, device=args.device, out=args.out)
    progress = functools.partial(print, file=sys.stderr)
    return run_kernels(request, show=print, progress=progress)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))

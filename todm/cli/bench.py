"""`todm bench BUNDLE`: speed, latency and memory of a bundle. `todm bench kernels`: times of the ops."""

import argparse
import functools
import sys

from todm import stages
from todm.cli.arguments import Flags, given, names, numbers
from todm.cli.progress import progress_report
from todm.errors import ConfigError

_KERNELS = "kernels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument(
        "bundle", metavar="BUNDLE|kernels", help="a bundle's directory, or the word kernels"
    )
    flag = Flags(parser, stages.bench)
    flag("audio", "recordings (default: the bundle's own)", action="store", nargs="*")
    flag("--out", "for figures and plots (of kernels: benchmarks/results)", metavar="DIR")
    flag = Flags(parser.add_argument_group("bundles"), stages.bench)
    comma = {"action": "store", "metavar": "A,B"}
    flag(
        "--runtimes",
        "of onnxruntime and sherpa-onnx (both, if sherpa-onnx is installed)",
        type=names("--runtimes"),
        **comma,
    )
    flag(
        "--precisions",
        "forms of the graphs (those for this processor)",
        type=names("--precisions"),
        **comma,
    )
    flag("--threads", "numbers of threads (1,2)", type=numbers("--threads"), **comma)
    flag("--rounds", "times that all is decoded (10)")
    flag(
        "--peer",
        "also time the encoder of this subnet, which the bundle was made of, beside a streaming "
        "Conformer of equal parameters",
        metavar="SUBNET",
    )
    flag = Flags(parser.add_argument_group("kernels"), stages.bench_kernels)
    flag("--ops", "only these (all)", type=names("--ops"), **comma)
    flag("--shapes", "which problems (quick)", metavar="quick|full|NAME")
    flag("--device", "where (cpu)")


def run(args: argparse.Namespace) -> int:
    """Measure and print; status 1 where an op differs from its reference."""
    kernels = args.bundle == _KERNELS
    other = (
        ("audio", "runtimes", "precisions", "threads", "rounds", "peer")
        if kernels
        else ("ops", "shapes", "device")
    )
    if wrong := [name for name in other if getattr(args, name)]:
        kind = "a bundle" if kernels else "kernels"
        flag = "audio" if wrong[0] == "audio" else f"--{wrong[0]}"
        raise ConfigError(f"{flag} is for  todm bench  of {kind}: leave it out, or name {kind}")
    if kernels:
        options = given(args, stages.bench_kernels)
        progress = functools.partial(print, file=sys.stderr)
        return stages.bench_kernels(**options, show=print, progress=progress)
    with progress_report() as report:
        found = stages.bench(**given(args, stages.bench), progress=report)
    from todm.bench.bundles import peer
    from todm.bench.bundles import run as bundles

    print(bundles.table(found.rows))
    if args.out:
        print(f"figures: {args.out}")
    if found.peer:
        print(f"\n{peer.table(found.peer)}")
    return 0

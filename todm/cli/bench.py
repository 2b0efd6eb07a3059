"""`todm bench BUNDLE`: speed, latency and memory of a bundle. `todm bench kernels`: times of the ops."""

import argparse
import functools
import sys
from pathlib import Path

from todm.cli.progress import progress_report

_KERNELS = "kernels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument(
        "what", metavar="BUNDLE|kernels", help="a bundle's directory, or the word kernels"
    )
    parser.add_argument(
        "audio", nargs="*", type=Path, help="recordings (default: the bundle's own)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="for figures and plots (of kernels: benchmarks/results)",
    )
    bundles = parser.add_argument_group("bundles")
    bundles.add_argument(
        "--runtimes",
        metavar="A,B",
        type=_names,
        help="of onnxruntime and sherpa-onnx (both, if sherpa-onnx is installed)",
    )
    bundles.add_argument(
        "--precisions",
        metavar="A,B",
        type=_names,
        help="forms of the graphs (those for this processor)",
    )
    bundles.add_argument("--threads", metavar="A,B", type=_numbers, help="numbers of threads (1,2)")
    bundles.add_argument("--rounds", type=int, help="times that all is decoded (10)")
    bundles.add_argument(
        "--peer",
        type=Path,
        metavar="SUBNET",
        help="also time the encoder of this subnet, which the bundle was made of, beside a streaming "
        "Conformer of equal parameters",
    )
    kernels = parser.add_argument_group("kernels")
    kernels.add_argument("--ops", metavar="A,B", type=_names, help="only these (all)")
    kernels.add_argument("--shapes", metavar="quick|full|NAME", help="which problems (quick)")
    kernels.add_argument("--device", choices=["cpu", "cuda"], help="where (cpu)")


def run(args: argparse.Namespace) -> int:
    """Measure and print; status 1 where an op is not what its reference is."""
    _check(args)
    return _kernels(args) if args.what == _KERNELS else _bundle(args)


def _check(args: argparse.Namespace) -> None:
    """Refuse flags of the other kind.

    Raises:
        ConfigError: there are some.
    """
    from todm.errors import ConfigError

    other = (
        ("audio", "runtimes", "precisions", "threads", "rounds", "peer")
        if args.what == _KERNELS
        else ("ops", "shapes", "device")
    )
    wrong = [name for name in other if getattr(args, name)]
    if wrong:
        kind = "a bundle" if args.what == _KERNELS else "kernels"
        flag = "audio" if wrong[0] == "audio" else f"--{wrong[0]}"
        raise ConfigError(f"{flag} is for  todm bench  of {kind}: leave it out, or name {kind}")


def _kernels(args: argparse.Namespace) -> int:
    from todm.bench.kernels.run import Request
    from todm.bench.kernels.run import run as run_kernels

    names = ("ops", "shapes", "device", "out")
    given = {name: getattr(args, name) for name in names if getattr(args, name)}
    progress = functools.partial(print, file=sys.stderr)
    return run_kernels(Request(**given), show=print, progress=progress)


def _bundle(args: argparse.Namespace) -> int:
    from todm.bench.bundles.run import PLOT, Request, bench, plot, save, table

    names = ("runtimes", "precisions", "threads", "rounds")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    given.setdefault("runtimes", _installed())
    request = Request(bundle=Path(args.what), audio=tuple(args.audio), **given)
    with progress_report() as report:
        rows = bench(request, progress=report)
    print(table(rows))
    if args.out:
        save(rows, request, args.out)
        plot(rows, args.out / PLOT)
        print(f"figures: {args.out}")
    if args.peer:
        _peer(args)
    return 0


def _peer(args: argparse.Namespace) -> None:
    from todm import artifact
    from todm.asr.loading import backend_of, load_model
    from todm.asr.model.streaming import StreamingEncoder
    from todm.bench.bundles.peer import compare, save, table

    found = artifact.load(args.peer, kind="subnet")
    backend = backend_of(found, with_data=False)
    rows = compare(StreamingEncoder(load_model(found, backend), backend.config.chunk))
    print(f"\n{table(rows)}")
    if args.out:
        save(rows, args.out, sys.argv)


def _installed() -> tuple[str, ...]:
    """The runtimes that are here; onnxruntime always is."""
    from importlib.util import find_spec

    return ("onnxruntime", "sherpa-onnx") if find_spec("sherpa_onnx") else ("onnxruntime",)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(name) for name in _names(text))

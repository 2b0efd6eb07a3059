"""Orders by voice: how many of people's spoken coffee orders does a bundle get right, clean and in noise?

    python -m benchmarks.studies.orders evaluate BUNDLE
    python -m benchmarks.studies.orders table

README.md has all commands. Results are rows of JSON in benchmarks/results/orders, and an interrupted
command goes on where it was.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.studies.orders import evaluate
from benchmarks.studies.orders.engines import PEERS
from benchmarks.studies.orders.evaluate import ROWS, Request
from benchmarks.studies.orders.recordings import NOISES, SNRS, conditions, shared
from todm.errors import ConfigError, TodmError

Verb = Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of the study.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        The exit status: 2, with a one-line message, for errors that the user can correct.
    """
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except TodmError as error:
        sys.stderr.write(f"benchmarks.studies.orders: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("benchmarks.studies.orders: interrupted; the same command continues\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.studies.orders", description="people's coffee orders, clean and in noise"
    )
    verbs = parser.add_subparsers(required=True)
    verb = _verb(verbs, "evaluate", _evaluate, "command acceptance of a bundle")
    verb.add_argument("engine", metavar="BUNDLE", help="directory that  todm export  wrote")
    _add_conditions(verb)
    verb = _verb(verbs, "peers", _peers, "the same of a recogniser of free text")
    verb.add_argument("engine", metavar="PEER", choices=PEERS, help=", ".join(PEERS))
    _add_conditions(verb)
    return parser


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: Verb, text: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text)
    verb.set_defaults(run=run)
    verb.add_argument("--rows", type=Path, default=ROWS, help="default: %(default)s")
    verb.add_argument("--name", help="of the row (default: that of the bundle or peer)")
    return verb


def _add_conditions(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--recordings", type=Path, help="default: orders/dev of the shared data")
    verb.add_argument("--noises", nargs="*", choices=NOISES, default=NOISES)
    verb.add_argument("--snrs", nargs="+", type=int, default=SNRS, help="dB (default: 6 9 .. 24)")
    verb.add_argument("--jobs", type=int, default=1, help="processes (default 1)")


def _evaluate(args: argparse.Namespace) -> None:
    if not Path(args.engine).is_dir():
        raise ConfigError(f"{args.engine} is not a directory: give one that  todm export  wrote")
    _peers(args)


def _peers(args: argparse.Namespace) -> None:
    folder = args.recordings or shared("orders", "dev")
    name = args.name or Path(args.engine).resolve().name
    evaluate.evaluate(
        Request(
            engine=args.engine,
            recordings=folder,
            row=args.rows / folder.name / f"{name}.json",
            conditions=conditions(args.noises, args.snrs),
            jobs=args.jobs,
        ),
        progress=_progress,
    )


def _progress(what: str, done: int, total: int) -> None:
    sys.stdout.write(f"{done} of {total}: {what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

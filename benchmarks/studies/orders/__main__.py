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

from benchmarks.studies import command
from benchmarks.studies.orders import data, digits, evaluate, table, training
from benchmarks.studies.orders.engines import PEERS
from benchmarks.studies.orders.evaluate import PARTS, ROWS, Request
from benchmarks.studies.orders.plan import FULL, FULL_LENGTH, INGREDIENTS, SHORT, run_named
from benchmarks.studies.orders.recordings import NOISES, SNRS, conditions, shared
from todm.errors import ConfigError
from todm.files import write_text

Verb = Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of the study.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        The exit status: 2, with a one-line message, for errors that the user can correct.
    """
    return command.run(_parser(), argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.studies.orders", description="people's coffee orders, clean and in noise"
    )
    verbs = parser.add_subparsers(required=True)
    verb = _verb(verbs, "evaluate", _evaluate, "a bundle: orders, false accepts, waits")
    verb.add_argument("engine", metavar="BUNDLE", help="directory that  todm export  wrote")
    verb.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    _add_conditions(verb)
    verb = _verb(verbs, "peers", _peers, "orders by a recogniser of free text")
    verb.add_argument("engine", metavar="PEER", choices=PEERS, help=", ".join(PEERS))
    _add_conditions(verb)
    verb = _verb(verbs, "digits", _digits, "word errors of a bundle of digits")
    verb.add_argument("engine", metavar="BUNDLE", help="directory that  todm export  wrote")
    verb = verbs.add_parser("data", help="training material of the study")
    verb.set_defaults(run=_data)
    verb.add_argument("out", metavar="OUT", type=Path)
    verb.add_argument("--natural", type=Path, help="default: orders-natural of the shared data")
    verb.add_argument("--no-natural", action="store_true", help="espeak-ng alone")
    verb.add_argument("--renderings", type=int, default=3, help="of each (default 3; 0: as it is)")
    verb.add_argument("--dev-voices", nargs="+", default=[], help="natural voices kept for dev")
    verb.add_argument("--set", action="append", default=[], metavar="A.B=C")
    verb = _verb(verbs, "train", _train, "rows of the ingredients")
    verb.add_argument("names", metavar="ROW", nargs="+", help=", ".join((*INGREDIENTS, FULL)))
    verb.add_argument("--out", type=Path, required=True, help="directory of the trainings")
    verb.add_argument("--natural", type=Path, help="default: orders-natural of the shared data")
    verb.add_argument("--init", type=Path, help="a pretrained supernet, for rows that need one")
    verb.add_argument("--short", type=int, default=SHORT, help="updates (default %(default)s)")
    verb.add_argument("--full", type=int, default=FULL_LENGTH, help="of the last row")
    _add_conditions(verb)
    _verb(verbs, "table", _table, "tables from the rows")
    return parser


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: Verb, text: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text)
    verb.set_defaults(run=run)
    verb.add_argument("--rows", type=Path, default=ROWS, help="default: %(default)s")
    if name not in ("train", "table"):
        verb.add_argument("--name", help="of the row (default: that of the bundle or peer)")
    return verb


def _add_conditions(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--recordings", type=Path, help="default: orders/dev of the shared data")
    verb.add_argument("--noises", nargs="*", choices=NOISES, default=NOISES)
    verb.add_argument("--snrs", nargs="+", type=int, choices=SNRS, default=SNRS, help="in dB")
    verb.add_argument("--jobs", type=int, default=1, help="processes (default 1)")


def _evaluate(args: argparse.Namespace) -> None:
    _check_bundle(args.engine)
    _measure(args, args.parts)


def _peers(args: argparse.Namespace) -> None:
    _measure(args, PARTS[:1])


def _measure(args: argparse.Namespace, parts: Sequence[str]) -> None:
    folder = args.recordings or shared("orders", "dev")
    request = Request(
        engine=args.engine,
        recordings=folder,
        row=args.rows / folder.resolve().name / f"{_name(args)}.json",
        conditions=conditions(args.noises, args.snrs),
        parts=parts,
        jobs=args.jobs,
    )
    evaluate.evaluate(request, progress=_progress)


def _digits(args: argparse.Namespace) -> None:
    _check_bundle(args.engine)
    found = digits.measure(Path(args.engine), progress=_progress)
    digits.save(args.rows / table.DIGIT_ROWS / f"{_name(args)}.json", found)


def _data(args: argparse.Namespace) -> None:
    if args.no_natural and args.natural:
        raise ConfigError("--natural and --no-natural exclude each other")
    natural = None if args.no_natural else args.natural or shared("orders-natural")
    material = data.Material(
        natural=natural,
        renderings=args.renderings,
        dev_voices=args.dev_voices,
        settings=args.set,
    )
    folder = data.make(args.out, material, progress=_progress)
    sys.stdout.write(f"todm prepare --config {data.RECIPE} --data {folder} --out CORPUS\n")


def _train(args: argparse.Namespace) -> None:
    planned = [run_named(name, short=args.short, full=args.full) for name in args.names]
    for run in planned:
        request = Request(
            engine=str(training.bundle_of(args.out, run)),
            recordings=args.recordings or shared("orders", "dev"),
            row=args.rows / table.INGREDIENT_ROWS / f"{run.name}.json",
            conditions=conditions(args.noises, args.snrs),
            jobs=args.jobs,
        )
        natural = args.natural or shared("orders-natural")
        training.finish(run, args.out, request, natural=natural, init=args.init, progress=_progress)


def _table(args: argparse.Namespace) -> None:
    text = "\n".join(table.report(args.rows)).rstrip() + "\n"
    args.rows.mkdir(parents=True, exist_ok=True)
    write_text(args.rows / "orders.md", text)
    sys.stdout.write(text)


def _check_bundle(path: str) -> None:
    if not Path(path).is_dir():
        raise ConfigError(f"{path} is not a directory: give one that  todm export  wrote")


def _name(args: argparse.Namespace) -> str:
    """The stem of the row's file."""
    return args.name or Path(args.engine).resolve().name


def _progress(what: str, done: int, total: int) -> None:
    if done == total or done % max(1, total // 20) == 0:
        sys.stdout.write(f"{what}: {done} of {total}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

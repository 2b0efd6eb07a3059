"""The claim of TODM: subnets of one supernet against the same models trained alone.

    python -m benchmarks.studies.claim train PART CORPUS --out DIR
    python -m benchmarks.studies.claim table

`train` trains the runs of a part that have no row yet, decodes the test split with each, and writes a
row, a file of JSON in benchmarks/results/claim/PART. Interrupted trainings resume. `table` prints
tables of the rows alone and writes claim.md and claim.png beside them. README.md has the parts.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.studies import command
from benchmarks.studies.claim import table, training
from benchmarks.studies.claim.plan import PARTS, part_named, plan
from benchmarks.studies.claim.rows import ROWS
from benchmarks.studies.processes import ended_gently
from todm import artifact
from todm.errors import ArtifactError, ConfigError
from todm.files import write_text


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
        prog="benchmarks.studies.claim", description="supernet subnets against models trained alone"
    )
    verbs = parser.add_subparsers(required=True)
    train = verbs.add_parser("train", help="train what has no row yet")
    train.set_defaults(run=_train)
    train.add_argument("part", metavar="PART", help=", ".join(PARTS))
    train.add_argument("corpus", metavar="CORPUS", type=Path, help="made as README.md says")
    train.add_argument("--out", type=Path, required=True, help="directory of the trainings")
    train.add_argument("--seeds", type=int, nargs="+", default=[], help="other than the part's")
    train.add_argument(
        "--runs", nargs="+", default=[], help="such as supernet alone-l (default: all)"
    )
    train.add_argument("--jobs", type=int, default=1, help="trainings at a time (default 1)")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        help="a setting of all runs, for a trial whose rows go elsewhere, with --rows",
    )
    show = verbs.add_parser("table", help="tables and a picture from the rows")
    show.set_defaults(run=_table)
    show.add_argument("parts", metavar="PART", nargs="*", help="print these only")
    for verb in (train, show):
        verb.add_argument("--rows", type=Path, default=ROWS, help="default: %(default)s")
    return parser


def _train(args: argparse.Namespace) -> None:
    part, corpus, out, folder = part_named(args.part), args.corpus, args.out, args.rows
    if args.jobs < 1:
        raise ConfigError(f"--jobs is {args.jobs}: at least 1 is needed")
    if args.set and folder.resolve() == ROWS:
        raise ConfigError("--set makes rows of other settings: name another folder with --rows")
    runs = plan(args.part, seeds=args.seeds, names=args.runs, extra=args.set)
    try:
        found = artifact.load(corpus, kind="corpus")
    except ArtifactError as error:
        raise ArtifactError(f"{error}; the corpus of this part:  {part.prepare}") from None
    missing = training.check(runs, found, out=out, folder=folder)
    sys.stdout.write(f"{len(runs) - len(missing)} of {len(runs)} have a row\n")
    if missing:
        torch.set_num_threads(1)
        training.compute_features(missing[0], found)
    with ended_gently(), ThreadPoolExecutor(args.jobs) as pool:
        jobs = pool.map(lambda r: training.finish(r, found, out=out, folder=folder), missing)
        for run, _ in zip(missing, jobs, strict=True):
            sys.stdout.write(f"done: {run}\n")
            sys.stdout.flush()


def _table(args: argparse.Namespace) -> None:
    folder = args.rows
    for name in args.parts:
        part_named(name)
    texts = {name: "\n".join(table.report(name, folder)) for name in PARTS}
    folder.mkdir(parents=True, exist_ok=True)
    image = table.plot(PARTS, folder, folder / "claim.png")
    head = ["# One supernet against models trained alone", ""]
    head += ["![word error rates](claim.png)", ""] if image else []
    write_text(folder / "claim.md", "\n".join([*head, *texts.values()]).rstrip() + "\n")
    sys.stdout.write("\n".join(texts[name] for name in args.parts or PARTS).rstrip() + "\n")


if __name__ == "__main__":
    sys.exit(main())

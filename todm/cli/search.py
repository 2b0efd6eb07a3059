"""`todm search SUPERNET --budget A [--budget B ...]`: the best subnets for budgets, and the front."""

import argparse
from pathlib import Path

from todm.cli.progress import progress_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("supernet", type=Path, help="directory that  todm train  wrote")
    parser.add_argument(
        "--budget",
        action="append",
        required=True,
        help="2M, size=3MiB, macs=400M, memory=40MiB, latency=20ms@pi5, rtf=0.1@local, or several "
        "joined by commas; once for each subnet that is wanted",
    )
    parser.add_argument(
        "--out", type=Path, help="directory of the front (default: beside SUPERNET)"
    )
    parser.add_argument(
        "--corpus", type=Path, help="corpus whose dev split decides (default: the one trained on)"
    )
    parser.add_argument(
        "--compression", default="none,int8", help="what may be chosen (default none,int8)"
    )
    parser.add_argument(
        "--evaluations", type=int, default=48, help="of evolution for each budget (default 48)"
    )
    parser.add_argument(
        "--limit", type=int, default=0, help="dev utterances to score on (default 0: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the search (default 0)")
    parser.add_argument(
        "--no-baselines", action="store_true", help="no random search and uniform scaling beside it"
    )


def run(args: argparse.Namespace) -> int:
    """Search and write the front; what was evaluated is kept, so that a killed search goes on."""
    from todm import artifact
    from todm.asr.loading import backend_of, check_numbers
    from todm.cli.scorers import evaluations_of, problems_of, searched
    from todm.search.devices import Devices
    from todm.search.evolve import SearchConfig
    from todm.search.front import TABLE, write_front
    from todm.search.run import search

    check_numbers(evaluations=args.evaluations)
    compressions = searched(args.compression)
    found = artifact.load(args.supernet, kind="supernet")
    out = args.out or args.supernet.resolve().parent / "front"
    config = SearchConfig(evaluations=args.evaluations, seed=args.seed)
    with progress_report() as report:
        backend = backend_of(found, corpus=args.corpus, report=report)
        devices = Devices(backend, report)
        problems = problems_of(args.budget, backend, compressions, devices)
        kept = out.with_name(f"{out.name}.evaluations.jsonl")
        evaluations = evaluations_of(found, backend, limit=args.limit, path=kept)
        result = search(
            problems,
            evaluations,
            config,
            baselines=not args.no_baselines,
            progress=report,
        )
        front = write_front(
            out,
            result,
            found,
            config,
            tables=devices.tables,
            asked={"corpus": str(backend.corpus), "limit": args.limit, "compression": compressions},
        )
    print(front.file(TABLE).read_text())
    print(f"{result.seconds:.0f} s, {result.cpu_seconds:.0f} s of CPU\nfront: {front.path}")
    return 0

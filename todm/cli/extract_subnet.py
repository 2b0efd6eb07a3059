"""`todm extract-subnet SUPERNET --budget 2M --out DIR`: cut out the best subnet found for a budget."""

import argparse
from pathlib import Path
from typing import Any

from todm.cli.progress import progress_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("supernet", type=Path, help="directory that  todm train  wrote")
    parser.add_argument(
        "--budget", required=True, help="2M or params=2M, size=3MiB, or both joined by a comma"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the subnet")
    parser.add_argument(
        "--corpus", type=Path, help="corpus whose dev split decides (default: the one trained on)"
    )
    parser.add_argument(
        "--compression", choices=("none", "int8"), default="none", help="what size is counted in"
    )
    parser.add_argument("--candidates", type=int, default=12, help="subnets to score (default 12)")
    parser.add_argument(
        "--limit", type=int, default=150, help="dev utterances to score on (default 150)"
    )


def run(args: argparse.Namespace) -> int:
    """Search, extract, say what was chosen."""
    from todm import artifact
    from todm.asr.loading import backend_of, check_numbers, same_outputs
    from todm.search.budget import parse
    from todm.search.extract import extract_subnet
    from todm.search.select import describe

    check_numbers(candidates=args.candidates, limit=args.limit)
    budget = parse(args.budget)
    found = artifact.load(args.supernet, kind="supernet")
    if (done := _existing(args.out, found.hash, args)) is not None:
        print(f"done already: {done}")
        return 0
    with progress_report() as report:
        backend = backend_of(found, corpus=args.corpus, report=report)
        subnet = extract_subnet(
            backend,
            found,
            budget,
            args.out,
            compression=args.compression,
            num_candidates=args.candidates,
            limit=args.limit,
            same=same_outputs,
            asked=_asked(args),
            progress=lambda done, total: report(f"subnets for {budget.text}", done, total),
        )
    dev = subnet.metrics["dev"]
    print(
        f"budget {budget.text}: {describe(subnet.info['costs'])}; "
        f"dev WER {dev['error']:.2%} [{dev['low']:.2%}, {dev['high']:.2%}]\nsubnet: {subnet.path}"
    )
    return 0


def _existing(out: Path, parent: str, args: argparse.Namespace) -> Path | None:
    """`out` if it already holds what is asked for."""
    from todm import artifact

    if not (out / artifact.MANIFEST).is_file():
        return None
    done = artifact.load(out, kind="subnet")
    return out if done.parent == parent and done.info["asked"] == _asked(args) else None


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """What decides which subnet is found."""
    names = ("budget", "compression", "candidates", "limit")
    return {name: getattr(args, name) for name in names} | {"corpus": str(args.corpus or "")}

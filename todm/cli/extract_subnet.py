"""`todm extract-subnet SUPERNET --budget 2M --out DIR`: cut out the best subnet found for a budget."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm.cli.progress import progress_report

if TYPE_CHECKING:
    from todm.artifact import Artifact
    from todm.search.choice import Choice
    from todm.search.evolve import Problem

_ARITHMETIC = ("size", "memory", "latency", "rtf")
"""Costs that a compression changes: a budget of these may be met in int8."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("supernet", type=Path, help="directory that  todm train  wrote")
    parser.add_argument(
        "--budget",
        required=True,
        help="2M, size=3MiB, macs=400M, memory=40MiB, latency=20ms@pi5, rtf=0.1@local, or several "
        "joined by commas",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the subnet")
    parser.add_argument(
        "--front",
        type=Path,
        help="what  todm search  found (default: the one beside SUPERNET, if there is one)",
    )
    parser.add_argument(
        "--corpus", type=Path, help="corpus whose dev split decides (default: the one trained on)"
    )
    parser.add_argument(
        "--compression",
        help="what may be chosen (default: none,int8 for budgets of bytes or time, else none)",
    )
    parser.add_argument(
        "--candidates", type=int, default=12, help="subnets to score without a front (default 12)"
    )
    parser.add_argument(
        "--limit", type=int, default=150, help="dev utterances to score on then (default 150)"
    )


def run(args: argparse.Namespace) -> int:
    """Choose, extract, say what was chosen and what it costs."""
    from todm import artifact
    from todm.asr.loading import backend_of, check_numbers, same_outputs
    from todm.cli.scorers import problems_of, searched
    from todm.search.budget import parse
    from todm.search.devices import Devices
    from todm.search.extract import extract_subnet

    check_numbers(candidates=args.candidates, limit=args.limit)
    budget = parse(args.budget)
    found = artifact.load(args.supernet, kind="supernet")
    front = _front(args, found)
    asked = _asked(args, front)
    if (done := _existing(args.out, found.hash, asked)) is not None:
        print(f"done already: {done}")
        return 0
    compressions = searched(args.compression or _compressions(budget.limits))
    with progress_report() as report:
        backend = backend_of(found, corpus=args.corpus, report=report)
        devices = Devices(backend, report)
        (problem,) = problems_of([args.budget], backend, compressions, devices)
        problem.check()
        choice, candidates = _choose(args, found, front, problem, backend, report)
        measured = _measured(choice, budget.limits, devices)
        subnet = extract_subnet(
            backend,
            found,
            choice,
            args.out,
            same=same_outputs,
            costs=problem.costs(choice),
            info={"asked": asked, "candidates": candidates, "measured": measured},
        )
    _say(budget, subnet, choice, front)
    return 0


def _choose(
    args: argparse.Namespace,
    found: "Artifact",
    front: "Artifact | None",
    problem: "Problem",
    backend: Any,  # noqa: ANN401
    report: Any,  # noqa: ANN401
) -> "tuple[Choice, list[dict[str, Any]]]":
    """The best of the front that keeps the budget, or of a brief search; and all that were compared."""
    from todm.cli.scorers import evaluations_of
    from todm.search.evolve import SearchConfig, best, evolve
    from todm.search.front import read_points

    if front is not None:
        points = [
            (choice, figures["error"])
            for choice, figures in read_points(front)
            if choice.compression in problem.compressions and problem.holds(choice)
        ]
        if points:
            rows = [_row(problem, choice, error) for choice, error in points[: args.candidates]]
            return points[0][0], rows
    evaluations = evaluations_of(found, backend, limit=args.limit, path=None)
    config = SearchConfig(evaluations=args.candidates)
    seen = evolve(
        problem,
        evaluations,
        config,
        progress=lambda done: report(f"subnets for {args.budget}", done, args.candidates),
    )
    chosen = best(seen, evaluations)
    assert chosen is not None
    ranked = sorted(seen, key=lambda c: evaluations(c)["score"])
    return chosen, [_row(problem, c, evaluations(c)["error"]) for c in ranked]


def _row(problem: "Problem", choice: "Choice", error: float) -> dict[str, Any]:
    return {**choice.to_json(), "costs": dict(problem.costs(choice)), "error": error}


def _measured(choice: "Choice", limits: Any, devices: Any) -> dict[str, float]:  # noqa: ANN401
    """What can be measured here of the costs in the budget: time on this machine, bytes of the graphs."""
    from todm.search.devices import LOCAL

    found: dict[str, float] = {}
    precision = "fp32" if choice.compression == "none" else choice.compression
    if "size" in limits:
        found["size"] = float(devices.profile_builder().num_bytes(choice.subnet, precision))
    if f"latency@{LOCAL}" in limits or f"rtf@{LOCAL}" in limits:
        table = devices.measure([choice.subnet], rounds=20)
        (entry,) = (e for e in table["entries"] if e["precision"] == precision)
        seconds = (entry["ms"] + table["search_ms"][precision]) / 1e3
        found[f"latency@{LOCAL}"] = seconds
        features = (table["features_ms"] or 0.0) / 1e3
        found[f"rtf@{LOCAL}"] = (seconds + features) / table["chunk_seconds"]
    return found


def _say(budget: Any, subnet: "Artifact", choice: "Choice", front: "Artifact | None") -> None:  # noqa: ANN401
    from todm.search.budget import quantity

    costs, measured = subnet.info["costs"], subnet.info["measured"]
    names = dict.fromkeys(["params", "size", *budget.limits])
    told = []
    for name in names:
        text = quantity(name, costs[name])
        if name in measured:
            text += f" (measured {quantity(name, measured[name])})"
        elif "@" in name:
            text += " (predicted; measure it there)"
        told.append(text)
    dev = subnet.metrics["dev"]
    stored = "fp32" if choice.compression == "none" else choice.compression
    source = f"from the front {front.path}" if front else "found by a brief search"
    print(
        f"budget {budget.text}: {choice.subnet}, in {stored}, {source}: {', '.join(told)}; "
        f"dev WER {dev['error']:.2%} [{dev['low']:.2%}, {dev['high']:.2%}] in fp32\n"
        f"subnet: {subnet.path}"
    )


def _front(args: argparse.Namespace, found: "Artifact") -> "Artifact | None":
    """The front that is given, or lies beside the supernet and belongs to it."""
    from todm import artifact
    from todm.errors import ArtifactError

    path = args.front or args.supernet.resolve().parent / "front"
    if args.front is None and not (path / artifact.MANIFEST).is_file():
        return None
    front = artifact.load(path, kind="front")
    if front.parent == found.hash:
        return front
    if args.front is None:
        return None
    raise ArtifactError(
        f"{path} is the front of another supernet than {args.supernet}: search this one"
    )


def _compressions(limits: Any) -> str:  # noqa: ANN401
    bytes_or_time = any(name.partition("@")[0] in _ARITHMETIC for name in limits)
    return "none,int8" if bytes_or_time else "none"


def _existing(out: Path, parent: str, asked: dict[str, Any]) -> Path | None:
    """`out` if it already holds what is asked for."""
    from todm import artifact

    if not (out / artifact.MANIFEST).is_file():
        return None
    done = artifact.load(out, kind="subnet")
    return out if done.parent == parent and done.info["asked"] == asked else None


def _asked(args: argparse.Namespace, front: "Artifact | None") -> dict[str, Any]:
    """What decides which subnet is found."""
    names = ("budget", "compression", "candidates", "limit")
    return {
        **{name: getattr(args, name) for name in names},
        "corpus": str(args.corpus or ""),
        "front": front.hash if front else "",
    }

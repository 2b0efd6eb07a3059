"""The latency model against a stopwatch: random subnets of a supernet, predicted and measured here.

    python -m benchmarks.studies.latency_model SUPERNET --out DIR

measures the subnets of a table and as many others, in turns in the same rounds, predicts the others from
the table, and writes latency_model.json and latency_model.png. With --table an earlier table predicts, so
that a machine that has become slower counts as an error.

Only encoders are compared: the search over their frames is the same for all subnets and would flatter
the model. Each graph is joined from exported parts and has the same operators as an export of that
subnet (tests/export/test_stitch.py).
"""

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.results import write
from todm import artifact
from todm.asr.loading import backend_of
from todm.errors import TodmError
from todm.export.profile_pack import design
from todm.search.choice import Choice, Compression
from todm.search.devices import Devices
from todm.search.latency import LatencyModel
from todm.supernet.space import SearchSpace, Subnet

NAME = "latency_model"
_COMPRESSIONS: Mapping[str, Compression] = {"fp32": "none", "int8": "int8"}
Pairs = list[tuple[float, float]]


def compare(table: Mapping[str, Any], model: LatencyModel) -> dict[str, Pairs]:
    """(predicted, measured) milliseconds of every encoder of a table, by precision."""
    found: dict[str, Pairs] = {}
    for entry in table["entries"]:
        choice = Choice(Subnet.from_json(entry["subnet"]), _COMPRESSIONS[entry["precision"]])
        pair = 1e3 * model.encoder(choice), float(entry["ms"])
        found.setdefault(entry["precision"], []).append(pair)
    return found


def figures(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Spearman's rank correlation, and median and largest relative error of the predictions."""
    from scipy.stats import rankdata

    predicted, measured = np.array(pairs).T
    error = np.abs(predicted / measured - 1)
    return {
        "rank_correlation": float(np.corrcoef(rankdata(predicted), rankdata(measured))[0, 1]),
        "median_error": float(np.median(error)),
        "largest_error": float(error.max()),
        "least_ms": float(measured.min()),
        "most_ms": float(measured.max()),
        "subnets": len(pairs),
    }


def unseen(space: SearchSpace, known: Sequence[Subnet], num: int, seed: int) -> list[Subnet]:
    """Random subnets that are not among the known ones."""
    rng, found = random.Random(seed), dict[Subnet, None]()
    for _ in range(200 * num):
        subnet = space.sample(rng)
        if subnet not in known:
            found[subnet] = None
        if len(found) == num:
            break
    return list(found)


def plot(pairs: Mapping[str, Pairs], path: Path) -> None:
    """Predicted against measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    most = max(max(pair) for rows in pairs.values() for pair in rows)
    axes.plot([0, most], [0, most], "k:", lw=0.8)
    for precision, rows in pairs.items():
        found = figures(rows)
        label = (
            f"{precision}: rank correlation {found['rank_correlation']:.3f}, "
            f"median error {found['median_error']:.1%}"
        )
        axes.plot([m for _, m in rows], [p for p, _ in rows], ".", label=label)
    axes.set_xlabel("measured, ms a chunk (encoder)")
    axes.set_ylabel("predicted")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)


def _of(table: Mapping[str, Any], subnets: Sequence[Subnet]) -> dict[str, Any]:
    """A table with only the entries of these subnets."""
    wanted = set(subnets)
    rows = [e for e in table["entries"] if Subnet.from_json(e["subnet"]) in wanted]
    return {**table, "entries": rows}


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """Figures and pairs by precision, and the machine."""

    def report(what: str, done: int, total: int) -> None:
        if done == total:
            sys.stderr.write(f"{what}: {done} done\n")

    found = artifact.load(args.supernet, kind="supernet")
    devices = Devices(backend_of(found, with_data=False), report)
    known = devices.table(args.table) if args.table else None
    own = [] if known else design(devices.space)
    subnets = unseen(devices.space, own, args.subnets, args.seed)
    measured = devices.measure([*own, *subnets], rounds=args.rounds)
    table = known or _of(measured, own)
    pairs = compare(_of(measured, subnets), LatencyModel(table, devices.space))
    return {
        "machine": table["machine"],
        "clock": measured["clock"],
        "rounds": args.rounds,
        "same_rounds": known is None,
        "subnets_in_table": len(table["entries"]) // len(pairs),
        "figures": {precision: figures(rows) for precision, rows in pairs.items()},
        "pairs_ms": pairs,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; status 2, with a one-line message, for errors that the user can correct."""
    parser = argparse.ArgumentParser(description="predicted against measured latency of subnets")
    parser.add_argument("supernet", type=Path, help="directory that  todm train  wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subnets", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=40, help="turns of every graph (40)")
    parser.add_argument("--table", help="an earlier table, `local` or another name or path")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    try:
        found = _measure(args)
    except TodmError as error:
        sys.stderr.write(f"benchmarks.studies.latency_model: {error}\n")
        return 2
    write(args.out / f"{NAME}.json", found, indent=1)
    plot(found["pairs_ms"], args.out / f"{NAME}.png")
    for precision, row in found["figures"].items():
        sys.stdout.write(
            f"{precision}: {row['subnets']} subnets of {row['least_ms']:.2f} to "
            f"{row['most_ms']:.2f} ms; rank correlation {row['rank_correlation']:.3f}, error "
            f"{row['median_error']:.1%} in the median, {row['largest_error']:.1%} at most\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

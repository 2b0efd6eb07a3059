"""`todm extract-subnet SUPERNET --budget 2M --out DIR`: cut out the best subnet found for a budget."""

import argparse
from typing import TYPE_CHECKING

from todm import stages
from todm.cli.arguments import Flags, given
from todm.cli.progress import progress_report

if TYPE_CHECKING:
    from todm.stages.extraction import Extracted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    flag = Flags(parser, stages.extract_subnet)
    flag("supernet", "directory that  todm train  wrote")
    flag(
        "--budget",
        "2M, size=3MiB, macs=400M, memory=40MiB, latency=20ms@pi5, rtf=0.1@local, or several joined "
        "by commas",
    )
    flag("--out", "directory of the subnet")
    flag("--front", "what  todm search  wrote (default: the one beside SUPERNET, if there is one)")
    flag("--corpus", "corpus whose dev split decides (default: the one trained on)")
    flag(
        "--compression",
        "what may be chosen (default: none,int8 for budgets of bytes or time, else none)",
    )
    flag("--candidates", "subnets to score without a front (default %(default)s)")
    flag("--limit", "dev utterances to score on then (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Extract, and say what was chosen and what it costs."""
    with progress_report() as progress:
        found = stages.extract_subnet(**given(args, stages.extract_subnet), progress=progress)
    print(f"done already: {found.subnet.path}" if found.existed else _summary(found))
    return 0


def _summary(found: "Extracted") -> str:
    from todm.search.budget import quantity

    subnet, choice = found.subnet, found.choice
    costs, measured = subnet.info["costs"], subnet.info["measured"]
    words = []
    for name in dict.fromkeys(["params", "size", *found.budget.limits]):
        text = quantity(name, costs[name])
        if name in measured:
            text += f" (measured {quantity(name, measured[name])})"
        elif "@" in name:
            text += " (predicted; measure it there)"
        words.append(text)
    dev = subnet.metrics["dev"]
    stored = "fp32" if choice.compression == "none" else choice.compression
    source = f"from the front {found.front.path}" if found.front else "found by a brief search"
    return (
        f"budget {found.budget.text}: {choice.subnet}, in {stored}, {source}: {', '.join(words)}; "
        f"dev WER {dev['error']:.2%} [{dev['low']:.2%}, {dev['high']:.2%}] in fp32\n"
        f"subnet: {subnet.path}"
    )

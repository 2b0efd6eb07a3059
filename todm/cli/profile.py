"""`todm profile SUPERNET`: how fast the subnets of a supernet are on this machine, or on any device."""

import argparse
from typing import Any

from todm import stages
from todm.cli.arguments import Flags, given
from todm.cli.progress import progress_report
from todm.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    flag = Flags(parser, stages.profile)
    flag("supernet", "directory that  todm train  wrote")
    flag("--rounds", "turns of every graph on this machine (default %(default)s)")
    pack = Flags(parser, stages.write_pack)
    pack(
        "--pack",
        "write a folder that measures any device instead",
        metavar="DIR",
        required=False,
    )
    flag = Flags(parser, stages.keep_table)
    flag(
        "--import",
        "keep a table from a device instead",
        dest="table",
        metavar="FILE",
        required=False,
    )
    flag("--name", "of the device in budgets, with --import (default: as the table says)")


def run(args: argparse.Namespace) -> int:
    """Measure, write the pack, or keep a table."""
    if args.pack and args.table:
        raise ConfigError("--pack and --import are two commands: give one of them")
    if args.name and not args.table:
        raise ConfigError("--name is for --import: give both or neither")
    if args.table:
        print(f"table: {stages.keep_table(**given(args, stages.keep_table))}")
        return 0
    with progress_report() as progress:
        if args.pack:
            pack = stages.write_pack(**given(args, stages.write_pack), progress=progress)
            print(f"pack: {pack}; copy it to the device and run  python3 measure.py --name NAME")
        else:
            made = stages.profile(**given(args, stages.profile), progress=progress)
            print(f"{_summary(made.table)}\ntable: {made.path}")
    return 0


def _summary(table: dict[str, Any]) -> str:
    """The range of the encoders, the search, and what the largest spends its time on."""
    lines = []
    for precision, search in table["search_ms"].items():
        times = [e["ms"] for e in table["entries"] if e["precision"] == precision]
        top = list(table["operators_ms"].get(precision, {}).items())[:4]
        lines.append(
            f"{precision:5} encoder {min(times):.2f} to {max(times):.2f} ms a chunk of "
            f"{table['chunk_seconds']:g} s, search {search:.2f} ms; largest: "
            + ", ".join(f"{op} {ms:.2f}" for op, ms in top)
        )
    return "\n".join(lines)

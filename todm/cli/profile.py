"""`todm profile SUPERNET`: how fast the subnets of a supernet are on this machine, or on any device."""

import argparse
from pathlib import Path
from typing import Any

from todm.cli.progress import progress_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("supernet", type=Path, help="directory that  todm train  wrote")
    parser.add_argument(
        "--pack", type=Path, metavar="DIR", help="write a folder that measures any device instead"
    )
    parser.add_argument(
        "--import", type=Path, dest="table", metavar="FILE", help="keep a table from a device"
    )
    parser.add_argument("--name", help="of the imported device in budgets (the table's own)")
    parser.add_argument(
        "--rounds", type=int, default=20, help="turns of every graph on this machine (20)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, write the pack, or keep a table."""
    from todm import artifact
    from todm.asr.loading import backend_of, check_numbers
    from todm.errors import ConfigError
    from todm.search.devices import Devices

    if args.pack and args.table:
        raise ConfigError("--pack and --import are two commands: give one of them")
    check_numbers(rounds=args.rounds)
    found = artifact.load(args.supernet, kind="supernet")
    with progress_report() as report:
        devices = Devices(backend_of(found, with_data=False), report)
        if args.pack:
            _pack(devices, args.pack, report)
            print(
                f"pack: {args.pack}; copy it to the device and run  python3 measure.py --name NAME"
            )
        elif args.table:
            print(f"table: {devices.bring(args.table, args.name)}")
        else:
            path, table = devices.profile(rounds=args.rounds)
            print(_summary(table) + f"\ntable: {path}")
    return 0


def _pack(devices: Any, folder: Path, report: Any) -> None:  # noqa: ANN401
    from todm.export.profile_pack import design

    profile_builder = devices.profile_builder()
    profile_builder.write_pack(
        folder,
        design(devices.space),
        progress=lambda done, total: report("graphs of the pack", done, total),
    )


def _summary(table: dict[str, Any]) -> str:
    """The range of encoders, the search, and what the largest spends its time on."""
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

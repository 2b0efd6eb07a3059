"""Keeps a trained subnet for these tests, without what it says of the machine it was cut on.

python tests/always_on/keep_subnet.py SUBNET
"""

import shutil
import sys
from pathlib import Path

from todm import artifact

KEPT = ("subnet", "compression", "costs")


def main(source: str) -> None:
    """Write `subnet/` anew."""
    found = artifact.load(source, kind="subnet")

    def write(folder: Path) -> None:
        for name in found.files:
            shutil.copyfile(found.path / name, folder / name)

    artifact.save(
        Path(__file__).with_name("subnet"),
        kind="subnet",
        config=found.config,
        metrics=found.metrics,
        info={key: found.info[key] for key in KEPT},
        write=write,
    )


if __name__ == "__main__":
    main(sys.argv[1])

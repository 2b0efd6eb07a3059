"""Rows as trainings would leave them."""

import numpy as np
import pytest

from benchmarks.studies.claim import rows


def make_row(run, *, rate=0.3, num=30, cpu_seconds=60.0, **changes):
    """A row whose words are wrong with this probability; every row has the same `num` utterances."""
    words = np.random.default_rng(0).integers(1, 8, num)
    rng = np.random.default_rng([run.seed, *map(ord, run.name)])
    sizes = list(run.subnets())
    fields = {
        "part": run.part,
        "run": run.name,
        "seed": run.seed,
        "settings": list(run.settings),
        "changes": list(run.changes),
        "updates": run.recipe.train.num_updates,
        "command": "todm train",
        "attempts": [{"commit": "0123456789abcdef+", "cpu_seconds": cpu_seconds}],
        "cpu_seconds": cpu_seconds,
        "machine": {"torch": "2.11.0", "processor": "a CPU"},
        "corpus": "c0",
        "fingerprint": "f0",
        "artifact": "a0",
        "config": run.config,
        "parameters": dict.fromkeys(sizes, 200_000),
        "words": words.tolist(),
        "errors": {size: rng.binomial(words, rate).tolist() for size in sizes},
    }
    return rows.Row(**(fields | changes))


class RowMaker:
    """Makes rows, and writes them to a folder."""

    make = staticmethod(make_row)

    @staticmethod
    def write(folder, runs, **changes):
        """Write the row of each run; `changes` are as for `make_row`."""
        for run in runs:
            rows.write(rows.path_of(folder, run), make_row(run, **changes))


@pytest.fixture
def row_maker():
    return RowMaker()

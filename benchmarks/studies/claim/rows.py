"""Rows: what is kept of a finished training, one file each, and all that the tables are made from."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies.claim.plan import Run
from todm.errors import ConfigError
from todm.files import read_json, write_text

ROWS = Path(__file__).resolve().parents[2] / "results" / "claim"
Key = tuple[str, int]
"""A run's name and its seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A finished training and its errors on the test split.

    Attributes:
        part: name of the part.
        run: `supernet`, `alone-SIZE`, or an ablation.
        seed: of the training.
        settings: beside the recipe's, A.B=C.
        changes: those that make it differ from the part's supernet.
        updates: of the training.
        command: that trained it.
        attempts: of each process that trained it the commit (`+`: todm has changes), CPU seconds and exit
            status; None if the study was killed, and then the seconds are those noted last.
        cpu_seconds: of all attempts.
        machine: where, with versions, and the load at the end.
        corpus: hash of the corpus.
        fingerprint: of everything that the corpus was made from.
        artifact: hash of the trained net.
        config: the whole recipe.
        parameters: by size.
        words: of each test utterance, in the order of their ids.
        errors: the same by size.
    """

    part: str
    run: str
    seed: int
    settings: list[str]
    changes: list[str]
    updates: int
    command: str
    attempts: list[dict[str, Any]]
    cpu_seconds: float
    machine: dict[str, Any]
    corpus: str
    fingerprint: str
    artifact: str
    config: dict[str, Any]
    parameters: dict[str, int]
    words: list[int]
    errors: dict[str, list[int]]

    def __str__(self) -> str:
        return f"{self.part}/{self.run}-{self.seed}"


def path_of(folder: Path, run: Run) -> Path:
    """The file of a run's row."""
    return folder / f"{run.stem}.json"


def write(path: Path, row: Row) -> None:
    """Write a row with one list a line, whole or not at all."""
    fields = dataclasses.asdict(row)
    errors = ",\n  ".join(f"{_compact(k)}: {_compact(v)}" for k, v in fields["errors"].items())
    lines = [f" {_compact(k)}: {_compact(v)}" for k, v in fields.items() if k != "errors"]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, ",\n".join(["{\n" + lines[0], *lines[1:], f' "errors": {{{errors}}}\n}}\n']))


def read(path: Path) -> Row:
    """A row.

    Raises:
        ConfigError: the file is damaged, or no row.
    """
    found = read_json(path)
    lists = [found.get("words"), *_values(found.get("errors"))]
    if found.keys() != {f.name for f in dataclasses.fields(Row)} or len({*map(_size, lists)}) != 1:
        raise ConfigError(f"{path} is not a row of this study, or damaged: restore or remove it")
    return Row(**found)


def load(folder: Path, part: str) -> dict[Key, Row]:
    """The rows of a part, by run and seed.

    Raises:
        ConfigError: one of them is damaged or stands for another training than its name says.
    """
    rows: dict[Key, Row] = {}
    for path in sorted((folder / part).glob("*.json")):
        row = read(path)
        if str(row) != f"{part}/{path.stem}":
            raise ConfigError(f"{path} holds the row {row}: rename or remove it")
        rows[row.run, row.seed] = row
    return rows


def check_comparable(rows: Iterable[Row]) -> None:
    """Check that rows differ in nothing but their seeds and what their runs change.

    Raises:
        ConfigError: corpora or settings differ; the message names two rows.
    """
    first, *others = sorted(rows, key=lambda row: len(row.changes))
    remedy = "remove one of them and train it again"
    for row in others:
        both = f"the rows {row} and {first} cannot be compared"
        if (row.fingerprint, row.words) != (first.fingerprint, first.words):
            raise ConfigError(f"{both}, since their corpora differ: {remedy}")
        varied = {"train.seed", *_names(row.changes), *_names(first.changes)}
        for name, mine, other in differences(row.config, first.config):
            if name not in varied:
                raise ConfigError(f"{both}, {name} is {mine!r} and {other!r}: {remedy}")


def check_planned(row: Row, run: Run, fingerprint: str) -> None:
    """Check that a row is that of a planned run, or can be compared with what will be its row.

    Raises:
        ConfigError: it has another corpus or other settings.
    """
    remedy = "remove that row, or name another folder with --rows"
    if row.fingerprint != fingerprint:
        raise ConfigError(f"the row {row} is of another corpus: give that one, {remedy}")
    varied: set[str] = set()
    if (row.part, row.run, row.seed) != (run.part, run.name, run.seed):
        varied = {"train.seed", *_names(row.changes), *_names(run.changes)}
    for name, there, here in differences(row.config, run.config):
        if name not in varied:
            raise ConfigError(f"the row {row} has {name} {there!r}, not {here!r}: {remedy}")


def _names(changes: Iterable[str]) -> Iterator[str]:
    return (change.partition("=")[0] for change in changes)


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> Iterator[tuple[str, object, object]]:
    """Settings of two recipes that differ: (name, in one, in the other).

    Settings that only one of them has are no difference: an older version lacked them. Neither is the
    corpus, which has a fingerprint.
    """
    first, second = _flat(one), _flat(other)
    for name, value in first.items():
        if name in second and value != second[name]:
            yield name, value, second[name]


def _flat(config: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{where}{key}"
        if isinstance(value, Mapping):
            found.update({} if name == "asr.data" else _flat(value, f"{name}."))
        else:
            found[name] = value
    return found


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _values(found: object) -> Sequence[object]:
    return list(found.values()) if isinstance(found, dict) else [None]


def _size(found: object) -> int:
    return len(found) if isinstance(found, list) else -1

"""Tables are made of a known sum of blocks; the fit has to find it again."""

import json
import random

import numpy as np
import pytest

from todm.device.profiler import FORMAT_VERSION, KIND, checksum
from todm.errors import ConfigError
from todm.search.choice import Choice
from todm.search.latency import LatencyModel, read_table

SHARES = {"ffn": {16: 0.1, 32: 0.15, 48: 0.3, 64: 0.35}, "pairs": {1: 0.2, 2: 0.5, 3: 0.6}}
KEY = "a" * 16


def _ms(subnet, factor=1.0):
    blocks = sum(SHARES[name][w] for name, values in subnet.widths for w in values)
    return factor * (0.4 + blocks)


@pytest.fixture
def table(space):
    """Of thirty subnets, int8 twice as fast."""
    rng = random.Random(0)
    subnets = [*space.uniforms()][::2] + [space.sample(rng) for _ in range(12)]
    found = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "name": "pi5",
        "space": KEY,
        "chunk_seconds": 0.64,
        "frames": 16,
        "machine": {},
        "num_threads": 1,
        "entries": [
            {"subnet": s.to_json(), "precision": p, "ms": _ms(s, f), "wall_ms": 1.0}
            for s in subnets
            for p, f in (("fp32", 1.0), ("int8", 0.5))
        ],
        "search_ms": {"fp32": 3.0, "int8": 2.0},
        "features_ms": 1.0,
        "operators_ms": {},
    }
    return found | {"sha256": checksum(found)}


def _write(path, table, **changes):
    path.write_text(json.dumps({**table, **changes}))
    return path


@pytest.mark.parametrize(
    ("compression", "factor", "search"), [("none", 1, 3.0), ("int8", 0.5, 2.0)]
)
def test_a_sum_of_blocks_is_found_again(space, table, compression, factor, search):
    model, rng = LatencyModel(table, space), random.Random(5)
    for _ in range(20):
        subnet = space.sample(rng)
        choice = Choice(subnet, compression)
        assert model.encoder(choice) == pytest.approx(_ms(subnet, factor) / 1e3, rel=1e-3)
        seconds = (_ms(subnet, factor) + search) / 1e3
        assert model.latency(choice) == pytest.approx(seconds, rel=1e-3)
        assert model.rtf(choice) == pytest.approx((seconds + 1e-3) / 0.64, rel=1e-3)


def test_disturbed_measurements_weigh_little(space, table):
    draws = np.random.default_rng(0)
    for i, entry in enumerate(table["entries"]):
        entry["ms"] *= 2.0 if i % 9 == 4 else draws.uniform(0.99, 1.01)
    model, rng = LatencyModel(table, space), random.Random(5)
    errors = []
    for _ in range(30):
        subnet = space.sample(rng)
        errors.append(abs(1e3 * model.encoder(Choice(subnet)) / _ms(subnet) - 1))
    assert np.median(errors) < 0.02
    assert max(errors) < 0.08


def test_features_that_were_not_measured_count_nothing(space, table):
    model = LatencyModel({**table, "features_ms": None}, space)
    choice = Choice(space.smallest)
    assert model.rtf(choice) == pytest.approx(model.latency(choice) / 0.64)


def test_what_was_not_measured_is_not_guessed(space, table):
    with pytest.raises(ConfigError, match="table of pi5 has no times of int4: it has fp32, int8"):
        LatencyModel(table, space).latency(Choice(space.smallest, "int4"))


def test_a_whole_table_is_read(table, tmp_path):
    assert read_table(_write(tmp_path / "t.json", table), KEY) == table


@pytest.mark.parametrize(
    "changes",
    [
        {"chunk_seconds": 0.32},
        {"entries": []},
        {"search_ms": {"fp32": 3.0}},
        {"name": 3},
        {"sha256": "0" * 64},
        {"machine": None},
    ],
)
def test_a_changed_table_is_damaged(table, tmp_path, changes):
    with pytest.raises(ConfigError, match="is damaged: measure the device again"):
        read_table(_write(tmp_path / "t.json", table, **changes), KEY)


@pytest.mark.parametrize(
    "rows",
    [
        [{"precision": "fp32", "ms": 1.0}],
        [{"subnet": {"blocks": [0], "widths": {}}, "precision": "fp32", "ms": -1.0}],
        [{"subnet": {"blocks": [0], "widths": {}}, "precision": "fp32", "ms": "fast"}],
        [7],
    ],
)
def test_entries_are_checked_even_if_the_sum_is_right(table, tmp_path, rows):
    """A table is data from a stranger."""
    table |= {"entries": rows, "search_ms": {"fp32": 1.0}}
    table["sha256"] = checksum(table)
    with pytest.raises(ConfigError, match="is damaged"):
        read_table(_write(tmp_path / "t.json", table), KEY)


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}', "[1, 2]", "null"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ConfigError, match=r"t\.json is (damaged|not the table of a device)"):
        read_table(tmp_path / "t.json", KEY)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json cannot be read"):
        read_table(tmp_path / "none.json", KEY)


def test_another_version_is_refused(table, tmp_path):
    with pytest.raises(ConfigError, match="has format 99, this todm reads 1"):
        read_table(_write(tmp_path / "t.json", table, format_version=99), KEY)


def test_a_table_of_another_space_is_refused(table, tmp_path):
    with pytest.raises(ConfigError, match="measured for another search space or chunk"):
        read_table(_write(tmp_path / "t.json", table), "b" * 16)

"""The table of measured times by which an op takes one of its algorithms."""

import dataclasses
import json

import pytest
import torch

from todm.errors import ConfigError
from todm.kernels import _choice

SHAPE = _choice.Shape("a GPU", "2.11", "float16", 64, 512, 2048)


def _table(path, dense, sparse):
    """A table whose timer returns these milliseconds, and the calls it has timed."""
    calls = []

    def timer(call):
        calls.append(call)
        return {"dense": dense, "sparse": sparse}[call()]

    return _choice.Table(path, timer), calls


def _file(times):
    return f'{{"version": 1, "ms": {{"{SHAPE.key()}": {times}}}}}'


def _algorithms():
    return {"dense": lambda: "dense", "sparse": lambda: "sparse"}


@pytest.mark.parametrize(
    ("dense", "sparse", "want"),
    [(2.0, 1.0, "sparse"), (1.0, 2.0, "dense"), (1.04, 1.0, "dense"), (1.06, 1.0, "sparse")],
)
def test_sparse_is_taken_where_it_gains(tmp_path, dense, sparse, want):
    table, _ = _table(tmp_path / "t.json", dense, sparse)
    assert table.choose(SHAPE, _algorithms) == want


def test_a_shape_is_measured_once_and_for_all_processes(tmp_path):
    path = tmp_path / "folder" / "t.json"
    table, calls = _table(path, 2.0, 1.0)
    assert [table.choose(SHAPE, _algorithms) for _ in range(3)] == ["sparse"] * 3
    again, later = _table(path, 1.0, 2.0)
    assert again.choose(SHAPE, _algorithms) == "sparse"
    assert (len(calls), len(later)) == (2, 0)
    assert again.choose(SHAPE._replace(rows=128), _algorithms) == "dense"
    assert [p.name for p in path.parent.iterdir()] == ["t.json"]


def test_what_another_process_measured_is_kept(tmp_path):
    path = tmp_path / "t.json"
    (one, _), (other, _) = _table(path, 2.0, 1.0), _table(path, 2.0, 1.0)
    one.choose(SHAPE, _algorithms)
    other.choose(SHAPE._replace(rows=128), _algorithms)
    assert len(json.loads(path.read_text())["ms"]) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 0, "ms": {}}',
        _file('{"dense": "fast", "sparse": 1.0}'),
        _file('{"sparse": 1.0}'),
        _file('{"dense": 1.0, "sparse": -1.0}'),
        _file('{"dense": NaN, "sparse": 1.0}'),
    ],
    ids=["empty", "cut", "list", "version", "word", "no dense", "negative", "NaN"],
)
def test_a_damaged_table_is_measured_anew(tmp_path, caplog, text):
    path = tmp_path / "t.json"
    path.write_text(text)
    table, calls = _table(path, 2.0, 1.0)
    assert "is not a table of times" in caplog.text
    assert table.choose(SHAPE, _algorithms) == "sparse"
    assert len(calls) == 2
    assert json.loads(path.read_text())["ms"] == {SHAPE.key(): {"dense": 2.0, "sparse": 1.0}}


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    table, calls = _table(tmp_path / "file" / "t.json", 2.0, 1.0)
    assert [table.choose(SHAPE, _algorithms) for _ in range(2)] == ["sparse"] * 2
    assert len(calls) == 2
    assert f"{tmp_path / 'file' / 't.json'}: measured times are not kept" in caplog.text


def test_rows_share_entries():
    assert [_choice.bucket(rows) for rows in (1, 16, 17, 64, 1000)] == [16, 16, 32, 64, 1024]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _choice.table.cache_clear()
    yield tmp_path / "todm"
    _choice.table.cache_clear()


def test_every_op_has_a_table_in_the_users_cache(cache):
    for op in ("matmul_24", "matmul_w4"):
        _choice.table(op)._save()
    assert _choice.table("matmul_24") is _choice.table("matmul_24")
    assert sorted(p.name for p in cache.iterdir()) == ["matmul_24.json", "matmul_w4.json"]


@dataclasses.dataclass(frozen=True)
class _Problem:
    x_MK: torch.Tensor
    bias: float = 0.5


def _fastest_algorithm(monkeypatch, seen, *, capturing=False):
    """What `fastest_algorithm` says of 50 rows where `packed` takes 1 ms and `dense` 3."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(_choice, "cuda_ms", lambda call: call())
    algorithms = {
        "packed": lambda p: seen.append(p) or 1.0,
        "dense": lambda p: seen.append(p) or 3.0,
    }
    problem = _Problem(torch.ones(50, 7, dtype=torch.float16), bias=2.0)
    return _choice.fastest_algorithm("op", SHAPE, problem=problem, algorithms=algorithms)


def test_candidates_are_the_call_on_as_many_rows_as_the_entry_has(monkeypatch, cache):
    seen, before = [], torch.get_rng_state()
    assert [_fastest_algorithm(monkeypatch, seen) for _ in range(2)] == ["packed", "packed"]
    assert torch.equal(torch.get_rng_state(), before)
    assert [(p.x_MK.shape, p.x_MK.dtype, p.bias) for p in seen] == [
        ((64, 7), torch.float16, 2.0),
        ((64, 7), torch.float16, 2.0),
    ]
    assert float(seen[0].x_MK.std()) == pytest.approx(1, abs=0.2)
    assert torch.equal(seen[0].x_MK, seen[1].x_MK)
    assert json.loads((cache / "op.json").read_text())["ms"] == {
        SHAPE.key(): {"packed": 1.0, "dense": 3.0}
    }


def test_inside_a_cuda_graph_only_what_is_measured_can_be_chosen(monkeypatch, cache):
    seen = []
    words = r"^op: 64 rows of this layer are not measured yet.* give algorithm='packed' or algorithm='dense'$"
    with pytest.raises(ConfigError, match=words):
        _fastest_algorithm(monkeypatch, seen, capturing=True)
    assert seen == []
    _fastest_algorithm(monkeypatch, seen)
    assert _fastest_algorithm(monkeypatch, seen, capturing=True) == "packed"

import json
import os

import pytest
import torch

from todm.train.monitor import BAD_BATCHES, METRICS, read_metrics
from todm.train.parallel import PARENT, LostProcess, World

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)


def _read(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def alone(two):
    """The same by one process, which has the whole batch."""
    return two.all_gradients(World())


CASES = ["a sandwich", "the largest alone", "the last pass wider than the one before"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_one_process(two_done, alone, case):
    """Of every parameter, though blocks go unused in the last pass."""
    for rank in range(2):
        got, want = _read(two_done / f"gradients-{rank}.pt")[case], alone[case]
        assert got.keys() == want.keys()
        assert got.pop("num_labels") == want["num_labels"] / 2  # the mean over processes
        for name, grad in got.items():
            torch.testing.assert_close(grad, want[name], rtol=1e-5, atol=1e-5, msg=name)


def test_every_case_has_gradients_everywhere(alone, two):
    """What is compared above is not zero: the smallest net drops blocks 1 and 2, others use them."""
    assert two.SPACE.smallest.blocks == (0, 3)
    for name, grad in alone["a sandwich"].items():
        assert name == "num_labels" or (grad != 0).any(), name


@pytest.mark.slow
def test_means_are_of_one_dtype_each_and_of_what_any_process_has(two_done):
    for rank in range(2):
        got = _read(two_done / f"averages-{rank}.pt")
        assert got["neither"] is None
        assert (got["frozen"] == 1 + 2 * rank).all()  # left alone
        for name, mean in {"both": 2.0, "bfloat16": 2.0, "second": 1.5}.items():
            assert got[name].shape == (2, 3)
            assert (got[name] == mean).all(), name
        assert got["bfloat16"].dtype == torch.bfloat16


@pytest.mark.slow
def test_a_training_by_two_is_one_by_one(two_done, two, tmp_path):
    """Both processes return the artifact; weights differ by rounding only."""
    want = two.trained(tmp_path)
    first, second = (_read(two_done / f"weights-{rank}.pt") for rank in range(2))
    for name, value in want.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_two_processes_have_the_same_masks(two_done):
    """With dropout of their own, and batches of their own."""
    first, second = (_read(two_done / f"masked-{rank}.pt") for rank in range(2))
    assert first["digests"] == second["digests"]
    assert len(set(first["digests"])) > 2
    layers = [weight for weight in first["weights"].values() if weight.ndim > 1]
    assert [int(weight.count_nonzero()) for weight in layers] == [4, 4, 4]


@pytest.mark.slow
def test_two_processes_resume_exactly(two_done):
    found = _read(two_done / "resumed-0.pt")
    for name, value in found["straight"].items():
        assert torch.equal(found["resumed"][name], value)


REFUSALS = {
    "settings": "training process 1 disagrees with process 0 on: settings; start all with the same",
    "weights": "training process 1 disagrees with process 0 on: weights; run all processes with the",
    "checkpoint": "training process 1 disagrees with process 0 on: checkpoint; put --out on a disk",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", REFUSALS)
def test_processes_that_differ_are_refused_by_all(two_done, what):
    for rank in range(2):
        assert _read(two_done / f"refusals-{rank}.pt")[what].startswith(REFUSALS[what])


@pytest.mark.slow
def test_a_bad_batch_of_one_process_is_skipped_by_all_and_found(two_done):
    """Only the second process has bad batches: both stop at the same step, and its ids are there."""
    errors = [_read(two_done / f"refusals-{rank}.pt")["bad"] for rank in range(2)]
    assert errors[0] == errors[1]
    assert errors[0].startswith(
        "3 steps in a row were skipped, the last because the loss is not finite"
    )
    rows = [json.loads(line) for line in (two_done / "bad" / BAD_BATCHES).read_text().splitlines()]
    assert [(r["update"], r["process"]) for r in rows] == [
        (u, p) for u in (2, 3, 4) for p in (0, 1)
    ]
    assert [r["process"] for r in rows if r["loss"] == "nan"] == [1, 1, 1]
    assert rows[1]["ids"] == ["row-2-1", "row-2-3", "row-2-5", "row-2-7"]


@pytest.mark.slow
def test_a_process_that_is_gone_is_noticed_at_once(two_done):
    error = _read(two_done / "lost-0.pt")
    assert error.startswith("another process of this training is gone: run the same command again")


@pytest.mark.slow
def test_throughput_is_that_of_all_processes(two_done):
    rows = [r for r in read_metrics(two_done / "run" / METRICS) if r["kind"] == "train"]
    for row in rows:
        each = row["audio_hours_per_hour_per_process"]
        assert row["audio_hours_per_hour"] == pytest.approx(2 * each)


def test_one_process_is_left_as_it_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    order, parameter = [], torch.nn.Parameter(torch.ones(2))
    parameter.grad = grad = torch.ones(2)
    with World().joined() as world:
        assert (world.rank, world.size) == (0, 1)
        world.average_gradients([parameter])
        assert parameter.grad is grad
        with world.rank_zero_first():
            order.append("body")
        world.barrier()
        assert world.all_reduce_sum([1.5, 2.0]) == [1.5, 2.0]
        assert world.all_gather({"a": 1}) == [{"a": 1}]
        world.assert_same({"a": 1}, what="settings", hint="")
    assert order == ["body"]
    assert not torch.distributed.is_initialized()


def test_a_process_whose_parent_is_gone_stops(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv(PARENT, str(os.getppid()))
    assert World().all_reduce_sum([1.0]) == [1.0]
    monkeypatch.setenv(PARENT, str(2**22 + 1))
    with pytest.raises(LostProcess, match="the process that started this training is gone"):
        World().all_reduce_sum([1.0])

import os
import socket
import subprocess
import sys
import time

import pytest
import torch

from todm.errors import TrainingError
from todm.train.parallel import World, helpers

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)


def _free_ports(num):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(num)]
    ports = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def done(two, tmp_path_factory):
    """What two processes leave, as torchrun would start them."""
    out = tmp_path_factory.mktemp("two")
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    env = {**os.environ, **shared, "GLOO_SOCKET_IFNAME": loopback, "PYTHONPATH": "."}
    env["CUDA_VISIBLE_DEVICES"] = ""
    logs = [out / f"log-{rank}.txt" for rank in range(2)]
    processes, ports = [], _free_ports(5)
    for rank, log in enumerate(logs):
        with log.open("w") as told:
            own = {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, two.__file__, str(out), *ports]
            processes.append(subprocess.Popen(command, env=own, stdout=told, stderr=told))
    try:
        statuses = [p.wait(timeout=120) for p in processes]
    finally:
        for p in processes:
            p.kill()
            p.wait()
    assert statuses == [0, 0], "".join(log.read_text() for log in logs)
    return out


def _read(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def alone(two):
    """The same by one process, which has the whole batch."""
    return two.all_gradients(World())


CASES = ["a sandwich", "the largest alone", "the last pass wider than the one before"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_one_process(done, alone, case):
    """Of every parameter, though blocks go unused in the last pass, which alone synchronises."""
    for rank in range(2):
        got, want = _read(done / f"gradients-{rank}.pt")[case], alone[case]
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
def test_a_training_by_two_is_one_by_one(done, two, tmp_path):
    """Both processes return the artifact; weights differ by rounding only."""
    want = two.trained(tmp_path)
    first, second = (_read(done / f"weights-{rank}.pt") for rank in range(2))
    for name, value in want.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_two_processes_resume_exactly(done):
    found = _read(done / "resumed-0.pt")
    for name, value in found["straight"].items():
        assert torch.equal(found["resumed"][name], value)


def test_one_process_is_left_as_it_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    module, order = torch.nn.Linear(2, 2), []
    with World().joined() as world:
        assert (world.rank, world.size) == (0, 1)
        assert world.wrap(module) is module
        with world.lead_first():
            order.append("body")
        world.barrier()
    assert order == ["body"]
    assert not torch.distributed.is_initialized()


@pytest.fixture
def no_torchrun(monkeypatch):
    """As without torchrun and without a GPU."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("why", ["one process", "torchrun"])
def test_no_helper_is_started_where_none_is_needed(no_torchrun, monkeypatch, tmp_path, why):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started a helper"))
    if why == "torchrun":
        monkeypatch.setenv("WORLD_SIZE", "2")
    before = dict(os.environ)
    with helpers(1 if why == "one process" else 2, ["train"], tmp_path):
        assert dict(os.environ) == before


def test_this_process_is_the_first_of_its_helpers(no_torchrun, tmp_path):
    before = dict(os.environ)
    with helpers(2, ["--version"], tmp_path / "run"):
        assert (World().rank, World().size) == (0, 2)
        assert os.environ["MASTER_ADDR"] == "127.0.0.1"
    assert dict(os.environ) == before
    assert (tmp_path / "run" / "process-1.log").is_file()


def _fail_beside_a_helper(tmp_path, verb, *, said, message):
    """What becomes of an error in this process once its helper has said something and is gone."""
    with helpers(2, verb, tmp_path):
        log = tmp_path / "process-1.log"
        for _ in range(300):
            time.sleep(0.1)
            if said in log.read_text():
                break
        time.sleep(0.5)
        raise RuntimeError(message)


def test_a_helper_that_dies_is_named_with_its_log(no_torchrun, tmp_path):
    words = f"training process 1 stopped: see {tmp_path / 'process-1.log'}; run the same command"
    with pytest.raises(TrainingError, match=words):
        _fail_beside_a_helper(tmp_path, ["no-such-verb"], said="invalid choice", message="closed")
    assert "WORLD_SIZE" not in os.environ


def test_an_error_of_our_own_is_not_the_helpers(no_torchrun, tmp_path):
    with pytest.raises(RuntimeError, match="our own"):
        _fail_beside_a_helper(tmp_path, ["--version"], said="todm", message="our own")

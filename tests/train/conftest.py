"""Programs beside the tests, which tests run in other processes and look into in this one."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def _load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"tests_train_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake():
    """The module with a fake backend."""
    return _load("fake_backend")


@pytest.fixture(scope="session")
def golden():
    """The module that makes golden losses."""
    return _load("golden_losses")


@pytest.fixture(scope="session")
def two():
    """The module of what two processes do."""
    return _load("two_processes")


def _free_ports(num):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(num)]
    ports = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="session")
def two_done(two, tmp_path_factory):
    """What two processes leave, as torchrun would start them."""
    out = tmp_path_factory.mktemp("two")
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    env = {**os.environ, **shared, "GLOO_SOCKET_IFNAME": loopback, "PYTHONPATH": "."}
    env["CUDA_VISIBLE_DEVICES"] = ""
    logs = [out / f"log-{rank}.txt" for rank in range(2)]
    processes, ports = [], _free_ports(11)
    for rank, log in enumerate(logs):
        with log.open("w") as handle:
            own = {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, two.__file__, str(out), *ports]
            processes.append(subprocess.Popen(command, env=own, stdout=handle, stderr=handle))
    try:
        statuses = [p.wait(timeout=300) for p in processes]
    finally:
        for p in processes:
            p.kill()
            p.wait()
    assert statuses == [0, 0], "".join(log.read_text() for log in logs)
    return out

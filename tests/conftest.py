"""For every test: one seed, one thread, no network; real speech if it is available."""

import importlib.util
import os
import random
import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HAS_TORCH = importlib.util.find_spec("torch") is not None

# Set before torch or numpy is first imported, for this process and those that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

if HAS_TORCH and not Path("/dev/nvidiactl").exists():
    # Read when a kernel is defined, and Triton's own when it is first imported, by whatever package.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if not HAS_TORCH:  # a device's environment: what it never runs is not collected
    collect_ignore = ["asr", "bench", "export", "kernels", "search", "supernet", "train"]


def pytest_report_header():
    """Says what an environment without torch leaves out."""
    return [] if HAS_TORCH else ["torch is not installed: only the tests of a device's environment"]


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` are skipped, with a reason, where there is no GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked or _has_gpu():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_gpu():
    if not HAS_TORCH:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state; returns the seed."""
    import numpy as np

    value = 20
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002 - libraries that draw from the global state
    if HAS_TORCH:
        import torch

        torch.manual_seed(value)
        torch.set_num_threads(1)
    return value


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """A connection to another machine fails; processes that a test starts are not watched."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a test must not use the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def repo():
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def debug_run(tmp_path_factory):
    """A run of which every stage was done once, by the verbs; shared by all, so only read or repeated."""
    from tests.debug_run import Run

    run = Run(tmp_path_factory.mktemp("pipeline"))
    for stage in ("prepare", "train", "extract", "export", "evaluate", "report"):
        status, out, err = getattr(run, stage)()
        assert status == 0, f"{stage}: {out}{err}"
    return run


@pytest.fixture(scope="session")
def shared_data():
    """Directory of real speech (`librispeech-mini`, `fsdd-connected`), beside the repository."""
    path = Path(os.environ.get("TODM_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real speech is not at hand: no {path} (TODM_SHARED_DATA chooses another)")
    return path

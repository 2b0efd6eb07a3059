import sys

import pytest
import torch

import todm
from tests.bench.kernels.made_up import GOOD, WORK
from todm.bench.kernels import clock, machine
from todm.bench.kernels.case import Subject


def test_calls_take_turns_on_a_cpu():
    log = []
    seconds = clock.CpuClock().rounds({n: lambda n=n: log.append(n) for n in "ab"}, 3)
    assert "".join(log) == "ababab"
    assert [len(s) for s in seconds.values()] == [3, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is set back on Linux only")
def test_peak_memory_on_a_cpu_is_of_the_call_alone():
    watch, kept = clock.CpuClock(), torch.ones(64 << 20, dtype=torch.int8)
    assert watch.peak_mb(lambda: torch.ones(32 << 20, dtype=torch.int8)) == pytest.approx(
        33.5, abs=8
    )
    assert watch.peak_mb(lambda: kept[:8].clone()) < 8


@pytest.mark.gpu
def test_a_graph_is_replayed_on_a_gpu():
    x = torch.randn(64, 64, device="cuda")
    subject = Subject(name="a", run=lambda: x @ x, check=lambda: GOOD, work=WORK, graph=True)
    found = clock.measure({"a": subject}, clock.CudaClock())["a"]
    assert found.mode == "graph"
    assert found.peak_mb == pytest.approx(64 * 64 * 4 / 1e6, rel=0.5)


@pytest.mark.gpu
def test_what_cannot_be_captured_is_timed_as_it_is():
    x = torch.randn(8, device="cuda")
    subject = Subject(
        name="a", run=lambda: x.sum().item(), check=lambda: GOOD, work=WORK, graph=True
    )
    assert clock.measure({"a": subject}, clock.CudaClock())["a"].mode == "eager"


def test_the_commit_is_that_of_the_code(monkeypatch, tmp_path):
    monkeypatch.setattr(todm, "__file__", str(tmp_path / "todm" / "__init__.py"))
    assert machine.commit() is None
